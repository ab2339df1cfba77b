"""Panels of figures 5 to 5e: what single edits do, and what is known of it beforehand. Each draws a table and
returns the plotted numbers."""

from itertools import pairwise

import numpy as np
import pandas as pd

from editscale.analysis.damage import DISABLING, SEVERE
from editscale.analysis.forecast import BINS, LOW
from editscale.columns import RUN
from editscale.plots.style import log_ticks, method_style, methods_of, run_style, thinned

# Contexts of a single edit ↦ what the legend calls them, color; other seeds and words are one kind.
CONTEXTS = {"run": ("the run's contexts", "#0173b2"), "other": ("other contexts", "#56b4e9"),
            "bare": ("bare prompt alone", "#d55e00")}  # fmt: skip


def edits(ax, table):
    """Perplexity after over before each edit, against its |k·u|; both axes are logarithmic.

    Args:
        table: see `forecast.predictors`. Disabling edits are large; of others with |k·u| above 1 every k-th is drawn.

    Dashed lines: where an edit is disabling or severe, and where a denominator warns. An infinite ratio is a triangle
    at the top edge.
    """
    kept = table["disabling"] | (table["denominator"] < 1)
    quiet = table[~kept]
    drawn = pd.concat([table[kept], thinned(quiet, most=150) if len(quiet) else quiet])
    drawn = drawn.assign(times=np.exp(drawn["damage"]))
    top = 1.5 * max(2.5, drawn["times"][np.isfinite(drawn["times"])].max())
    for method in methods_of(drawn):
        own, look = drawn[drawn["method"] == method], method_style(method)
        look = {"color": look["color"], "marker": look["marker"], "linewidths": 0}
        quiet, loud = own[~own["disabling"]], own[own["disabling"]]
        ax.scatter(quiet["denominator"], quiet["times"], s=9, alpha=0.45, **look)
        bounded, beyond = loud[np.isfinite(loud["times"])], loud[np.isinf(loud["times"])]
        ax.scatter(bounded["denominator"], bounded["times"], s=36, alpha=0.9, **look)
        ax.scatter(beyond["denominator"], [top] * len(beyond), **{**look, "marker": "^"}, s=36, clip_on=False)
        ax.scatter([], [], s=30, label=method, **look)
    ax.set(xscale="log", yscale="log", ylim=(min(0.7, 0.9 * drawn["times"].min()), top))
    if drawn.empty:
        ax.set_xlim(0.01, 10)
    thresholds(ax, named=True)
    ax.set(xlabel="|k·u|, known before any edit", ylabel="perplexity after / before the edit")
    return drawn[[*RUN, "edits", "case_id", "denominator", "times", "learned", "disabling", "severe"]]


def moments(ax, table):
    """The observed collapse of each run against its forecast, a point per order; reversed orders are open.

    Args:
        table: see `forecast.moments`. What has no forecast, or no collapse, stands beyond the gray lines.
    """
    end = table["end"].max() if len(table) else 10
    none, edge = 4 * end, 2 * end
    ax.plot([1, end], [1, end], linestyle=":", color="gray")
    for (method, backward), own in table.groupby(["method", "reversed"]):
        look = run_style({"method": method, "reversed": backward}) | {"linestyle": "", "markersize": 7, "alpha": 0.7}
        text = f"{method}{' reversed' if backward else ''}"
        ax.plot(own["forecast"].clip(upper=none), own["observed"].clip(upper=none), **look, label=text)
    for line in (ax.axvline, ax.axhline):
        line(edge, color="0.6", linewidth=0.8)
    places = [10**i for i in range(9) if 10**i <= end]
    places = places if len(places) > 1 else [1, end]
    labels = [*map(str, places), "none"]
    ax.set(xscale="log", yscale="log", xlim=(0.8, 1.3 * none), ylim=(0.8, 1.3 * none))
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_ticks([*places, none], labels)
        axis.set_ticks([], minor=True)
    ax.set(xlabel=f"forecast: first edit with |k·u| < {LOW:g}", ylabel="observed collapse, edits")
    return table


def alone(ax, rows, method):
    """Perplexity after one edit over the unedited model's, against |k·u|; filled where the fact was learned.

    Args:
        rows: see `damage.alone`.
        method: whose edits are drawn; x is the edit's own |k·u|, or, of a method without, ROME's of the fact.
    """
    own = rows[rows["method"] == method]
    own = own.assign(kind=own["contexts"].where(own["contexts"].isin(["run", "bare"]), "other"))
    has = own["denominator"].notna().any()
    own = own.assign(x=own["denominator"].abs() if has else own["known"], times=np.exp(own["damage"]))
    top = max(2.5, own["times"][np.isfinite(own["times"])].max()) if len(own) else 2.5
    for kind in ("other", "run", "bare"):
        text, color = CONTEXTS[kind]
        of = own[own["kind"] == kind]
        look = {"s": 26, "marker": method_style(method)["marker"], "edgecolors": color, "linewidths": 1, "alpha": 0.8}
        for learned, fill in ((True, color), (False, "none")):
            part = of[of["learned"] == learned]
            ax.scatter(part["x"], part["times"].clip(upper=1.5 * top), facecolors=fill, **look)
        ax.scatter([], [], color=color, s=26, label=text)
    ax.scatter([], [], facecolors="none", edgecolors="0.3", s=26, label="open: not learned")
    ax.set(xscale="log", yscale="log", title=method, ylabel="perplexity / unedited model's")
    ax.set_xlabel("|k·u| of the edit" if has else "|k·u| that ROME has for the fact")
    return own[["method", "contexts", "seed", "case_id", "x", "times", "learned", "disabling"]]


def learned(ax, table, few=10):
    """The share of facts learned on sound models in each bin of ROME's |k·u|, a line per method.

    Args:
        table: see `forecast.learned_by_denominator`.
        few: bins with fewer facts have open markers.
    """
    bins = sorted(set(zip(table["low"], table["high"], strict=True)))
    place = {low: i for i, (low, _) in enumerate(bins)}
    for method in methods_of(table):
        own, look = table[table["method"] == method].sort_values("low"), method_style(method)
        x, y = own["low"].map(place), 100 * own["learned"]
        ax.plot(x, y, **look, markersize=6, label=method)
        small = (own["n"] < few).to_numpy()
        ax.plot(x[small], y[small], **look | {"linestyle": ""}, markersize=6, markerfacecolor="white", label="_few")
    words = [f"≥ {low:g}" if np.isinf(high) else f"{low:g}–{high:g}" if low else f"< {high:g}" for low, high in bins]
    words = ["unknown"] if bins == [(0, np.inf)] else words
    ax.set_xticks(range(len(bins)), words)
    ax.set(xlabel="|k·u| that ROME has for the fact", ylabel="facts learned (%)", ylim=(-4, 104))
    return table.assign(learned=100 * table["learned"])


def tested(ax, named):
    """Percent of edits that disable in each bin of |k·u|, with exact 95 % intervals, side by side for several drawings.

    Args:
        named: what each drawing is called ↦ its rows of `prospective.by_bin`.
    """
    for i, (name, own) in enumerate(named.items()):
        place = np.searchsorted(BINS, own["low"]) + 0.14 * (i - (len(named) - 1) / 2)
        ends = [100 * (own["share"] - own["least"]), 100 * (own["most"] - own["share"])]
        ax.errorbar(place, 100 * own["share"], yerr=ends, fmt="os^Dv"[i % 5], color=f"C{i}", markersize=5, label=name)
    words = [f"{low:g}–{high:g}" for low, high in pairwise(BINS[:-1])] + [f"{BINS[-2]:g} or more"]
    ax.set(xlabel="|k·u|, foretold", ylabel="edits that disable (%)", ylim=(-3, 103), xticks=range(len(words)))
    ax.set(xticklabels=words, xlim=(-0.5, len(words) - 0.5))
    return pd.concat([own.assign(series=name) for name, own in named.items()])


def sinks(ax, table, most=2000):
    """|k·u| of facts, on a log axis, against how much their key is like that of position 0, by where the subject ends.

    Args:
        table: one row per fact (`denominators.measure`), of one layer. Facts with a small |k·u| are all drawn, of the
            others every k-th, so that there are at most `most`.

    Dashed: the threshold of the rule.
    """
    table = table.assign(denominator=table["denominator"].abs())
    small = table["denominator"] < LOW
    rest = table[~small]
    drawn = pd.concat([rest.iloc[:: -(-len(rest) // most) or 1], table[small]])
    for color, (place, marker) in enumerate({"0": "o", "1": "s", "2 or later": "^"}.items()):
        of = drawn[drawn["subject_place"].clip(upper=2) == color]
        label = f"subject ends at position {place}"
        ax.plot(of["sink_cosine"], of["denominator"], marker, color=f"C{color}", markersize=4, alpha=0.6, label=label)
    ax.axhline(LOW, color="0.35", linestyle="--", linewidth=1, label="_low")
    ax.set(xlabel="cosine of k and the key of position 0", ylabel="|k·u| (log scale)", yscale="log")
    log_ticks(ax.yaxis)
    return drawn


def thresholds(ax, *, named=False):
    """Dashed lines where an edit is disabling or severe, and where |k·u| warns; plain ticks on both log axes."""
    for height, text in ((DISABLING, "disabling"), (SEVERE, "severe")):
        ax.axhline(np.exp(height), linestyle="--", color="gray", linewidth=0.9)
        place = {"ha": "right", "va": "bottom", "transform": ax.get_yaxis_transform()}
        ax.text(0.99, 1.03 * np.exp(height), text if named else "", fontsize=8, color="0.35", **place)
    ax.axvline(LOW, linestyle="--", color="gray", linewidth=0.9)
    for axis in (ax.xaxis, ax.yaxis):
        log_ticks(axis)
