"""Damage of single edits, by hand: the logarithms, where a model is sound, what is lost around an edit, edits alone."""

import numpy as np
import pandas as pd
import pytest

from editscale.analysis import collapse, damage

KEY = {"method": "rome", "order": 0, "reversed": False}


def run(values, learned=1.0, **key):
    """(edits, perplexity) of a run whose perplexity goes through `values`, the first that of the unedited model."""
    places = np.arange(1, len(values))
    edits = {"edits": places, "case_id": 100 + places, "efficacy_accuracy": learned, "status": "edited"}
    along = {"edits": [0, *places], "perplexity": values}
    return pd.DataFrame({**KEY, **key, **edits}), pd.DataFrame({**KEY, **key, **along})


def of(edits, perplexity):
    return damage.damage(edits, perplexity, collapse.where(perplexity))


def test_the_thresholds_are_a_tenth_and_about_a_doubling():
    assert damage.DISABLING == 0.1 and 0 < np.log(2) - damage.SEVERE < 0.004


def test_damages_of_a_sound_run_add_up_to_the_whole_rise():
    values = 10 * np.exp(np.cumsum([0, 0.05, -0.02, 0.12, 0.3]))
    table = of(*run(values))
    assert table["damage"].tolist() == pytest.approx([0.05, -0.02, 0.12, 0.3])
    assert table["damage"].sum() == pytest.approx(np.log(values[-1] / values[0]))
    assert table["disabling"].tolist() == [False, False, True, True] and not table["severe"].any()
    assert table["denominator"].isna().all() and table["case_id"].tolist() == [101, 102, 103, 104]


def test_damage_does_not_depend_on_the_unit_of_perplexity():
    values = np.array([10, 11, 10.5, 30])
    first, second = (of(*run(scale * values)) for scale in (1, 7))
    assert second["damage"].tolist() == pytest.approx(first["damage"].tolist())


def test_no_edit_is_judged_after_the_one_that_collapses_its_model():
    table = of(*run([10, 10, 50, 500, 10]))
    assert table["edits"].tolist() == [1, 2] and table["severe"].tolist() == [False, True]


@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_a_perplexity_that_is_not_finite_is_infinite_damage(value):
    table = of(*run([10, 11, value, value]))
    assert table["damage"].tolist() == [pytest.approx(np.log(1.1)), np.inf] and table["severe"].tolist()[1]


def test_an_edit_that_could_not_be_made_is_infinite_damage_and_one_left_out_is_no_edit():
    edits, perplexity = run([10, 10, 10, 10])
    edits["status"] = ["edited", "non-finite", "screened"]
    table = of(edits, perplexity)
    assert table["damage"].tolist() == [0, np.inf]


def test_a_step_of_several_facts_is_judged_at_its_last():
    edits, perplexity = run([10, 10, 10, 12, 12, 12, 15])
    table = of(edits, perplexity[perplexity["edits"] % 3 == 0])
    assert table["edits"].tolist() == [3, 6] and table["damage"].tolist() == pytest.approx(np.log([1.2, 1.25]))


def test_runs_are_judged_apart_and_may_come_in_any_order():
    parts = [run([10, 12, 12]), run([100, 100, 150], order=1)]
    edits, perplexity = (pd.concat(tables).sample(frac=1, random_state=1) for tables in zip(*parts, strict=True))
    table = of(edits, perplexity).sort_values(["order", "edits"])
    assert table["damage"].tolist() == pytest.approx([np.log(1.2), 0, 0, np.log(1.5)])


def test_a_run_without_measured_perplexity_is_refused_by_name():
    edits, perplexity = run([10, 11])
    with pytest.raises(ValueError, match=r"no place of collapse for {'method': 'memit', 'order': 0"):
        damage.damage(pd.concat([edits, edits.assign(method="memit")]), perplexity, collapse.where(perplexity))
    with pytest.raises(ValueError, match="lacks perplexity"):
        damage.damage(edits, perplexity.drop(columns="perplexity"), collapse.where(perplexity))


def test_recall_lost_is_of_the_facts_learned_before_between_the_checkpoints_around_an_edit():
    edits, perplexity = run([10] * 7, learned=[1, 1, 0, 1, 1, 1])
    rows = [(2, [1, 1]), (4, [1, 0, 1, 1]), (6, [0, 0, 1, 1, 1, 1])]  # recalled at each checkpoint, by edit
    history = pd.concat(
        pd.DataFrame({**KEY, "edits": at, "edit": range(1, at + 1), "efficacy_accuracy": hit}) for at, hit in rows
    )
    table = damage.with_recall(of(edits, perplexity), edits, history).set_index("edits")
    assert table.loc[[1, 2], "recall_lost"].isna().all()
    assert table.loc[3, ["recall_before", "recall_after"]].tolist() == [1, 0.5]
    # learned up to 4: edits 1, 2 and 4, of which two are recalled at 4 and one at 6
    assert table.loc[[5, 6], "recall_lost"].tolist() == pytest.approx([1 / 3] * 2)
    few = damage.with_recall(of(edits, perplexity).iloc[:0], edits, history)
    assert few.empty and "recall_lost" in few


def test_counts_are_of_each_run_or_method():
    parts = [run([10, 12, 10]), run([10, 10, 30], order=1), run([10, 10, 10], method="memit")]
    table = of(*(pd.concat(tables) for tables in zip(*parts, strict=True)))
    by_run = damage.counts(table)
    assert by_run["disabling"].tolist() == [1, 1, 0] and by_run["severe"].tolist() == [0, 1, 0]
    (rome, memit) = damage.counts(table, ["method"]).itertuples()
    assert (rome.edits, rome.disabling, rome.severe, rome.disabling_share) == (4, 2, 1, 0.5)
    assert rome.largest == pytest.approx(np.log(3)) and memit.disabling_share == 0
    assert (rome.opposite, memit.opposite) == (1, 0)


def single(known, times, learned, method="rome", contexts="run", seed=0.0, layers=1):
    rows = {"case_id": range(len(known)), "denominator": known, "perplexity": 10 * np.array(times)}
    table = pd.DataFrame({**rows, "efficacy_accuracy": learned, "method": method, "contexts": contexts, "seed": seed})
    table = table.assign(status="edited", perplexity_unedited=10.0)
    return pd.concat([table.assign(layer=layer) for layer in range(layers)])


def test_an_edit_alone_is_compared_with_the_unedited_model_once_however_many_layers():
    table = damage.alone(
        pd.concat([single([-0.01, 2], [8, 1], [0, 1]), single([np.nan] * 2, [1, 1.2], [0, 1], "memit", layers=3)])
    )
    assert table["damage"].tolist() == pytest.approx(np.log([8, 1, 1, 1.2]))
    assert table["known"].tolist() == [0.01, 2] * 2 and table["disabling"].tolist() == [True, False, False, True]
    assert table["learned"].tolist() == [False, True] * 2
    broken = damage.alone(single([0.01, 2], [np.nan, 1], [0, 1]).assign(status=["non-finite", "edited"]))
    assert broken["damage"].tolist() == [np.inf, 0] and broken["severe"].tolist() == [True, False]


def test_facts_of_small_denominators_are_told_from_the_others_under_all_contexts():
    known = [0.01, 0.05, 2, 3]
    bare = single([0.5, 0.6, 2, 3], [1, 1, 1, 1], [1, 0, 1, 1], contexts="bare", seed=np.nan)
    table = damage.by_contexts(damage.alone(pd.concat([single(known, [8, 2, 1, 0.9], [0, 0, 1, 1]), bare])), 0.1)
    run_, bare_ = table.itertuples()
    assert (run_.low, run_.others, run_.disabling_low, run_.disabling_others) == (2, 2, 1, 0)
    assert (run_.learned_low, run_.learned_others, run_.times_low) == (0, 1, pytest.approx(4)) and run_.rho == 1
    assert (bare_.low, bare_.disabling_low, bare_.learned_low) == (2, 0, 0.5)
