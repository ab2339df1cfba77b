"""Forgetting by hand: the paper's sawtooth, recall, survival of facts."""

import math

import numpy as np
import pandas as pd
import pytest

from editscale.analysis import forgetting, survival

RUN = {"method": "rome", "order": 0, "reversed": False}


def tables(learned, recalled, **run):
    """`history` and `edits` of one run.

    Args:
        learned: 0 or 1 per edit.
        recalled: checkpoint ↦ 0 or 1 per edit up to it.
    """
    key = RUN | run
    edits = [
        {**key, "edits": i, "case_id": 100 + i, "efficacy_accuracy": float(x)} for i, x in enumerate(learned, start=1)
    ]
    history = [
        {**key, "edits": n, "edit": i, "case_id": 100 + i, "efficacy_accuracy": float(x)}
        for n, row in recalled.items()
        for i, x in enumerate(row, start=1)
    ]
    return pd.DataFrame(history), pd.DataFrame(edits)


# Eight edits, edit 3 not learned; fact 1 is forgotten at 3 for good, fact 2 at 3 but comes back at 6,
# fact 4 is forgotten at 6, fact 5 is kept; facts 7 and 8 come after the last checkpoint.
HISTORY, EDITS = tables([1, 1, 0, 1, 1, 1, 1, 1], {3: [0, 0, 0], 6: [0, 1, 1, 0, 1, 1]})


def steps(recall, checkpoints, n_facts, rng):
    """Tables in which all facts are learned and checkpoint N recalls each fact with probability recall[N]."""
    luck = rng.random(n_facts)
    return tables(
        np.ones(n_facts),
        {n: (luck[:n] < p).astype(int) for n, p in zip(checkpoints, recall, strict=True)},
    )


# ------------------------------------------------------------------------------------------- the paper's bookkeeping


def test_facts_are_forgotten_at_the_first_checkpoint_that_misses_them():
    facts = forgetting.fact_table(HISTORY, EDITS).set_index("edit")
    assert facts["forget_index"].dropna().to_dict() == {1: 3, 2: 3, 4: 6}
    assert facts["forget_length"].dropna().to_dict() == {1: 2, 2: 1, 4: 2}
    assert facts.index[facts["recovered"]].tolist() == [2]
    assert facts["case_id"].tolist() == EDITS["case_id"].tolist()


def test_sawtooth_rises_at_checkpoints_and_falls_between_them():
    curve = forgetting.paper_curve(HISTORY, EDITS)
    assert curve["edits"].tolist() == list(range(1, 9))
    expected = [0, 0, 200 / 2, 200 / 3, 200 / 4, 300 / 5, 300 / 6, 300 / 7]  # learned: 1 2 2 3 4 5 6 7
    np.testing.assert_allclose(curve["forgotten_percent"], expected)
    np.testing.assert_allclose(curve["forgotten_of_edits_percent"], [0, 0, 200 / 3, 50, 40, 50, 300 / 7, 37.5])


def test_a_recovered_fact_stays_counted_by_the_paper_but_is_recalled():
    assert forgetting.paper_curve(HISTORY, EDITS)["forgotten"].iloc[5] == 3
    now = forgetting.recall_curve(HISTORY, EDITS).set_index("edits")
    assert now["learned"].tolist() == [2, 5] and now["recalled"].tolist() == [0, 3]
    assert now["recovered"].tolist() == [0, 1]
    assert now["recall"].tolist() == [0, pytest.approx(3 / 5)]


def test_what_is_scored_after_a_fact_was_forgotten_does_not_change_the_papers_curve():
    changed = HISTORY.copy()
    changed.loc[(changed["edits"] == 6) & (changed["edit"] <= 2), "efficacy_accuracy"] = [1.0, 0.0]
    before, after = (forgetting.paper_curve(h, EDITS) for h in (HISTORY, changed))
    pd.testing.assert_frame_equal(before, after)


def test_facts_never_learned_never_count():
    """Edit 3 is missed at one checkpoint and hit at the next; neither may matter."""
    changed = HISTORY.copy()
    unlearned = changed["edit"] == 3
    changed.loc[unlearned, "efficacy_accuracy"] = 1 - changed.loc[unlearned, "efficacy_accuracy"]
    for function in (forgetting.fact_table, forgetting.paper_curve, forgetting.recall_curve):
        pd.testing.assert_frame_equal(function(HISTORY, EDITS), function(changed, EDITS))
    facts = forgetting.fact_table(HISTORY, EDITS).set_index("edit").loc[3]
    assert not facts["learned"] and not facts["forgotten"] and math.isnan(facts["age"])


def test_without_a_learned_fact_nothing_is_forgotten_and_recall_is_undefined():
    history, edits = tables([0, 0], {2: [0, 0]})
    assert forgetting.paper_curve(history, edits)["forgotten_percent"].tolist() == [0, 0]
    assert forgetting.recall_curve(history, edits)["recall"].isna().all()
    with pytest.raises(ValueError, match="no learned fact was followed"):
        survival.kaplan_meier(forgetting.fact_table(history, edits))


def test_order_of_rows_does_not_matter_and_runs_do_not_mix():
    other = tables([1, 1], {2: [1, 0]}, order=1)
    both = [pd.concat(pair).sample(frac=1, random_state=0) for pair in zip((HISTORY, EDITS), other, strict=True)]
    curve = forgetting.recall_curve(*both)
    assert curve.loc[curve["order"] == 1, "recall"].tolist() == [0.5]
    pd.testing.assert_frame_equal(
        curve[curve["order"] == 0].reset_index(drop=True), forgetting.recall_curve(HISTORY, EDITS)
    )


def test_recall_by_age_counts_each_learned_fact_at_each_checkpoint():
    ages = forgetting.recall_by_age(HISTORY, EDITS, [0, 2, 6]).set_index("age_low")
    # ages 0 and 1: fact 2 at 3 (missed), 5 and 6 at 6; ages 2 to 5: fact 1 at 3 and 6, 2 at 6 (back), 4 at 6
    assert ages["scores"].tolist() == [3, 4] and ages["facts"].tolist() == [3, 3]
    assert ages["recall"].tolist() == [pytest.approx(2 / 3), pytest.approx(1 / 4)]


@pytest.mark.parametrize(
    "borders, message",
    (
        ([0, 5], "ages 0–5 do not fit borders 0–5"),
        ([1, 6], "do not fit"),
        ([3, 3], "increasing"),
        ([0], "at least two"),
    ),
)
def test_ages_outside_the_borders_are_an_error(borders, message):
    with pytest.raises(ValueError, match=message):
        forgetting.recall_by_age(HISTORY, EDITS, borders)


# ------------------------------------------------------------------------------------------------------- bad tables


def test_a_checkpoint_beyond_the_edits_is_an_error():
    with pytest.raises(ValueError, match="rome, order 0: checkpoint 3 is beyond its 2 edits"):
        forgetting.paper_curve(*tables([1, 1], {3: [1, 1, 1]}))


@pytest.mark.parametrize(
    "history, edits, message",
    (
        (HISTORY.drop(columns="edit"), EDITS, "history lacks edit; it has"),
        (HISTORY, EDITS.drop(columns="case_id"), "edits lacks case_id"),
        (HISTORY[HISTORY["edit"] != 2], EDITS, "at checkpoint 3 is not one row per edit 1 to 3"),
        (pd.concat([HISTORY, HISTORY[:1]]), EDITS, "at checkpoint 3 is not one row"),
        (HISTORY.assign(case_id=HISTORY["case_id"] + 1), EDITS, "edit 1 is case 101 in edits and case 102 in history"),
        (HISTORY, EDITS[EDITS["edits"] != 2], "not numbered 1 to 7"),
        (HISTORY.assign(order=1), EDITS, "rome, order 0 has edits but no history"),
        (HISTORY, EDITS[:0], "history but no edits"),
        (HISTORY[:0], EDITS[:0], "the table of edits is empty"),
        (HISTORY.assign(efficacy_accuracy=0.5), EDITS, "must be 0 or 1"),
        (pd.concat([HISTORY, HISTORY.assign(reversed=True)]), EDITS, "order 0 reversed has a history but no edits"),
    ),
)
def test_tables_that_do_not_fit_are_an_error(history, edits, message):
    with pytest.raises(ValueError, match=message):
        forgetting.recall_curve(history, edits)


# --------------------------------------------------------------------------------------------------------- survival


def followed(ages, forgotten):
    return pd.DataFrame({**RUN, "age": ages, "forgotten": forgotten})


def test_kaplan_meier_and_greenwood_by_hand():
    """Ages 1, 2+, 3, 3, 5+ (+ censored): S(1) = 4/5, S(3) = 4/5 · 1/3 = 4/15."""
    curve = survival.kaplan_meier(followed([1, 2, 3, 3, 5], [True, False, True, True, False])).set_index("age")
    assert curve.index.tolist() == [0, 1, 2, 3, 5]
    assert curve["at_risk"].tolist() == [5, 5, 4, 3, 1]
    assert curve["forgotten"].tolist() == [0, 1, 0, 2, 0] and curve["censored"].tolist() == [0, 0, 1, 0, 1]
    np.testing.assert_allclose(curve["survival"], [1, 4 / 5, 4 / 5, 4 / 15, 4 / 15])
    for age, share, greenwood in ((1, 4 / 5, 1 / (5 * 4)), (3, 4 / 15, 1 / (5 * 4) + 2 / (3 * 1))):
        error = 1.959963984540054 * math.sqrt(greenwood) / math.log(share)  # of log(−log S), below zero
        assert curve.loc[age, "low"] == pytest.approx(share ** math.exp(-error))
        assert curve.loc[age, "high"] == pytest.approx(share ** math.exp(error))
    assert math.isnan(curve.loc[0, "low"]) and math.isnan(curve.loc[0, "high"])


def test_without_censoring_survival_is_one_minus_the_distribution_function():
    ages = np.random.default_rng(0).integers(0, 30, size=200)
    curve = survival.kaplan_meier(followed(ages, True))
    np.testing.assert_allclose(curve["survival"], [(ages > t).mean() for t in curve["age"]], atol=1e-12)
    ends = curve[curve["survival"] <= 1e-12]
    assert len(ends) == 1 and ends["low"].isna().all()
    inner = curve[(curve["survival"] > 1e-12) & (curve["forgotten"].cumsum() > 0)]
    assert (inner["low"] < inner["survival"]).all() and (inner["survival"] < inner["high"]).all()
    binomial = inner["survival"] * (1 - inner["survival"]) / len(ages)  # Greenwood's sum telescopes to it
    spread = (np.log(-np.log(inner["low"])) - np.log(-np.log(inner["high"]))) / (2 * 1.959963984540054)
    np.testing.assert_allclose((spread * inner["survival"] * np.log(inner["survival"])) ** 2, binomial)


def test_survival_follows_facts_from_their_edit_to_the_checkpoint():
    """Facts 1, 2, 4 are forgotten at ages 2, 1, 2; 5 and 6 are censored at 1 and 0; 3, 7 and 8 are not followed."""
    curve = survival.kaplan_meier(forgetting.fact_table(HISTORY, EDITS)).set_index("age")
    assert curve["at_risk"].to_dict() == {0: 5, 1: 4, 2: 2}
    np.testing.assert_allclose(curve["survival"], [1, 3 / 4, 0], atol=1e-12)


def test_median_survival_is_where_half_are_forgotten():
    curve = survival.kaplan_meier(followed(range(1, 11), True))
    found = survival.median(curve).iloc[0]
    assert found["median"] == 5  # S(5) is ½ itself
    assert found["low"] < 5 < found["high"] and found["facts"] == found["forgotten"] == 10


def test_median_is_undefined_where_most_facts_survive():
    found = survival.median(survival.kaplan_meier(followed([3] * 40, [True] * 2 + [False] * 38))).iloc[0]
    assert math.isnan(found["median"]) and math.isnan(found["low"]) and found["forgotten"] == 2


def test_survival_pools_orders_where_asked():
    facts = pd.concat([followed([1, 2], True), followed([3, 4], False).assign(order=1)])
    assert survival.kaplan_meier(facts)["order"].nunique() == 2
    assert survival.kaplan_meier(facts, by=("method",))["at_risk"].iloc[0] == 4


def test_greenwood_intervals_hold_the_true_survival_about_as_often_as_they_say():
    rng, hits = np.random.default_rng(1), 0
    for _ in range(150):
        life, end = rng.exponential(10, size=60), rng.uniform(0, 20, size=60)
        curve = survival.kaplan_meier(followed(np.minimum(life, end), life <= end))
        row = curve[curve["age"] <= 5].iloc[-1]
        hits += row["low"] <= math.exp(-0.5) <= row["high"]
    assert 0.9 <= hits / 150 <= 0.99  # 0.95 − 2.8 and + 2.2 standard errors
