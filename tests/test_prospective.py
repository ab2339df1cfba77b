"""Facts drawn by k·u and edited alone: draws are fair, edits are judged, and shares of bins say what counting does."""

import itertools
import math
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from editscale.analysis import forecast, prospective
from editscale.analysis.damage import DISABLING


def measured(sizes, layer=3):
    """A table as of `denominators.measure`, cases from 0."""
    return pd.DataFrame({"case_id": range(len(sizes)), "layer": layer, "denominator": sizes})


def drawn(table, per_bin, seed=0, layer=3):
    return prospective.drawn(table, layer, per_bin, np.random.default_rng(seed))


def test_a_bin_holds_its_lower_border_and_sizes_count_without_a_sign():
    sizes = [0, 0.0999, 0.1, -0.1, 0.4999, -0.5, 1, -1.9999, 2, 1e9]
    assert prospective.bin_of(np.array(sizes)).tolist() == [0, 0, 1, 1, 1, 2, 3, 3, 4, 4]
    assert prospective.bin_of(np.array([-0.3, 0.3, 7]), (0.0, 0.3, np.inf)).tolist() == [1, 1, 1]


def test_all_of_a_small_bin_and_as_many_as_asked_of_a_large_one_are_drawn_once_each():
    sizes = [-0.05, 0.02, *np.linspace(0.5, 0.99, 40), *np.linspace(-9, -2, 30), 1.5]
    both = pd.concat([measured(sizes), measured([0.01] * len(sizes), layer=4)], ignore_index=True)
    found = drawn(both, 5)
    assert list(found.columns) == ["case_id", "layer", "foretold", "bin_facts"] and set(found["layer"]) == {3}
    assert found["case_id"].is_unique
    assert found["foretold"].tolist() == [sizes[case_id] for case_id in found["case_id"]]
    assert found["foretold"].abs().is_monotonic_increasing and found["foretold"].tolist()[:2] == [0.02, -0.05]
    assert found["bin_facts"].tolist() == [2] * 2 + [40] * 5 + [1] + [30] * 5
    everything = drawn(both, 99)
    assert sorted(everything["case_id"]) == list(range(len(sizes)))


def test_what_is_drawn_is_determined_by_the_generator():
    table = measured(np.linspace(0.1, 0.4, 50))
    pd.testing.assert_frame_equal(drawn(table, 5, seed=1), drawn(table, 5, seed=1))
    assert len({tuple(drawn(table, 5, seed)["case_id"]) for seed in range(20)}) == 20


def test_facts_of_a_bin_and_pairs_of_them_are_drawn_equally_often():
    """Counts over seeds are binomial: each lies within bounds that all together are passed once in a thousand times."""
    n, per_bin, n_seeds = 8, 3, 1000
    table = measured([*np.linspace(0.6, 0.9, n), *np.linspace(0.2, 0.4, n)])
    draws = [set(drawn(table, per_bin, seed)["case_id"]) for seed in range(n_seeds)]
    singles = Counter(itertools.chain.from_iterable(draws))
    pairs = Counter(pair for of in draws for pair in itertools.combinations(sorted(of), 2))
    of_one_bin = [pair for place in (range(n), range(n, 2 * n)) for pair in itertools.combinations(place, 2)]
    across = list(itertools.product(range(n), range(n, 2 * n)))
    chance = per_bin / n
    for counts, keys, p in (
        (singles, range(2 * n), chance),
        (pairs, of_one_bin, chance * (per_bin - 1) / (n - 1)),
        (pairs, across, chance**2),
    ):
        least, most = stats.binom.interval(1 - 1e-3 / len(keys), n_seeds, p)
        assert all(least <= counts[key] <= most for key in keys)


def test_what_cannot_be_drawn_is_refused_by_name():
    table = pd.concat([measured([0.05, 1.0], layer=layer) for layer in (8, 3)])
    with pytest.raises(ValueError, match="layer 5, 2 facts of each bin: expected a layer of 3, 8, and 1 fact or more"):
        drawn(table, 2, layer=5)
    with pytest.raises(ValueError, match="layer 3, 0 facts of each bin: .* 1 fact or more"):
        drawn(table, 0)
    with pytest.raises(ValueError, match="the table of denominators lacks denominator"):
        drawn(table.drop(columns="denominator"), 2)


def test_an_edit_that_leaves_no_finite_model_has_infinite_damage_and_a_fact_left_out_is_none():
    status = ["edited", "edited", "edited", "edited", "non-finite", "failed-solve", "screened"]
    before, after = 20.0, [20 * np.exp(0.5), 19.0, np.inf, np.nan, np.nan, np.nan, 20.0]
    accuracy = [1.0, 0.0, 1.0, 0.0, np.nan, np.nan, 1.0]
    single = pd.DataFrame({"status": status, "efficacy_accuracy": accuracy, "perplexity": after})
    found = prospective.judged(single.assign(perplexity_unedited=before))
    assert found["damage"].tolist() == pytest.approx([0.5, np.log(19 / 20), *[np.inf] * 4])
    assert found["disabling"].tolist() == [True, False, True, True, True, True]
    assert found["learned"].tolist() == [True, False, True, False, False, False]
    with pytest.raises(ValueError, match="the table of single edits lacks perplexity_unedited"):
        prospective.judged(single)


def edited(layer, foretold, bin_facts, damage, learned):
    """Edits of one layer and bin as of `judged`."""
    damage = np.array(damage)
    told = {"layer": layer, "foretold": foretold, "bin_facts": bin_facts, "damage": damage, "learned": learned}
    return pd.DataFrame({**told, "disabling": damage > DISABLING})


def largest(hits, drawn, of):
    """The largest share among `of` facts at which that many hits or fewer of the drawn have a chance above 2.5 %."""

    def chance(among):
        ways = [math.comb(among, i) * math.comb(of - among, drawn - i) for i in range(hits + 1)]
        return sum(ways) / math.comb(of, drawn)

    return max(among for among in range(hits, of - drawn + hits + 1) if chance(among) > 0.025) / of


def test_shares_of_bins_and_the_rule_are_as_by_hand():
    parts = [
        edited(3, [-0.05, 0.09], 10, [2.0, np.inf], [True, False]),
        edited(3, [0.5, -0.6, 0.7, 0.9], 90, [0.0, 0.2, 0.01, 0.03], True),
        edited(3, [2.0, -3.0, 4.0], 100, [0.0, 0.05, 0.01], True),
        edited(8, [0.1, 0.2], 5, [0.5, 0.0], [False, True]),
        edited(9, [0.01], 1, [0.0], True),
    ]
    bins = prospective.by_bin(pd.concat(parts))
    assert bins["layer"].tolist() == [3, 3, 3, 8, 9]
    assert bins[["low", "high"]].to_numpy().tolist() == [[0, 0.1], [0.5, 1], [2, np.inf], [0.1, 0.5], [0, 0.1]]
    counts = bins[["facts", "tested", "disabling", "learned"]].to_numpy().tolist()
    assert counts == [[10, 2, 2, 1], [90, 4, 1, 4], [100, 3, 0, 3], [5, 2, 1, 1], [1, 1, 0, 1]]
    assert bins["share"].tolist() == [1, 0.25, 0, 0.5, 0]
    assert bins["damage"].tolist() == pytest.approx([np.inf, 0.02, 0.01, 0.25, 0])
    # Of 10 facts, 2 drawn and both hits: 2 hits among the 10 are refuted (chance 1/45), 3 are not (3/45).
    # Of 5, 2 drawn and one hit: all from 1 to 4. All drawn: known.
    assert bins["least"].tolist() == pytest.approx([0.3, 1 / 90, 0, 0.2, 0])
    assert bins["most"].tolist() == pytest.approx([1, largest(1, 4, 90), largest(0, 3, 100), 0.8, 0])

    first, second, third = prospective.rule(bins).to_dict("records")
    assert first == {"layer": 3, "warned": 0.05, "precision": 1, "recall": pytest.approx(10 / (10 + 90 / 4))}
    assert (second["warned"], second["recall"]) == (0, 0) and np.isnan(second["precision"])
    assert (third["warned"], third["precision"]) == (1, 0) and np.isnan(third["recall"])
    wider = prospective.rule(bins, threshold=1.0).set_index("layer").loc[3]
    assert wider.tolist() == pytest.approx([0.5, (10 + 90 / 4) / 100, 1])


def test_where_all_facts_are_edited_the_rule_is_that_of_counting():
    rng, layers = np.random.default_rng(0), (3, 8)
    sizes = {layer: rng.normal(size=400) * rng.choice([0.1, 1.0, 3.0], 400) for layer in layers}
    alone = pd.concat([drawn(measured(of, layer), 400, layer=layer) for layer, of in sizes.items()])
    damage = rng.exponential(0.05 + 0.3 * (alone["foretold"].abs() < 0.3))
    tested = alone.assign(damage=damage, disabling=damage > DISABLING, learned=True)
    found = prospective.rule(prospective.by_bin(tested)).set_index("layer")
    assert len(tested) == 800
    for layer, of in tested.groupby("layer"):
        table = of.assign(method="rome", order=0, reversed=False, denominator=of["foretold"].abs())
        (counted,) = forecast.rule(table).to_dict("records")
        assert counted["tp"] > 0 and counted["fp"] > 0 and counted["fn"] > 0
        for name in ("precision", "recall"):
            assert found.loc[layer, name] == pytest.approx(counted[name], rel=1e-12)
        assert found.loc[layer, "warned"] == pytest.approx((counted["tp"] + counted["fp"]) / counted["edits"])


def test_the_ends_of_what_was_drawn_do_not_depend_on_how_much_was_drawn_between():
    rows = [(3, 0.0, 9, 10), (8, 0.0, 5, 10), (3, 0.5, 4, 5), (3, 2.0, 0, 15), (8, 2.0, 3, 15)]
    bins = pd.DataFrame(rows, columns=["layer", "low", "disabling", "tested"])
    assert prospective.of_ends(bins) == [0.7, 0.1] == prospective.of_ends(bins.drop(2))
