"""Which edited facts a run forgets and when: the paper's bookkeeping, and recall at every checkpoint.

Forgetting as in arXiv:2401.07453 (its code: scalable-model-editing/gradual-catastrophic-forgetting
`experiments/evaluate_history.py`, `downstream_eval/fact_forgetting.py`): at checkpoints N every fact edited so far is
asked of the model after N edits, and facts not learned by their own edit never count. There, a fact once found
forgotten is not asked again; here every fact is scored at every checkpoint, and both readings come from one table.

Functions take `edits` and `history`, tables of one run or of several stacked, and treat each run by itself:

- `edits`: one row per edit; `efficacy_accuracy` is 1 if the fact was learned (`rows.were_learned`).
- `history`: one row per checkpoint (`edits`) and earlier fact (`edit`, its place in the sequence);
  `efficacy_accuracy` is 1 if the fact is recalled there.

All of them raise ValueError if columns or rows are missing, or if a checkpoint lies beyond the edits of its run.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from editscale.analysis.rows import groups, require, were_learned
from editscale.columns import RUN


@dataclass(frozen=True)
class RunRecall:
    """A run as arrays: `recalled` (facts, checkpoints) holds 1, 0, or NaN where the fact was not edited yet."""

    key: dict
    case_id: np.ndarray
    learned: np.ndarray
    checkpoints: np.ndarray
    recalled: np.ndarray

    def scored(self):
        """(facts, checkpoints): learned and edited by then."""
        return self.learned[:, None] & ~np.isnan(self.recalled)

    def first_forgotten(self):
        """Place of the checkpoint that first finds each learned fact forgotten; −1 where none does."""
        forgotten = self.scored() & (self.recalled == 0)
        return np.where(forgotten.any(axis=1), forgotten.argmax(axis=1), -1)


def fact_table(history, edits):
    """What became of each edit: one row per edit of each run.

    Returns:
        method, order, reversed, edit (1-based), case_id, learned (bool);
        forget_index: edits at the first checkpoint that finds the learned fact forgotten, NaN if none does;
        forget_length: forget_index − edit;
        recovered: recalled again at a later checkpoint;
        forgotten, age: the observation that `survival.kaplan_meier` takes: whether forgotten, and at which age (edits
        since its own), or else its age at the last checkpoint; NaN for facts not learned or edited after that.
    """
    rows = []
    for run in runs_of(history, edits):
        first = run.first_forgotten()
        forgotten, edit = first >= 0, np.arange(1, len(first) + 1)
        index = np.where(forgotten, run.checkpoints[first], np.nan)
        later = np.arange(len(run.checkpoints)) > first[:, None]
        last_age = run.checkpoints[-1] - edit
        columns = {
            "edit": edit,
            "case_id": run.case_id,
            "learned": run.learned,
            "forget_index": index,
            "forget_length": index - edit,
            "recovered": forgotten & (later & (run.recalled == 1)).any(axis=1),
            "forgotten": forgotten,
            "age": np.where(forgotten, index - edit, np.where(run.learned & (last_age >= 0), last_age, np.nan)),
        }
        rows.append(pd.DataFrame({**run.key, **columns}))
    return pd.concat(rows, ignore_index=True)


def paper_curve(history, edits):
    """The paper's cumulative share of facts forgotten, in percent: one row per number of edits e of each run.

    Returns:
        method, order, reversed, edits (e = 1, 2, …); forgotten = #{i: forget_index(i) ≤ e}; learned = #{i ≤ e learned};
        forgotten_percent = 100 forgotten / learned, 0 where none is learned;
        forgotten_of_edits_percent = 100 forgotten / e.

    The numerator moves at checkpoints only while the denominators grow with every edit, so the curve falls between
    its steps: a sawtooth. A fact that comes back stays counted.
    """
    rows = []
    for run in runs_of(history, edits):
        first = run.first_forgotten()
        e = np.arange(1, len(first) + 1)
        index = np.sort(run.checkpoints[first[first >= 0]])
        forgotten, learned = np.searchsorted(index, e, side="right"), run.learned.cumsum()
        columns = {
            "edits": e,
            "forgotten": forgotten,
            "learned": learned,
            "forgotten_percent": 100 * forgotten / np.maximum(learned, 1),
            "forgotten_of_edits_percent": 100 * forgotten / e,
        }
        rows.append(pd.DataFrame({**run.key, **columns}))
    return pd.concat(rows, ignore_index=True)


def recall_curve(history, edits):
    """Share of learned facts that are recalled now, recovered ones included: one row per checkpoint of each run.

    Returns:
        method, order, reversed, edits; learned: learned facts edited so far; recalled: of these, recalled at this
        checkpoint; recovered: of the recalled, found forgotten at an earlier one; recall = recalled / learned, 0–1,
        NaN where none is learned.
    """
    rows = []
    for run in runs_of(history, edits):
        scored, recalled, first = run.scored(), run.recalled == 1, run.first_forgotten()
        earlier = (first[:, None] >= 0) & (first[:, None] < np.arange(len(run.checkpoints)))
        n, hits = scored.sum(axis=0), (scored & recalled).sum(axis=0)
        columns = {
            "edits": run.checkpoints,
            "learned": n,
            "recalled": hits,
            "recovered": (scored & recalled & earlier).sum(axis=0),
            "recall": np.where(n > 0, hits / np.maximum(n, 1), np.nan),
        }
        rows.append(pd.DataFrame({**run.key, **columns}))
    return pd.concat(rows, ignore_index=True)


def recall_by_age(history, edits, borders):
    """Recall of learned facts by the age of their edit at the checkpoint: one row per run and bin that holds any.

    Args:
        borders: increasing ages that bound the bins, low ≤ age < high; age 0 is the last edit before a checkpoint.

    Returns:
        method, order, reversed, age_low, age_high; facts: distinct facts; scores: facts × checkpoints; recall, 0–1.

    Raises ValueError if ages lie outside `borders`. Old ages are seen late in a run only, so a fall with age and one
    with the number of edits cannot be told apart within one run.
    """
    borders = np.asarray(borders)
    if len(borders) < 2 or (np.diff(borders) <= 0).any():
        raise ValueError(f"borders of age bins are {borders.tolist()}; expected at least two, increasing")
    rows = []
    for run in runs_of(history, edits):
        fact, place = np.nonzero(run.scored())
        age = run.checkpoints[place] - (fact + 1)
        if len(age) and (age.min() < borders[0] or age.max() >= borders[-1]):
            raise ValueError(
                f"{label_of(run.key)}: ages {age.min()}–{age.max()} do not fit borders {borders[0]}–{borders[-1]}; "
                f"let the first be at most {age.min()} and the last above {age.max()}"
            )
        table = pd.DataFrame(
            {"bin": np.searchsorted(borders, age, side="right") - 1, "fact": fact, "hit": run.recalled[fact, place]}
        )
        for i, group in table.groupby("bin"):
            counts = {"facts": group["fact"].nunique(), "scores": len(group), "recall": group["hit"].mean()}
            rows.append({**run.key, "age_low": borders[i], "age_high": borders[i + 1], **counts})
    return pd.DataFrame(rows, columns=[*RUN, "age_low", "age_high", "facts", "scores", "recall"])


def runs_of(history, edits):
    """A checked `RunRecall` for each run, in the order of `edits`."""
    require(edits, (*RUN, "edits", "case_id", "efficacy_accuracy"), "edits")
    require(history, (*RUN, "edits", "edit", "case_id", "efficacy_accuracy"), "history")
    of_run = {tuple(key.values()): group for key, group in groups(history)}
    runs = [_run(key, of_run.pop(tuple(key.values()), None), group) for key, group in groups(edits)]
    if of_run:
        raise ValueError(f"{label_of(dict(zip(RUN, min(of_run), strict=True)))} has a history but no edits")
    if not runs:
        raise ValueError("the table of edits is empty; give the edits of at least one run")
    return runs


def _run(key, history, edits):
    name, edits = label_of(key), edits.sort_values("edits")
    n_edits = len(edits)
    if history is None:
        raise ValueError(f"{name} has edits but no history; score its earlier facts at checkpoints first")
    if edits["edits"].tolist() != list(range(1, n_edits + 1)):
        raise ValueError(f"{name}: the rows of edits are not numbered 1 to {n_edits}, each once")
    if (last := history["edits"].max()) > n_edits:
        raise ValueError(
            f"{name}: checkpoint {last} is beyond its {n_edits} edits; end the schedule of checkpoints at {n_edits}"
        )
    checkpoints = np.sort(history["edits"].unique())
    for checkpoint, rows in history.groupby("edits"):
        if sorted(rows["edit"]) != list(range(1, checkpoint + 1)):
            raise ValueError(
                f"{name}: the history at checkpoint {checkpoint} is not one row per edit 1 to {checkpoint}"
            )
    case_id = edits["case_id"].to_numpy()
    place = history["edit"].to_numpy() - 1
    if (wrong := case_id[place] != history["case_id"].to_numpy()).any():
        row = history[wrong].iloc[0]
        raise ValueError(
            f"{name}: edit {row['edit']} is case {case_id[row['edit'] - 1]} in edits and case {row['case_id']} in "
            "history; give tables of one run"
        )
    for table, values in (("edits", edits["efficacy_accuracy"]), ("history", history["efficacy_accuracy"])):
        if not values.isin((0, 1)).all():
            raise ValueError(f"{name}: efficacy_accuracy in {table} must be 0 or 1, one rewrite prompt per fact")
    recalled = np.full((n_edits, len(checkpoints)), np.nan)
    recalled[place, np.searchsorted(checkpoints, history["edits"])] = history["efficacy_accuracy"]
    return RunRecall(key, case_id, were_learned(edits).to_numpy(), checkpoints, recalled)


def label_of(key):
    """What errors call a run."""
    return f"{key['method']}, order {key['order']}" + (" reversed" if key["reversed"] else "")
