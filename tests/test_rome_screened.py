"""ROME that leaves out facts of small denominators, or hands them to another method."""

import copy
from dataclasses import asdict, replace

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from test_ledger import cut, files
from test_rome import moment
from test_sequence import CONTEXTS, FACTS, PARAMS, TOGETHER

from editscale.analysis import forgetting, tables
from editscale.editing import editors, modules, rome, updates
from editscale.editing.rome_screened import OTHERS, RomeScreenedParams
from editscale.metrics import drift
from editscale.sequences import sequence, single
from editscale.sequences.ledger import Ledger

OF_ROME = PARAMS["rome"]  # layer 1
FT_C = {"method": "ft-c", **asdict(PARAMS["ft-c"])}
BELOW = FT_C | {"layer": 0}
MEMIT = {"method": "memit", **asdict(PARAMS["memit"])}
R_ROME = {"method": "r-rome", **asdict(OF_ROME)}


def params(least, instead=None):
    return RomeScreenedParams(**asdict(OF_ROME), least_denominator=least, instead=instead or {})


def editing_of(lm, least, instead=None):
    given = params(least, instead)
    factors = {
        layer: torch.linalg.cholesky(moment(lm.d_key, layer)) for layer in editors.moment_layers("rome-screened", given)
    }
    return editors.Editing("rome-screened", given, CONTEXTS["rome"], factors, {"corpus": "none"})


def denominators(model_type="gpt2"):
    """|k·u| of each fact on the unedited model."""
    lm = tiny.tiny_model(model_type)
    editing = editing_of(lm, 0.0)
    ahead = rome.directions(lm, FACTS, editing.params, editing.contexts, editing.factors)
    return [abs((of.key @ of.u).item()) for of in ahead]


def between(n):
    """A threshold below which n facts lie."""
    ordered = sorted(denominators())
    return (ordered[n - 1] + ordered[n]) / 2


def screened_sequence(folder, least, instead=None, facts=FACTS, **options):
    """A model edited from where the ledger in `folder` ends."""
    lm = tiny.tiny_model("gpt2")
    editing = editing_of(lm, least, instead)
    made_under = sequence.fingerprint(lm, editing, on_collapse=options.get("on_collapse", "stop"))
    book = Ledger(folder, made_under, sequence.weights_record(lm, editing.layers))
    sequence.run(lm, facts, editing, book, **options)
    return lm, book


def test_with_threshold_0_it_is_rome_bit_for_bit(tmp_path):
    lm, book = screened_sequence(tmp_path / "ours", 0.0)
    factors = {1: torch.linalg.cholesky(moment(lm.d_key, 1))}
    plain = tiny.tiny_model("gpt2")
    editing = editors.Editing("rome", OF_ROME, CONTEXTS["rome"], factors, {"corpus": "none"})
    record = sequence.weights_record(plain, [1])
    of_rome = Ledger(tmp_path / "rome", sequence.fingerprint(plain, editing), record)
    sequence.run(plain, FACTS, editing, of_rome)
    assert torch.equal(lm.weight(1), plain.weight(1))
    assert book.rows == of_rome.rows


def test_below_the_threshold_nothing_is_edited_and_a_run_that_stops_at_collapses_goes_on(tmp_path):
    lm, book = screened_sequence(tmp_path, float("inf"))
    assert torch.equal(lm.weight(1), tiny.tiny_model("gpt2").weight(1))
    assert [row["status"] for row in book.rows] == ["screened"] * len(FACTS)
    assert [abs(row["denominator"]) for row in book.rows] == pytest.approx(denominators(), rel=1e-6)
    for row, unedited in zip(book.rows, book.unedited(), strict=True):  # scores of the model as it stands
        assert row["loss_first"] is None and row["efficacy"] == unedited["efficacy"]
        assert row["paraphrase_magnitude"] == pytest.approx(unedited["paraphrase_magnitude"], abs=1e-6)
    assert all(row["update_norm"] == 0 for row in drift.of_ledger(book))


def test_it_edits_the_facts_from_the_threshold_on_as_rome_does_without_the_others(tmp_path):
    least, known = between(2), denominators()
    lm, book = screened_sequence(tmp_path / "ours", least)
    small = [value < least for value in known]
    assert [row["status"] for row in book.rows] == ["screened" if x else "edited" for x in small]
    kept = [fact for fact, left_out in zip(FACTS, small, strict=True) if not left_out]
    without, _ = screened_sequence(tmp_path / "rome", 0.0, facts=kept)
    torch.testing.assert_close(lm.weight(1), without.weight(1), rtol=0, atol=1e-5)


@pytest.mark.parametrize("instead", ({}, FT_C, BELOW, MEMIT, R_ROME), ids=("none", "ft-c", "below", "memit", "r-rome"))
def test_a_stopped_run_resumed_is_the_uninterrupted_one_and_its_drift_that_of_the_weights(tmp_path, instead):
    least = between(2)
    lm, book = screened_sequence(tmp_path / "whole", least, instead)
    original = tiny.tiny_model("gpt2")
    for n in (1, 3):
        screened_sequence(tmp_path / f"part {n}", least, instead)
        cut(tmp_path / f"part {n}", n)
        resumed, _ = screened_sequence(tmp_path / f"part {n}", least, instead)
        assert files(tmp_path / "whole") == files(tmp_path / f"part {n}")
        assert all(torch.equal(lm.weight(x), resumed.weight(x)) for x in params(least, instead).layers)
    for layer in params(least, instead).layers:
        moved = (lm.weight(layer) - original.weight(layer)).double().norm().item()
        rows = [row for row in drift.of_ledger(book) if row["layer"] == layer]
        assert rows[-1]["distance"] == pytest.approx(moved, rel=1e-5) and moved > 0
    assert {row["status"] for row in book.rows} == {"edited"} | ({"screened"} if not instead else set())


@pytest.mark.parametrize("model_type", ("gpt2", "llama"))
@pytest.mark.parametrize("instead", (FT_C, BELOW, MEMIT, R_ROME), ids=("ft-c", "below", "memit", "r-rome"))
def test_facts_that_are_handed_over_are_edited_as_the_other_method_edits_them(instead, model_type):
    lm = tiny.tiny_model(model_type)
    editing = editing_of(lm, float("inf"), instead)
    name = instead["method"]
    contexts = {"ft-c": ["{}"], "memit": [["{}"], ["The river. {}"]], "r-rome": CONTEXTS["rome"]}[name]
    alone = editors.Editing(name, editing.params.other[1], contexts, editing.factors)
    for ours, theirs in zip(editors.edit_each(editing, lm, FACTS), editors.edit_each(alone, lm, FACTS), strict=True):
        assert editors.status(ours) == "edited" and len(ours.updates) == len(theirs.updates)
        for a, b in zip(ours.updates, theirs.updates, strict=True):
            assert a.layer == b.layer and torch.equal(a.matrix(), b.matrix())
    expected = denominators(model_type)
    found = [abs(editors.summary(edit)["denominator"]) for edit in editors.edit_each(editing, lm, FACTS)]
    assert found == pytest.approx(expected, rel=1e-5)  # ROME's, whoever edits


def test_a_change_below_romes_layer_gives_its_edits_the_keys_of_the_edited_model():
    """What is screened is known from the unedited model; W'k = v* holds for the key as it now is."""
    lm = tiny.tiny_model("gpt2", dtype=torch.float64)
    editing = editing_of(lm, 0.0, BELOW)
    ahead = rome.directions(lm, FACTS, editing.params, editing.contexts, editing.factors)
    weight = lm.weight(0)
    weight.add_(0.05 * torch.randn(weight.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    (now,) = rome.directions(lm, FACTS[:1], editing.params, editing.contexts, editing.factors)
    assert (now.key - ahead[0].key).norm() > 1e-3
    (edit,) = editors.edit_each(editing, lm, FACTS[:1], ahead[:1])
    torch.testing.assert_close(edit.trace["key"], now.key, rtol=1e-9, atol=1e-9)
    updates.apply(lm, edit.updates)
    reached = lm.weight(1) @ now.key + lm.projection(1).bias
    torch.testing.assert_close(reached, edit.trace["init"] + edit.trace["delta"], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("instead", ({}, FT_C, MEMIT), ids=("none", "ft-c", "memit"))
def test_orders_in_one_batch_get_the_ledgers_of_each_alone(tmp_path, instead):
    least = between(2)
    lm = tiny.tiny_model("gpt2")
    editing = editing_of(lm, least, instead)
    orders = [FACTS[i:] + FACTS[:i] for i in range(3)]
    record = sequence.weights_record(lm, editing.layers)
    made_under = sequence.fingerprint(lm, editing, TOGETHER)
    books = [Ledger(tmp_path / name, made_under, record) for name in TOGETHER]
    sequence.run_together(lm, orders, [editing] * 3, books)
    for i, book in enumerate(books):
        alone, single_book = screened_sequence(tmp_path / f"alone {i}", least, instead, facts=orders[i])
        assert [row["status"] for row in book.rows] == [row["status"] for row in single_book.rows]
        replayed = tiny.tiny_model("gpt2")
        sequence.replay(replayed, book)
        for layer in editing.layers:
            torch.testing.assert_close(replayed.weight(layer), alone.weight(layer), rtol=0, atol=2e-3)


def test_what_is_screened_counts_among_all_facts_and_not_among_failures():
    key = {"method": "rome-screened", "order": 0, "reversed": False}
    status = ["edited", "screened", "edited", "screened"]
    edits = pd.DataFrame(
        [
            {**key, "edits": i, "case_id": i, "status": of, "efficacy_accuracy": 1.0}
            for i, of in enumerate(status, start=1)
        ]
    )
    history = pd.DataFrame(
        [
            {**key, "edits": n, "edit": i, "case_id": i, "efficacy_accuracy": 1.0}
            for n in (2, 4)
            for i in range(1, n + 1)
        ]
    )
    curve = forgetting.recall_curve(history, edits)
    assert curve["learned"].tolist() == [1, 2] and curve["recall"].tolist() == [1, 1]
    longer = pd.concat([edits.assign(method="rome", status="edited"), edits])
    tables.check_same_facts(longer)
    asked = pd.concat([history.assign(method="rome"), history[history["edits"] == 2]])
    assert tables.shared_end(asked, longer) == 2  # the run that ends with a fact left out is whole
    # Nor may it lack facts of its order, as a run that stopped at its collapse may.
    with pytest.raises(ValueError, match="edited different facts"):
        other = edits.iloc[:3].assign(method="x", case_id=[4, 2, 3], status=["edited", "edited", "screened"])
        tables.check_same_facts(pd.concat([longer, other]))


def test_alone_a_screened_fact_is_scored_on_the_model_as_it_stands():
    lm = tiny.tiny_model("gpt2")
    before = copy.deepcopy(lm.weight(1))
    rows = single.single_edits(lm, FACTS[:2], editing_of(lm, float("inf")), ["The river runs through the town."])
    assert [row["status"] for row in rows] == ["screened"] * 2 and torch.equal(lm.weight(1), before)
    assert all(np.isfinite(row["perplexity"]) and np.isnan(row["update_norm"]) for row in rows)


def test_every_method_of_the_package_without_a_state_may_edit_instead():
    stateless = {name for name in modules.MODULES if editors.method(name).start is None}
    assert set(OTHERS) == stateless - {"rome-screened"}


@pytest.mark.parametrize(
    ("least", "instead", "message"),
    [
        (-1.0, {}, "least_denominator is -1.0; expected 0"),
        (float("nan"), {}, "least_denominator is nan"),
        (1.0, {"method": "alphaedit"}, "instead names method 'alphaedit'; expected {}, or rome, r-rome"),
        (1.0, {"layer": 1}, "instead names method None"),
        (1.0, {"method": "ft-c", "layer": 1}, "instead, ft-c: entry 'num_steps' is missing"),
        (1.0, FT_C | {"lr": "fast"}, "instead, ft-c: lr must be a float, not 'fast'"),
        (1.0, FT_C | {"rate": 1}, "instead, ft-c: unknown entry 'rate'"),
    ],
)
def test_a_wrong_threshold_or_other_method_is_one_clear_error(least, instead, message):
    with pytest.raises(ValueError, match=message):
        params(least, instead)


def test_layers_of_both_methods_are_edited_and_moments_are_those_that_are_weighed():
    assert editors.layers_of(params(1.0)) == [1]
    below, memit = params(1.0, BELOW), params(1.0, MEMIT)
    assert (below.layers, below.moment_layers) == ((0, 1), (1,))
    assert (memit.layers, memit.moment_layers) == ((0, 1), (0, 1))
    assert replace(below, layer=2).layers == (0, 2)
