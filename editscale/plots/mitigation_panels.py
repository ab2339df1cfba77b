"""Panels of figure 8, methods against forgetting: each draws a table and returns the plotted numbers."""

import matplotlib.pyplot as plt
import numpy as np

from editscale.analysis.mitigations import IN_ONE_STEP
from editscale.plots.style import log_ticks, marker_places, method_style, methods_of

BASELINE = {"color": "0.35", "linestyle": "--", "linewidth": 1}


NAME, PANEL, ROW = 1.5, 1.25, 0.21  # inches for the names of methods, for a panel, for a row


def side_by_side(n_rows, n_panels):
    """A figure of panels that share their rows, high enough for these: (figure, axes)."""
    size = round(NAME + PANEL * n_panels, 3), round(0.9 + ROW * n_rows, 3)
    fig, axes = plt.subplots(1, n_panels, figsize=size, squeeze=False)
    return fig, list(axes.flat)


def sorted_by(kept, column):
    """Methods of a table by the mean of a column over forward runs, largest first."""
    means = kept[~kept["reversed"]].groupby("method", sort=False)[column].mean()
    return list(means.sort_values(ascending=False, kind="stable").index)


def rows(ax, kept, column, methods, *, label, scale=1.0, log=False, unedited=None, named=False):
    """A row per method: a dot for each forward order, and a bar at their mean, on a log axis the geometric one.

    Args:
        kept: of `mitigations.kept`.
        methods: rows from the top.
        label: words and unit of the axis.
        scale: factor of the column.
        log: draw on a log axis; infinite values then stand beyond its largest one, as open triangles.
        unedited: where a dashed line marks the unedited model, in units of the axis.
        named: write the methods' names at the left.
    """
    forward = kept[~kept["reversed"] & kept["method"].isin(methods)].dropna(subset=column)
    values = scale * forward[column]
    end = 4 * values[np.isfinite(values)].max()
    for row, method in enumerate(methods):
        of, style = values[forward["method"] == method], method_style(method)
        finite = of[np.isfinite(of)]
        mean = np.exp(np.log(finite).mean()) if log else finite.mean()
        ax.plot(mean, row, marker="|", markersize=11, markeredgewidth=2, color=style["color"])
        ax.scatter(finite, [row] * len(finite), color=style["color"], marker=style["marker"], s=20, alpha=0.8, zorder=3)
        if beyond := len(of) - len(finite):
            ax.scatter([end] * beyond, [row] * beyond, marker=">", facecolors="white", edgecolors=style["color"], s=26)
    if unedited is not None:
        ax.axvline(unedited, **BASELINE)
    ax.set_yticks(range(len(methods)), methods if named else [""] * len(methods))
    ax.set(xlabel=label, ylim=(len(methods) - 0.4, -0.6), xscale="log" if log else "linear")
    if log:
        log_ticks(ax.xaxis)
        ticks = ax.get_xticks()
        ax.set_xticks(ticks[:: -(-len(ticks) // 3)])
    return forward[["method", "order", column]].assign(**{column: values})


def overlap_rows(ax, overlap, methods):
    """Overlap with earlier keys, a row per method: the median over edits, and a bar over the middle half of them.

    Args:
        overlap: of `mitigations.read_overlap`.
        methods: rows from the top.
    """
    spread = overlap.groupby("method")["overlap"].quantile([0.25, 0.5, 0.75]).unstack()
    for row, method in enumerate(methods):
        low, middle, high = spread.loc[method]
        style = method_style(method)
        ax.plot([low, high], [row, row], color=style["color"], linewidth=5, alpha=0.3)
        ax.plot(middle, row, color=style["color"], marker=style["marker"])
    ax.set_yticks(range(len(methods)), methods)
    ax.set(xlabel="overlap with earlier keys (log scale)", ylim=(len(methods) - 0.4, -0.6), xscale="log")
    log_ticks(ax.xaxis)
    shown = spread.loc[methods].set_axis(["low", "overlap", "high"], axis=1)
    return shown.reset_index()


def overlap_lines(ax, overlap, *, window=20):
    """Overlap along a sequence, a line per method: the median of the last `window` edits, on a log axis.

    Args:
        overlap: columns method, edits, overlap (`columns.OVERLAP`).
    """
    drawn = overlap.dropna(subset="overlap").sort_values(["method", "edits"])
    smooth = drawn.groupby("method")["overlap"].rolling(window, min_periods=1).median().droplevel(0)
    drawn = drawn[["method", "edits"]].assign(overlap=smooth)
    for method in methods_of(drawn):
        of = drawn[drawn["method"] == method]
        ax.plot(of["edits"], of["overlap"], **method_style(method), markevery=marker_places(len(of)), label=method)
    ax.set(xlabel="place of the edit in its sequence", ylabel="overlap with earlier keys (log scale)", yscale="log")
    log_ticks(ax.yaxis)
    return drawn


def shares(ax, table):
    """How much of the squared products of pairs goes with the first principal directions of keys, whitened and raw.

    Args:
        table: of `overlap.share_table`; its row of direction 0, the mean key alone, is a cross at the left.
    """
    looks = {"whitened": {"color": "black", "linestyle": "-"}, "raw": {"color": "0.55", "linestyle": "--"}}
    for way, of in table.groupby("keys", sort=False):
        mean, along = of[of["directions"] == 0], of[of["directions"] > 0]
        ax.plot(along["directions"], 100 * along["share"], **looks[way], label=f"{way} keys")
        ax.plot([0], 100 * mean["share"], color=looks[way]["color"], marker="x", linestyle="none", label="_mean key")
    ax.set(xlabel="first principal directions (×: the mean key alone)", ylabel="squared products gone without them (%)")
    ax.set_ylim(top=103)
    ax.legend()
    return table.assign(share=100 * table["share"])


def steps(ax, table):
    """Recall of all facts at the end by the facts of a step, a line per method and a dot per order.

    Args:
        table: of `mitigations.steps`.
    """
    return _over_facts(ax, table, "facts_per_step", "facts edited in one step (log scale)")


def growing(ax, table):
    """Recall of all facts by how many there are, a line per way of editing them and a dot per order.

    Args:
        table: of `mitigations.growing`.
    """
    return _over_facts(ax, table, "facts", "facts edited (log scale)")


def _over_facts(ax, table, column, label):
    plain = {"color": "black", "marker": "s", "linestyle": ":"}  # of no method, but of a way
    for method in [*methods_of(table[table["method"] != IN_ONE_STEP]), *{IN_ONE_STEP}.intersection(table["method"])]:
        of, style = table[table["method"] == method], plain if method == IN_ONE_STEP else method_style(method)
        means = 100 * of.groupby(column)["recall_all"].mean()
        look = {"color": style["color"], "marker": style["marker"]}
        ax.scatter(of[column], 100 * of["recall_all"], **look, s=14, alpha=0.5)
        ax.plot(means.index, means, **style, label=method)
    ax.set(xlabel=label, ylabel="all facts recalled at the end (%)", ylim=(-3, 103), xscale="log")
    log_ticks(ax.xaxis)
    return table.assign(recall_all=100 * table["recall_all"])
