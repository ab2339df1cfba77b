"""Figures: one look for a method everywhere, the shared panels, and files that explain themselves.

`plt.style.use("editscale.paper")` sets the look (paper.mplstyle). Panels take tidy tables, one row per
method, order, direction and number of edits, and return the numbers they draw: what `save_figure` writes
beside the picture."""

import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib import rc_context

from editscale import intervals
from editscale.provenance import code_sha256, package_versions, write_json

# Colors of seaborn's "colorblind" palette; marker and dash keep methods apart in gray.
METHOD_STYLE = {
    "rome": {"color": "#0173b2", "marker": "o", "linestyle": "-"},
    "r-rome": {"color": "#de8f05", "marker": "s", "linestyle": "--"},
    "p-rome": {"color": "#029e73", "marker": "^", "linestyle": "-."},
    "memit": {"color": "#d55e00", "marker": "D", "linestyle": (0, (6, 1.5, 1, 1.5))},
    "emmet": {"color": "#cc78bc", "marker": "v", "linestyle": (0, (3, 1))},
    "alphaedit": {"color": "#56b4e9", "marker": "P", "linestyle": (0, (8, 2))},
    "rome-multi": {"color": "#ca9161", "marker": "h", "linestyle": (0, (4, 1.5, 1, 1.5, 1, 1.5))},
    "ft-c": {"color": "#949494", "marker": "X", "linestyle": ":"},
}


def run_label(method: str, order: int, reversed: bool) -> str:
    """What legends and captions call a run: its method, order and direction."""
    return f"{method}, order {order}" + (" reversed" if reversed else "")


def label_of(row) -> str:
    """`run_label` of a table's row (a Series, or one of `itertuples`) with columns method, order and reversed."""
    return run_label(row.method, row.order, row.reversed)


def stacked(tables: list[pd.DataFrame]) -> pd.DataFrame:
    """The plotted numbers of several panels as one table, rows in the order of the panels."""
    return pd.concat(tables, ignore_index=True)


def bucket_means(values: np.ndarray, size: int) -> np.ndarray:
    """Means of consecutive buckets of `size` values; an incomplete last bucket is dropped."""
    values = np.asarray(values, dtype=float)
    n_buckets = len(values) // size
    return values[: n_buckets * size].reshape(n_buckets, size).mean(axis=1)


def trailing_mean(values: np.ndarray, window: int) -> np.ndarray:
    """At each place the mean of the last `window` values up to it, of fewer at the start."""
    values = np.asarray(values, dtype=float)
    return np.array([values[max(0, i + 1 - window) : i + 1].mean() for i in range(len(values))])


def proficiency_panel(ax, rows: pd.DataFrame, metric: str, *, bucket: int = 5, window: int = 10) -> pd.DataFrame:
    """Draw how well each edit took and return the plotted numbers.

    A run is one method, order and direction: a thin line of means over `bucket` consecutive edits and a
    thick trailing mean over `window` buckets, as in the paper's figure 1 (a bucket is placed at its first
    edit, counted from 0). Several orders of a method share its style; a reversed order has open markers.

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
        if n_orders(rows, run) == 1:
            color = METHOD_STYLE[run["method"]]["color"]
            ax.plot(columns["edits"], values, color=color, linewidth=0.7, alpha=0.5, label="_bucket means")
    plotted = stacked(plotted)
    lines_panel(ax, plotted, "moving_mean", label=f"{metric} (%)")
    ax.set_ylim(-3, 103)
    return plotted


def lines_panel(ax, rows: pd.DataFrame, column: str, *, label: str, percent: bool = False) -> pd.DataFrame:
    """Draw a measurement over edits and return the plotted numbers.

    One line per run; where a method has several orders in one direction, thin lines for them, and their mean with a
    95 % bootstrap interval over orders.

    Args:
        rows: columns method, order, reversed, edits and `column`.
        label: words and unit of the vertical axis.
        percent: `column` is a share; draw it from 0 to 100.

    Returns:
        Columns method, order, reversed, edits and `column`, and the band's mean, low and high where there is one.
    """
    plotted = []
    for run, group in _runs(rows, column):
        drawn = group[[*run, "edits", column]].assign(**{column: group[column] * (100 if percent else 1)})
        style = _run_style(run) | {"markevery": _marker_places(len(drawn))}
        if n_orders(rows, run) == 1:
            ax.plot(drawn["edits"], drawn[column], **style, label=run_label(**run))
        else:
            ax.plot(drawn["edits"], drawn[column], color=style["color"], linewidth=0.6, alpha=0.5, label="_order")
        plotted.append(drawn)
    plotted = stacked(plotted)
    bands = []
    for (method, backward), group in plotted.groupby(["method", "reversed"], sort=False):
        if group["order"].nunique() > 1:
            band = intervals.band(group, column, np.random.default_rng(0))
            style = _run_style({"method": method, "reversed": backward}) | {"markevery": _marker_places(len(band))}
            text = f"{method}, {group['order'].nunique()} orders" + (" reversed" if backward else "")
            ax.plot(band["edits"], band["mean"], **style, label=text)
            ax.fill_between(band["edits"], band["low"], band["high"], color=style["color"], alpha=0.2, linewidth=0)
            bands.append(band.assign(method=method, reversed=backward))
    ax.set(xlabel="edits applied", ylabel=label)
    if percent:
        ax.set_ylim(-3, 103)
    return plotted.merge(stacked(bands), how="left") if bands else plotted


def points_panel(ax, rows: pd.DataFrame, x: str, y: str, *, label: str, other: str, joined: bool = False) -> None:
    """Draw `y` against `x`, one color and marker per method.

    Args:
        rows: column method, and order and reversed if `joined`; where a column `flagged` is true the point is ringed.
        label, other: words and unit of the two axes.
        joined: a thin line through the points of each run, in the order of its edits.
    """
    for method in _methods(rows):
        points, style = rows[rows["method"] == method], METHOD_STYLE[method]
        ax.scatter(points[x], points[y], s=26, alpha=0.8, color=style["color"], marker=style["marker"], label=method)
        if "flagged" in points and points["flagged"].any():
            ringed = points[points["flagged"]]
            ax.scatter(ringed[x], ringed[y], s=130, facecolors="none", edgecolors=style["color"], label="_flagged")
        if joined:
            for _, run in points.sort_values("edits").groupby(["order", "reversed"]):
                ax.plot(run[x], run[y], color=style["color"], linestyle=style["linestyle"], linewidth=0.6, alpha=0.6)
    ax.set(xlabel=label, ylabel=other)


def contexts_panel(ax, rows: pd.DataFrame, jump: float) -> None:
    """Draw how large single edits are under one choice of contexts after another: a line per fact.

    Args:
        rows: one method's, columns method, case_id, flagged, contexts, seed, times_ordinary
            (disabling.against_ordinary). Flagged facts are drawn in the method's color, others in gray.
        jump: where a dashed line is drawn.
    """
    (method,) = _methods(rows)
    named = rows.assign(choice=[contexts_label(*pair) for pair in zip(rows["contexts"], rows["seed"], strict=True)])
    choices = list(named["choice"].unique())
    for flagged in (False, True):
        color, width = (METHOD_STYLE[method]["color"], 1.2) if flagged else ("0.7", 0.8)
        lines = named[named["flagged"] == flagged].pivot(index="choice", columns="case_id", values="times_ordinary")
        for line in lines.reindex(choices).to_numpy().T if len(lines) else ():
            ax.plot(choices, line, color=color, linewidth=width, alpha=0.7, marker=METHOD_STYLE[method]["marker"], ms=4)
    ax.axhline(jump, linestyle="--", color="gray")
    ax.set(yscale="log", xlabel="contexts of the edit", ylabel="‖ΔW‖ over that of an ordinary fact", title=method)
    ax.margins(x=0.1)


def contexts_label(kind: str, seed: float) -> str:
    """What figures call contexts of a kind and seed (history.other_contexts)."""
    return {"run": "the run's", "seed": f"seed {seed:.0f}", "words": "other words", "bare": "bare prompt"}[kind]


def spectrum_panel(ax, rows: pd.DataFrame, unedited: pd.DataFrame) -> None:
    """Draw singular values by rank, one line per run, over the same layers' unedited ones (dotted).

    Args:
        rows: columns method, order, reversed, layer, index and singular_value, one layer and place per run.
        unedited: the same columns.
    """
    for gray, layer in zip(np.linspace(0.2, 0.7, rows["layer"].nunique()), sorted(rows["layer"].unique()), strict=True):
        before, text = unedited[unedited["layer"] == layer].drop_duplicates("index"), f"unedited, layer {layer}"
        ax.plot(before["index"] + 1, before["singular_value"], color=str(gray), linestyle=":", label=text)
    for run, group in _runs(rows, "singular_value", "index"):
        style = _run_style(run) | {"markevery": _marker_places(len(group))}
        group = group.sort_values("index")
        text = f"{run_label(**run)}, layer {group['layer'].iloc[0]}"
        ax.plot(group["index"] + 1, group["singular_value"], **style, label=text)
    ax.set(xscale="log", yscale="log", xlabel="rank (log scale)", ylabel="singular value of W (log scale)")
    ax.legend()


def survival_panel(ax, curves: pd.DataFrame) -> pd.DataFrame:
    """Draw Kaplan–Meier curves as steps with their intervals and return the plotted numbers.

    Args:
        curves: columns method, age, survival, low, high (forgetting.survival by method).

    Returns:
        Columns method, edits (the age) and survival, low and high in percent.
    """
    for method in _methods(curves):
        curve, color = curves[curves["method"] == method], METHOD_STYLE[method]["color"]
        age, (survival, low, high) = curve["age"], (100 * curve[name] for name in ("survival", "low", "high"))
        ax.step(age, survival, where="post", color=color, linestyle=METHOD_STYLE[method]["linestyle"], label=method)
        ax.fill_between(age, low, high, step="post", color=color, alpha=0.15, linewidth=0)
    ax.set(xlabel="age of the edit, in edits since its own", ylabel="facts never missed (%)", ylim=(-3, 103))
    percent = curves[["survival", "low", "high"]] * 100
    return pd.concat([curves[["method", "age"]].rename(columns={"age": "edits"}), percent], axis=1)


def histogram_panel(ax, histogram: pd.DataFrame, *, label: str) -> None:
    """Draw counts per bin as steps, one line per run.

    Args:
        histogram: columns method, order, reversed, low, high, facts (forgetting.forget_histogram); may be empty.
    """
    for run, bins in _runs(histogram.rename(columns={"low": "edits"}), "facts") if len(histogram) else ():
        style, edges = METHOD_STYLE[run["method"]], [*bins["edits"], bins["high"].iloc[-1]]
        width = 1 if run["reversed"] else 1.8
        ax.stairs(
            bins["facts"],
            edges,
            color=style["color"],
            linestyle=style["linestyle"],
            linewidth=width,
            label=run_label(**run),
        )
    ax.set(xlabel=label, ylabel="facts")
    ax.yaxis.get_major_locator().set_params(integer=True)


def mark_regions(ax, regions: pd.DataFrame, inflections: pd.DataFrame) -> None:
    """Shade catastrophic stretches in their method's color, and mark inflections with their interval at the bottom.

    Args:
        regions: columns method, label, start, stop (forgetting.regions).
        inflections: columns method, found, inflection, low, high (forgetting.inflections).
    """
    for row in regions[regions["label"] == "catastrophic"].itertuples():
        ax.axvspan(row.start, row.stop, color=METHOD_STYLE[row.method]["color"], alpha=0.12, linewidth=0)
    for place, row in enumerate(inflections[inflections["found"].isin(["bend", "jump"])].itertuples()):
        color, height = METHOD_STYLE[row.method]["color"], 1 + 3 * place
        ax.plot(
            [row.low, row.high], [height, height], color=color, linewidth=2.5, solid_capstyle="butt", label="_interval"
        )
        ax.plot(row.inflection, height, color=color, marker="|", markersize=10, label="_inflection")


def n_orders(rows: pd.DataFrame, run: dict) -> int:
    """How many orders the table holds of a run's method in its direction."""
    return rows.loc[(rows["method"] == run["method"]) & (rows["reversed"] == run["reversed"]), "order"].nunique()


def orders_note(rows: pd.DataFrame) -> str:
    """What a caption says about bands: over how many orders they are, or that there is none."""
    counts = rows.groupby(["method", "reversed"])["order"].nunique()
    several = [f"{count} orders of {method}" for (method, _), count in counts.items() if count > 1]
    if not several:
        return "Single orders, so no band."
    return f"Bands are 95 % bootstrap intervals over {' and '.join(several)}, thin lines single orders."


def legend_below(fig, ax) -> None:
    """One legend for all panels, under them, with the entries of `ax`."""
    handles, labels = ax.get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)))


def drift_panel(ax, rows: pd.DataFrame, column: str = "normalised_l2", *, label: str) -> pd.DataFrame:
    """Draw how far weights have moved over edits and return the plotted numbers.

    One line per method, order, direction and edited layer; the layers of one run share its style and its
    entry in the legend.

    Args:
        rows: columns method, order, reversed, edits, layer and `column` (drift.of_ledger).
        label: words and unit of the vertical axis.
    """
    plotted = []
    for run, group in _runs(rows, column, "layer"):
        layers = sorted(set(group["layer"]))
        for layer in layers:
            line = group[group["layer"] == layer]
            many = f", {len(layers)} layers" if len(layers) > 1 else ""
            text = run_label(**run) + many if layer == layers[0] else "_other layers"
            style = _run_style(run) | {"markevery": _marker_places(len(line))}
            ax.plot(line["edits"], line[column], **style, label=text)
            plotted.append(line[[*run, "layer", "edits", column]])
    ax.set(xlabel="edits applied", ylabel=label)
    ax.set_ylim(bottom=0)
    return stacked(plotted)


def save_figure(fig, name: str, data: pd.DataFrame, folder: str | Path, *, caption: str, details: dict) -> list[Path]:
    """Write `name`.svg, .pdf, .png, the plotted numbers as .csv and their origin as .json into `folder`.

    The same inputs give the same bytes: nothing written depends on the time, the machine or the commit; the
    code is identified by its hash. All three pictures carry caption and origin in their metadata.

    Args:
        data: the plotted numbers, one row per point.
        caption: the finding, with computed numbers.
        details: JSON-able facts that produced the figure: parameters, model, data, scale, number of orders.

    Returns:
        The five paths, to be listed in `provenance.finish`.
    """
    if data.empty:
        raise ValueError(f"figure {name} has no plotted numbers to save")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    code = {"code_sha256": code_sha256(), "packages": package_versions()}
    origin = {"figure": name, "caption": caption, **details, **code}
    text = json.dumps(origin, ensure_ascii=False)
    metadata = {
        "svg": {"Title": name, "Description": caption, "Source": text, "Date": None},
        "pdf": {"Title": name, "Subject": caption, "Keywords": text, "CreationDate": None},
        "png": {"Title": name, "Description": caption, "Source": text},
    }
    paths = []
    with rc_context({"svg.hashsalt": "editscale", "pdf.fonttype": 42}):
        for kind, facts in metadata.items():
            part = folder / f".{name}.part"
            fig.savefig(part, format=kind, metadata=facts)
            paths.append(_put(part, folder / f"{name}.{kind}"))
    part = folder / f".{name}.part"
    data.to_csv(part, index=False, lineterminator="\n")
    paths.append(_put(part, folder / f"{name}.csv"))
    return [*paths, write_json(folder / f"{name}.json", origin)]


def _put(part: Path, path: Path) -> Path:
    os.replace(part, path)
    return path


def _runs(rows: pd.DataFrame, column: str, *keys: str):
    """(run, its rows by edits) for each method in the order of METHOD_STYLE, forward before reversed.

    Within a run, `edits` and `keys` name a row."""
    missing = [name for name in ("method", "order", "reversed", "edits", *keys, column) if name not in rows]
    if missing:
        raise ValueError(f"the table lacks {', '.join(missing)}; it has {', '.join(rows.columns)}")
    for method in _methods(rows):
        for (backward, order), group in rows[rows["method"] == method].groupby(["reversed", "order"]):
            if group.duplicated(["edits", *keys]).any():
                raise ValueError(f"{method}, order {order}: several rows for one number of edits")
            yield {"method": method, "order": order, "reversed": backward}, group.sort_values("edits")


def _methods(rows: pd.DataFrame) -> list[str]:
    """The methods of a table in the order of METHOD_STYLE."""
    unknown = sorted(set(rows["method"]) - set(METHOD_STYLE))
    if unknown:
        raise ValueError(f"no style for {', '.join(unknown)}; give it one in figures.METHOD_STYLE")
    return [name for name in METHOD_STYLE if name in set(rows["method"])]


def _run_style(run: dict) -> dict:
    style = METHOD_STYLE[run["method"]]
    return style | {"markerfacecolor": "white"} if run["reversed"] else style


def _marker_places(n_points: int) -> int:
    return max(1, n_points // 10)
