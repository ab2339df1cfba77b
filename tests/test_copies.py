"""A stack of copies is as many models that share all weights but the edited projections."""

import pytest
import tiny
import torch

from editscale.data.facts import Fact
from editscale.editing import memit, rome, updates, values
from editscale.editing.memit import MemitParams
from editscale.editing.rome import RomeParams
from editscale.models import anatomy, stacks, tokens

FACTS = [
    Fact(0, "Ada Example", "{} plays the", "harp", "cello"),
    Fact(1, "Bo Sample", "The mother tongue of {} is", "old Swedish from Stockholm", "Danish"),
    Fact(2, "Lund", "There is a river in the town of {}", "Denmark", "Sweden"),
]
CONTEXTS = ["{}", "The river. {}", "No one answered the door, because. {}"]
ROME = RomeParams(1, 6, 0.3, 0.5, 4.0, 0.0625, True)
MEMIT = MemitParams([0, 2], 6, 0.3, 0.5, 0.75, 0.0625, 20.0)
# What Hugging Face computes in float32 inside float64 models (see test_values) leaves this much.
EXACT = {"gpt2": 1e-10, "llama": 5e-5, "gptj": 5e-5, "gemma": 5e-5}


def random_update(lm, layer, seed):
    generator = torch.Generator().manual_seed(seed)
    left, right = (
        torch.randn(n, 1, generator=generator, dtype=torch.float64).to(lm.dtype) for n in (lm.d_model, lm.d_key)
    )
    return updates.Update(layer, 0.2 * left, right)


def edited(model_type, n, layers=(0, 1, 2)):
    """A stack of n copies with updates of their own, and the n models it stands for."""
    lm = tiny.tiny_model(model_type, dtype=torch.float64)
    stack, models = stacks.copies(lm, layers, n), []
    for i in range(n):
        models.append(tiny.tiny_model(model_type, dtype=torch.float64))
        for layer in layers:
            update = random_update(lm, layer, 10 * i + layer)
            updates.apply(stack, [update], copy=i)
            updates.apply(models[i], [update])
    return lm, stack, models


def logits(lm, texts):
    trees = [tokens.tree([tokens.prompt_ids(lm.tokenizer, text)]) for text in texts]
    ids, positions, mask = tokens.tree_inputs(trees, "cpu", lm.dtype)
    with torch.no_grad():
        out = lm.model(input_ids=ids, position_ids=positions, attention_mask=mask).logits
    return [row[: len(packed.ids)] for row, packed in zip(out, trees, strict=True)]


@pytest.mark.parametrize("model_type", anatomy.FAMILIES)
def test_each_row_runs_on_its_own_copy(model_type):
    lm, stack, models = edited(model_type, 3)
    texts = [fact.rewrite_prompt for fact in FACTS]
    for i, ours in enumerate(logits(stack, texts)):
        torch.testing.assert_close(ours, logits(models[i], texts[i : i + 1])[0], rtol=0, atol=1e-5)
        if model_type == "gpt2":
            torch.testing.assert_close(ours, logits(models[i], texts[i : i + 1])[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("model_type", ("gpt2", "llama"))
def test_weights_have_the_bits_of_the_models_they_stand_for(model_type):
    _, stack, models = edited(model_type, 3)
    assert stack.d_model == models[0].d_model and stack.d_key == models[0].d_key
    for layer in (0, 1, 2):
        assert all(torch.equal(stack.weight(layer)[i], lm.weight(layer)) for i, lm in enumerate(models))
    kept = stacks.subset(stack, [2, 0])
    assert torch.equal(kept.weight(1), stack.weight(1)[[2, 0]])
    kept.weight(1).zero_()
    assert torch.equal(stack.weight(1)[0], models[0].weight(1))
    assert stacks.subset(models[0], [2, 0]) is models[0]


def test_the_model_is_left_alone_and_other_weights_are_shared():
    lm, stack, _ = edited("gpt2", 2)
    fresh = tiny.tiny_model("gpt2", dtype=torch.float64)
    for name, weight in lm.model.state_dict().items():
        assert torch.equal(weight, fresh.model.state_dict()[name])
    assert stack.weight(3).data_ptr() == lm.weight(3).data_ptr()
    assert stack.weight(0).data_ptr() != lm.weight(0).data_ptr()
    again = stacks.copies(stack, [0], 2)
    again.weight(0).zero_()
    assert stack.weight(0).abs().sum() > 0
    with pytest.raises(ValueError, match="has 2 copies already; 3 were asked for"):
        stacks.copies(stack, [0], 3)


def test_one_copy_serves_any_number_of_rows():
    _, stack, (lm,) = edited("llama", 1)
    texts = [fact.rewrite_prompt for fact in FACTS]
    for ours, oracle in zip(logits(stack, texts), logits(lm, texts), strict=True):
        torch.testing.assert_close(ours, oracle, rtol=0, atol=1e-6)


@pytest.mark.parametrize("model_type", EXACT)
@pytest.mark.parametrize("method", ("rome", "r-rome", "memit"))
def test_orders_in_one_batch_are_edited_as_each_alone(model_type, method, monkeypatch):
    monkeypatch.setattr(values, "GROUP", 2)  # so that there are several groups of facts of like length
    lm, stack, models = edited(model_type, 3)
    factors = {layer: torch.eye(lm.d_key, dtype=torch.float64) * (1 + layer) for layer in (0, 1, 2)}
    if method == "memit":
        together = memit.edit_each(stack, FACTS, MEMIT, [["{}"], CONTEXTS[1:]], factors)
        alone = [memit.edit(m, [f], MEMIT, [["{}"], CONTEXTS[1:]], factors) for m, f in zip(models, FACTS, strict=True)]
    else:
        together = rome.edit_each(stack, FACTS, ROME, CONTEXTS, factors, variant=method)
        alone = [rome.edit(m, f, ROME, CONTEXTS, factors, variant=method) for m, f in zip(models, FACTS, strict=True)]
    for one, two in zip(together, alone, strict=True):
        for ours, expected in zip(one.updates, two.updates, strict=True):
            tolerance = EXACT[model_type] * expected.matrix().norm().item()
            torch.testing.assert_close(ours.matrix(), expected.matrix(), rtol=0, atol=tolerance)


@pytest.mark.parametrize("method", (rome, memit))
def test_single_edits_of_many_facts_are_those_made_one_by_one(method):
    lm = tiny.tiny_model("gpt2", dtype=torch.float64)
    params, contexts = (ROME, CONTEXTS) if method is rome else (MEMIT, [["{}"], CONTEXTS[1:]])
    factors = {layer: torch.eye(lm.d_key, dtype=torch.float64) for layer in (0, 1, 2)}
    before = updates.saved_weights(lm, range(lm.n_layers))
    together = method.edit_each(lm, FACTS, params, contexts, factors)
    assert all(torch.equal(lm.weight(layer), weight) for layer, weight in before.items())
    for fact, ours in zip(FACTS, together, strict=True):
        (alone,) = method.edit_each(lm, [fact], params, contexts, factors)
        for one, two in zip(ours.updates, alone.updates, strict=True):
            torch.testing.assert_close(one.matrix(), two.matrix(), rtol=0, atol=1e-10 * two.matrix().norm().item())
