"""FT-C against the same by a real parameter, torch's Adam and full forwards; many facts together as each alone."""

import copy
from dataclasses import replace

import pytest
import tiny
import torch
from test_values import EXACT, FACTS

from editscale.editing import editors, finetune, updates
from editscale.editing.finetune import FtParams
from editscale.models import anatomy, stacks, tokens
from editscale.sequences.ledger import Ledger

PARAMS = FtParams(layer=1, num_steps=6, lr=5e-3, weight_decay=0.0, norm_constraint=0.012)
FACTS = list(FACTS.values())
# Targets of one token: the loss of several, all scored at one place, does not go below the log of their number.
SHORT = [replace(FACTS[0], target_new="Danish"), replace(FACTS[1], target_new="the")]


def by_torch(lm, fact, params):
    """ΔW, Δb and losses of constrained fine-tuning as in kmeng01/rome `baselines/ft/ft_main.py`, on a copy."""
    model = copy.deepcopy(lm.model)
    lm = replace(lm, model=model)
    trained = {name: p.requires_grad_() for name, p in lm.projection(params.layer).named_parameters()}
    start = {name: p.detach().clone() for name, p in trained.items()}
    prompt, target = tokens.with_targets(lm.tokenizer, [fact.rewrite_prompt], [fact.target_new])[0]
    adam, losses = torch.optim.Adam(trained.values(), lr=params.lr, weight_decay=params.weight_decay), []
    for _ in range(params.num_steps):
        adam.zero_grad()
        log_p = model(torch.tensor([prompt])).logits[0, -1].log_softmax(dim=-1)
        loss = -log_p[list(target)].mean()
        losses.append(loss.item())
        if loss.item() < 1e-2:
            break
        loss.backward()
        adam.step()
        with torch.no_grad():
            for name, p in trained.items():
                p.copy_(p.clamp(start[name] - params.norm_constraint, start[name] + params.norm_constraint))
    change = lm.weight(params.layer).detach().clone()
    bias = lm.bias(params.layer)
    lm.projection(params.layer).weight.data.copy_(start["weight"])
    return change - lm.weight(params.layer), None if bias is None else bias - start["bias"], losses


def edited(lm, facts, params=PARAMS):
    return finetune.edit_each(lm, facts, params, ["{}"], {})


@pytest.mark.parametrize("layer", (0, 3))
@pytest.mark.parametrize("model_type", anatomy.FAMILIES)
def test_an_edit_is_what_torch_gives_with_a_parameter_and_full_forwards(model_type, layer):
    lm, params = tiny.tiny_model(model_type, dtype=torch.float64), replace(PARAMS, layer=layer)
    (edit,) = edited(lm, [FACTS[1]], params)
    change, bias, losses = by_torch(lm, FACTS[1], params)
    (update,) = edit.updates
    # Adam divides by the gradient's size, so that rounding shows most where a gradient is nearly 0.
    exact = 1e-9 if model_type in EXACT else 2e-2
    assert (update.left - change).norm() <= exact * change.norm()
    assert update.right is None and (update.bias is None) == (bias is None)
    if bias is not None:
        assert (update.bias - bias).norm() <= exact * bias.norm() > 0
    torch.testing.assert_close(
        edit.trace["losses"][:, 0], torch.tensor(losses).double(), rtol=1e-4 + exact / 100, atol=1e-9
    )


@pytest.mark.parametrize("weight_decay", (0.0, 0.1))
def test_weight_decay_is_that_of_torchs_adam(weight_decay):
    lm, params = tiny.tiny_model("gpt2", dtype=torch.float64), replace(PARAMS, weight_decay=weight_decay)
    (edit,) = edited(lm, [FACTS[0]], params)
    change, *_ = by_torch(lm, FACTS[0], params)
    assert (edit.updates[0].left - change).norm() <= 1e-9 * change.norm()


def test_an_unconstrained_edit_ends_when_its_loss_is_small_and_says_the_target():
    lm, params = (
        tiny.tiny_model("gpt2", dtype=torch.float64),
        replace(PARAMS, lr=2e-2, num_steps=60, norm_constraint=1e9),
    )
    (edit,) = edited(lm, [SHORT[0]], params)
    losses = edit.trace["losses"][:, 0]
    assert len(losses) < 60 and losses[-1] < 1e-2 and (losses[:-1] >= 1e-2).all()
    change, _, expected = by_torch(lm, SHORT[0], params)
    assert len(expected) == len(losses)
    assert (edit.updates[0].left - change).norm() <= 1e-6 * change.norm()
    updates.apply(lm, edit.updates)
    prompt, target = tokens.with_targets(lm.tokenizer, [SHORT[0].rewrite_prompt], [SHORT[0].target_new])[0]
    log_p = lm.model(torch.tensor([prompt])).logits[0, -1].log_softmax(dim=-1)
    assert -log_p[list(target)].mean().item() == pytest.approx(losses[-1].item(), rel=1e-9)


@pytest.mark.parametrize("model_type", ("gpt2", "llama"))
def test_no_entry_moves_further_than_the_constraint(model_type):
    (edit,) = edited(tiny.tiny_model(model_type), [FACTS[2]])
    (update,) = edit.updates
    for change in update.tensors().values() if update.bias is not None else [update.left]:
        assert change.abs().max() == torch.tensor(PARAMS.norm_constraint)


@pytest.mark.parametrize("model_type", ("gpt2", "llama", "gptj"))
def test_facts_together_on_a_stack_are_edited_as_each_alone_on_its_copy(model_type):
    lm, params = tiny.tiny_model(model_type, dtype=torch.float64), replace(PARAMS, num_steps=20, norm_constraint=0.1)
    stack = stacks.copies(lm, (params.layer,), len(FACTS))
    for round_ in range(2):
        together = edited(stack, FACTS, params)
        for i, (fact, edit) in enumerate(zip(FACTS, together, strict=True)):
            alone = stacks.subset(stack, [i])
            (expected,) = edited(alone, [fact], params)
            assert len(edit.trace["losses"]) == len(expected.trace["losses"])
            for name, tensor in expected.updates[0].tensors().items():
                difference = (edit.updates[0].tensors()[name] - tensor).norm()
                assert difference <= (1e-9 if model_type == "gpt2" else 2e-2) * tensor.norm(), (round_, name)
            updates.apply(stack, edit.updates, copy=i)
    if model_type == "gpt2":
        assert len(torch.unique(lm.bias(1) - stack.bias(1), dim=0)) == len(FACTS)


def test_facts_stop_by_themselves():
    lm, params = (
        tiny.tiny_model("gpt2", dtype=torch.float64),
        replace(PARAMS, lr=2e-2, num_steps=60, norm_constraint=1e9),
    )
    together = edited(lm, SHORT, params)
    lengths = [len(edit.trace["losses"]) for edit in together]
    assert lengths[0] < lengths[1] == 60
    (alone,) = edited(lm, SHORT[:1], params)
    assert len(alone.trace["losses"]) == lengths[0]
    change = alone.updates[0].left
    assert (together[0].updates[0].left - change).norm() <= 1e-6 * change.norm()


def test_a_model_without_numbers_is_not_changed_further():
    lm = tiny.tiny_model("gpt2")
    lm.weight(2).fill_(float("nan"))
    (edit,) = edited(lm, FACTS[:1])
    assert not any(tensor.any() for tensor in edit.updates[0].tensors().values())
    assert edit.trace["losses"].isnan().all() and len(edit.trace["losses"]) == 1


def test_the_model_is_left_as_it_was():
    lm = tiny.tiny_model("gpt2")
    before = {name: tensor.clone() for name, tensor in lm.model.state_dict().items()}
    edited(lm, FACTS)
    assert all(torch.equal(tensor, before[name]) for name, tensor in lm.model.state_dict().items())


def test_a_constraint_of_nothing_is_refused():
    with pytest.raises(ValueError, match="norm_constraint is 0.0; FT-C needs a positive one"):
        edited(tiny.tiny_model("gpt2"), FACTS[:1], replace(PARAMS, norm_constraint=0.0))


def test_it_needs_no_moments_and_has_no_value_to_summarize():
    assert editors.moment_layers("ft-c", PARAMS) == [] and editors.layers_of(PARAMS) == [1]
    (edit,) = editors.method("ft-c").edit(tiny.tiny_model("gpt2"), FACTS[:1], PARAMS, ["{}"], {})
    row, losses = editors.summary(edit), edit.trace["losses"][:, 0]
    assert (row["steps"], row["loss_first"], row["nll_last"]) == (6, losses[0].item(), losses[-1].item())
    assert row["delta_norm"] is None and row["kl_last"] is None


@pytest.mark.parametrize("model_type", ("gpt2", "llama"))
def test_a_ledger_brings_an_edit_back_bit_for_bit(model_type, tmp_path):
    lm = tiny.tiny_model(model_type)
    (edit,) = edited(lm, FACTS[:1])
    book = Ledger(tmp_path, {}, {"1": {"shape": list(lm.weight(1).shape), "norm": 1.0}})
    book.append({}, edit.updates, 0.0)
    (recorded,) = Ledger(tmp_path).updates(1)
    assert recorded.right is None and recorded.layer == 1
    for name, tensor in edit.updates[0].tensors().items():
        assert torch.equal(recorded.tensors()[name], tensor)
