"""Edits with an update far larger than those before them, found in the tables of a run, and applied alone.

In the paper (arXiv:2401.07453) an edit is seen to disable the model where the distance of the weights jumps and
recall, downstream scores and generation fall with it; the released code holds no threshold
(scalable-model-editing/rebuilding-rome `experiments/disable_edits_plots.py` draws distance against word entropy of
single edits). Here `detect` finds such jumps by a stated rule, and `sequences.single` makes the edits of their facts
alone on the unedited model. Size is a cause: which edits disable is decided by what they do (`damage`).
"""

from editscale.analysis import tables
from editscale.analysis.rows import require
from editscale.columns import RUN, SOUND

JUMP = 5.0  # times the running median of earlier updates


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


def of_facts(jumps, edits):
    """The edits of `detect` with their fact: its columns and case_id.

    Args:
        edits: columns method, order, reversed, edits, case_id (`tables.edits_table`).

    Raises ValueError for edits that are not in that table.
    """
    require(edits, (*RUN, "edits", "case_id"), "edits")
    key = [*RUN, "edits"]
    found = jumps.merge(edits[[*key, "case_id"]], on=key, how="left", indicator="edited")
    for row in found[found["edited"] != "both"].itertuples():
        run = {name: getattr(row, name) for name in RUN}
        raise ValueError(f"the edits table lacks edit {row.edits} of {run}; give the tables of the same runs")
    return found.drop(columns="edited")


def largest(flagged, n):
    """Case ids of the `n` facts with the largest updates, by `times_median`, among those `detect` flagged."""
    most = flagged.groupby("case_id")["times_median"].max()
    return most.sort_values(ascending=False, kind="stable").index[:n].tolist()


def against_ordinary(single):
    """Single edits, one row per edit, with how their update compares with ordinary ones: column times_ordinary.

    Args:
        single: columns method, case_id, flagged, contexts, seed, layer, update_norm (notebook 05a).

    times_ordinary is the update's norm over the median of the facts that are not flagged, edited by the same method
    with the same contexts at the same layer; of several layers the row with the largest ratio is kept. NaN where no
    fact is ordinary.
    """
    alike = ["method", "contexts", "seed"]
    require(single, (*alike, "case_id", "flagged", "layer", "update_norm"), "single edits")
    ordinary = single["update_norm"].where(~single["flagged"])
    median = ordinary.groupby([single[name] for name in [*alike, "layer"]], dropna=False).transform("median")
    rows = single.assign(times_ordinary=single["update_norm"] / median)
    place = single.groupby([*alike, "case_id"], sort=False, dropna=False).ngroup()
    rows = rows.sort_values("times_ordinary", ascending=False, kind="stable", na_position="last")
    rows = rows.drop_duplicates([*alike, "case_id"])
    return rows.loc[place[rows.index].sort_values().index]


def persistence(single, flagged, jump=JUMP):
    """How many disabling edits are so alone too, by method and contexts: a table in the order of `single`.

    Args:
        single: what `against_ordinary` returned.
        flagged: columns method, case_id (`detect` with `effects`): facts count for the methods whose runs flagged them.

    Returns:
        Columns method, contexts, seed, facts (flagged ones that were edited alone), staying (those whose update is
        more than `jump` times an ordinary one, or not finite), share.
    """
    own = single.merge(flagged[["method", "case_id"]].drop_duplicates(), on=["method", "case_id"])
    stays = (own["times_ordinary"] > jump) | ~own["status"].isin(SOUND)
    table = own.assign(staying=stays).groupby(["method", "contexts", "seed"], sort=False, dropna=False)["staying"]
    return table.agg(facts="size", staying="sum", share="mean").reset_index()


def with_ordinary(facts, flagged, n_ordinary, chosen=None):
    """The flagged facts, and `n_ordinary` others evenly spaced in the sequence, in the sequence's order.

    Args:
        facts: the facts of a run; flagged case ids that are not among them are left out.
        flagged: case ids.
        chosen: those of the flagged case ids to keep; None for all.
    """
    flagged = set(flagged)
    others = [fact for fact in facts if fact.case_id not in flagged]
    n = min(n_ordinary, len(others))
    spaced = {others[(2 * i + 1) * len(others) // (2 * n)].case_id for i in range(n)}
    kept = spaced | (flagged if chosen is None else flagged & set(chosen))
    return [fact for fact in facts if fact.case_id in kept]


def read_single(path):
    """The table of notebook 05a. Raises as `tables.read`."""
    return tables.read(path, "run notebook 05a, or give the path of its table")
