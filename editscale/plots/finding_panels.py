"""Panels of figure 7, findings over orders: each draws a table and returns the plotted numbers."""

import numpy as np
import pandas as pd

from editscale.analysis import intervals
from editscale.columns import RUN
from editscale.plots.style import method_style, methods_of


def inflection(ax, places):
    """Where each forward order starts to lose its facts, a row per method; the bar is the median's 95 % interval.

    Filled markers: inflections. Crosses: recall first below one half. At the right how many orders have an inflection.

    Args:
        places: see `collapse.places`.
    """
    forward = places[~places["reversed"]]
    names, rng = methods_of(forward), np.random.default_rng(0)
    for row, method in enumerate(names):
        group, style = forward[forward["method"] == method], method_style(method)
        spread = row + 0.22 * np.linspace(-1, 1, len(group)) if len(group) > 1 else np.array([row])
        look = {"color": style["color"], "s": 22, "alpha": 0.8}
        ax.scatter(group["inflection"], spread, marker=style["marker"], **look)
        ax.scatter(group["half"].where(np.isfinite(group["half"])), spread, marker="x", linewidths=0.9, **look)
        median = intervals.summary(group["inflection"], rng, statistic=np.median)
        ax.plot([median.low, median.high], [row, row], color=style["color"], linewidth=5, alpha=0.3)
        ax.text(1.01, row, f"{group['inflection'].notna().sum()}/{len(group)}", transform=ax.get_yaxis_transform())
    ax.set_yticks(range(len(names)), names)
    ax.set(xlabel="edits", xlim=(0, 1.02 * forward["end"].max()), ylim=(len(names) - 0.5, -0.5))
    return forward[[*RUN, "inflection", "half"]]


def drift_loss(ax, at, *, log):
    """Recall lost against the drift of the most moved layer, one line per forward run.

    Args:
        at: see `drift_loss.along`.
        log: draw drift on a log axis.
    """
    forward = at[~at["reversed"]]
    for method in methods_of(forward):
        runs, style = forward[forward["method"] == method], method_style(method)
        n = runs["order"].nunique()
        for i, (_, run) in enumerate(runs.sort_values("edits").groupby("order")):
            look = {"color": style["color"], "linewidth": 1.8 if n == 1 else 0.8, "alpha": 1 if n == 1 else 0.6}
            end = {"marker": style["marker"], "markevery": [-1], "label": "_order" if i else method}
            ax.plot(run["drift"], 100 * run["lost"], **look, **end)
    ax.set(xlabel="relative drift ‖W − W₀‖ / ‖W₀‖", ylabel="learned facts lost (%)", ylim=(-3, 103))
    ax.set_xscale("log" if log else "linear")
    return forward.assign(lost=100 * forward["lost"])


def tasks(ax, lasts):
    """Edits until half of a task's excess over chance is lost, by task and method: the median over orders.

    Bars are its 95 % interval; an open triangle at the end of the runs: not lost in most orders. Tasks without a
    signal to begin with are named below.

    Args:
        lasts: see `task_loss.lasting`.
    """
    forward, rng, plotted = lasts[~lasts["reversed"]], np.random.default_rng(0), []
    silent = forward.loc[~forward["signal"], "task"].unique()
    names, tasks, end = methods_of(forward), [t for t in lasts["task"].unique() if t not in silent], lasts["end"].max()
    for row, task in enumerate(tasks):
        for place, method in enumerate(names):
            group = forward[(forward["task"] == task) & (forward["method"] == method) & forward["signal"]]
            if group.empty:
                continue
            half = intervals.summary(group["half"], rng, statistic=np.median)
            y, style = row + 0.7 * ((place + 0.5) / len(names) - 0.5), method_style(method)
            low, mean, high = (min(x, end) for x in (half.low, half.mean, half.high))
            if half.n > 1:
                ax.plot([low, high], [y, y], color=style["color"], linewidth=2.5, alpha=0.4)
            lost = np.isfinite(half.mean)
            look = {"marker": style["marker"] if lost else ">", "markerfacecolor": style["color"] if lost else "white"}
            ax.plot(mean, y, color=style["color"], markersize=5, **look)
            plotted.append({"task": task, "method": method, "half": half.mean, "low": half.low, "high": half.high})
    ax.set_yticks(range(len(tasks)), tasks)
    without = f"\nno signal to begin with: {', '.join(silent)}" if len(silent) else ""
    ax.set(xlabel=f"edits{without}", xlim=(0, 1.04 * end), ylim=(max(len(tasks), 1) - 0.5, -0.5))
    return pd.DataFrame(plotted, columns=["task", "method", "half", "low", "high"])


def reversal(ax, pairs):
    """Recall of the same facts along a sequence and along its reverse, the mean over checkpoints: one line per order.

    Args:
        pairs: see `paired.reversals`; may be empty.
    """
    for method in methods_of(pairs):
        style = method_style(method)
        for i, row in enumerate(pairs[pairs["method"] == method].itertuples()):
            look = {"color": style["color"], "marker": style["marker"], "linestyle": style["linestyle"]}
            recalls = [100 * row.along_forward, 100 * row.along_reversed]
            ax.plot([0, 1], recalls, **look, linewidth=1.2, label="_order" if i else method)
    if pairs.empty:
        ax.text(0.5, 0.5, "no reversed runs", ha="center", transform=ax.transAxes)
    ax.set_xticks([0, 1], ["forward", "reversed"])
    ax.set(xlim=(-0.3, 1.3), ylim=(-3, 103), ylabel="facts recalled, mean of checkpoints (%)")
    return pairs
