"""Panels: each draws a tidy table, one row per method, order, direction and number of edits, and returns the numbers
it draws, which `Record.figure` writes beside the picture."""

import numpy as np
import pandas as pd

from editscale.analysis import intervals, task_loss
from editscale.analysis.rows import groups, require
from editscale.columns import RUN
from editscale.plots.style import (
    MOST_POINTS,
    any_several,
    marker_places,
    method_style,
    methods_of,
    n_orders,
    orders_label,
    run_label,
    run_style,
    stacked,
    thinned,
)


def bucket_means(values: np.ndarray, size: int) -> np.ndarray:
    """Means of consecutive buckets of `size` values; an incomplete last bucket is dropped.

    NaN, of facts without a true object, is left out; a bucket of nothing else has none.
    """
    values = np.asarray(values, dtype=float)
    n_buckets = len(values) // size
    return _mean(values[: n_buckets * size].reshape(n_buckets, size))


def _mean(values: np.ndarray) -> np.ndarray:
    """Means along the last axis of what is not NaN."""
    with np.errstate(invalid="ignore"):
        return np.nansum(values, axis=-1) / (~np.isnan(values)).sum(axis=-1)


def trailing_mean(values: np.ndarray, window: int) -> np.ndarray:
    """At each place the mean of the last `window` values up to it, of fewer at the start; NaN is left out."""
    values = np.asarray(values, dtype=float)
    return np.array([_mean(values[max(0, i + 1 - window) : i + 1]) for i in range(len(values))])


def proficiency(ax, rows: pd.DataFrame, metric: str, *, bucket: int = 5, window: int = 10) -> pd.DataFrame:
    """Draw how well each edit took and return the plotted numbers.

    A run is one method, order and direction: a thin line of means over `bucket` consecutive edits and a
    thick trailing mean over `window` buckets, as in the paper's figure 1 (a bucket is placed at its first
    edit, counted from 0). Where a method has several orders, there are `lines` of the trailing means only.

    Args:
        rows: columns method, order, reversed, edits (1 for the first edit) and `metric` (0 to 1).
        metric: a score of each edit right after it: efficacy, paraphrase or neighborhood.

    Returns:
        Columns method, order, reversed, metric, edits (bucket start), bucket_mean and moving_mean in percent.
    """
    plotted = []
    for run, group in _runs(rows, metric):
        values = 100 * bucket_means(group[metric].to_numpy(), bucket)
        if not len(values):
            raise ValueError(f"{run_label(**run)} has {len(group)} edits, fewer than one bucket of {bucket}")
        columns = {"metric": metric, "edits": bucket * np.arange(len(values)), "bucket_mean": values}
        plotted.append(pd.DataFrame({**run, **columns, "moving_mean": trailing_mean(values, window)}))
        if not any_several(rows):
            color = method_style(run["method"])["color"]
            ax.plot(columns["edits"], values, color=color, linewidth=0.7, alpha=0.5, label="_bucket means")
    plotted = stacked(plotted)
    lines(ax, plotted, "moving_mean", label=f"{metric} (%)", single=False)
    ax.set_ylim(-3, 103)
    return plotted


def lines(
    ax, rows: pd.DataFrame, column: str, *, label: str, percent: bool = False, statistic=np.mean, single: bool = True
) -> pd.DataFrame:
    """Draw a measurement over edits and return the plotted numbers.

    One line per run; where a method has several orders in one direction, their mean (or other statistic) with a 95 %
    interval over orders, and thin lines for them.

    Args:
        rows: columns method, order, reversed, edits and `column`.
        label: words and unit of the vertical axis.
        percent: `column` is a share; draw it from 0 to 100.
        statistic: of several orders; the median where single ones may be infinite (`intervals.band`).
        single: draw the thin lines; without them where orders differ by noise alone, which they would hide the mean in.

    Returns:
        Columns method, order, reversed, edits and `column`, and the band's mean, low and high where there is one.
    """
    plotted = []
    for run, group in _runs(rows, column):
        drawn = group[[*run, "edits", column]].assign(**{column: group[column] * (100 if percent else 1)})
        style = run_style(run) | {"markevery": marker_places(len(drawn))}
        if n_orders(rows, run) == 1:
            ax.plot(drawn["edits"], drawn[column], **style, label=run_label(**run))
        elif single:
            ax.plot(drawn["edits"], drawn[column], color=style["color"], linewidth=0.5, alpha=0.35, label="_order")
        plotted.append(drawn)
    plotted = stacked(plotted)
    bands = []
    for (method, backward), group in plotted.groupby(["method", "reversed"], sort=False):
        if group["order"].nunique() > 1:
            band = intervals.band(group, column, statistic=statistic)
            style = run_style({"method": method, "reversed": backward}) | {"markevery": marker_places(len(band))}
            text = orders_label(method, group["order"].nunique(), backward)
            ax.plot(band["edits"], band["mean"], **style, label=text)
            ax.fill_between(band["edits"], band["low"], band["high"], color=style["color"], alpha=0.2, linewidth=0)
            bands.append(band.assign(method=method, reversed=backward))
    ax.set(xlabel="edits applied", ylabel=label)
    ax.xaxis.get_major_locator().set_params(integer=True)
    if percent:
        ax.set_ylim(-3, 103)
    return plotted.merge(stacked(bands), how="left") if bands else plotted


def task(ax, rows: pd.DataFrame) -> pd.DataFrame:
    """Draw the weighted F1 of a task over edits as `lines`, with that of a coin (dotted) and of a constant answer.

    Args:
        rows: one task's, columns method, order, reversed, edits, task, f1 and n_examples; see `task_loss.to_beat`.
    """
    name, n_examples = rows[["task", "n_examples"]].iloc[0]
    plotted = lines(ax, rows, "f1", label="weighted F1 (%)", percent=True, single=False)
    for f1, look, text in zip(task_loss.to_beat(rows), (":", "--"), ("chance", "constant answer"), strict=True):
        score = 100 * f1
        ax.axhline(score, linestyle=look, color="gray")
        place = {"ha": "right", "transform": ax.get_yaxis_transform()}
        ax.text(0.99, score + 1, text, fontsize=7, color="gray", **place)
    ax.set_title(f"{name} ({n_examples} examples)")
    return plotted.assign(task=name)


def likelihood(ax, rows: pd.DataFrame) -> pd.DataFrame:
    """Draw what a task, or set of choices, shows by likelihood over edits as `lines`, with chance (dotted).

    Args:
        rows: one task's of `task_loss.by_likelihood`.
    """
    of = rows.iloc[0]
    words = {"area": "area under ROC, answer words (%)", "right": "right, by likelihood (%)"}[of["score"]]
    plotted = lines(ax, rows, "share", label=words, percent=True, single=False)
    ax.axhline(100 * of["chance"], linestyle=":", color="gray")
    ax.set_title(f"{of['task']}, by likelihood")
    return plotted.assign(task=of["task"], score=of["score"])


def name_lines(ax, *, apart: float = 0.08) -> None:
    """Write the method of each line beside its end instead of a legend, names at least `apart` of the axis' height."""
    low, high = ax.get_ylim()
    place, named = -np.inf, zip(*ax.get_legend_handles_labels(), strict=True)
    for line, label in sorted(named, key=lambda pair: pair[0].get_ydata()[-1]):
        place = max(line.get_ydata()[-1], place + apart * (high - low))
        words = {"xytext": (6, 0), "textcoords": "offset points", "va": "center", "color": line.get_color()}
        ax.annotate(label.split(",")[0], (line.get_xdata()[-1], place), **words, annotation_clip=False)


def points(ax, rows: pd.DataFrame, x: str, y: str, *, label: str, other: str, joined: bool = False) -> None:
    """Draw `y` against `x`, one color and marker per method.

    Args:
        rows: column method, and order and reversed if `joined`.
        label, other: words and unit of the two axes.
        joined: a thin line through the points of each run, in the order of its edits.

    More than MOST_POINTS points are small and lighter.
    """
    full, few = {"s": 26, "alpha": 0.8}, len(rows) <= MOST_POINTS
    dots = full if few else {"s": 7, "alpha": 0.4, "linewidths": 0}
    for method in methods_of(rows):
        of, style = rows[rows["method"] == method], method_style(method)
        look = {"color": style["color"], "marker": style["marker"]}
        ax.scatter(of[x], of[y], **look, **dots, label=method if few else "_points")
        if not few:
            ax.scatter([], [], **look, **full, label=method)
        if joined:
            for _, run in of.sort_values("edits").groupby(["order", "reversed"]):
                line = {"color": style["color"], "linestyle": style["linestyle"], "linewidth": 0.6}
                ax.plot(run[x], run[y], **line, alpha=0.75 * dots["alpha"])
    ax.set(xlabel=label, ylabel=other)


def spectrum(ax, rows: pd.DataFrame, unedited: pd.DataFrame) -> None:
    """Draw singular values by rank, one line per run, over the same layers' unedited ones (dotted).

    Args:
        rows: columns method, order, reversed, layer, index and singular_value, one layer and place per run.
        unedited: the same columns.
    """
    for gray, layer in zip(np.linspace(0.2, 0.7, rows["layer"].nunique()), sorted(rows["layer"].unique()), strict=True):
        before, text = unedited[unedited["layer"] == layer].drop_duplicates("index"), f"unedited, layer {layer}"
        ax.plot(before["index"] + 1, before["singular_value"], color=str(gray), linestyle=":", label=text)
    for run, group in _runs(rows, "singular_value", "index"):
        style = run_style(run) | {"markevery": marker_places(len(group))}
        group = group.sort_values("index")
        text = f"{run_label(**run)}, layer {group['layer'].iloc[0]}"
        ax.plot(group["index"] + 1, group["singular_value"], **style, label=text)
    ax.set(xscale="log", yscale="log", xlabel="rank (log scale)", ylabel="singular value of W (log scale)")
    ax.legend()


def drift(ax, rows: pd.DataFrame, column: str = "normalised_l2", *, label: str) -> pd.DataFrame:
    """Draw how far weights have moved over edits and return the plotted numbers.

    One line per method, order, direction and edited layer; the layers of one run share its style and its
    entry in the legend. Where a method has several orders, the layer of each run that has moved most after as many
    edits, drawn as `lines` does with the median over orders, on a log axis.

    Args:
        rows: columns method, order, reversed, edits, layer and `column` (drift.of_ledger).
        label: words and unit of the vertical axis.
    """
    if any_several(rows):
        most = rows.groupby([*RUN, "edits"], as_index=False, sort=False)[column].max()
        plotted = lines(ax, thinned(most), column, label=label, statistic=np.median)  # one order's collapse is a mean's
        ax.set_yscale("log")
        return plotted
    plotted = []
    for run, group in _runs(rows, column, "layer"):
        layers = sorted(set(group["layer"]))
        for layer in layers:
            line = group[group["layer"] == layer]
            many = f", {len(layers)} layers" if len(layers) > 1 else ""
            text = run_label(**run) + many if layer == layers[0] else "_other layers"
            style = run_style(run) | {"markevery": marker_places(len(line))}
            ax.plot(line["edits"], line[column], **style, label=text)
            plotted.append(line[[*run, "layer", "edits", column]])
    ax.set(xlabel="edits applied", ylabel=label)
    ax.set_ylim(bottom=0)
    return stacked(plotted)


def updates(ax, rows: pd.DataFrame, *, window: int = 0) -> pd.DataFrame:
    """Draw the size of each update on a log axis and return the plotted numbers.

    Single orders: one line per edited layer, as `drift`. Several orders of a method: the median over orders and
    over `window` edits in a row, of the layer with the largest updates, and a dot for each update with `jump` true:
    filled where its model had not collapsed.

    Args:
        rows: columns method, order, reversed, layer, edits, update_norm, jump and sound (bool).
        window: 0 for a twentieth of the edits, at most 20.

    Returns:
        Several orders: method, order (empty for the median line), reversed, edits, update_norm, sound.
    """
    if not any_several(rows):
        plotted = drift(ax, rows, "update_norm", label="norm of each update ‖ΔW‖ (log scale)")
        ax.set_yscale("log")
        ax.autoscale(axis="y")
        return plotted
    plotted, window = [], window or min(20, max(1, rows["edits"].max() // 20))
    for method in methods_of(rows):
        for backward, group in rows[rows["method"] == method].groupby("reversed"):
            style = run_style({"method": method, "reversed": backward})
            first = group["edits"] - (group["edits"] - 1) % window
            typical = group.groupby(["layer", first])["update_norm"].median()
            line = typical.groupby("edits").max().reset_index()
            dots = group[group["jump"]]
            text = orders_label(method, group["order"].nunique(), backward)
            ax.plot(line["edits"], line["update_norm"], **style | {"markevery": marker_places(len(line))}, label=text)
            dot = {"marker": style["marker"], "edgecolors": style["color"], "s": 14, "label": "_jumps"}
            for part, face, width in ((dots[dots["sound"]], style["color"], 0), (dots[~dots["sound"]], "none", 0.5)):
                ax.scatter(part["edits"], part["update_norm"], facecolors=face, linewidths=width, **dot)
            both = pd.concat([line, dots[["order", "edits", "update_norm", "sound"]]])
            plotted.append(both.assign(method=method, reversed=backward))
    ax.set(xlabel="edits applied", ylabel="norm of updates ‖ΔW‖ (log scale)", yscale="log")
    return stacked(plotted)[[*RUN, "edits", "update_norm", "sound"]]


def _runs(rows: pd.DataFrame, column: str, *keys: str):
    """(run, its rows by edits) for each method in the order of `methods_of`, forward before reversed.

    Within a run, `edits` and `keys` name a row."""
    require(rows, (*RUN, "edits", *keys, column), "what is drawn")
    place = {method: i for i, method in enumerate(methods_of(rows))}
    by = [rows["edits"], rows["order"], rows["reversed"], rows["method"].map(place)]
    for run, group in groups(rows.iloc[np.lexsort(by)]):
        if group.duplicated(["edits", *keys]).any():
            raise ValueError(f"{run['method']}, order {run['order']}: several rows for one number of edits")
        yield run, group
