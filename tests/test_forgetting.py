"""Forgetting by hand: the paper's sawtooth, recall, survival of facts; where a planted inflection is found."""

import math

import numpy as np
import pandas as pd
import pytest

from editscale.analysis import forgetting, inflection, survival

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


def test_histogram_counts_every_forgotten_fact_once_in_bins_shared_by_runs():
    other = tables([1] * 12, {12: [0] * 12}, method="memit")  # lengths 11, 10, …, 0
    facts = pd.concat([forgetting.fact_table(HISTORY, EDITS), forgetting.fact_table(*other)])
    bins = forgetting.forget_histogram(facts)
    memit, rome = (bins[bins["method"] == name] for name in ("memit", "rome"))
    assert memit["facts"].tolist() == [2, 1, 1, 1, 1, 1, 1, 1, 1, 2] and rome["facts"].sum() == 3
    assert memit["low"].tolist() == rome["low"].tolist() and memit["high"].iloc[-1] == 11
    assert forgetting.forget_histogram(facts, "forget_index")["facts"].sum() == 15


def test_histogram_of_nothing_forgotten_has_no_rows():
    facts = forgetting.fact_table(*tables([1, 1], {2: [1, 1]}))
    assert forgetting.forget_histogram(facts).empty


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


# ------------------------------------------------------------------------------------------------------- inflection

CHECKPOINTS = list(range(20, 201, 20))


@pytest.mark.parametrize(
    "found, recall",
    (
        ("jump", [1 - 0.0005 * n - 0.6 * (n > 120) for n in CHECKPOINTS]),
        ("bend", [1 - 0.0005 * n - 0.009 * max(0, n - 120) for n in CHECKPOINTS]),
    ),
)
def test_a_planted_break_is_found_at_its_place_and_its_interval_covers_it(found, recall):
    history, edits = steps(recall, CHECKPOINTS, 200, np.random.default_rng(0))
    row = inflection.inflections(history, edits, np.random.default_rng(0), n_resamples=300).iloc[0]
    assert row["found"] == found and row["p_value"] <= 0.05
    assert row["inflection"] == 120 and row["low"] <= 120 <= row["high"]
    assert row["n_checkpoints"] == 10 and row["n_facts"] == 200
    if found == "jump":
        assert row["step"] == pytest.approx(0.6, abs=0.1) and row["slope_before"] == row["slope_after"]
        assert (row["low"], row["high"]) == (120, 140)
    else:
        assert row["slope_after"] == pytest.approx(0.0095, abs=0.002) and abs(row["slope_before"]) < 0.002


@pytest.mark.parametrize(
    "recall",
    (
        [1.0] * 10,
        [1 - 0.004 * n for n in CHECKPOINTS],
        [1 - (n / 200) ** 2 for n in CHECKPOINTS],  # faster and faster, but at no particular place
        [0.1 + 0.9 * math.exp(-n / 40) for n in CHECKPOINTS],  # slower and slower
    ),
    ids=("flat", "line", "parabola", "decay"),
)
def test_no_inflection_is_found_where_there_is_none(recall):
    history, edits = steps(recall, CHECKPOINTS, 200, np.random.default_rng(0))
    row = inflection.inflections(history, edits, np.random.default_rng(0), n_resamples=300).iloc[0]
    assert row["found"] == "none" and row[["inflection", "low", "high", "step"]].isna().all()
    assert row["p_value"] > 0.05


@pytest.mark.parametrize("place", (20, 180))
def test_a_collapse_in_the_first_or_last_interval_is_found(place):
    history, edits = steps([1 - 0.6 * (n > place) for n in CHECKPOINTS], CHECKPOINTS, 200, np.random.default_rng(0))
    row = inflection.inflections(history, edits, np.random.default_rng(0), n_resamples=300).iloc[0]
    assert row["found"] == "jump" and (row["inflection"], row["low"], row["high"]) == (place, place, place + 20)


def test_one_fact_lost_at_the_end_is_no_inflection():
    recalled = {n: [int(not (n == 200 and i == 0)) for i in range(n)] for n in CHECKPOINTS}
    row = inflection.inflections(*tables([1] * 200, recalled), np.random.default_rng(0)).iloc[0]
    assert row["found"] == "none" and row["p_value"] > 0.05


def test_an_exact_straight_line_has_no_inflection():
    """Facts forgotten in their own order, one at each edit: no noise, and nothing to explain."""
    recalled = {n: [int(i > n // 2) for i in range(1, n + 1)] for n in CHECKPOINTS}
    history, edits = tables([1] * 200, recalled)
    assert inflection.inflections(history, edits, np.random.default_rng(0)).iloc[0]["found"] == "none"


def test_the_smooth_course_a_break_must_beat_is_a_parabola():
    """Noise far below the curvature: a line or a cubic without square would leave a break to be found."""
    x = np.array(CHECKPOINTS, dtype=float)
    losses = (x[:, None] / 200) ** 2 + np.random.default_rng(0).normal(scale=1e-6, size=(10, 300))
    losses[:, 0] = (x / 200) ** 2
    found = inflection._break(x, losses, weights=x, level=0.05, confidence=0.95)
    assert found["found"] == "none" and found["p_value"] > 0.2


def test_false_inflections_are_about_as_rare_as_the_level_says():
    """Each fact has a constant risk, so checkpoints hang together; an F table finds a break in most such runs."""
    rng, false = np.random.default_rng(2), 0
    places = np.array(range(5, 61, 5))
    for _ in range(60):
        life = rng.exponential(150, size=60)
        recalled = {n: (n - np.arange(1, n + 1) < life[:n]).astype(int) for n in places.tolist()}
        history, edits = tables(np.ones(60), recalled)
        false += inflection.inflections(history, edits, rng, n_resamples=99).iloc[0]["found"] != "none"
    assert false <= 8  # of 60; more than 8 has a probability of 0.2 % at 5 %


def test_few_checkpoints_are_said_to_be_too_few():
    history, edits = steps([1, 1, 0, 0], [5, 10, 15, 20], 20, np.random.default_rng(0))
    row = inflection.inflections(history, edits, np.random.default_rng(0)).iloc[0]
    assert row["found"] == "too few checkpoints" and math.isnan(row["p_value"])


def test_the_papers_curve_keeps_a_collapse_from_which_the_run_recovers():
    """All facts are missed at one checkpoint only: the paper's loss jumps for good, recall comes back."""
    recalled = {n: [int(n != 100)] * n for n in CHECKPOINTS}
    history, edits = tables([1] * 200, recalled)
    paper = inflection.inflections(history, edits, np.random.default_rng(0), curve="paper").iloc[0]
    assert paper["found"] == "jump" and paper["inflection"] == 80
    curve = forgetting.paper_curve(history, edits).set_index("edits")["forgotten_percent"]
    assert (curve[99], curve[100], curve[200]) == (0, 100, 50)
    with pytest.raises(ValueError, match="curve is 'eye'; expected one of recall, paper"):
        inflection.inflections(history, edits, np.random.default_rng(0), curve="eye")


def test_the_same_generator_gives_the_same_inflections():
    history, edits = steps([0.9] * 5 + [0.4] * 5, CHECKPOINTS, 200, np.random.default_rng(0))
    first, second = (inflection.inflections(history, edits, np.random.default_rng(7)) for _ in range(2))
    pd.testing.assert_frame_equal(first, second)


# ---------------------------------------------------------------------------------------------------------- regions


def labels(recall, *, found="none", at=math.nan, before=math.nan, after=math.nan, learned=50, **options):
    curve = pd.DataFrame({**RUN, "edits": range(10, 10 * len(recall) + 1, 10), "learned": learned, "recall": recall})
    point = {**RUN, "found": found, "inflection": at, "slope_before": before, "slope_after": after}
    table = inflection.regions(curve, pd.DataFrame([point]), **options)
    return [tuple(row) for row in table[["label", "start", "stop"]].itertuples(index=False)]


def test_a_fall_between_neighbors_is_catastrophic_and_what_follows_is_after():
    expected = [("gradual", 0, 20), ("catastrophic", 20, 30), ("after", 30, 50)]
    assert labels([0.95, 0.9, 0.3, 0.3, 0.4]) == expected
    assert labels([0.95, 0.9, 0.3, 0.3, 0.4], drop=0.7) == [("gradual", 0, 50)]


def test_a_fall_before_the_first_checkpoint_counts_from_full_recall():
    assert labels([0.5, 0.5]) == [("catastrophic", 0, 10), ("after", 10, 20)]


def test_behind_a_bend_to_a_steep_slope_all_is_catastrophic():
    recall = [0.98, 0.96, 0.85, 0.74, 0.63]
    bend = {"found": "bend", "at": 20, "before": 0.002, "after": 0.011}
    assert labels(recall, **bend) == [("gradual", 0, 20), ("catastrophic", 20, 50)]
    assert labels(recall, **bend, steeper=6) == [("gradual", 0, 50)]


def test_checkpoints_of_a_few_facts_are_passed_over():
    recall = [0.5, 0.9, 0.9]
    assert labels(recall, learned=[2, 20, 30]) == [("gradual", 0, 30)]
    assert labels(recall, learned=[2, 20, 30], min_learned=1)[0] == ("catastrophic", 0, 10)


def test_runs_that_learned_too_little_have_no_region_and_their_table_can_be_ranked():
    curve = pd.DataFrame({**RUN, "edits": [10, 20], "learned": [0, 1], "recall": [math.nan, 1.0]})
    point = {**RUN, "found": "too few checkpoints", "inflection": math.nan, "slope_before": math.nan}
    table = inflection.regions(curve, pd.DataFrame([{**point, "slope_after": math.nan}]))
    assert table.assign(lost=table["recall_start"] - table["recall_stop"]).nlargest(1, "lost").empty


def test_regions_need_the_inflections_of_the_same_runs():
    curve = forgetting.recall_curve(HISTORY, EDITS)
    points = inflection.inflections(HISTORY, EDITS, np.random.default_rng(0))
    with pytest.raises(ValueError, match="no row for rome, order 1 in inflections"):
        inflection.regions(curve.assign(order=1), points)
    with pytest.raises(ValueError, match="inflections lacks found"):
        inflection.regions(curve, points.drop(columns="found"))
