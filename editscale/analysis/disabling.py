"""Edits with an update far larger than those before them, and which facts are edited alone to see what they do.

In the paper (arXiv:2401.07453) an edit is seen to disable the model where the distance of the weights jumps and
recall, downstream scores and generation fall with it; the released code holds no threshold
(scalable-model-editing/rebuilding-rome `experiments/disable_edits_plots.py` draws distance against word entropy of
single edits). Here `detect` finds such jumps by a stated rule. Size is a cause: which edits disable is decided by what
they do (`damage`), and those are made again alone on the unedited model (`chosen`, `sequences.single`).
"""

import numpy as np
import pandas as pd

from editscale.analysis import tables
from editscale.analysis.rows import require
from editscale.columns import RUN

JUMP = 5.0  # times the running median of earlier updates
DAMAGING, LOW, ORDINARY = "damage", "low k·u", "ordinary"  # what a fact edited alone stands for


def detect(drift, *, jump=JUMP, least_earlier=5):
    """Edits whose update is more than `jump` times the running median of the earlier ones in their run and layer.

    Args:
        drift: columns method, order, reversed, layer, edits, update_norm (`tables.drift_table`).
        jump: an update of exactly `jump` times the median is no jump.
        least_earlier: applied edits that must come before. An edit before that is not judged, however large.

    Returns:
        One row per run and edit, in the order of edits: method, order, reversed, edits, layer, update_norm,
        times_median. Where several layers jump at one edit, the one with the largest ratio; of equals the lowest.

    The median at an edit is of all earlier edits, jumps among them, never of later ones: an edit is judged the same
    in a longer run. Updates of norm 0, of edits that were not applied, do not count as earlier edits. After a
    collapse many updates may be large; the first of them is the disabling one.

    Of a run with several facts in a step, the updates are those of steps: a flagged edit stands for its whole step, and
    is the last fact of it.
    """
    place = [*RUN, "layer"]
    require(drift, (*place, "edits", "update_norm"), "drift")
    if not (jump > 1 and least_earlier >= 1):
        raise ValueError(f"jump is {jump} and least_earlier {least_earlier}; expected jump > 1 and least_earlier ≥ 1")
    if drift.duplicated([*place, "edits"]).any():
        raise ValueError("the drift table holds several rows for one run, layer and edit; give each run once")
    rows = drift.sort_values([*place, "edits"], ignore_index=True)
    norms = rows["update_norm"].where(rows["update_norm"] > 0).groupby([rows[name] for name in place])
    median = norms.transform(lambda x: x.shift().expanding(min_periods=least_earlier).median())
    rows["times_median"] = rows["update_norm"] / median
    largest_first = rows[rows["times_median"] > jump].sort_values(
        [*RUN, "edits", "times_median", "layer"], ascending=[True] * 4 + [False, True]
    )
    found = largest_first.drop_duplicates([*RUN, "edits"])
    return found[[*RUN, "edits", "layer", "update_norm", "times_median"]].reset_index(drop=True)


def chosen(done, edits, n_damaging, n_low, n_ordinary):
    """Which facts are edited alone, and what each stands for: a series, case_id ↦ DAMAGING, LOW or ORDINARY.

    Args:
        done: what `damage.damage` found of some runs.
        edits: columns case_id, and denominator where a method has one, of the same runs: whole ones, for k·u is the
            unedited model's.
        n_damaging: facts whose edit disabled a model in a run, those of the largest damage first.
        n_low: facts of the smallest |k·u| among the others.
        n_ordinary: of the facts left that disabled in no run, some evenly spaced over log |k·u|, or, where no run has
            denominators, over the facts in their order.

    Of each kind there may be fewer. Raises ValueError for a number below 0.
    """
    if min(n_damaging, n_low, n_ordinary) < 0:
        raise ValueError(f"{n_damaging}, {n_low} and {n_ordinary} facts to edit alone; expected 0 or more of each kind")
    require(edits, ("case_id",), "edits")
    worst = done[done["disabling"]].groupby("case_id")["damage"].max().sort_values(ascending=False, kind="stable")
    known = edits.reindex(columns=["case_id", "denominator"]).abs().groupby("case_id", sort=False)["denominator"].min()
    sizes = np.log(known) if known.notna().any() else pd.Series(range(len(known)), known.index, dtype=float)
    kinds = dict.fromkeys(worst.index[:n_damaging], DAMAGING)
    if known.notna().any():
        kinds |= dict.fromkeys(sizes.drop(list(kinds)).dropna().nsmallest(n_low).index, LOW)
    left = sizes.drop([*{*kinds, *worst.index}]).dropna()
    for place in np.linspace(left.min(), left.max(), 2 * min(n_ordinary, len(left)) + 1)[1::2]:
        kinds[nearest := (left - place).abs().idxmin()] = ORDINARY
        left = left.drop(nearest)
    return pd.Series(kinds, dtype=object).rename_axis("case_id")


def persistence(alone, done):
    """Of the facts that disabled a model in a run of a method, how many do so alone, edited by that method.

    Args:
        alone: what `damage.alone` found; done: what `damage.damage` found of the runs.

    Returns:
        Columns method, contexts, seed, facts (those of them that were edited alone), staying (disabling alone), share.
    """
    own = alone.merge(done.loc[done["disabling"], ["method", "case_id"]].drop_duplicates(), on=["method", "case_id"])
    by = own.groupby(["method", "contexts", "seed"], sort=False, dropna=False)["disabling"]
    return by.agg(facts="size", staying="sum", share="mean").reset_index()


def read_single(path):
    """The table of notebook 05a. Raises as `tables.read`."""
    return tables.read(path, "run notebook 05a, or give the path of its table")
