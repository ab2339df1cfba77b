"""Measures of a study that its claims rest on: functions of a `study.Study` and a numpy Generator.

Each function here makes such a measure for a method. A measure gives an `Interval` over the forward orders of the
method; n is 0 where there is nothing to measure, and 1, without an interval, where there is one order.
"""

import numpy as np
import pandas as pd

from editscale.analysis import collapse, intervals, paired, task_loss
from editscale.analysis.intervals import Interval

EDGE = 50  # edits at the start and at the end of a run whose means are compared


def of_method(table, method, **wanted):
    """Rows of a method's forward runs, and of the values wanted of other columns."""
    rows = table[(table["method"] == method) & ~table["reversed"]]
    for name, value in wanted.items():
        rows = rows[rows[name] == value]
    return rows


def mean_score(method, column):
    """Mean of a score right after each edit, in percent."""

    def measure(study, rng):
        rows = of_method(study.edits, method)
        return intervals.summary(100 * rows[rows["edits"] <= study.n].groupby("order")[column].mean(), rng)

    return measure


def change(method, column):
    """Last less first `EDGE` edits of a score right after each edit, in points."""

    def measure(study, rng):
        rows, edge = of_method(study.edits, method), min(EDGE, study.n // 2)
        last = rows[(rows["edits"] > study.n - edge) & (rows["edits"] <= study.n)].groupby("order")[column].mean()
        first = rows[rows["edits"] <= edge].groupby("order")[column].mean()
        return intervals.summary(100 * (last - first), rng)

    return measure


def largest_fall(method, within, *, beyond=False):
    """Largest loss of recall within so many edits, in points; `beyond`: whole runs, of orders that go beyond n only."""

    def measure(study, rng):
        rows, values = of_method(study.recall, method), []
        for _, run in rows.groupby("order"):
            curve = run.set_index("edits")["recall"]
            if beyond and curve.index.max() <= study.n:
                continue
            curve = pd.concat([pd.Series({0: 1.0}), curve if beyond else curve[curve.index <= study.n]]).dropna()
            lowest = [curve[(curve.index >= at) & (curve.index <= at + within)].min() for at in curve.index]
            values.append(100 * (curve.to_numpy() - lowest).max())
        return intervals.summary(values, rng)

    return measure


def forgotten(method):
    """The paper's share of learned facts forgotten after n edits, in percent."""

    def measure(study, rng):
        return intervals.summary(of_method(study.paper, method, edits=study.n)["forgotten_percent"], rng)

    return measure


def kept_more(first, second):
    """Recall of all n facts under one method less that under another on the same sequences, in points."""

    def measure(study, rng):
        ends = paired.at_end(study.edits, study.history, study.drift, study.n)
        left, right = (ends[ends["method"] == name].set_index("order")["recall"] for name in (first, second))
        return intervals.summary(100 * (left - right), rng)

    return measure


def opened(method):
    """Share of first collapses with a disabling edit at their steepest fall, in percent."""

    def measure(study, rng):
        counts = collapse.by_order(
            collapse.first_of_each(of_method(study.collapses, method)), of_method(study.points, method)
        )
        share = intervals.ratio(counts["opened"], counts["collapses"], rng)
        return Interval(100 * share.mean, 100 * share.low, 100 * share.high, share.n)

    return measure


def disabling_edits(method):
    """Updates above the jump, per order, up to the first checkpoint at which less than half of the facts are recalled.

    Behind it a large update disables nothing: the model is broken already, and makes large updates for that.
    """

    def measure(study, rng):
        places = collapse.places(of_method(study.points, method), of_method(study.recall, method))
        ends = places.set_index("order")["half"]
        rows = of_method(study.jumps, method)
        counted = rows["edits"] <= rows["order"].map(ends).clip(upper=study.n)
        return intervals.summary(rows[counted].groupby("order").size().reindex(ends.index, fill_value=0), rng)

    return measure


def step_of_distance(method):
    """Distance of the most moved layer after a collapse's steepest fall, over that before it; largest of each order."""

    def measure(study, rng):
        far = of_method(study.drift, method).groupby(["order", "edits"])["distance"].max()
        steps = {}
        for row in of_method(study.collapses, method).itertuples():
            if row.steepest_start > 0:
                step = far[row.order, row.steepest_stop] / far[row.order, row.steepest_start]
                steps[row.order] = max(step, steps.get(row.order, 0))
        return intervals.summary(list(steps.values()), rng)

    return measure


def inflection_place(method):
    """Median over the orders that have an inflection of its place, in edits."""

    def measure(study, rng):
        return intervals.summary(of_method(study.points, method)["inflection"], rng, statistic=np.median)

    return measure


def change_before_collapse(method, task, at):
    """Weighted F1 of a task less that of the unedited model, in points, at the last checkpoint up to the order's first
    collapse and to `at` edits (at most n). Orders without a checkpoint there have no value."""

    def measure(study, rng):
        first = collapse.first_of_each(of_method(study.collapses, method)).set_index("order")["start"]
        values = []
        for order, run in of_method(study.downstream, method, task=task).groupby("order"):
            f1 = run.set_index("edits")["f1"].sort_index().loc[: min(at, study.n, first.get(order, at))]
            values += [100 * (f1.iloc[-1] - f1.iloc[0])] if len(f1) > 1 else []
        return intervals.summary(values, rng)

    return measure


def task_score(method, task, at):
    """Weighted F1 of a task after `at` edits, or after n where `at` is None, in percent."""

    def measure(study, rng):
        place = study.n if at is None else at
        rows = task_loss.scores_at(of_method(study.downstream, method, task=task), [place])
        return intervals.summary(100 * rows["f1"], rng)

    return measure


def growth(method, first=50, last=500):
    """Exponent of the distance's growth with the number of edits from `first` to `last`, in the deepest layer."""

    def measure(study, rng):
        rows = of_method(study.drift, method)
        rows = rows[
            (rows["layer"] == rows["layer"].max()) & rows["edits"].between(first, last) & (rows["distance"] > 0)
        ]
        values = [
            np.polyfit(np.log(run["edits"]), np.log(run["distance"]), 1)[0]
            for _, run in rows.groupby("order")
            if len(run) > 1
        ]
        return intervals.summary(values, rng)

    return measure
