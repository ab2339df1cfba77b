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


def by_likelihood(downstream, choices=None):
    """What needs no written answer: one row per run, task or set of choices, and number of edits.

    Args:
        downstream, choices: tables of 04a; runs may be from before `auroc`, or choices (None), were measured.

    Returns:
        method, order, reversed, task, edits; score: "area" under the ROC curve of the answer words, or "right", the
        share of choices whose right continuation is the likeliest; share, 0–1, its standard error `error`, and what it
        is by `chance`; margin: mean margin of choices, nats, NaN of an area; signal: the unedited model's share is
        above chance by more than two standard errors, the larger of its own and that at chance: a binomial one, and of
        an area that of Mann and Whitney 1947 with as many examples of either label, √((n + 1) / 3) / n.
    """
    names = [*RUN, "task", "edits"]
    areas = (
        downstream.dropna(subset="auroc") if "auroc" in downstream else downstream[:0].assign(auroc=1.0, auroc_se=1.0)
    )
    areas = areas.rename(columns={"auroc": "share", "auroc_se": "error"}).assign(
        score="area", chance=0.5, margin=np.nan
    )
    parts = [areas.assign(at_chance=np.sqrt((areas["n_examples"] + 1) / 3) / areas["n_examples"])]
    if choices is not None:
        whole = choices[choices["phenomenon"] == "all"].rename(columns={"accuracy": "share", "accuracy_se": "error"})
        spread = np.sqrt(whole["chance"] * (1 - whole["chance"]) / whole["n_examples"])
        parts.append(whole.assign(score="right", at_chance=spread))
    rows = pd.concat([part[[*names, "score", "share", "error", "chance", "margin", "at_chance"]] for part in parts])
    above = rows["share"] - rows["chance"] > 2 * rows[["error", "at_chance"]].max(axis=1)
    known = rows[above & (rows["edits"] == 0)].set_index([*RUN, "task"]).index
    signal = rows.set_index([*RUN, "task"]).index.isin(known)
    return rows.drop(columns="at_chance").assign(signal=signal).reset_index(drop=True)


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
