"""Collapses by hand: where they are, what is lost in them, and which hold a disabling edit."""

import numpy as np
import pandas as pd
import pytest

from editscale.analysis import collapse, inflection

KEY = {"method": "rome", "order": 0, "reversed": False}


def curve(values, every=10, **key):
    edits = every * np.arange(1, len(values) + 1)
    return pd.DataFrame({**KEY, **key, "edits": edits, "learned": edits, "recall": values})


def points(**key):
    row = {"found": "none", "inflection": np.nan, "low": np.nan, "high": np.nan}
    return pd.DataFrame([{**KEY, **key, **row, "slope_before": np.nan, "slope_after": np.nan}])


def jumps(*edits, **key):
    return pd.DataFrame({**KEY, **key, "edits": list(edits)}, columns=[*KEY, "edits"])


RECALL = curve([0.98, 0.96, 0.5, 0.25, 0.3, 0.32])
REGIONS = inflection.regions(RECALL, points())


def test_stretches_hold_the_edits_and_the_loss_of_each_kind():
    table = collapse.stretches(REGIONS).set_index("label")
    assert table["edits"].to_dict() == {"gradual": 20, "catastrophic": 20, "after": 20}
    assert table["lost"].round(6).to_dict() == {"gradual": 0.04, "catastrophic": 0.71, "after": -0.07}
    assert table.loc["catastrophic", "per_100"] == pytest.approx(3.55)
    assert table.loc["catastrophic", "share"] == pytest.approx(0.71 / 0.75) and np.isnan(table.loc["after", "share"])


def test_a_collapse_is_opened_by_an_edit_within_its_steepest_fall_only():
    for edits, expected in (((25,), (1, 1)), ((35,), (0, 1)), ((20,), (0, 0)), ((30,), (1, 1)), ((21, 29, 33), (2, 3))):
        (row,) = collapse.collapses(REGIONS, RECALL, jumps(*edits)).itertuples()
        assert (row.start, row.stop, row.steepest_start, row.steepest_stop) == (20, 40, 20, 30)
        assert (row.disabling, row.in_all) == expected, edits


def test_what_is_lost_with_a_disabling_edit_is_the_fall_around_it():
    (row,) = collapse.collapses(REGIONS, RECALL, jumps(35)).itertuples()
    assert row.lost == pytest.approx(0.71) and row.lost_with == pytest.approx(0.25)


def test_runs_without_a_collapse_count_as_none():
    both = pd.concat([points(), points(order=1)])
    counts = collapse.by_order(collapse.collapses(REGIONS, RECALL, jumps(25)), both).set_index("order")
    assert counts["collapses"].to_dict() == {0: 1, 1: 0} and counts["opened"].to_dict() == {0: 1, 1: 0}
    assert collapse.by_order(collapse.collapses(REGIONS[:1], RECALL, jumps()), both)["collapses"].sum() == 0


def test_gradual_intervals_are_those_before_the_first_collapse():
    (row,) = collapse.gradual_intervals(REGIONS, RECALL, jumps(5, 25, 55, 56)).itertuples()
    assert (row.intervals, row.flagged) == (2, 1)


def test_the_first_collapse_of_each_run_is_the_earliest():
    recall = curve([0.98, 0.6, 0.7, 0.3])
    found = collapse.collapses(inflection.regions(recall, points()), recall, jumps(15))
    assert found["start"].tolist() == [10, 30]
    (row,) = collapse.first_of_each(found[::-1]).itertuples()
    assert (row.start, row.disabling) == (10, 1)


def test_half_is_the_first_checkpoint_below_one_half_and_infinite_without():
    both = pd.concat([RECALL, curve([0.9, 0.8], order=1)])
    table = collapse.places(pd.concat([points(), points(order=1)]), both).set_index("order")
    assert table["half"].to_dict() == {0: 40, 1: np.inf} and table["end"].to_dict() == {0: 60, 1: 20}


def test_a_run_that_learned_nothing_has_no_falls():
    assert collapse.falls(curve([np.nan, np.nan]), jumps(3)).empty


def perplexity(values, **key):
    return pd.DataFrame({**KEY, **key, "edits": range(len(values)), "perplexity": values})


def test_a_model_collapses_with_the_edit_that_takes_its_perplexity_above_twice_the_unedited():
    table = pd.concat(
        [perplexity([10, 12, 20, 21, 15]), perplexity([10, 20, 20], order=1), perplexity([9, 9, np.nan], order=2)]
    )
    places = collapse.where(table).set_index("order")
    assert places["collapse"].tolist() == [3, np.inf, 2] and places["end"].tolist() == [4, 2, 2]
    sound = collapse.on_sound_models(table, places.reset_index())
    assert sound.groupby("order")["edits"].max().tolist() == [3, 2, 2]
    assert collapse.where(table, times=1.1).set_index("order")["collapse"].tolist() == [1, 1, 2]


def test_a_run_without_the_unedited_perplexity_has_no_collapse_to_tell():
    with pytest.raises(ValueError, match="no perplexity of the unedited model"):
        collapse.where(perplexity([1, 2]).query("edits > 0"))
