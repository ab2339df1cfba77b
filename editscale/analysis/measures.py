"""What the claims of `claims` are measured by: functions of a `study.Study` and a method, each an `Interval`.

One number per forward order, unless a measure says otherwise; `Study.tail` is the chance left out at each end. "Before
the collapse" ends at `collapse.where`.
"""

import numpy as np
import pandas as pd

from editscale.analysis import intervals, task_loss
from editscale.analysis.intervals import Interval
from editscale.analysis.rows import groups, rows_of
from editscale.metrics import drift

EDGE = 50  # edits at the start and at the end of a run whose means are compared


def _forward(table, method, **wanted):
    return rows_of(table, method=method, reversed=False, **wanted)


def _collapses(study, method):
    """Edits at the collapse by order, infinite where there is none."""
    return _forward(study.places, method).set_index("order")["collapse"]


# -------------------------------------------------------------------------------------------------------- scores


def mean_score(study, method, column, last=None):
    """Mean of a score right after each edit, of all n edits or of the last ones, in percent."""
    rows = _forward(study.edits, method)
    rows = rows[(rows["edits"] <= study.n) & (rows["edits"] > study.n - (last or study.n))]
    return intervals.summary(100 * rows.groupby("order")[column].mean(), tail=study.tail)


def change_from_unedited(study, method, column):
    """A score of the last `EDGE` facts right after their edits, less that of the same facts before any edit, points."""
    rows, edge = _forward(study.edits, method), min(EDGE, study.n // 2)
    rows = rows[(rows["edits"] > study.n - edge) & (rows["edits"] <= study.n)]
    both = rows.merge(_forward(study.unedited, method), on=["order", "edits", "case_id"], suffixes=("", "_before"))
    return intervals.summary(
        100 * (both[column] - both[f"{column}_before"]).groupby(both["order"]).mean(), tail=study.tail
    )


def change_from_first(study, method, column):
    """Last less first `EDGE` edits of a score right after each edit, in points."""
    rows, edge = _forward(study.edits, method), min(EDGE, study.n // 2)
    last = rows[(rows["edits"] > study.n - edge) & (rows["edits"] <= study.n)].groupby("order")[column].mean()
    first = rows[rows["edits"] <= edge].groupby("order")[column].mean()
    return intervals.summary(100 * (last - first), tail=study.tail)


# ---------------------------------------------------------------------------------------------------- forgetting


def catastrophic(study, method, after=0):
    """Share of orders with a catastrophic stretch (`hazard.stretches`) that begins after some edits, in percent."""
    found = _forward(study.stretches, method, label="catastrophic")
    orders = _forward(study.places, method)["order"]
    return _percent(
        intervals.ratio(orders.isin(found.loc[found["start"] >= after, "order"]), np.ones(len(orders)), tail=study.tail)
    )


def largest_fall(study, method, within):
    """Largest loss of recall within a number of edits, in points."""
    values = []
    for _, run in groups(_forward(study.recall, method), ("order",)):
        curve = run.set_index("edits")["recall"]
        curve = pd.concat([pd.Series({0: 1.0}), curve[curve.index <= study.n]]).dropna()
        lowest = [curve[(curve.index >= at) & (curve.index <= at + within)].min() for at in curve.index]
        values.append(100 * (curve.to_numpy() - lowest).max())
    return intervals.summary(values, tail=study.tail)


def collapse_place(study, method):
    """Median over orders of the edits at the collapse; an order without one counts as later than any."""
    return intervals.summary(_collapses(study, method), statistic=np.median, tail=study.tail)


def half_place(study, method):
    """Median over orders of the edits at the first checkpoint that recalls less than half of the learned facts."""
    return intervals.summary(_forward(study.places, method)["half"], statistic=np.median, tail=study.tail)


def forgotten(study, method):
    """The paper's share of learned facts forgotten after n edits, in percent."""
    return intervals.summary(_forward(study.paper, method, edits=study.n)["forgotten_percent"], tail=study.tail)


def not_recalled(study, method):
    """Share of learned facts that are not recalled after n edits, in percent."""
    return intervals.summary(100 * (1 - _forward(study.recall, method, edits=study.n)["recall"]), tail=study.tail)


def kept_more(study, method, other, at=None):
    """Recall of all facts so far under a method less that under another on the same sequences, in points: the mean over
    checkpoints up to n, or at the one nearest to a number of edits."""
    places = np.sort(study.history["edits"].unique())
    places = places[places <= study.n]
    places = places if at is None else [places[np.abs(places - at).argmin()]]
    asked = study.history[study.history["edits"].isin(places) & ~study.history["reversed"]]
    means = asked.groupby(["method", "order", "edits"])["efficacy_accuracy"].mean().groupby(["method", "order"]).mean()
    left, right = (means[name] if name in means else pd.Series(dtype=float) for name in (method, other))
    return intervals.summary(100 * (left - right), tail=study.tail)


# ------------------------------------------------------------------------------------------------ disabling edits


def collapses_by_one(study, method):
    """Share of collapses whose last edit alone is disabling (`damage`), over the orders that collapse, in percent."""
    found = _forward(study.damage, method).set_index(["order", "edits"])["disabling"]
    places = _collapses(study, method)
    places = places[places <= study.n]
    return _percent(
        intervals.ratio([found[order, at] for order, at in places.items()], np.ones(len(places)), tail=study.tail)
    )


def with_disabling(study, method):
    """Share of orders with a disabling edit on a model that had not collapsed, in percent."""
    counts = _forward(study.damage, method).groupby("order")["disabling"].any()
    return _percent(intervals.ratio(counts, np.ones(len(counts)), tail=study.tail))


def with_jump(study, method):
    """Share of orders with an update above the jump (`disabling.detect`) up to the collapse, in percent."""
    places = _collapses(study, method)
    jumps = _forward(study.jumps, method)
    early = jumps.loc[jumps["edits"] <= jumps["order"].map(places).clip(upper=study.n), "order"]
    return _percent(intervals.ratio(places.index.isin(early), np.ones(len(places)), tail=study.tail))


def _percent(share):
    return Interval(100 * share.mean, 100 * share.low, 100 * share.high, share.n, tuple(100 * x for x in share.values))


# ----------------------------------------------------------------------------------------------- tasks and drift


def step_of_distance(study, method, statistic=np.median):
    """Distance of the most moved layer after the edit that collapses a model, over that before it."""
    far = _forward(study.drift, method).groupby(["order", "edits"])["distance"].max()
    places = _collapses(study, method)
    places = places[(places > 1) & (places <= study.n)]
    return intervals.summary(
        [far[o, at] / far[o, at - 1] for o, at in places.items()], statistic=statistic, tail=study.tail
    )


def growth(study, method, first=50, last=500, collapse=False):
    """Exponent of the distance's growth with the edits from `first` to `last` in the deepest layer; with `collapse`, to
    the collapse of each order instead."""
    rows = _forward(study.drift, method)
    rows = rows[(rows["layer"] == rows["layer"].max()) & (rows["edits"] >= first)]
    ends = np.minimum(_collapses(study, method), study.n) if collapse else None
    runs = {o: run[run["edits"] <= (last if ends is None else ends[o])] for o, run in rows.groupby("order")}
    return intervals.summary(
        [drift.exponent(run["edits"], run["distance"]) for run in runs.values() if len(run) > 2], tail=study.tail
    )


def change_before_collapse(study, method, task, at, column="f1"):
    """A task's score less that of the unedited model, in points, at the last checkpoint before the order's collapse and
    up to `at` edits (at most n). Orders without a checkpoint there have no value."""
    places, values = _collapses(study, method), []
    for order, run in _forward(study.downstream, method, task=task).groupby("order"):
        score = run.set_index("edits")[column].sort_index()
        before = score[(score.index <= min(at, study.n)) & (score.index < places[order])]
        values += [100 * (before.iloc[-1] - before.iloc[0])] if len(before) > 1 else []
    return intervals.summary(values, tail=study.tail)


def task_score(study, method, task, at=None, column="f1"):
    """A task's score after `at` edits, or after n, in percent."""
    place = study.n if at is None else at
    rows = task_loss.scores_at(_forward(study.downstream, method, task=task), [place], column)
    return intervals.summary(100 * rows[column], tail=study.tail)


def unedited_accuracy(study, method, task):
    """Accuracy of the unedited model in percent, with the exact binomial interval over its examples: n counts these."""
    rows = _forward(study.downstream, method, task=task, edits=0)
    if rows.empty:
        return Interval(np.nan, np.nan, np.nan, 0)
    n = int(rows["n_examples"].iloc[0])
    return _percent(intervals.share(round(rows["accuracy"].iloc[0] * n), n, tail=study.tail))
