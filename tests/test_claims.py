"""What was planted in a made-up study is found, claims get the verdict their interval asks for, and can be printed."""

import io
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

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
    told = claims.about_methods(pd.DataFrame(rows, columns=columns))
    assert list(told) == ["rome", "memit"] and told.index.tolist() == [about[0] for about in claims.ABOUT_METHODS]
    assert told.iloc[0].tolist() == ["260 (80–380, 8 orders)", "none"]
    assert told.iloc[2].tolist() == ["13.8 (7.0–20.0, 7 orders)", "none"] and told["rome"].iloc[3] == "225 (one order)"


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


def test_claims_are_read_in_few_columns_also_from_their_file(made):
    table = claims.claims(made[0], np.random.default_rng(0))
    again = pd.read_csv(io.StringIO(table.to_csv(index=False)))
    read = claims.for_reading(table)
    assert read.equals(claims.for_reading(again)) and len(read) == len(claims.CLAIMS)
    (tuned,) = read[read["claim"].str.startswith("fine-tuning forgets most facts (ft-c)")]["paper"]
    assert tuned == "85 % forgotten at 1,000 edits (Figure 1d)"
    assert claims.tally(table).startswith(f"{(table['verdict'] == 'agrees').sum()} agree, ")


# ----------------------------------------------------------------------------------------------------- the paper


def test_every_number_of_the_paper_says_what_it_is_and_where_it_stands():
    for name, entry in claims.PAPER.items():
        assert {"what", "method", "source", "ours", "says"} <= set(entry) and name.startswith(entry["method"]), name
        assert "{" not in claims.says(name)
    assert {claim.paper for claim in claims.CLAIMS} <= set(claims.PAPER)


def test_a_claim_of_an_effect_asks_for_half_of_it_in_its_direction():
    assert claims.says("rome-neighborhood") == "78 → 45 % in 1,000 edits"
    assert claims.half_effect("rome-neighborhood") == -16.5 and claims.half_effect("ft-c-forgotten") == 42.5
    ranges = {claim.paper: (claim.low, claim.high) for claim in claims.CLAIMS}
    assert ranges["rome-neighborhood"] == (-np.inf, -16.5) and ranges["memit-forgotten-less"] == (44, np.inf)
    assert ranges["rome-distance"] == (3.75, np.inf) and ranges["memit-growth"] == pytest.approx((0.4, 0.6))


# --------------------------------------------------------------------------------------- measures, by hand
# One value per forward order, and nothing where nothing was measured.


def rows(order=0, method="rome", backward=False, **columns):
    return pd.DataFrame({"method": method, "order": order, "reversed": backward, **columns})


def both(make):
    """Two forward orders, and a reversed run and another method's that must not count."""
    return pd.concat([make(order=0), make(order=1), make(order=0, backward=True), make(order=0, method="memit")])


def measured(make, n=100, **tables):
    return make(SimpleNamespace(n=n, **tables), np.random.default_rng(0))


def test_scores_are_means_up_to_n_and_changes_are_last_less_first_edits():
    def edits(**key):
        return rows(**key, edits=range(1, 201), neighborhood=np.where(np.arange(200) < 50, 0.8, 0.4))

    found = measured(partial(claims.mean_score, method="rome", column="neighborhood"), edits=both(edits))
    assert found.mean == pytest.approx(60) and found.n == 2
    assert measured(
        partial(claims.change, method="rome", column="neighborhood"), edits=both(edits)
    ).mean == pytest.approx(-40)
    assert measured(partial(claims.change, method="ft-c", column="neighborhood"), edits=both(edits)).n == 0


def test_the_largest_fall_is_within_so_many_edits_and_from_the_highest_recall():
    def recall(**key):
        return rows(**key, edits=range(20, 201, 20), recall=[0.9, 0.7, 0.8, 0.3, 0.2, 0.2, 0.2, 0.2, 0.2, 0])

    table = both(recall)
    assert measured(partial(claims.largest_fall, method="rome", within=20), recall=table).mean == pytest.approx(50)
    assert measured(partial(claims.largest_fall, method="rome", within=40), recall=table).mean == pytest.approx(60)
    assert measured(partial(claims.largest_fall, method="rome", within=20), n=40, recall=table).mean == pytest.approx(
        20
    )
    assert measured(
        partial(claims.largest_fall, method="rome", within=180, beyond=True), recall=table
    ).mean == pytest.approx(90)
    assert measured(partial(claims.largest_fall, method="rome", within=20, beyond=True), n=200, recall=table).n == 0


def test_jumps_are_counted_per_order_while_half_of_the_facts_last():
    points = both(lambda **key: rows(**key, found="bend", inflection=[50], low=40, high=60))
    lasting = both(lambda **key: rows(**key, edits=[50, 100], recall=[0.9, 0.6]))
    broken = both(lambda **key: rows(**key, edits=[20, 50, 100], recall=[0.9, 0.4, 0.1]))
    jumps = rows(edits=[10, 60, 150])
    found = measured(partial(claims.disabling_edits, method="rome"), points=points, jumps=jumps, recall=lasting)
    assert found.mean == 1 and found.n == 2  # orders without any included
    assert (
        measured(partial(claims.disabling_edits, method="rome"), points=points, jumps=jumps, recall=broken).mean == 0.5
    )
    assert measured(partial(claims.disabling_edits, method="ft-c"), points=points, jumps=jumps, recall=lasting).n == 0


def test_the_distance_steps_by_its_ratio_around_the_steepest_fall():
    def drift(**key):
        return pd.concat([rows(**key, layer=k, edits=[20, 40, 60], distance=[1, 1, k]) for k in (3, 8)])

    collapses = rows(order=[0, 1, 1], steepest_start=[40, 20, 0], steepest_stop=[60, 40, 20])
    found = measured(partial(claims.step_of_distance, method="rome"), drift=both(drift), collapses=collapses)
    assert found.mean == pytest.approx((8 + 1) / 2)
    assert measured(partial(claims.step_of_distance, method="rome"), drift=both(drift), collapses=collapses[:0]).n == 0


def test_growth_is_the_exponent_of_the_deepest_layer():
    def drift(**key):
        edits = np.arange(1, 201)
        return pd.concat(
            [rows(**key, layer=k, edits=edits, distance=edits**power) for k, power in ((3, 1.0), (7, 0.5))]
        )

    assert measured(partial(claims.growth, method="rome"), drift=both(drift)).mean == pytest.approx(0.5)


def test_a_task_changes_from_the_unedited_model_to_the_last_checkpoint_asked_for():
    def downstream(**key):
        return rows(**key, task="sst2", edits=[0, 50, 100, 150], f1=[0.9, 0.8, 0.5, 0.0])

    table = both(downstream)
    none, early = rows(start=[])[:0], rows(order=[0, 1, 1], start=[60, 60, 10])
    changes = [
        measured(
            partial(claims.change_before_collapse, method="rome", task="sst2", at=at),
            downstream=table,
            collapses=collapses,
        )
        for at, collapses in ((60, none), (500, none), (500, early))
    ]
    assert [found.mean for found in changes] == pytest.approx([-10, -40, -10])
    assert [found.n for found in changes] == [2, 2, 1]  # of order 1 nothing was asked before its first collapse
    assert measured(
        partial(claims.task_score, method="rome", task="sst2", at=None), downstream=table
    ).mean == pytest.approx(50)
    assert measured(partial(claims.task_score, method="rome", task="rte", at=None), downstream=table).n == 0


def test_one_order_gives_a_value_without_an_interval():
    found = measured(partial(claims.forgotten, method="rome"), paper=rows(edits=[100], forgotten_percent=[12.0]))
    assert found.mean == 12 and found.n == 1 and np.isnan(found.low)
