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

from editscale.provenance import code_sha256, package_versions, write_json

# Colors of seaborn's "colorblind" palette; marker and dash keep methods apart in gray.
METHOD_STYLE = {
    "rome": {"color": "#0173b2", "marker": "o", "linestyle": "-"},
    "r-rome": {"color": "#de8f05", "marker": "s", "linestyle": "--"},
    "p-rome": {"color": "#029e73", "marker": "^", "linestyle": "-."},
    "memit": {"color": "#d55e00", "marker": "D", "linestyle": (0, (6, 1.5, 1, 1.5))},
    "emmet": {"color": "#cc78bc", "marker": "v", "linestyle": (0, (3, 1))},
    "alphaedit": {"color": "#56b4e9", "marker": "P", "linestyle": (0, (8, 2))},
    "ft-c": {"color": "#949494", "marker": "X", "linestyle": ":"},
}


def run_label(method: str, order: int, reversed: bool) -> str:
    """What legends and captions call a run: its method, order and direction."""
    return f"{method}, order {order}" + (" reversed" if reversed else "")


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
        edits, moving = bucket * np.arange(len(values)), trailing_mean(values, window)
        style = _run_style(run)
        ax.plot(edits, values, color=style["color"], linewidth=0.7, alpha=0.5, label="_bucket means")
        ax.plot(edits, moving, **style, markevery=_marker_places(len(edits)), label=run_label(**run))
        columns = {"metric": metric, "edits": edits, "bucket_mean": values, "moving_mean": moving}
        plotted.append(pd.DataFrame({**run, **columns}))
    ax.set(xlabel="edits applied", ylabel=f"{metric} (%)", ylim=(-3, 103))
    return stacked(plotted)


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
    unknown = sorted(set(rows["method"]) - set(METHOD_STYLE))
    if unknown:
        raise ValueError(f"no style for {', '.join(unknown)}; give it one in figures.METHOD_STYLE")
    for method in (name for name in METHOD_STYLE if name in set(rows["method"])):
        for (backward, order), group in rows[rows["method"] == method].groupby(["reversed", "order"]):
            if group.duplicated(["edits", *keys]).any():
                raise ValueError(f"{method}, order {order}: several rows for one number of edits")
            yield {"method": method, "order": order, "reversed": backward}, group.sort_values("edits")


def _run_style(run: dict) -> dict:
    style = METHOD_STYLE[run["method"]]
    return style | {"markerfacecolor": "white"} if run["reversed"] else style


def _marker_places(n_points: int) -> int:
    return max(1, n_points // 10)
