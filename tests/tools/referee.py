"""Recorded runs one by one, and what a referee measures of each: the half of `recompute` that reads tables.

Nothing of editscale is imported. An order is one sequence of facts, edited forwards by a method. Methods are compared
at n edits, the last number at which recall was measured in every run, those aside that broke off. A measure is a number
per order, NaN where the order has nothing to say.
"""

import math
from bisect import insort
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from statistics import median

import numpy as np
import pandas as pd
from scipy import special

HAZARDS = np.linspace(0, 1, 1001)  # a fitted hazard is one of these
KEY = ["method", "order", "reversed"]
TABLES = {  # tables and their columns
    "edits": ["edits", "status", "efficacy", "neighborhood", "efficacy_accuracy"],
    "unedited": ["edits", "neighborhood"],
    "recall/history": ["edits", "edit", "efficacy_accuracy"],
    "recall/perplexity": ["edits", "perplexity"],
    "drift": ["edits", "layer", "update_norm", "distance"],
    "downstream/downstream": ["edits", "task", "n_examples", "accuracy", "f1", "invalid"],
}

# ------------------------------------------------------------------------------------------------------- the runs


@dataclass(frozen=True, eq=False)
class Run:
    """A method on one order. `edits`, `before` (unedited scores) and `asked` have a row per edit; `asked` has a column
    per checkpoint of recall: 1 where the fact is recalled there, 0 where not, NaN before its edit. `beside`: the runs
    of all methods on this order."""

    n: int
    edits: pd.DataFrame
    before: pd.DataFrame
    asked: pd.DataFrame
    perplexity: dict  # after so many edits
    drift: pd.DataFrame
    tasks: pd.DataFrame
    beside: dict

    @cached_property
    def learned(self):
        """Which edits made the new object the first choice; facts that a method left out were not learned."""
        return (self.edits["efficacy_accuracy"] == 1) & (self.edits["status"] != "screened")

    @cached_property
    def of_learned(self):
        """`asked` of the learned facts."""
        return self.asked[self.learned.reindex(self.asked.index)]

    @cached_property
    def collapse(self):
        """The first edit after which perplexity is above twice the unedited model's, or is no number; ∞ without one."""
        return next((at for at, value in self.perplexity.items() if not value <= 2 * self.perplexity[0]), math.inf)

    @cached_property
    def recall(self):
        """Share of the learned facts edited so far that are recalled, by checkpoint, beyond n too."""
        return self.of_learned.mean().dropna()

    @cached_property
    def losses(self):
        """Between neighbors of the checkpoints nearest to 0, 20, 40, …, n: (start, stop, learned facts recalled at
        start, how many of these are not at stop), where any is recalled at start."""
        known = self.of_learned == 1
        there = [at for at in known if at <= self.n]
        chosen = sorted({min(there, key=lambda at: (abs(at - aim), at)) for aim in range(0, there[-1] + 20, 20)})
        pairs = [(i, j, int(known[i].sum()), int((known[i] & ~known[j]).sum())) for i, j in pairwise(chosen)]
        return [pair for pair in pairs if pair[2]]

    @cached_property
    def catastrophic(self):
        """Edits at the start of each stretch whose hazard is at least ½, if 20 facts or more are recalled there."""
        intervals, found = self.losses, []
        for i, j in cut(intervals) if intervals else []:
            hazard = HAZARDS[log_likelihoods(intervals[i:j]).sum(axis=0).argmax()]
            if hazard >= 0.5 and intervals[i][2] >= 20:
                found.append(intervals[i][0])
        return found

    @cached_property
    def disabling(self):
        """{edit: whether it raises log perplexity by more than 0.1}, of the edits up to the collapse and n."""
        measured, found = list(self.perplexity), {}
        place = {at: i for i, at in enumerate(measured)}
        for edit, status in self.edits["status"].items():
            if status != "screened" and edit <= min(self.n, self.collapse) and place.get(edit):
                before, after = self.perplexity[measured[place[edit] - 1]], self.perplexity[edit]
                broken = status != "edited" or not math.isfinite(after)
                found[edit] = broken or math.log(after / before) > 0.1
        return found


def read(folder):
    """Forward runs of a folder of recorded tables: {method: [Run of each order]}."""
    tables = [pd.read_parquet(Path(folder) / f"{name}.parquet", columns=[*KEY, *TABLES[name]]) for name in TABLES]
    # Recorded in single precision; all that follows is in double.
    tables = [table.astype({name: "float64" for name in table.select_dtypes("float32")}) for table in tables]
    parts = [{key: rows.sort_values("edits") for key, rows in table.groupby(KEY)} for table in tables]
    edits, _, history, *_ = parts
    whole = [key for key in edits if edits[key]["status"].iloc[-1] in ("edited", "screened")] or list(edits)
    n = int(max(set.intersection(*(set(history[key]["edits"]) for key in whole))))
    runs, beside = {}, {}
    for method, order, backwards in sorted(edits):
        if not backwards:
            own, before, asked, perplexity, drift, tasks = (
                part.get((method, order, False), table.iloc[:0]) for part, table in zip(parts, tables, strict=True)
            )
            others = beside.setdefault(order, {})
            others[method] = Run(
                n,
                own.set_index("edits"),
                before.set_index("edits"),
                asked.pivot(index="edit", columns="edits", values="efficacy_accuracy"),
                dict(zip(perplexity["edits"], perplexity["perplexity"], strict=True)),
                drift,
                tasks,
                others,
            )
            runs.setdefault(method, []).append(others[method])
    return runs


def half(run):
    """The first checkpoint that recalls less than half of the learned facts; ∞ without one."""
    return next((at for at, share in run.recall.items() if share < 0.5), math.inf)


# ----------------------------------------------------------------------------------------------------- the hazard


def log_likelihoods(intervals):
    """Binomial log likelihood of each of some intervals, (intervals, hazards). A hazard h per 20 edits loses
    1 − (1 − h)^(length/20) of the facts in an interval."""
    start, stop, at_risk, lost = np.array(intervals, dtype=float).T[:, :, None]
    kept = (1 - HAZARDS) ** ((stop - start) / 20)
    return special.xlogy(lost, 1 - kept) + special.xlogy(at_risk - lost, kept)


def hazard_before(run):
    """The likeliest hazard of the intervals that end by the collapse, per 20 edits; NaN without one."""
    sound = [interval for interval in run.losses if interval[1] <= run.collapse]
    return HAZARDS[log_likelihoods(sound).sum(axis=0).argmax()] if sound else math.nan


def cut(intervals):
    """The stretches [(i, j), …] of constant hazard: the cut of m intervals with the least
    −2 log L / 2 + (2 log m + 4) per break. Two in the denominator: facts of an interval are lost together."""
    m, each = len(intervals), log_likelihoods(intervals)
    penalty = 2 * math.log(m) + 4
    likeliest = [each[i:].cumsum(axis=0).max(axis=1) for i in range(m)]  # of i to j: likeliest[i][j - i - 1]
    best = [(-penalty, [])]
    for j in range(1, m + 1):
        ways = [(best[i][0] + penalty - likeliest[i][j - i - 1], i) for i in range(j)]
        cost, i = min(ways)
        best.append((cost, [*best[i][1], (i, j)]))
    return best[m][1]


# ------------------------------------------------------------------------------------------------ disabling edits


def disables(run):
    return any(run.disabling.values())


def collapses_by_one(run):
    return float(run.disabling[run.collapse]) if run.collapse <= run.n else math.nan


def jumps(run):
    """Whether, up to the collapse, an update is above five times the median of at least five earlier ones that changed
    something, in one layer."""
    for _, layer in run.drift.groupby("layer"):
        earlier = []
        for edit, norm in zip(layer["edits"], layer["update_norm"], strict=True):
            if edit <= min(run.n, run.collapse) and len(earlier) >= 5 and norm > 5 * median(earlier):
                return True
            if norm > 0:
                insort(earlier, norm)
    return False


# ---------------------------------------------------------------------------------------------------- what is kept


def share_learned(run):
    """Share of the first n facts that were learned; a run that broke off before says nothing, here and below."""
    return run.learned.loc[: run.n].sum() / run.n if run.n in run.asked else math.nan


def recalled(run, facts="all"):
    """Share of the first n facts, or of those that were learned, that are recalled after n edits."""
    asked = run.asked if facts == "all" else run.of_learned
    return asked[run.n].mean() if run.n in asked else math.nan


# ----------------------------------------------------------------------------------------------- scores and drift


def mean_of_last(run, column, count):
    """Mean of a score right after the edits among the last so many up to n, in percent."""
    return 100 * run.edits.loc[run.n - count + 1 : run.n, column].mean()


def neighborhood_from_unedited(run):
    """Mean over the last 50 edits of the score right after the edit less the unedited model's, in points."""
    late = slice(run.n - min(50, run.n // 2) + 1, run.n)
    return 100 * (run.edits["neighborhood"] - run.before["neighborhood"]).loc[late].mean()


def neighborhood_from_first(run):
    edge = min(50, run.n // 2)
    return mean_of_last(run, "neighborhood", edge) - 100 * run.edits.loc[:edge, "neighborhood"].mean()


def largest_fall(run, within):
    """The most that recall falls within so many edits, in points; it is 1 with no edits."""
    curve = {0: 1.0} | {at: share for at, share in run.recall.items() if at <= run.n}
    return 100 * max(curve[i] - curve[j] for i in curve for j in curve if i <= j <= i + within)


def recall_of_all(run, at=None):
    """Mean recall of all facts so far in percent, over the checkpoints up to n or at the one nearest to `at`."""
    there = [checkpoint for checkpoint in run.asked if checkpoint <= run.n]
    return 100 * run.asked[there if at is None else [min(there, key=lambda c: abs(c - at))]].mean().mean()


def more_than_rome(run, at=None):
    return recall_of_all(run, at) - recall_of_all(run.beside["rome"], at) if "rome" in run.beside else math.nan


def forgotten(run):
    """Of the learned facts among n, those that some checkpoint up to n does not recall, in percent."""
    if len(run.edits) < run.n:
        return math.nan
    asked = run.of_learned
    missed = (asked[[at for at in asked if at <= run.n]] == 0).any(axis=1)
    return 100 * missed.sum() / max(run.learned.loc[: run.n].sum(), 1)


def distance_step(run):
    """The largest distance over layers after the edit that collapses the model, over that before it."""
    largest = run.drift.groupby("edits")["distance"].max()
    at = run.collapse
    return largest[at] / largest[at - 1] if 1 < at <= run.n else math.nan


def growth(run, last):
    """Least-squares slope of log distance on log edits, from 50 edits on, in the deepest layer."""
    rows = run.drift[(run.drift["layer"] == run.drift["layer"].max()) & run.drift["edits"].between(50, last)]
    rows = rows[rows["distance"] > 0]
    if len(rows) < 3:
        return math.nan
    x, y = np.log(rows["edits"]), np.log(rows["distance"])
    return ((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum()


def task_score(run, task, at, column):
    """A task's score after so many edits, in percent."""
    rows = run.tasks[(run.tasks["task"] == task) & (run.tasks["edits"] == at)]
    return 100 * rows[column].iloc[0] if len(rows) else math.nan


def task_change(run, task, at, column):
    """A task's score at the last checkpoint before the collapse, and up to `at` edits, less unedited, in points."""
    there = run.tasks.loc[run.tasks["task"] == task, "edits"]
    last = max((edits for edits in there if edits <= min(at, run.n) and edits < run.collapse), default=0)
    return task_score(run, task, last, column) - task_score(run, task, 0, column) if last else math.nan


def right_answers(run, task):
    """1 for each example that the unedited model answers correctly, 0 for each other."""
    rows = run.tasks[(run.tasks["task"] == task) & (run.tasks["edits"] == 0)]
    n = int(rows["n_examples"].iloc[0]) if len(rows) else 0
    right = round(n * rows["accuracy"].iloc[0]) if n else 0
    return [1] * right + [0] * (n - right)
