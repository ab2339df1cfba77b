"""Panels of figure 7, findings over orders: each draws a table and returns the plotted numbers."""

import numpy as np

LOOKS = {"agrees": "#029e73", "disagrees": "#d55e00", "undecided": "0.45"}  # colors of seaborn's "colorblind" palette


def forest(ax, claims):
    """Claims as a forest plot: a row per claim, its measure with the 95 % interval, and shaded the range that agrees.

    Every row has a scale of its own, from its least to its largest number; borders of the range stand below it. A row's
    color is its verdict. Single values where there are too few orders for an interval.

    Args:
        claims: see `claims.claims`; claims that are not comparable are left out.
    """
    rows = claims[claims["verdict"] != "not comparable"].reset_index(drop=True)
    if rows.empty:
        ax.text(0.5, 0.5, "no claim can be compared", ha="center", transform=ax.transAxes)
    for y, row in enumerate(rows.itertuples()):
        color, borders = LOOKS[row.verdict], [x for x in (row.least, row.most) if np.isfinite(x)]
        known = [x for x in (row.mean, row.low, row.high, *row.values, *borders) if np.isfinite(x)]
        place = _scale(min(known), max(known))
        low, high = (min(max(place(x), 0), 1) for x in (row.least, row.most))
        ax.barh(y, high - low, left=low, height=0.62, color="0.88", zorder=0)
        ax.plot([place(row.low), place(row.high)], [y, y], color=color, linewidth=2)
        ax.scatter([place(x) for x in row.values], [y] * len(row.values), color=color, s=12, alpha=0.6)
        ax.plot(place(row.mean), y, color=color, marker="o" if np.isfinite(row.mean) else ">", markersize=6)
        for border in borders:
            ax.text(place(border), y + 0.48, f"{border:g}" if border == round(border) else f"{border:.3g}", **_SMALL)
        ax.text(1.04, y, row.ours.replace(" (", "\n("), va="center", fontsize=8)
    ax.set_yticks(range(len(rows)), [f"{row.claim}\n{row.method}: {row.measured}" for row in rows.itertuples()])
    ax.tick_params(axis="y", labelsize=8, length=0)
    ax.set(xlim=(0, 1), ylim=(len(rows) - 0.3, -0.7), xticks=[])
    ax.grid(visible=False)
    ax.spines[["left", "bottom"]].set_visible(False)
    columns = ["claim", "method", "mean", "low", "high", "orders", "least", "most", "verdict"]
    return rows[columns]


_SMALL = {"ha": "center", "va": "center", "fontsize": 6.5, "color": "0.3"}


def _scale(least, largest):
    """A function that puts numbers on 0.08 to 0.92; infinite ones at the ends."""
    width = largest - least or 1.0

    def place(value):
        return np.clip(0.08 + 0.84 * (value - least) / width, 0, 1) if not np.isnan(value) else np.nan

    return place
