"""What was planted in a made-up study is found, claims get the verdict their interval asks for, and can be printed."""

import io
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import pytest
import synthetic

from editscale.analysis import claims, paired, study, task_loss
from editscale.analysis.intervals import Interval

N_ORDERS = 7


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A study with known truth, and its planted disabling edits."""
    folder = tmp_path_factory.mktemp("recorded")
    truth = synthetic.write(folder, n_orders=N_ORDERS, longer=1400, n_few=2, rare=500, n_singular=2)
    return study.read([folder]), truth


@pytest.fixture(scope="module")
def claimed(made):
    table = claims.claims(made[0])
    return table.set_index(["claim", "method"])


def test_methods_are_told_of_by_forward_orders_and_what_none_has_is_said():
    columns = ["method", "reversed", "finding", "measure", "mean", "low", "high", "n", "values"]
    rows = [
        ("rome", False, "places", "collapse", 54.0, 10.0, 308.0, 10, ()),
        ("rome", True, "places", "collapse", 1.0, np.nan, np.nan, 2, (0.0, 2.0)),
        ("memit", False, "places", "collapse", np.nan, np.nan, np.nan, 0, ()),
        ("rome", False, "hazard", "before", 0.138, np.nan, np.nan, 2, (0.07, 0.2)),
        ("memit", False, "pairs", "recall", 0.5, 0.4, 0.6, 3, ()),
    ]
    told = claims.about_methods(pd.DataFrame(rows, columns=columns))
    assert list(told) == ["rome", "memit"] and told.index.tolist() == [about[0] for about in claims.ABOUT_METHODS]
    assert told.iloc[0].tolist() == ["54 (10–308, 10 orders)", "none"]
    assert told.iloc[2].tolist() == ["13.8 (2 orders: 7.0, 20.0)", "none"]


# ---------------------------------------------------------------------------------------------- planted truth


def keys(table):
    return set(zip(*(table[name] for name in ("method", "order", "reversed", "edits")), strict=True))


def test_every_planted_disabling_edit_of_a_sound_model_is_found_and_no_other(made):
    found, truth = made
    first = truth.groupby(["method", "order", "reversed"], as_index=False)["edits"].min()  # later ones: a broken model
    assert keys(found.damage[found.damage["disabling"]]) == keys(found.damage[found.damage["severe"]]) == keys(first)
    assert keys(found.jumps) == keys(truth)


def test_a_model_collapses_with_its_planted_edit_or_at_the_planted_bend(made):
    found, truth = made
    places = found.places.set_index(["method", "order", "reversed"])["collapse"]
    first = truth.groupby(["method", "order", "reversed"])["edits"].min()
    assert (places[first.index] == first).all() and np.isinf(places["rome", N_ORDERS - 1, False])
    assert np.isinf(places[["r-rome"]]).all() and np.isinf(places[["rome-multi"]]).all()
    for order in range(N_ORDERS):
        assert places["memit", order, False] > synthetic.bend_place(order, 1000)


def test_only_planted_collapses_are_catastrophic(made):
    found, truth = made
    sudden = found.stretches[found.stretches["label"] == "catastrophic"]
    assert set(sudden["method"]) == {"rome"}
    for key, edits in truth.groupby(["method", "order", "reversed"])["edits"].min().items():
        method, order, backward = key
        own = sudden[(sudden["order"] == order) & (sudden["reversed"] == backward)]
        assert ((own["start"] < edits) & (edits <= own["stop"])).any(), key


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


# ----------------------------------------------------------------------------------------------------- claims


def test_claims_about_the_planted_course_get_the_verdict_it_asks_for(claimed):
    expected = {
        ("edits keep taking to the end", "rome"): "agrees",
        ("facts are lost all at once", "rome"): "undecided",  # 6 of 7 orders: 42–100 %
        ("collapses come with single disabling edits", "rome"): "undecided",
        ("there are no disabling edits", "memit"): "agrees",
        ("there are no disabling edits", "r-rome"): "agrees",
        ("the distance grows as the root of the edits", "memit"): "agrees",
        ("fine-tuning forgets most facts", "ft-c"): "agrees",
        ("facts are lost all at once, late", "memit"): "disagrees",
        ("MEMIT keeps more facts than ROME", "memit"): "disagrees",
        ("SST-2 is untouched up to the collapse", "memit"): "disagrees",
    }
    assert {key: claimed["verdict"][key] for key in expected} == expected
    by_one = claimed.loc[("collapses come with single disabling edits", "rome")]
    assert (by_one["mean"], by_one["orders"], by_one["by_measure"]) == (100, N_ORDERS - 1, "agrees")
    assert claimed["mean"]["the distance grows as the root of the edits", "memit"] == pytest.approx(0.5, abs=0.02)


def test_a_claim_that_another_measure_would_judge_otherwise_is_undecided():
    agrees, disagrees = (lambda *_, x=x: Interval(x, x, x, 5) for x in (1, 9))
    judged = {}
    for other in (agrees, disagrees):
        both = (claims.Measure(of, 0, 2, "x") for of in (agrees, other))
        claim = claims.Claim("so it is", "rome-mrpc", *both)
        judged[other] = claims.claims(_Made(1000), [claim]).iloc[0]
    assert judged[agrees]["verdict"] == "agrees" and judged[disagrees]["verdict"] == "undecided"
    assert judged[disagrees]["by_other"] == "disagrees"


@dataclass(frozen=True)
class _Made:
    n: int
    tail: float = 0.025


def test_fewer_edits_than_a_claim_speaks_of_are_said(made):
    rows = claims.claims(replace(made[0], n=200))
    long = rows[[claim.edits > 200 for claim in claims.CLAIMS]]
    assert set(long["verdict"]) == {"not comparable"} and set(long["ours"]) == {"200 edits are too few"}


def test_a_method_or_task_that_was_not_run_is_not_comparable(made):
    found = made[0]
    without = replace(found, downstream=found.downstream[found.downstream["task"] != "sst2"])
    rows = claims.claims(without)
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
        (Interval(5, np.nan, np.nan, 3, (4, 5, 6)), "undecided"),
        (Interval(5, np.nan, np.nan, 1), "not comparable"),
        (Interval(np.nan, np.nan, np.nan, 0), "not comparable"),
    ],
)
def test_a_verdict_needs_the_whole_interval(interval, verdict):
    assert claims.verdict(interval, 2, 10) == verdict


def test_claims_are_read_in_few_columns_also_from_their_file(made):
    table = claims.claims(made[0])
    again = pd.read_csv(io.StringIO(table.to_csv(index=False)))
    read = claims.for_reading(table)
    assert read.equals(claims.for_reading(again)) and len(read) == len(claims.CLAIMS)
    (tuned,) = read[read["claim"] == "fine-tuning forgets most facts (ft-c)"]["paper"]
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
    ranges = {claim.paper: (claim.measure.low, claim.measure.high) for claim in claims.CLAIMS}
    assert ranges["rome-neighborhood"] == (-np.inf, -16.5) and ranges["memit-forgotten-less"] == (44, np.inf)
    assert ranges["rome-distance"] == (3.75, np.inf) and ranges["memit-growth"] == pytest.approx((0.4, 0.6))
