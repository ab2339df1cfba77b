"""The hazard of forgetting by hand: who is at risk, where it changes, whether it rises, and what is catastrophic."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest

from editscale.analysis import hazard
from editscale.columns import RUN
from editscale.workflow import provenance

KEY = {"method": "rome", "order": 0, "reversed": False}


def tables(learned, recalled, **run):
    """`history` and `edits` of one run; recalled: checkpoint ↦ 0 or 1 per edit up to it."""
    key = KEY | run
    edits = [{**key, "edits": i, "case_id": i, "efficacy_accuracy": float(x)} for i, x in enumerate(learned, 1)]
    history = [
        {**key, "edits": n, "edit": i, "case_id": i, "efficacy_accuracy": float(x)}
        for n, row in recalled.items()
        for i, x in enumerate(row, 1)
    ]
    return pd.DataFrame(history), pd.DataFrame(edits)


def intervals(at_risk, lost, length=20, **run):
    stop = length * np.arange(1, len(at_risk) + 1) if np.isscalar(length) else np.cumsum(length)
    start = np.concatenate([[0], stop[:-1]])
    at_risk, lost = np.array(at_risk), np.array(lost)
    return pd.DataFrame({**KEY, **run, "start": start, "stop": stop, "at_risk": at_risk, "lost": lost})


def drawn(at_risk, share, rng, phi=1, n_draws=1):
    """Tables of `intervals`, stacked: one order per draw."""
    lost = hazard._draws(np.array(at_risk), np.broadcast_to(share, len(at_risk)), phi, rng, n_draws)
    return pd.concat([intervals(at_risk, row, order=i) for i, row in enumerate(lost)])


REALISTIC = np.linspace(18, 160, 49).astype(int)  # facts at risk of a run of 1,000 edits


# ----------------------------------------------------------------------------------------------------------- losses


def test_facts_at_risk_are_those_recalled_and_lost_are_those_of_them_missed_next():
    """Edit 3 is not learned. Fact 1 is lost at 4, 2 comes back at 4 and is lost at 6; 4 is at risk from 4 on."""
    history, edits = tables([1, 1, 0, 1, 1, 1], {2: [1, 0], 4: [0, 1, 1, 1], 6: [0, 0, 0, 1, 1, 0]})
    table = hazard.losses(history, edits, every=2)
    assert table[["start", "stop", "at_risk", "lost"]].to_numpy().tolist() == [[2, 4, 1, 1], [4, 6, 2, 1]]
    assert table["hazard"].tolist() == [1, 0.5]


def test_without_a_fact_at_risk_there_is_no_hazard():
    table = hazard.losses(*tables([1, 1], {1: [0], 2: [0, 0]}), every=1)
    assert table["at_risk"].tolist() == [0] and table["hazard"].isna().all()
    assert hazard.stretches(table).empty and hazard.speedups(table, np.random.default_rng(0)).empty


@pytest.mark.parametrize(
    "places, every, expected",
    (
        (range(1, 8), 20, [(1, 7)]),  # a run shorter than `every`: its first and last checkpoint
        (range(5, 51, 5), 20, [(5, 20), (20, 40), (40, 50)]),
        ((7, 19, 23, 38, 60), 20, [(7, 19), (19, 38), (38, 60)]),  # the nearest
        ((30, 60, 90), 20, [(30, 60), (60, 90)]),  # sparser than `every`
        ((5,), 20, []),
    ),
)
def test_intervals_are_between_the_checkpoints_nearest_to_multiples(places, every, expected):
    history, edits = tables([1] * max(places), {n: [1] * n for n in places})
    table = hazard.losses(history, edits, every=every)
    assert list(zip(table["start"], table["stop"], strict=True)) == expected
    with pytest.raises(ValueError, match="every is 0; expected one edit or more"):
        hazard.losses(history, edits, every=0)


# -------------------------------------------------------------------------------------------------------- stretches


def test_breaks_are_those_of_the_best_of_all_ways_to_cut():
    rng = np.random.default_rng(0)
    for _ in range(5):
        sums = np.vstack([np.zeros(4), rng.normal(size=(7, 4)).cumsum(axis=0)])
        costs = {}
        for places in itertools.chain.from_iterable(itertools.combinations(range(1, 7), k) for k in range(7)):
            cuts = tuple(itertools.pairwise((0, *places, 7)))
            costs[cuts] = sum(-2 * (sums[j] - sums[i]).max() for i, j in cuts) + 1.5 * len(places)
        assert tuple(hazard._cuts(sums, 1.5)) == min(costs, key=costs.get)


def test_planted_changes_are_found_at_their_places_with_their_hazards():
    n = np.full(30, 150)
    table = intervals(n, np.repeat([7, 45, 120, 30], [10, 8, 2, 10]))
    found = hazard.stretches(table)
    assert found["start"].tolist() == [0, 200, 360, 400] and found["stop"].tolist() == [200, 360, 400, 600]
    np.testing.assert_allclose(found["hazard"], [7 / 150, 0.3, 0.8, 0.2], atol=5e-4)
    assert found["label"].tolist() == ["gradual", "gradual", "catastrophic", "gradual"]
    assert found["lost"].tolist() == [70, 360, 240, 300] and found["at_risk"].tolist() == [150] * 4


def test_a_constant_hazard_is_one_stretch_in_all_but_few_simulated_runs():
    """With no more scatter than is allowed for; and scatter left out would cut many runs."""
    rng = np.random.default_rng(0)
    for share, phi in ((0.05, 1), (0.28, 2), (0.12, 1.5)):
        table = drawn(REALISTIC, share, rng, phi, 60)
        assert (hazard.stretches(table).groupby("order").size() > 1).mean() < 0.05
    assert (hazard.stretches(drawn(REALISTIC, 0.28, rng, 2, 60), scatter=1).groupby("order").size() > 1).mean() > 0.1


def test_one_interval_that_loses_everything_is_a_catastrophic_stretch():
    n = [60, 80, 100, 110, 5, 20, 30, 40]
    found = hazard.stretches(intervals(n, [9, 12, 15, 110, 1, 3, 4, 6]))
    assert found.loc[found["label"] == "catastrophic", ["start", "stop"]].to_numpy().tolist() == [[60, 80]]
    assert found["hazard"].max() == 1


def test_few_facts_or_a_hazard_below_the_threshold_are_not_catastrophic():
    def label(n, lost, **options):
        return hazard.stretches(intervals([n], [lost]), **options)["label"].item()

    assert label(20, 10) == "catastrophic" and label(19, 19) == "gradual" and label(100, 49) == "gradual"
    assert label(19, 19, least=19) == "catastrophic" and label(100, 49, catastrophic=0.4) == "catastrophic"


def test_lengths_of_intervals_do_not_change_the_hazard_per_20_edits():
    """A hazard of 0.36 over 40 edits, 0.2 over 20 and 1 − √0.8 over 10 is one hazard."""
    table = intervals([10_000] * 4, [2000, 3600, 1056, 2000], length=[20, 40, 10, 20])
    found = hazard.stretches(table)
    assert len(found) == 1 and found["hazard"].item() == pytest.approx(0.2, abs=1e-3)
    places = pd.DataFrame([KEY | {"collapse": math.inf}])
    assert hazard.before(table, places)["hazard"].item() == pytest.approx(0.2, abs=1e-3)


def test_runs_do_not_mix_and_order_of_rows_does_not_matter():
    first, other = intervals([100] * 6, [5] * 3 + [60] * 3), intervals([100] * 6, [30] * 6, order=1)
    found = hazard.stretches(pd.concat([first, other]).sample(frac=1, random_state=0))
    pd.testing.assert_frame_equal(
        found[found["order"] == 0].reset_index(drop=True), hazard.stretches(first), check_dtype=False
    )
    assert found.groupby("order").size().to_dict() == {0: 2, 1: 1}


# --------------------------------------------------------------------------------------------- collapse, half, k of n


def test_the_hazard_before_the_collapse_is_of_intervals_that_end_by_then():
    table = pd.concat([intervals([100] * 4, [10, 20, 90, 90]), intervals([50] * 2, [5, 5], order=1)])
    places = pd.DataFrame([KEY | {"collapse": 45}, KEY | {"order": 1, "collapse": math.inf}])
    assert hazard.before(table, places)["hazard"].tolist() == [0.15, 0.1]
    early = hazard.before(table, places.assign(collapse=[19, 20]))
    assert math.isnan(early["hazard"][0]) and early["hazard"][1] == 0.1
    with pytest.raises(ValueError, match="has no place of collapse"):
        hazard.before(table, places[:1])


def test_a_run_that_never_loses_half_counts_as_later_than_all():
    recall = pd.DataFrame(
        [KEY | {"edits": n, "recall": r, "order": o} for o, n, r in ((0, 5, 0.5), (0, 10, 0.4), (1, 5, 0.9))]
    )
    assert hazard.until_half(recall)["half"].tolist() == [10, math.inf]


def test_a_verdict_that_hangs_on_the_threshold_is_undecided():
    def stretch(order, share, method="rome", at_risk=50):
        return {"method": method, "order": order, "reversed": False, "hazard": share, "at_risk": at_risk}

    rows = [stretch(0, 0.9), stretch(0, 0.7), stretch(1, 0.65), stretch(2, 0.1)]
    rows += [stretch(0, 0.5, "memit"), stretch(1, 0.45, "memit"), stretch(0, 0.9, "ft-c", 5), stretch(1, 0.3, "ft-c")]
    runs = pd.DataFrame([*rows, stretch(0, 0, "r-rome")])  # r-rome: no stretch at all
    found = hazard.with_catastrophe(pd.DataFrame(rows), runs).set_index("method")
    assert found[["at 0.4", "at 0.5", "at 0.6"]].to_numpy().tolist() == [[2, 2, 2], [2, 1, 0], [0, 0, 0], [0, 0, 0]]
    assert found["verdict"].to_dict() == {"rome": "most orders", "memit": "undecided", "ft-c": "none", "r-rome": "none"}
    assert found["orders"].tolist() == [3, 2, 2, 1]


# --------------------------------------------------------------------------------------------------------- speedups


def test_a_planted_rise_is_found_at_its_place_and_a_fall_is_none():
    lost = np.repeat([10, 30], [20, 20])
    table = pd.concat([intervals([100] * 40, lost), intervals([100] * 40, lost[::-1], order=1)])
    up, down = hazard.speedups(table, np.random.default_rng(0), n_draws=500).itertuples()
    assert up.rises and up.place == 400 and (up.low, up.high) == (0.1, 0.3) and up.p_value == 1 / 501
    assert not down.rises and down.p_value == 1 and math.isnan(down.place)


@pytest.mark.parametrize("phi", (1, 3))
def test_a_constant_hazard_seldom_rises_however_facts_are_lost_together(phi):
    rng = np.random.default_rng(1)
    found = hazard.speedups(drawn(REALISTIC, 0.2, rng, phi, 60), rng, n_draws=200)
    assert (found["p_value"] <= 0.05).sum() <= 8  # of 60; more has a probability below 1 % at 5 %
    assert found["rises"].sum() == 0


def test_the_ratio_of_a_rise_is_that_of_the_two_binomials():
    n, lost = np.array([10, 30, 20]), np.array([1, 12, 9])

    def log_l(n, x):
        return x * math.log(x / n) + (n - x) * math.log(1 - x / n)

    ratios = [2 * (log_l(10, 1) + log_l(50, 21) - log_l(60, 22)), 2 * (log_l(40, 13) + log_l(20, 9) - log_l(60, 22))]
    (ratio,), (place,) = hazard._rise(n, lost[None])
    assert place == int(np.argmax(ratios)) and ratio == pytest.approx(max(ratios) / hazard.dispersion(n, lost))


def test_lengths_of_intervals_do_not_make_a_rise():
    """Twice as long intervals lose more facts of the same hazard."""
    n, lost = [100] * 20, [20] * 10 + [36] * 10
    p = [
        hazard.speedups(intervals(n, lost, length), np.random.default_rng(0), n_draws=200)["p_value"].item()
        for length in ([20] * 10 + [40] * 10, [20] * 20)
    ]
    assert p[0] > 0.1 and p[1] == 1 / 201


def test_dispersion_is_one_for_binomial_counts_and_phi_for_scattered_ones():
    rng, n = np.random.default_rng(0), np.full(400, 100)
    for phi in (1, 3):
        counts = hazard._draws(n, np.full(400, 0.3), phi, rng, 50)
        assert hazard.dispersion(n, counts).mean() == pytest.approx(phi, rel=0.1)
    assert hazard.dispersion(n // 10, counts).tolist() == [1] * 50  # too few facts at risk to say


def test_holm_multiplies_by_the_number_left_and_never_falls():
    np.testing.assert_allclose(hazard.holm([0.01, 0.04, 0.03, 0.6]), [0.04, 0.09, 0.09, 0.6])
    assert hazard.holm([0.5, 0.9]).tolist() == [1, 1] and len(hazard.holm([])) == 0
    with pytest.raises(ValueError, match="1.5 is among the p values"):
        hazard.holm([0.1, 1.5])


def test_tables_without_their_columns_are_named():
    with pytest.raises(ValueError, match="the table of losses lacks at_risk"):
        hazard.stretches(pd.DataFrame(columns=[*RUN, "start", "stop", "lost"]))


@pytest.mark.parametrize("names", (["rome", "memit-10"], [f"method-{i}" for i in range(12)]))
@pytest.mark.parametrize("kinds", (["most orders"], ["none"], ["undecided", "none", "some orders", "most orders"]))
def test_verdicts_are_a_finding_that_a_caption_can_hold(names, kinds):
    rows = [{"method": name, "reversed": False, "verdict": kinds[i % len(kinds)]} for i, name in enumerate(names)]
    verdicts = pd.DataFrame([*rows, {"method": "last", "reversed": True, "verdict": "most orders"}])
    said = hazard.in_words(verdicts)
    provenance.check_found(said)
    assert "50 % of the recalled facts within 20 edits" in said and "last" not in said
    if kinds[0] == "undecided" and len(names) == 2:
        assert said.endswith(": depending on the threshold under rome; never under memit-10.")
