"""One look for a method everywhere, and what figures share: labels, ticks, legends, grids, notes on bands.

`plt.style.use("editscale.paper")` sets the rest of the look (paper.mplstyle)."""

import hashlib
import itertools

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from editscale.analysis.intervals import FEW

# Colors of seaborn's "colorblind" palette, one for methods of a kind; marker and dash keep all apart in gray.
METHOD_STYLE = {
    "rome": {"color": "#0173b2", "marker": "o", "linestyle": "-"},
    "r-rome": {"color": "#de8f05", "marker": "s", "linestyle": "--"},
    "p-rome": {"color": "#029e73", "marker": "^", "linestyle": "-."},
    "memit": {"color": "#d55e00", "marker": "D", "linestyle": (0, (6, 1.5, 1, 1.5))},
    "rome-multi": {"color": "#ca9161", "marker": "h", "linestyle": (0, (4, 1.5, 1, 1.5, 1, 1.5))},
    "rome-multi-two-keys": {"color": "#ca9161", "marker": "2", "linestyle": "--"},
    "ft-c": {"color": "#949494", "marker": "X", "linestyle": ":"},
    "memit-seq": {"color": "#cc78bc", "marker": "P", "linestyle": "-"},
    "memit-seq-nas": {"color": "#cc78bc", "marker": "3", "linestyle": ":"},
    "encore": {"color": "#cc78bc", "marker": "v", "linestyle": "--"},
    "alphaedit": {"color": "#56b4e9", "marker": "*", "linestyle": "-"},
    "alphaedit-nas": {"color": "#56b4e9", "marker": "d", "linestyle": "--"},
    "emmet": {"color": "#ca9161", "marker": ">", "linestyle": "-"},
    "rome-rect": {"color": "#0173b2", "marker": "<", "linestyle": "--"},
    "rome-nas": {"color": "#0173b2", "marker": "H", "linestyle": ":"},
    "rome-screened": {"color": "#0173b2", "marker": "1", "linestyle": "-."},
    "memit-rect": {"color": "#d55e00", "marker": "p", "linestyle": "--"},
    "memit-nas": {"color": "#d55e00", "marker": "8", "linestyle": ":"},
    "rome-prune": {"color": "#0173b2", "marker": "4", "linestyle": (0, (8, 2))},
    "memit-prune": {"color": "#d55e00", "marker": "|", "linestyle": "-."},
    "ultraedit": {"color": "#949494", "marker": "x", "linestyle": "-"},
    "stableedit": {"color": "#949494", "marker": "+", "linestyle": "--"},
}
# Looks of methods of one's own, which take one each by their names.
_COLORS = ("#542788", "#000000", "#7f0000")
_MARKERS, _LINES = ("*", "P", "v", "<", ">", "p", "d"), ((0, (1, 1)), (0, (8, 2)), (0, (3, 1, 1, 1, 1, 1)))
MOST_POINTS = 400  # of one line; more cannot be seen, and make large files


def method_style(method: str) -> dict:
    """Color, marker and line of a method; of one that METHOD_STYLE lacks, always the same ones, that it has not."""
    if method in METHOD_STYLE:
        return METHOD_STYLE[method]
    place = int(hashlib.sha256(method.encode()).hexdigest(), 16)
    looks = itertools.product(_COLORS, _MARKERS, _LINES)
    color, marker, line = list(looks)[place % (len(_COLORS) * len(_MARKERS) * len(_LINES))]
    return {"color": color, "marker": marker, "linestyle": line}


def methods_of(rows: pd.DataFrame) -> list[str]:
    """The methods of a table in the order of METHOD_STYLE, then others by name."""
    there = set(rows["method"])
    return [name for name in METHOD_STYLE if name in there] + sorted(there - set(METHOD_STYLE))


def run_style(run: dict) -> dict:
    style = method_style(run["method"])
    return style | {"markerfacecolor": "white"} if run["reversed"] else style


def marker_places(n_points: int) -> int:
    return max(1, n_points // 10)


def run_label(method: str, order: int, reversed: bool) -> str:
    """What legends and captions call a run: its method, order and direction."""
    return f"{method}, order {order}" + (" reversed" if reversed else "")


def orders_label(method: str, n_orders: int, reversed: bool) -> str:
    """What legends and captions call several orders of a method in one direction."""
    return f"{method}, {n_orders} orders" + (" reversed" if reversed else "")


def label_of(row) -> str:
    """`run_label` of a table's row (a Series, or one of `itertuples`) with columns method, order and reversed."""
    return run_label(row.method, row.order, row.reversed)


def log_ticks(axis) -> None:
    """Label a log axis with a few plain numbers: whole decades where it has three of them, else numbers in between."""
    low, high = sorted(axis.get_view_interval())
    decades = 10.0 ** np.arange(np.floor(np.log10(low)), np.ceil(np.log10(high)) + 1)
    for steps in ([1], [1, 3], [1, 2, 5], [1, 1.5, 2, 3, 5, 7], np.arange(1, 10, 0.25)):
        ticks = np.outer(decades, steps).ravel()
        ticks = ticks[(ticks >= low) & (ticks <= high)]
        if len(ticks) >= 3:
            break
    axis.set_ticks(ticks[:: -(-len(ticks) // 8)], minor=False)
    axis.set_major_formatter("{x:g}")
    axis.set_ticks([], minor=True)


def stacked(tables: list[pd.DataFrame]) -> pd.DataFrame:
    """The plotted numbers of several panels as one table, rows in the order of the panels."""
    return pd.concat(tables, ignore_index=True)


def thinned(rows: pd.DataFrame, *, most: int = MOST_POINTS) -> pd.DataFrame:
    """The rows at every k-th number of edits, k the least of 1, 2, 5, 10, … that leaves a run about `most`."""
    steps = (digit * 10**power for power in range(9) for digit in (1, 2, 5))
    step = next(k for k in steps if rows["edits"].max() <= k * most)
    return rows[rows["edits"] % step == 0]


def contexts_label(kind: str, seed: float) -> str:
    """What figures call contexts of a kind and seed (past_runs.other_contexts)."""
    return {"run": "the run's", "seed": f"seed {seed:.0f}", "words": "other words", "bare": "bare prompt"}[kind]


def n_orders(rows: pd.DataFrame, run: dict) -> int:
    """How many orders the table holds of a run's method in its direction."""
    return rows.loc[(rows["method"] == run["method"]) & (rows["reversed"] == run["reversed"]), "order"].nunique()


def any_several(rows: pd.DataFrame) -> bool:
    """Whether a method has several orders in one direction."""
    return rows.groupby(["method", "reversed"])["order"].nunique().max() > 1


def orders_note(rows: pd.DataFrame, *, single: bool = True) -> str:
    """What a caption says about bands: over how many orders they are, or that there is none; and, with `single`, of the
    thin lines of `lines_panel`."""
    counts = rows.groupby(["method", "reversed"])["order"].nunique()
    several = {}
    for (method, backward), count in counts[counts > 1].items():
        several.setdefault(count, []).append(method + (" reversed" if backward else ""))
    if not several:
        return "Single orders, so no band."
    texts = {count: f"{count} orders of {', '.join(names)}" for count, names in several.items()}
    many, few = ([text for n, text in texts.items() if (n > FEW) == above] for above in (True, False))
    parts = [f"Bands are 95 % intervals over {' and '.join(many)}"] if many else []
    parts += [f"{'no band' if many else 'No band'} for {' and '.join(few)}"] if few else []
    note = f"{'; '.join(parts)}{'; thin lines are single orders' * single}."
    ends = rows.groupby(["method", "reversed", "order"])["edits"].max()
    for (method, backward), lasts in ends.groupby(["method", "reversed"]):
        longer = lasts[lasts > lasts.min()]
        if len(longer):
            name = method + (" reversed" if backward else "")
            note += f" Beyond {lasts.min():,} edits, {len(longer)} of {len(lasts)} orders of {name}."
    return note


def grid(n: int, *, width: float, height: float, most: int = 3):
    """A figure with n panels, at most `most` in a row, each of `width` × `height` inches: (figure, list of axes)."""
    n_rows = -(-n // most)
    n_columns = -(-n // n_rows)
    size = round(width * n_columns, 3), round(height * n_rows, 3)
    fig, axes = plt.subplots(n_rows, n_columns, figsize=size, squeeze=False)
    for ax in axes.flat[n:]:
        ax.set_axis_off()
    return fig, list(axes.flat[:n])


def legend_below(fig, ax) -> None:
    """One legend for all panels, under them, with the entries of `ax`: methods in the order of METHOD_STYLE first."""
    place, (handles, labels) = {name: i for i, name in enumerate(METHOD_STYLE)}, ax.get_legend_handles_labels()
    entries = sorted(
        zip(handles, labels, strict=True),
        key=lambda entry: (place.get(entry[1].split(",")[0], len(place)), entry[1].endswith("reversed")),
    )
    handles, labels = [handle for handle, _ in entries], [label for _, label in entries]
    inches = [0.6 + 0.065 * len(label) for label in labels] or [1]  # of handle and letters
    one_row = len(labels) <= 6 and sum(inches) <= fig.get_figwidth()
    n_columns = len(labels) if one_row else min(4, int(fig.get_figwidth() / max(inches)))
    fig.legend(handles, labels, loc="outside lower center", ncols=max(1, n_columns))
