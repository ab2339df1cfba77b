"""Panels of figure 2: single orders, the hazard of forgetting, recall around the collapse, and which facts go first."""

import numpy as np
import pandas as pd

from editscale.analysis import hazard
from editscale.analysis.rows import groups, rows_of
from editscale.columns import RUN
from editscale.plots import panels
from editscale.plots.style import method_style, methods_of


def single_orders(ax, recall, places, stretches):
    """Recall of one method's forward orders: a thin line each, bold in catastrophic stretches, with a tick where the
    model collapses.

    Args:
        recall: of one method, see `forgetting.recall_curve`.
        places: see `collapse.where`, of the same runs.
        stretches: see `hazard.stretches`.

    Returns:
        method, order, reversed, edits, recall in percent; collapse.
    """
    curves = rows_of(recall, reversed=False).merge(places[[*RUN, "collapse"]], on=list(RUN), how="left")
    curves = curves.sort_values(["order", "edits"]).assign(recall=100 * curves["recall"])
    width = 0.8 if curves["order"].nunique() > 1 else 1.5
    bold, tick = {"linewidth": 2 + width, "solid_capstyle": "butt"}, {"color": "black", "marker": "|", "zorder": 3}
    for run, own in groups(curves):
        edits, color, at = own["edits"], method_style(run["method"])["color"], own["collapse"].iloc[0]
        ax.plot(edits, own["recall"], color=color, linewidth=width, alpha=0.6)
        for sudden in rows_of(stretches, **run, label="catastrophic").itertuples():
            inside = edits.between(sudden.start, sudden.stop)
            ax.plot(edits[inside], own["recall"][inside], color=color, **bold)
        if at <= edits.max():
            ax.plot(at, np.interp(at, edits, own["recall"]), **tick, markersize=10, markeredgewidth=1.5)
    place = {"ha": "right", "va": "top", "transform": ax.transAxes, "fontsize": "small"}
    if len(ax.lines) > curves["order"].nunique():
        ax.text(0.99, 0.98, "bold: catastrophic stretches\ntick: the model's collapse", **place)
    ax.set(xlabel="edits applied", ylabel="learned facts recalled (%)", ylim=(-3, 103))
    return curves[[*RUN, "edits", "recall", "collapse"]]


def hazards(ax, losses, *, catastrophic=hazard.CATASTROPHIC):
    """The hazard of forward runs over edits, as `panels.lines`.

    Args:
        losses: see `hazard.losses`.
        catastrophic: where a dashed line is drawn.

    Returns:
        what `panels.lines` does: method, order, reversed, edits, hazard in percent, ….
    """
    found = hazard.over_edits(rows_of(losses, reversed=False))
    drawn = found
    if len(found):
        drawn = panels.lines(ax, found, "hazard", label="", percent=True, single=False)
    ax.axhline(100 * catastrophic, linestyle="--", color="gray", linewidth=1)
    place = {"va": "bottom", "transform": ax.get_yaxis_transform()}
    ax.text(0.01, 100 * catastrophic + 1, "catastrophic above", fontsize="small", color="gray", **place)
    ax.set(xlabel="edits applied", ylabel="recalled facts lost in 20 edits (%)", xlim=(0, None), ylim=(-3, 103))
    return drawn


def around(recall, places, *, reach=100, step=20):
    """Recall of forward runs by edits since the collapse, of those asked from `reach` before it to `reach` after it.

    Args:
        recall: see `forgetting.recall_curve`; recall is undefined where nothing was learned.
        places: see `collapse.where`, of the same runs.

    Returns:
        method, order, reversed, edits: since the collapse, rounded to `step`; recall: mean of the checkpoints there.
    """
    table = rows_of(recall, reversed=False).dropna(subset="recall").merge(places[[*RUN, "collapse"]], on=list(RUN))
    table = table[np.isfinite(table["collapse"])]
    since = step * np.floor((table["edits"] - table["collapse"]) / step + 0.5)
    table = table.assign(edits=since.astype(int))[since.abs() <= reach]
    table = table.groupby([*RUN, "edits"], as_index=False, sort=False)["recall"].mean()
    ends = table.groupby(list(RUN))["edits"].agg(["min", "max"])
    whole = ends.index[(ends["min"] == -reach) & (ends["max"] == reach)]
    return table[pd.MultiIndex.from_frame(table[list(RUN)]).isin(whole)]


def collapses(ax, aligned):
    """Recall around the collapse, as `panels.lines`, or words that no run has one with edits enough before and after.

    Args:
        aligned: see `around`.
    """
    drawn = aligned.assign(recall=100 * aligned["recall"])
    if len(aligned):
        drawn = panels.lines(ax, aligned, "recall", label="", percent=True, single=False)
        ax.axvline(0, linestyle="--", color="gray", linewidth=1)
    else:
        words = "no collapse with 100 edits\nbefore and after it"
        ax.text(0.5, 0.5, words, ha="center", va="center", transform=ax.transAxes)
        ax.set_xticks([])
    ax.set(xlabel="edits since the model's collapse", ylabel="learned facts recalled (%)", ylim=(-3, 103))
    return drawn


def signs(ax, found, labels):
    """What tells a fact lost from one kept: a row per covariate, in it each method's AUROC with its interval.

    Args:
        found: intervals of `going_first.auroc` (`intervals.by_group`): method, measure, mean, low, high, ….
        labels: measure ↦ what its row is called, from above to below; measures without a value have no row.

    Returns:
        method, measure, mean, low, high, n: the rows drawn.
    """
    drawn = found.dropna(subset="mean")
    rows, methods = [name for name in labels if name in set(drawn["measure"])], methods_of(drawn)
    places = dict(zip(methods, np.linspace(-0.3, 0.3, len(methods)) if len(methods) > 1 else [0.0], strict=True))
    for method, own in drawn.groupby("method", sort=False):
        y = own["measure"].map(rows.index) + places[method]
        look = {name: method_style(method)[name] for name in ("color", "marker")}
        ax.hlines(y, own["low"], own["high"], color=look["color"], linewidth=1.8)
        ax.plot(own["mean"], y, linestyle="none", markersize=5, label=method, **look)
    ax.axvline(0.5, linestyle="--", color="gray", linewidth=1)
    ax.set_yticks(range(len(rows)), [labels[name] for name in rows])
    ax.tick_params(axis="y", length=0)
    ax.locator_params(axis="x", nbins=5)
    ax.set(xlabel="AUROC, facts lost against kept\n← lower first      higher first →", ylim=(len(rows) - 0.5, -0.5))
    return drawn[["method", "measure", "mean", "low", "high", "n"]]
