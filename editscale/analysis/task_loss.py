"""What becomes of few-shot tasks along runs: scores at given numbers of edits, and how long a task lasts."""

import numpy as np
import pandas as pd

from editscale.analysis.rows import groups, require
from editscale.columns import RUN

# Weighted F1 of a coin and of a constant answer on balanced labels of two kinds, as tables without these columns have.
TO_BEAT = {"f1_chance": 0.5, "f1_constant": 1 / 3}


def to_beat(rows):
    """Weighted F1 of a coin and of the best constant answer, for rows of one task: f1_chance, f1_constant."""
    given = [rows[name].iloc[0] if name in rows else np.nan for name in TO_BEAT]
    return tuple(usual if np.isnan(f1) else f1 for f1, usual in zip(given, TO_BEAT.values(), strict=True))


def scores_at(downstream, places, column="f1"):
    """The score of each task after given numbers of edits: one row per run, task and place that was measured.

    Returns method, order, reversed, task, edits, `column`.
    """
    require(downstream, (*RUN, "task", "edits", column), "downstream")
    return downstream.loc[downstream["edits"].isin(places), [*RUN, "task", "edits", column]].reset_index(drop=True)


def lasting(downstream):
    """How long each task lasts: one row per run and task.

    Returns:
        method, order, reversed, task; start: F1 of the unedited model; signal: start is above chance, the better of a
        coin and a constant answer, by more than two standard errors of an accuracy there; half: edits at the first of
        two checkpoints in a row (or the last one) at which half of the excess over chance, or more, is lost, infinite
        where there is none, NaN without a signal; silent: edits at the first checkpoint with an invalid answer to at
        least half of the examples, infinite where there is none; end: the last checkpoint.

    Two in a row, because a single score near a chance of ½ is often off by its standard error of √(¼ / n_examples).
    """
    require(downstream, (*RUN, "task", "edits", "f1", "invalid", "n_examples"), "downstream")
    rows = []
    for key, group in groups(downstream, (*RUN, "task")):
        group = group.sort_values("edits")
        edits, f1 = group["edits"].to_numpy(), group["f1"].to_numpy()
        if edits[0] != 0:
            raise ValueError(f"{key}: no scores of the unedited model; a run's first checkpoint is 0 edits")
        chance = max(to_beat(group))
        signal = f1[0] - chance > 2 * np.sqrt(chance * (1 - chance) / group["n_examples"].iloc[0])
        lost = f1 - chance <= (f1[0] - chance) / 2
        again = lost & np.append(lost[1:], True)
        silent = group["invalid"].to_numpy() >= 0.5
        lasts = {"half": _first(edits, again) if signal else np.nan, "silent": _first(edits, silent)}
        rows.append({**key, "start": f1[0], "signal": bool(signal), **lasts, "end": edits[-1]})
    return pd.DataFrame(rows)


def first_lost(lasts, column="half"):
    """Which task of each run was lost first: method, order, reversed, task, edits; runs that lost none are left out.

    Args:
        lasts: see `lasting`. Of tasks lost at one checkpoint each gets a row.
    """
    lost = lasts[np.isfinite(lasts[column])]
    earliest = lost.groupby(list(RUN))[column].transform("min")
    rows = lost[lost[column] == earliest]
    return rows[[*RUN, "task", column]].rename(columns={column: "edits"}).reset_index(drop=True)


def _first(edits, found):
    return float(edits[found.argmax()]) if found.any() else np.inf
