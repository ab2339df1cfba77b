"""What was planted in a made-up study is found, claims get the verdict their interval asks for, and can be printed."""

import io
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import synthetic

from editscale.analysis import claims, collapse, drift_loss, paired, study, task_loss
from editscale.analysis.intervals import Interval

N_ORDERS = 4


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A study with known truth, and its planted disabling edits."""
    folder = tmp_path_factory.mktemp("recorded")
    truth = synthetic.write(folder, n_orders=N_ORDERS, longer=1400, n_few=2, rare=500, n_singular=2)
    return study.read([folder], np.random.default_rng(0), n_resamples=200), truth


@pytest.fixture(scope="module")
def claimed(made):
    table = claims.claims(made[0], np.random.default_rng(0))
    return table.set_index(["claim", "method"])


def test_methods_are_told_of_by_forward_orders_and_what_none_has_is_said():
    columns = ["method", "reversed", "label", "finding", "measure", "mean", "low", "high", "n"]
    rows = [
        ("rome", False, np.nan, "places", "inflection", 260.0, 80.0, 380.0, 8),
        ("rome", True, np.nan, "places", "inflection", 1.0, 1.0, 1.0, 2),
        ("memit", False, np.nan, "places", "inflection", np.nan, np.nan, np.nan, 0),
        ("rome", False, "gradual", "stretches", "per_100", 0.138, 0.07, 0.2, 7),
        ("rome", False, "catastrophic", "stretches", "per_100", 2.25, np.nan, np.nan, 1),
        ("memit", False, np.nan, "pairs", "recall", 0.5, 0.4, 0.6, 3),
    ]
    lines = claims.about_methods(pd.DataFrame(rows, columns=columns)).splitlines()
    assert lines[0] == "| | rome | memit |" and len(lines) == 2 + len(claims.ABOUT_METHODS)
    assert lines[2].endswith("| 260 (80–380, 8 orders) | none |")
    assert lines[4].endswith("| 13.8 (7.0–20.0, 7 orders) | none |") and "225 (one order)" in lines[5]


# ---------------------------------------------------------------------------------------------- planted truth


def test_every_planted_disabling_edit_is_found_and_no_other(made):
    found, truth = made
    assert set(zip(*(found.jumps[name] for name in truth.columns[:4]), strict=True)) == set(
        zip(*(truth[name] for name in truth.columns[:4]), strict=True)
    )


def test_forgetting_inflects_where_the_disabling_edit_or_the_bend_is(made):
    found, truth = made
    points = found.points.set_index(["method", "order", "reversed"])["inflection"]
    first = truth.groupby(["method", "order", "reversed"])["edits"].min()
    for key, edit in first.items():
        assert abs(points[key] - edit) <= 20, key
    assert np.isnan(points["rome", N_ORDERS - 1, False])  # the order without a collapse
    assert points[["r-rome"]].isna().all()
    for order in range(N_ORDERS):
        assert abs(points["memit", order, False] - synthetic.bend_place(order, 1000)) <= 120


def test_collapses_of_rome_come_with_their_planted_edit_and_those_of_memit_do_not(made):
    found, _ = made
    opened = collapse.by_order(found.collapses, found.points).groupby(["method", "reversed"]).sum()
    assert opened.loc[("rome", False), "collapses"] == opened.loc[("rome", False), "opened"] >= N_ORDERS - 1
    assert opened.loc[("rome", True), "collapses"] == opened.loc[("rome", True), "single"] >= 2
    assert opened.loc[("memit", False), "collapses"] > 0 == opened.loc[("memit", False), "opened"]


def test_the_catastrophic_stretch_of_rome_is_short_and_steep(made):
    table = collapse.stretches(made[0].regions)
    rome = table[(table["method"] == "rome") & ~table["reversed"]].groupby("label")
    assert rome["per_100"].mean()["catastrophic"] > 50 * rome["per_100"].mean()["gradual"]
    assert rome["edits"].mean()["catastrophic"] < 0.1 * rome["edits"].mean()["gradual"]


def test_the_tasks_are_lost_in_the_planted_order(made):
    found, _ = made
    lasts = task_loss.lasting(found.downstream[found.downstream["edits"] <= found.n])
    assert set(lasts.loc[lasts["signal"], "task"]) == {"sst2", "rte"}
    fast = lasts[(lasts["method"] == "ft-c")].groupby("task")["half"].median()
    assert fast["rte"] < fast["sst2"] < 400
    rome = lasts[(lasts["method"] == "rome") & ~lasts["reversed"] & (lasts["task"] == "mrpc")].set_index("order")
    for order in range(N_ORDERS - 1):
        (edit, *_) = synthetic.disabling_places(order, 1000, N_ORDERS)
        assert edit <= rome["silent"][order] < edit + 20
    assert rome["silent"][N_ORDERS - 1] == np.inf


def test_the_same_fact_disables_forwards_and_backwards(made):
    found, _ = made
    pairs = paired.reversals(found.edits, found.history, found.jumps).set_index(["method", "order"])
    assert len(pairs) == 4 and (pairs["edits"] == 1000).all()
    assert pairs.loc["rome", "shared"].tolist() == [2, 1] and pairs["same_first"]["rome", 1] == 1
    assert pairs["same_first"]["rome", 0] == 0  # of two planted facts the other one comes first backwards
    assert pairs.loc["memit", "disabling_forward"].tolist() == [0, 0]


def test_drift_explains_more_of_a_collapse_than_the_number_of_edits(made):
    found, _ = made
    at = drift_loss.along(found.recall[found.recall["edits"] <= found.n], found.drift)
    within = drift_loss.within(at).set_index(["method", "order", "reversed"])
    assert within["added"]["rome", 1, False] > 0.1 > 0.03 > within["added"]["r-rome", 1, False]
    assert (within["per_step"][["rome"]] > 0).all()


# ----------------------------------------------------------------------------------------------------- claims


def test_claims_about_the_planted_course_get_the_verdict_it_asks_for(claimed):
    expected = {
        ("edits keep taking to the end", "rome"): "agrees",
        ("collapses come with single disabling edits", "rome"): "agrees",
        ("there are no disabling edits", "memit"): "agrees",
        ("there are no disabling edits", "r-rome"): "agrees",
        ("the distance grows as the root of the edits", "memit"): "agrees",
        ("fine-tuning forgets most facts", "ft-c"): "agrees",
        ("facts are lost all at once, late", "memit"): "disagrees",
        ("MEMIT keeps more facts than ROME", "memit"): "disagrees",
        ("SST-2 is untouched up to the collapse", "memit"): "disagrees",
    }
    assert {key: claimed["verdict"][key] for key in expected} == expected
    assert claimed["mean"]["the distance grows as the root of the edits", "memit"] == pytest.approx(0.5, abs=0.02)
    assert claimed["orders"]["facts are lost all at once, late", "memit"] == 2  # those that go on


def test_fewer_edits_than_a_claim_speaks_of_are_said(made):
    rows = claims.claims(replace(made[0], n=200), np.random.default_rng(0))
    long = rows[[claim.edits > 200 for claim in claims.CLAIMS]]
    assert set(long["verdict"]) == {"not comparable"} and set(long["ours"]) == {"200 edits are too few"}


def test_a_method_or_task_that_was_not_run_is_not_comparable(made):
    found = made[0]
    without = replace(found, downstream=found.downstream[found.downstream["task"] != "sst2"])
    rows = claims.claims(without, np.random.default_rng(0))
    sst2 = rows[rows["claim"].str.contains("SST-2")]
    assert set(sst2["verdict"]) == {"not comparable"} and set(sst2["ours"]) == {"not measured"}


@pytest.mark.parametrize(
    ("interval", "verdict"),
    [
        (Interval(5, 4, 6, 3), "agrees"),
        (Interval(5, 2, 10, 3), "agrees"),
        (Interval(1, 0.5, 1.9, 3), "disagrees"),
        (Interval(11, 10.5, 12, 3), "disagrees"),
        (Interval(2, 1, 3, 3), "undecided"),
        (Interval(5, np.nan, np.nan, 1), "not comparable"),
        (Interval(np.nan, np.nan, np.nan, 0), "not comparable"),
    ],
)
def test_a_verdict_needs_the_whole_interval(interval, verdict):
    assert claims.verdict(interval, 2, 10) == verdict


def test_claims_become_a_table_in_markdown_also_from_their_file(made):
    table = claims.claims(made[0], np.random.default_rng(0))
    again = pd.read_csv(io.StringIO(table.to_csv(index=False)))
    text = claims.markdown(table)
    assert text == claims.markdown(again)
    lines = text.splitlines()
    assert len(lines) == 2 + len(claims.CLAIMS) and {line.count("|") for line in lines} == {6}
    assert "| fine-tuning forgets most facts | ft-c | 85 % forgotten at 1,000 edits (Figure 1d) |" in text
    assert claims.tally(table).startswith(f"{(table['verdict'] == 'agrees').sum()} agree, ")
