"""The panels of figure 4d: what changes of the weights as large as those of edits lose."""

import numpy as np

from editscale.analysis.distance import CHANGES
from editscale.plots.style import method_style, methods_of


def changes(ax, rows, column, *, label, factor=1):
    """What each kind of change loses, a line per method through the means of its orders; dots are single orders.

    Args:
        rows: see `distance.as_large`. column: "lost" or "rise", drawn times `factor`.
    """
    kinds = [kind for kind in CHANGES if kind in set(rows["change"])]
    rows = rows.assign(value=factor * rows[column], place=rows["change"].map(kinds.index)).dropna(subset=["value"])
    methods = methods_of(rows)
    for i, method in enumerate(methods):
        own, look = rows[rows["method"] == method], method_style(method)
        means = own.groupby("place")["value"].mean().reindex(range(len(kinds)))  # a line stops at a kind it has not
        aside = 0.05 * (i - (len(methods) - 1) / 2)
        ax.plot(means.index + aside, means, **look, markersize=6, label=method)
        ax.plot(own["place"] + aside, own["value"], ".", color=look["color"], alpha=0.5, markersize=5, label="_one")
    ax.set_xticks(np.arange(len(kinds)), [CHANGES[kind] for kind in kinds], fontsize="small")
    ax.set(ylabel=label, xlim=(-0.4, len(kinds) - 0.6))
    return rows[["method", "order", "reversed", "since", "edits", "change", "n_before", column]]
