"""How long a task lasts: until half of its excess over chance is gone, twice in a row, or its answers are no words."""

import numpy as np
import pandas as pd
import pytest

from editscale.analysis import task_loss


def scores(f1, task="sst2", invalid=0.0, order=0):
    edits = 20 * np.arange(len(f1))
    columns = {"task": task, "edits": edits, "n_examples": 200, "f1": f1, "invalid": invalid}
    return pd.DataFrame({"method": "rome", "order": order, "reversed": False, **columns})


@pytest.mark.parametrize(
    ("f1", "half"),
    [
        ([0.9, 0.8, 0.7, 0.6], 40),  # 0.7 is half of the way from 0.9 to 0.5
        ([0.9, 0.6, 0.8, 0.7, 0.7], 60),  # once below and back again does not count
        ([0.9, 0.8, 0.8, 0.6], 60),  # the last checkpoint has none behind it
        ([0.9, 0.9, 0.8, 0.75], np.inf),
    ],
)
def test_half_of_the_excess_over_chance_is_lost_at_the_first_of_two_checkpoints(f1, half):
    (row,) = task_loss.lasting(scores(f1)).itertuples()
    assert row.half == half and row.signal


def test_a_task_at_chance_has_nothing_to_lose():
    (row,) = task_loss.lasting(scores([0.55, 0.3, 0.2])).itertuples()
    assert not row.signal and np.isnan(row.half)


@pytest.mark.parametrize(("chance", "constant"), [(1 / 3, 1 / 6), (0.2, 1 / 3)])
def test_chance_of_a_task_of_ones_own_is_the_better_of_its_coin_and_its_constant_answer(chance, constant):
    """Excess over a third: 0.4 at first; 0.53 is half of it."""
    rows = scores([0.75, 0.6, 0.54, 0.5], "origins").assign(f1_chance=chance, f1_constant=constant)
    both = pd.concat([rows, scores([0.9, 0.6, 0.6])])  # beside a task that comes with the package
    own, known = task_loss.lasting(both).itertuples()
    assert own.signal and own.half == 40 and known.half == 20
    assert task_loss.to_beat(both[both["task"] == "origins"]) == (chance, constant)
    assert task_loss.to_beat(both[both["task"] == "sst2"]) == task_loss.to_beat(scores([0.9])) == (0.5, 1 / 3)
    (low,) = task_loss.lasting(
        scores([0.38, 0.3], "origins").assign(f1_chance=chance, f1_constant=constant)
    ).itertuples()
    assert not low.signal


def test_a_task_is_silent_when_half_of_the_answers_hold_no_word():
    (row,) = task_loss.lasting(scores([0.9, 0.5, 0.2], invalid=[0, 0.4, 0.5])).itertuples()
    assert row.silent == 40


def test_the_task_lost_first_is_named_and_ties_are_kept():
    rows = [scores([0.9, 0.5, 0.5]), scores([0.8, 0.5, 0.5], "rte"), scores([0.9, 0.9, 0.5], "cola")]
    found = task_loss.first_lost(task_loss.lasting(pd.concat([*rows, scores([0.9, 0.9], order=1)])))
    assert found["task"].tolist() == ["sst2", "rte"] and set(found["order"]) == {0}


def test_scores_are_listed_at_the_places_that_were_measured():
    assert task_loss.scores_at(scores([0.9, 0.8, 0.7]), [0, 40, 1000])["f1"].tolist() == [0.9, 0.7]


def test_a_run_without_the_unedited_models_scores_is_refused():
    with pytest.raises(ValueError, match="no scores of the unedited model"):
        task_loss.lasting(scores([0.9, 0.8]).iloc[1:])


def test_what_needs_no_answer_is_gathered_from_both_tables_with_its_signal():
    """An area of 0.7 with 50 examples of either label; its error at chance is 0.058, that of one item of two 0.5."""
    areas = scores([0.5, 0.5]).assign(n_examples=100, auroc=[0.7, 0.6], auroc_se=0.05)
    none = scores([0.5, 0.5], "cola").assign(n_examples=100, auroc=[0.61, 0.8], auroc_se=0.05)
    three = scores([0.5, 0.5], "origins").assign(auroc=np.nan, auroc_se=np.nan)
    downstream = pd.concat([areas, none, three], ignore_index=True)
    base = {"method": "rome", "order": 0, "reversed": False, "task": "pairs", "phenomenon": "all", "chance": 0.5}
    columns = {"edits": [0, 20], "n_examples": 200, "accuracy": [1.0, 0.5], "accuracy_se": 0.0, "margin": 2.0}
    choices = pd.DataFrame({**base, **columns})
    few = choices.assign(task="one", n_examples=1)
    part = choices.assign(phenomenon="agreement", accuracy=0.0)
    found = task_loss.by_likelihood(downstream, pd.concat([choices, part, few]))
    assert found.groupby("task", sort=False)["signal"].agg(["all", "any"]).to_dict("index") == {
        "sst2": {"all": True, "any": True},
        "cola": {"all": False, "any": False},
        "pairs": {"all": True, "any": True},
        "one": {"all": False, "any": False},
    }
    assert found["share"].tolist() == [0.7, 0.6, 0.61, 0.8, 1.0, 0.5, 1.0, 0.5]
    assert found["margin"].isna().tolist() == 4 * [True] + 4 * [False]
    assert set(found["score"]) == {"area", "right"} and set(found["chance"]) == {0.5}


def test_tables_from_before_likelihoods_were_measured_have_none():
    found = task_loss.by_likelihood(scores([0.9, 0.8]))
    assert found.empty and {"method", "order", "reversed", "task", "edits", "score", "signal"} <= set(found)


def test_the_error_of_an_area_at_chance_is_that_of_equal_scores_drawn_anew():
    """√((n + 1) / 3) / n for n / 2 of either label: of m against n √((m + n + 1) / (12 m n)). 400 draws: 10 %."""
    rng = np.random.default_rng(0)
    high, low = rng.normal(size=(400, 20, 1)), rng.normal(size=(400, 1, 20))
    assert (high > low).mean(axis=(1, 2)).std() == pytest.approx(np.sqrt(41 / 3) / 40, rel=0.1)
