"""Forecasts of disabling edits: planted ones are foreseen, noise is not, and every rule and interval is as by hand."""

import itertools

import numpy as np
import pandas as pd
import pytest

from editscale.analysis import forecast, ranking
from editscale.analysis.damage import DISABLING


def rated(known, damage, order=0, method="rome", backward=False):
    """A table as of `forecast.predictors`, edits from 1."""
    n = len(known)
    key = {"method": method, "order": order, "reversed": backward, "edits": range(1, n + 1), "case_id": range(n)}
    damage = np.asarray(damage, dtype=float)
    sizes = dict.fromkeys(("init_norm", "delta_norm", "update_norm"), 1.0)
    return pd.DataFrame({**key, "denominator": known, "damage": damage, "disabling": damage > DISABLING, **sizes})


def by_pairs(scores, events):
    pairs = itertools.product(scores[events], scores[~events])
    return np.mean([(a > b) + (a == b) / 2 for a, b in pairs])


def test_auroc_is_the_share_of_pairs_won_with_half_of_the_ties():
    random = np.random.default_rng(0)
    for _ in range(20):
        scores, events = random.integers(0, 5, 30), random.random(30) < 0.3
        assert ranking.auroc(scores, events) == pytest.approx(by_pairs(scores, events))
    assert forecast.auroc([3, 1, 2], [True, False, False]) == 1
    assert np.isnan(ranking.auroc([1, 2], [True, True])) and np.isnan(ranking.auroc([1, 2], [False, False]))


def test_auroc_keeps_under_growing_functions_and_turns_under_falling_ones():
    random = np.random.default_rng(1)
    scores, events = random.random(40), random.random(40) < 0.4
    found = ranking.auroc(scores, events)
    assert ranking.auroc(np.log(scores), events) == found
    assert ranking.auroc(-scores, events) == pytest.approx(1 - found)
    with pytest.raises(ValueError, match="NaN"):
        ranking.auroc([np.nan, 1], [True, False])


def test_orders_drawn_anew_give_the_auroc_of_the_orders_laid_side_by_side():
    random = np.random.default_rng(2)
    orders = np.repeat(range(5), 12)
    scores, events = random.integers(0, 9, 60), random.random(60) < 0.3
    found = ranking.over_orders(scores, events, orders, np.random.default_rng(3), n_resamples=400)
    assert found.mean == pytest.approx(ranking.auroc(scores, events)) and found.n == 5
    draws = []
    for times in np.random.default_rng(3).multinomial(5, np.full(5, 1 / 5), size=400):
        taken = np.concatenate([np.flatnonzero(orders == order) for order in np.repeat(range(5), times)])
        draws.append(ranking.auroc(scores[taken], events[taken]))
    low, high = np.quantile(draws, (0.025, 0.975), method="inverted_cdf")
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))


def test_few_orders_have_a_point_and_no_interval():
    table = pd.concat([rated([0.01, 1, 2], [1, 0, 0], order) for order in range(3)])
    found = ranking.over_orders(-table["denominator"], table["disabling"], table["order"], np.random.default_rng(0))
    assert found.mean == 1 and np.isnan(found.low) and np.isnan(found.high) and found.n == 3


def test_a_planted_cause_is_found_and_noise_is_not():
    random = np.random.default_rng(4)
    parts = []
    for order in range(10):
        known = random.lognormal(size=300)
        part = rated(known, 0.02 / known + random.normal(0, 0.01, 300), order)
        parts.append(part.assign(init_norm=random.random(300), update_norm=1 / known))
    found = forecast.aurocs(pd.concat(parts), [DISABLING], np.random.default_rng(0)).set_index("predictor")
    assert found.loc["small |k·u|", "least"] > 0.99 and found.loc["large ‖ΔW‖", "mean"] > 0.99
    for noise in ("small ‖m₀‖", "late place in the order"):
        assert found.loc[noise, "low"] < 0.5 < found.loc[noise, "high"]
    assert found.loc["large ‖δ‖", "mean"] == 0.5  # the same everywhere
    assert forecast.aurocs(pd.concat(parts), [99.0], np.random.default_rng(0)).empty


def test_predictors_are_of_edits_with_a_denominator_and_take_the_largest_layer():
    key = {"method": "rome", "order": 0, "reversed": False}
    done = pd.DataFrame({**key, "edits": [1, 2], "denominator": [-0.3, np.nan], "damage": 0.0})
    edits = pd.DataFrame({**key, "edits": [1, 2], "init_norm": [5.0, 6.0]})
    drift = pd.DataFrame({**key, "edits": [1, 1, 2], "layer": [0, 1, 0], "update_norm": [2.0, 3.0, 9.0]})
    (row,) = forecast.predictors(done, edits, drift).itertuples()
    assert (row.denominator, row.init_norm, row.update_norm) == (0.3, 5.0, 3.0) and np.isnan(row.delta_norm)


def test_a_rule_counts_right_and_false_warnings_and_what_it_misses():
    table = rated([0.05, 0.08, 0.3, 0.4, 2.0], [1, 0, 0.5, 0, 0])
    low, half = forecast.rule(table, [0.1, 0.5]).itertuples()
    assert (low.tp, low.fp, low.fn, low.precision, low.recall) == (1, 1, 1, 0.5, 0.5)
    assert (half.tp, half.fp, half.fn, half.precision, half.recall) == (2, 2, 0, 0.5, 1)
    (none,) = forecast.rule(rated([1.0, 2.0], [0, 0])).itertuples()
    assert np.isnan(none.precision) and np.isnan(none.recall)


def test_the_threshold_of_an_order_is_set_without_looking_at_it():
    others = [rated([0.1, 0.4, 5.0], [1, 0, 0], order) for order in (1, 2)]
    for own in ([0.3, 3.0], [99.0, 0.001]):
        chosen = forecast.chosen_elsewhere(pd.concat([rated(own, [1, 0]), *others])).set_index("order")["threshold"]
        assert chosen[0] == pytest.approx(0.2)  # halfway from 0.1 to 0.4 on a log scale
    table = pd.concat([rated([0.3, 3.0], [1, 0]), *others])
    last = forecast.rule(table).iloc[-1]
    # order 0: 0.3 is not below 0.2 and missed; orders 1 and 2: the best without them is between 0.3 and 0.4
    assert (last["rule"], last["tp"], last["fp"], last["fn"]) == ("set on the other orders", 2, 0, 1)


def test_no_threshold_is_set_where_the_other_orders_have_no_disabling_edit():
    table = pd.concat([rated([0.1, 3.0], [1, 0]), rated([0.2, 3.0], [0, 0], 1)])
    assert forecast.chosen_elsewhere(table).set_index("order")["threshold"].loc[0] == 0
    assert forecast.rule(table)["rule"].tolist() == ["below 0.1"]


@pytest.mark.parametrize(
    "known, damage, threshold",
    [
        ([0.2, 0.2, 0.8], [1, 0, 0], 0.4),  # equal ones are warned of together
        ([0.2, 0.8, 1.0, 3.2], [1, 0, 0, 1], 0.4),  # of equal F1 the smallest
        ([0.2, 0.8], [1, 1], np.inf),
        ([0.0, 0.8], [1, 0], 0.4),
    ],
)
def test_thresholds_lie_halfway_to_the_next_value(known, damage, threshold):
    table = pd.concat([rated([1.0], [0]), rated(known, damage, 1)])
    assert forecast.chosen_elsewhere(table)["threshold"].iloc[0] == pytest.approx(threshold)


def edits_of(known, order=0, method="rome", learned=1.0, cases=None):
    n = len(known)
    key = {"method": method, "order": order, "reversed": False, "edits": range(1, n + 1)}
    cases = range(1000 * order, 1000 * order + n) if cases is None else cases
    return pd.DataFrame({**key, "case_id": cases, "denominator": known, "efficacy_accuracy": learned})


def places_of(*collapses, method="rome", end=9):
    key = {"method": method, "order": range(len(collapses)), "reversed": False}
    return pd.DataFrame({**key, "collapse": collapses, "end": end})


def test_a_moment_is_the_first_small_denominator_and_infinite_without_one():
    edits = pd.concat([edits_of([1, -0.05, 0.01]), edits_of([1, 1, 1], 1), edits_of([0.02, 1, 1], 2)])
    places = places_of(2.0, np.inf, np.inf)
    table = forecast.moments(edits, places)
    assert table["forecast"].tolist() == [2, np.inf, 1] and table["observed"].tolist() == [2, np.inf, np.inf]
    (row,) = forecast.agreement(table).itertuples()
    assert (row.orders, row.forecast, row.collapsed, row.exact, row.near) == (3, 2, 1, 1, 1)
    assert forecast.moments(edits, places, threshold=0.02)["forecast"].tolist() == [3, np.inf, np.inf]


def test_moments_forecast_from_other_orders_do_not_look_at_their_own():
    """Orders 1 and 2 collapse at 0.1 and not at 0.4: between them lies the threshold for order 0, whatever it does."""
    parts = [edits_of([3.0, 0.15, 0.3], 0), edits_of([5.0, 0.1, 0.4], 1), edits_of([0.1, 0.4, 5.0], 2)]
    edits = pd.concat(parts)
    for collapse in (2.0, 3.0, np.inf):
        places = places_of(collapse, 2.0, 1.0)
        known = pd.concat([rated(part["denominator"], [0] * 3, order) for order, part in enumerate(parts)])
        table = forecast.moments_elsewhere(known, edits, places).set_index("order")
        assert table.loc[0, "threshold"] == pytest.approx(0.2) and table.loc[0, "forecast"] == 2
        assert table.loc[0, "observed"] == collapse
    assert forecast.moments_elsewhere(known, edits, places_of(np.inf, 2.0, np.inf)).empty


def test_moments_in_one_order_have_rank_correlation_one_and_reversed_ones_minus_one():
    key = {"method": "rome", "order": range(4), "reversed": False, "end": 99}
    for forecasts, rho in (([1, 5, 20, 60], 1), ([60, 20, 5, 1], -1)):
        table = pd.DataFrame({**key, "forecast": forecasts, "observed": [2, 5, 21, np.inf]})
        (row,) = forecast.agreement(table).itertuples()
        assert row.rho == pytest.approx(rho)
    assert (row.exact, row.near) == (0, 0)


def test_the_expected_wait_is_that_of_a_chance_sequence():
    random, share, n = np.random.default_rng(5), 0.05, 400
    edits = pd.concat([edits_of(np.where(random.random(n) < share, 0.05, 1.0), order) for order in range(200)])
    first = forecast.moments(edits, places_of(*[np.inf] * 200))["forecast"]
    (row,) = forecast.waiting(edits, places_of(*first)).itertuples()
    assert row.facts == 200 * n and row.expected == pytest.approx(1 / share, rel=0.05)
    assert row.observed == first.mean() == pytest.approx(row.expected, rel=0.2)  # standard error 7 %
    (none,) = forecast.waiting(edits_of([1.0, 1.0]), places_of(np.inf)).itertuples()
    assert none.below == 0 and none.expected == none.observed == np.inf


def test_what_is_learned_goes_by_the_denominator_that_rome_has_for_the_fact_on_sound_models_only():
    rome = edits_of([0.05, -0.3, 0.5, 7.0], learned=[0, 1, 1, 1])
    memit = edits_of([np.nan] * 4, method="memit", learned=[0, 0, 1, 1], cases=[3, 2, 1, 0])
    places = pd.concat([places_of(2.0), places_of(np.inf, method="memit")])
    table = forecast.learned_by_denominator(pd.concat([rome, memit]), places).set_index(["method", "low"])
    assert table.loc["rome", "n"].to_dict() == {0.0: 1, 0.1: 1}  # edits after the collapse do not count
    assert table.loc["memit", "learned"].to_dict() == {0.0: 1, 0.1: 1, 0.5: 0, 2.0: 0}
    assert table.loc[("memit", 0.5), "high"] == 1.0 and np.isinf(table.loc[("memit", 2.0), "high"])
    (row,) = forecast.learned_by_denominator(memit.drop(columns="denominator"), places).itertuples()
    assert (row.low, row.high, row.learned, row.n) == (0, np.inf, 0.5, 4)
