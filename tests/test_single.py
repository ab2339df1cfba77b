"""One edit shown in its parts: what the tables say is what the edit is, and nothing of it stays."""

from dataclasses import replace

import pytest
import tiny
import torch
from test_rome import moment
from test_sequence import CONTEXTS, FACTS, PARAMS

from editscale.editing import editors, rome, updates
from editscale.sequences.single import shown_edit, single_edits

METHODS = ("rome", "r-rome", "p-rome", "memit", "rome-multi", "ft-c")


def editing_of(lm, method):
    of = "rome" if method in rome.VARIANTS else method
    factors = {layer: torch.linalg.cholesky(moment(lm.d_key)) for layer in PARAMS[of].layers}
    return editors.Editing(method, PARAMS[of], CONTEXTS[of], factors)


@pytest.fixture(scope="module", params=METHODS)
def shown(request):
    """A model, what it is edited with, and the two tables; its weights and the generator's state before."""
    lm = tiny.tiny_model("gpt2")
    before = {name: tensor.clone() for name, tensor in lm.model.state_dict().items()}, torch.get_rng_state()
    editing = editing_of(lm, request.param)
    return lm, editing, *shown_edit(lm, FACTS[0], editing), *before


def test_an_edit_that_was_shown_leaves_no_trace(shown):
    lm, *_, weights, generator = shown
    assert all(torch.equal(weights[name], tensor) for name, tensor in lm.model.state_dict().items())
    assert torch.equal(generator, torch.get_rng_state())


def test_the_parts_are_those_of_the_edit(shown):
    lm, editing, parts, *_ = shown
    (edit,) = editors.edit_each(editing, lm, FACTS[:1])
    assert list(parts.columns) == [f"layer {layer}" for layer in editing.layers]
    for update in edit.updates:
        part = parts[f"layer {update.layer}"]
        assert part["norm of ΔW"] == pytest.approx(update.matrix().double().norm().item(), rel=1e-5)
        assert part["rank of ΔW, at most"] == (min(update.left.shape) if editing.method == "ft-c" else 1)
        assert editing.method == "ft-c" or part["entries of the key k*"] == lm.d_key
    summary = editors.summary(edit)
    last = parts[f"layer {editing.layers[-1]}"]
    assert last["loss at the first forward"] == summary["loss_first"] > last["loss at the last forward"]
    assert last["forwards"] == summary["steps"]


def test_the_norm_of_an_update_follows_from_its_parts(shown):
    """‖ΔW‖ = ‖v* − Wk‖ ‖u‖ / |denominator|, with u of norm one (ROME), C⁻¹k, or C⁻¹k / λ (MEMIT)."""
    lm, editing, parts, *_ = shown
    if editing.method == "ft-c":
        assert not any("key" in name or name == "denominator" for name in parts.index)
        return
    (edit,) = editors.edit_each(editing, lm, FACTS[:1])
    for update in edit.updates:
        part, u = parts[f"layer {update.layer}"], 1.0
        if editing.method in ("memit", "rome-multi"):
            key, factor = edit.trace[update.layer]["keys"].double(), editing.factors[update.layer]
            u = torch.cholesky_solve(key, factor).norm().item() / getattr(editing.params, "mom2_update_weight", 1)
        norm = part["norm of the change asked for, v* − Wk"] * u / abs(part["denominator"])
        assert part["norm of ΔW"] == pytest.approx(norm, rel=1e-4)
        assert part["denominator"] > 1 or editing.method != "memit"


def test_the_new_object_becomes_more_probable(shown):
    _, editing, _, effect, *_ = shown
    new = effect[f"p({FACTS[0].target_new})"]
    assert list(effect.index) == ["before the edit", "after the edit"] and 0 <= new.iloc[0] < new.iloc[1] <= 1
    assert effect.index.name == f"{FACTS[0].rewrite_prompt} …"
    assert all(isinstance(text, str) for text in effect["the model writes"])


def test_an_edit_that_is_not_finite_is_shown_but_not_applied(monkeypatch):
    lm = tiny.tiny_model("gpt2")
    made = editors.edit_each(editing_of(lm, "rome"), lm, FACTS[:1])
    made[0].updates[0].left.fill_(float("nan"))
    monkeypatch.setattr(editors, "edit_each", lambda *_: made)
    parts, effect = shown_edit(lm, FACTS[0], editing_of(lm, "rome"))
    assert list(effect.index) == ["before the edit", "non-finite"]
    assert effect.iloc[0].tolist() == effect.iloc[1].tolist()
    assert parts.loc["denominator"].notna().all()


def test_a_failed_solve_has_no_parts(monkeypatch):
    lm = tiny.tiny_model("gpt2")
    monkeypatch.setattr(editors, "edit_each", lambda *_: [updates.Edit((), {"failed": "singular"})])
    parts, effect = shown_edit(lm, FACTS[0], editing_of(lm, "rome"))
    assert parts.empty and list(effect.index) == ["before the edit", "failed-solve"]


def test_without_a_true_object_an_edit_is_shown_and_measured_without_what_compares_with_it():
    lm = tiny.tiny_model("gpt2")
    fact, editing = replace(FACTS[0], target_true=""), editing_of(lm, "rome")
    _, effect = shown_edit(lm, fact, editing)
    assert list(effect.columns) == ["the model writes", "p(harp)"]
    (row,) = single_edits(lm, [fact], editing, ["Lund is in the town"])
    assert row["efficacy"] != row["efficacy"] and row["efficacy_accuracy"] in (0.0, 1.0)
