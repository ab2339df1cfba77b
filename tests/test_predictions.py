"""Predictions are judged as their words say, and the recorded page is what the recorded tables give."""

import numpy as np
import pandas as pd
import pytest
from tools import predictions

from editscale.analysis import forecast


def test_the_recorded_page_is_that_of_the_recorded_tables():
    assert predictions.PAGE.read_text() == predictions.page()
    assert predictions.judged()[0]["verdict"] == "undecided"  # which the README says


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(4, 6, "held"), (3, 4, "undecided"), (1, 3.9, "failed"), (6, 7, "undecided"), (6.1, 9, "failed")],
)
def test_a_bound_within_the_interval_leaves_it_undecided(low, high, verdict):
    assert predictions.against(low, high, least=4, most=6) == verdict


def test_texts_that_say_otherwise_leave_a_count_undecided():
    assert predictions.by_both([3, 4], "{} of 6", least=4) == ("3 of 6; by the long text 4", "undecided")
    assert predictions.by_both([5, 4], "{} of 6", least=4) == ("5 of 6; by the long text 4", "held")
    assert predictions.by_both([1, 1], "{} of 6", least=4) == ("1 of 6", "failed")


def test_several_parts_hold_together_or_not():
    assert predictions.both("held", "undecided", "failed") == "failed"
    assert predictions.both("held", "undecided") == "undecided" and predictions.both("held", "held") == "held"


def test_the_forecast_that_was_committed_is_that_of_the_forward_runs_of_the_study():
    """k·u of the recorded study, in the order of the facts that the test edited."""
    study, test = (pd.read_parquet(f"figures/{scale}/tables/edits.parquet") for scale in ("smollm2", "prospective"))
    known = study[study["method"] == "rome"].groupby("case_id")["denominator"].first().abs()
    told = pd.read_csv("params/prospective/forecast.csv").set_index("order")
    assert sorted(told.index) == sorted(test["order"].unique()) and test["reversed"].all()
    for order, own in test.groupby("order"):
        small = own.loc[own["case_id"].map(known).to_numpy() < forecast.LOW, "edits"]
        assert len(small) == told.loc[order, "small"]
        np.testing.assert_equal(small.min(), told.loc[order, "forecast"])
