"""UltraEdit and StableEdit: what must hold of their edits and turns. The released code's numbers: test_mitigations."""

from dataclasses import fields, replace
from pathlib import Path

import pytest
import tiny
import torch
from test_values import EXACT, FACTS
from tools import lifelong_numbers

from editscale.editing import editors, lifelong, modules, updates
from editscale.editing.lifelong import StableEditParams, State, UltraEditParams
from editscale.models import anatomy, loading, stacks, tokens
from editscale.sequences import sequence

ROOT = Path(__file__).parents[1]
FACTS = list(FACTS.values())
ULTRA, STABLE = UltraEditParams([1, 2], 1e-3, 1.0, False, 2), StableEditParams([1, 2], 1e-3, 1.0, 4, 2)


def started(lm, params, warm_up=FACTS[:2]):
    """The state before the first edit; StableEdit's warmed up with facts of these tests."""
    if isinstance(params, UltraEditParams):
        return lifelong.start_ultraedit(lm, params, [], {})
    return lifelong.warmed(lm, warm_up, params)


def edited(lm, facts, params, states):
    return lifelong.edit(lm, facts, params, ["{}"], {}, states=states)


# ------------------------------------------------------------------------------------------- arithmetic


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def empty(d_key, d_value, **options):
    zeros = torch.zeros(d_key + d_value, dtype=torch.float64)
    return State(0, zeros, zeros, products=zeros.new_zeros(d_value, d_value), **options)


def after_parts(parts, **options):
    state = empty(6, 3, **options)
    for part in parts:
        state = lifelong.seen(state, part[:6], part[6:])
    return state


@pytest.mark.parametrize("b", (1, 3, 20))
def test_the_small_system_gives_the_ridge_regression_on_all_keys(b):
    keys, values = random(12, b), random(4, b, seed=1)
    ours = lifelong.ridge(keys, values, 0.3) @ keys.T
    direct = torch.linalg.solve(keys @ keys.T + 0.3 * torch.eye(12, dtype=torch.float64), keys @ values.T).T
    assert (ours - direct).norm() <= 1e-10 * direct.norm()


def test_statistics_of_parts_are_those_of_all_tokens_in_any_order_of_the_parts():
    x = 5 + random(9, 12)
    parts = x.split([1, 4, 2, 5], dim=1)
    for order in ((0, 1, 2, 3), (3, 1, 0, 2)):
        state = after_parts([parts[i] for i in order])
        torch.testing.assert_close(state.mean, x.mean(1), rtol=1e-12, atol=0)
        torch.testing.assert_close(state.squares, 11 * x.var(1), rtol=1e-11, atol=0)
        torch.testing.assert_close(state.products, 11 * torch.cov(x[6:]), rtol=1e-11, atol=1e-11)
        assert state.n == 12


def test_the_unbiased_rule_counts_the_deviations_within_a_part_more_and_a_single_token_alike():
    single, several = random(9, 1), random(9, 3, seed=1)
    states = [after_parts([single, several], unbiased=unbiased) for unbiased in (False, True)]
    more = states[1].squares - states[0].squares
    torch.testing.assert_close(more, 3 * several.var(1) - 2 * several.var(1), rtol=1e-11, atol=0)
    assert torch.equal(*(after_parts([single], unbiased=unbiased).squares for unbiased in (False, True)))


def test_gradients_are_whitened_from_one_token_more_than_their_covariance_needs():
    x, eta = torch.diag(torch.arange(1.0, 10).double()) @ random(9, 400), 0.5
    for n, whitened in ((4, False), (5, True), (400, True)):
        state = after_parts([x[:, :n]])
        keys, gradients = x[:6, :n], x[6:, :n]
        ours, plain = (lifelong.asked(state, keys, gradients, eta, whiten=whiten) for whiten in (True, False))
        assert torch.equal(ours, plain) != whitened
    lengths = eta * (((keys - keys.mean(1)[:, None]) / keys.std(1)[:, None]) ** 2).sum(0)
    assert torch.cov(ours / lengths).sub(torch.eye(3)).abs().max() < 0.02  # n − 4 for n − 1
    torch.testing.assert_close((-plain / lengths).std(1), torch.ones(3).double(), rtol=1e-9, atol=0)


def test_directions_that_gradients_never_take_do_not_blow_up():
    x = random(9, 50)
    x[8] = 0
    state = after_parts([x])
    for whiten in (False, True):
        values = lifelong.asked(state, x[:6], x[6:], 1.0, whiten=whiten)
        assert values.isfinite().all() and values[2].abs().max() < 1e-6


# ------------------------------------------------------------------------------------------------ edits


def by_full_forward(lm, fact, layers):
    """Loss, and layer ↦ (keys, gradients), of one forward through the whole model, offsets of 0 added to its MLPs."""
    prompt, target = tokens.with_targets(lm.tokenizer, [fact.rewrite_prompt], [fact.target_new])[0]
    offsets, keys, handles = {}, {}, []
    for layer in layers:

        def hook(_, args, output, layer=layer):
            keys[layer] = args[0][0].detach()
            offsets[layer] = torch.zeros_like(output, requires_grad=True)
            return output + offsets[layer]

        handles.append(lm.projection(layer).register_forward_hook(hook))
    try:
        logits = lm.model(torch.tensor([prompt + target[:-1]])).logits[0, -len(target) :]
    finally:
        for handle in handles:
            handle.remove()
    loss = torch.nn.functional.cross_entropy(logits, torch.tensor(target))
    gradients = torch.autograd.grad(loss, [offsets[layer] for layer in layers])
    both = zip(layers, gradients, strict=True)
    return loss, {layer: (keys[layer][-len(target) :].T, of[0, -len(target) :].T) for layer, of in both}


@pytest.mark.parametrize("layers", ([1, 2], [0, 3]))
@pytest.mark.parametrize("model_type", anatomy.FAMILIES)
def test_keys_and_gradients_are_those_of_a_full_forward(model_type, layers):
    lm = tiny.tiny_model(model_type, dtype=torch.float64)
    tolerance = 1e-10 if model_type in EXACT else 1e-4
    for fact, (loss, found) in zip(FACTS, lifelong.keys_and_gradients(lm, FACTS, layers), strict=True):
        expected_loss, expected = by_full_forward(lm, fact, layers)
        assert loss.item() == pytest.approx(expected_loss.item(), rel=tolerance)
        for layer in layers:
            for ours, full in zip(found[layer], expected[layer], strict=True):
                assert ours.shape == full.shape and (ours - full).norm() <= tolerance * full.norm() > 0


@pytest.mark.parametrize("params", (ULTRA, STABLE))
@pytest.mark.parametrize("model_type", ("gpt2", "llama", "gemma", "gemma2"))
def test_facts_together_on_a_stack_are_edited_as_each_alone_on_its_copy(model_type, params):
    lm, exact = tiny.tiny_model(model_type, dtype=torch.float64), 1e-9 if model_type in EXACT else 1e-3
    stack, states = stacks.copies(lm, params.layers, len(FACTS)), [started(lm, params)] * len(FACTS)
    for _ in range(2):  # the second without the warm-up
        together = edited(stack, FACTS, params, states)
        for i, (fact, edit) in enumerate(zip(FACTS, together, strict=True)):
            (alone,) = edited(stacks.subset(stack, [i]), [fact], params, [states[i]])
            for ours, expected in zip(edit.updates, alone.updates, strict=True):
                difference = ours.matrix() - expected.matrix()
                assert difference.norm() <= exact * expected.matrix().norm() > 0
            updates.apply(stack, edit.updates, copy=i)
        states = [lifelong.after(state, edit.updates) for state, edit in zip(states, together, strict=True)]


@pytest.mark.parametrize("params", (ULTRA, STABLE))
def test_single_edits_of_many_facts_on_one_model_are_those_made_one_by_one(params):
    lm = tiny.tiny_model("gpt2", dtype=torch.float64)
    states = [started(lm, params)] * len(FACTS)
    for model in (lm, stacks.copies(lm, params.layers, 1)):
        for fact, ours in zip(FACTS, edited(model, FACTS, params, states), strict=True):
            (alone,) = edited(lm, [fact], params, states[:1])
            for one, two in zip(ours.updates, alone.updates, strict=True):
                assert (one.matrix() - two.matrix()).norm() <= 1e-9 * two.matrix().norm()


@pytest.mark.parametrize("params", (ULTRA, STABLE))
@pytest.mark.parametrize("dtype", loading.DTYPES)
def test_recorded_updates_give_the_state_and_the_edit_bit_for_bit(dtype, params):
    lm = tiny.tiny_model("llama", dtype=getattr(torch, dtype))
    state = started(lm, params)
    for fact in FACTS:
        (edit,) = edited(lm, [fact], params, [state])
        assert editors.status(edit) == "edited" and {u.left.dtype for u in edit.updates} == {lm.dtype}
        recorded = updates.from_bytes(updates.to_bytes(edit.updates))
        live, state = lifelong.after(state, edit.updates), lifelong.after(state, recorded)
        assert live.n == state.n and not state.shift
        assert torch.equal(live.mean, state.mean) and torch.equal(live.squares, state.squares)
        for update in map(lifelong_numbers.own, recorded):
            values = lifelong.asked(state, update.right, update.kept["gradients"], params.eta)
            assert torch.equal(update.left, lifelong.ridge(update.right, values, params.alpha).to(lm.dtype))
        updates.apply(lm, recorded)


def test_the_warm_up_is_part_of_the_first_edit_that_is_recorded():
    lm = tiny.tiny_model("gpt2", dtype=torch.float64)
    state = started(lm, STABLE)
    assert [update.layer for update in state.shift] == STABLE.layers
    assert lifelong.after(state, []) is state  # an edit that was not applied
    (edit,) = edited(lm, FACTS[2:3], STABLE, [state])
    updates.apply(lm, state.shift)
    next_state = replace(state, shift=())
    (expected,) = edited(lm, FACTS[2:3], STABLE, [next_state])
    for ours, shift, later in zip(edit.updates, state.shift, expected.updates, strict=True):
        torch.testing.assert_close(ours.matrix(), shift.matrix() + later.matrix(), rtol=0, atol=1e-12)
        assert shift.norm() > 0
    assert torch.equal(lifelong.after(state, edit.updates).mean, lifelong.after(next_state, expected.updates).mean)


@pytest.mark.parametrize("unbiased", (False, True))
def test_a_target_of_one_token_gives_finite_edits_from_the_first_on(unbiased):
    lm, params = tiny.tiny_model("gpt2"), replace(ULTRA, unbiased=unbiased)
    state, short = started(lm, params), replace(FACTS[0], target_new="the")
    for fact in (short, FACTS[1], short):
        (edit,) = edited(lm, [fact], params, [state])
        assert editors.status(edit) == "edited" and edit.updates[0].norm() > 0
        assert (edit.updates[0].right.shape[1] == 1) == (fact is short)
        state = lifelong.after(state, edit.updates)
        assert state.squares.isfinite().all()


@pytest.mark.parametrize("params", (ULTRA, STABLE))
def test_the_model_and_the_state_are_left_as_they_were(params):
    lm = tiny.tiny_model("gemma2")
    before = {name: tensor.clone() for name, tensor in lm.model.state_dict().items()}
    state = started(lm, params)
    mean = state.mean.clone()
    (edit,) = edited(lm, FACTS[:1], params, [state])
    lifelong.after(state, edit.updates)
    assert all(torch.equal(tensor, before[name]) for name, tensor in lm.model.state_dict().items())
    assert torch.equal(state.mean, mean)
    assert not any(module._forward_hooks for module in lm.model.modules())
    assert not any(tensor.requires_grad for update in edit.updates for tensor in update.tensors().values())


def turn(lm, batches, params, states):
    return lifelong.edit_batches(lm, batches, params, ["{}"], {}, states=states)


def by_hand(lm, facts, params, state):
    """ΔW of each layer for facts edited together: the loss of a mini-batch is the mean over its tokens, in one forward
    and backward of all its facts; then ridge regressions on all tokens. And the statistics."""
    layers, parts = params.layers, {layer: [] for layer in params.layers}

    def texts(fact):
        return tokens.with_targets(lm.tokenizer, [fact.rewrite_prompt], [fact.target_new])[0]

    facts = sorted(facts, key=lambda fact: -len(sum(texts(fact), ())))
    for first in range(0, len(facts), params.mini_batch):
        of = facts[first : first + params.mini_batch]
        n = sum(len(texts(fact)[1]) for fact in of)
        read = [by_full_forward(lm, fact, layers) for fact in of]
        for layer in layers:
            keys = torch.cat([found[layer][0] for _, found in read], dim=1)
            # d (Σ of all tokens / n) = Σ d (a fact's mean) · its tokens / n
            gradients = torch.cat([found[layer][1] * found[layer][1].shape[1] / n for _, found in read], dim=1)
            state = lifelong.seen(state, keys, gradients)
            parts[layer].append((keys, gradients))
    changes = []
    for of in parts.values():
        keys, gradients = (torch.cat(x, dim=1) for x in zip(*of, strict=True))
        values = lifelong.asked(state, keys, gradients, params.eta)
        eye = torch.eye(len(keys), dtype=keys.dtype)
        changes.append(torch.linalg.solve(keys @ keys.T + params.alpha * eye, keys @ values.T).T)
    return changes, state


@pytest.mark.parametrize("size", (1, 2, 10))
@pytest.mark.parametrize("params", (ULTRA, STABLE))
def test_a_turn_has_one_loss_for_each_mini_batch_and_one_solve_for_each_layer(params, size):
    lm, params = tiny.tiny_model("gpt2", dtype=torch.float64), replace(params, mini_batch=size)
    state = replace(started(lm, params), shift=())
    (edit,) = turn(lm, [FACTS[:3]], params, [state])
    expected, after = by_hand(lm, FACTS[:3], params, state)
    for update, change in zip(edit.updates, expected, strict=True):
        assert (update.matrix() - change).norm() <= 1e-9 * change.norm() > 0
    ours = lifelong.after(state, edit.updates)
    torch.testing.assert_close(ours.squares, after.squares, rtol=1e-9, atol=1e-12)
    alone = [by_full_forward(lm, fact, [1])[0].item() for fact in FACTS[:3]]
    assert [loss.item() for loss in edit.trace["losses"]] == pytest.approx(alone, rel=1e-9)


def test_facts_of_a_turn_are_weighed_by_their_tokens_and_not_each_alike():
    """Otherwise the tests above would hold for the mean over facts of their means as well."""
    n = [
        len(tokens.with_targets(tiny.tiny_model("gpt2").tokenizer, [f.rewrite_prompt], [f.target_new])[0][1])
        for f in FACTS[:3]
    ]
    assert len(set(n)) > 1


@pytest.mark.parametrize("params", (ULTRA, STABLE))
@pytest.mark.parametrize("model_type", ("gpt2", "llama"))
def test_turns_on_a_stack_are_those_on_each_copy_and_several_lists_may_share_a_model(model_type, params):
    lm, exact = tiny.tiny_model(model_type, dtype=torch.float64), 1e-9 if model_type in EXACT else 1e-3
    lists, state = [FACTS[:3], FACTS[1:4][::-1]], started(lm, params)
    stack = stacks.copies(lm, params.layers, 2)
    for model in (stack, lm):
        for facts, ours in zip(lists, turn(model, lists, params, [state] * 2), strict=True):
            (alone,) = turn(lm, [facts], params, [state])
            for one, two in zip(ours.updates, alone.updates, strict=True):
                assert (one.matrix() - two.matrix()).norm() <= exact * two.matrix().norm() > 0


@pytest.mark.parametrize("params", (ULTRA, STABLE))
@pytest.mark.parametrize("dtype", loading.DTYPES)
def test_recorded_turns_give_the_state_and_the_edit_bit_for_bit(dtype, params):
    lm = tiny.tiny_model("llama", dtype=getattr(torch, dtype))
    state = started(lm, params)
    for facts in (FACTS[:3], FACTS[1:]):
        (edit,) = turn(lm, [facts], params, [state])
        recorded = updates.from_bytes(updates.to_bytes(edit.updates))
        live, state = lifelong.after(state, edit.updates), lifelong.after(state, recorded)
        assert live.n == state.n and torch.equal(live.mean, state.mean) and torch.equal(live.squares, state.squares)
        for update in map(lifelong_numbers.own, recorded):
            assert len(update.kept["sizes"]) == 2 and update.kept["sizes"].sum() == update.right.shape[1]
            values = lifelong.asked(state, update.right, update.kept["gradients"], params.eta)
            assert torch.equal(update.left, lifelong.ridge(update.right, values, params.alpha).to(lm.dtype))
        updates.apply(lm, recorded)


def test_statistics_depend_on_what_counts_as_one():
    lm = tiny.tiny_model("gpt2", dtype=torch.float64)
    params = replace(ULTRA, unbiased=True)
    (edit,) = turn(lm, [FACTS[:3]], params, [started(lm, params)])
    whole = [replace(update, kept={"gradients": update.kept["gradients"]}) for update in edit.updates]
    states = [lifelong.after(started(lm, params), of) for of in (edit.updates, whole)]
    assert states[0].n == states[1].n and not torch.allclose(states[0].squares, states[1].squares)


@pytest.mark.parametrize("size", (0, -1))
def test_a_mini_batch_without_facts_is_refused(size):
    lm = tiny.tiny_model("gpt2")
    with pytest.raises(ValueError, match=f"mini_batch is {size}; give the number of facts in one"):
        turn(lm, [FACTS[:2]], replace(ULTRA, mini_batch=size), [started(lm, ULTRA)])


def test_what_is_kept_is_no_part_of_the_change():
    lm = tiny.tiny_model("llama", dtype=torch.float64)
    (edit,) = edited(lm, FACTS[:1], ULTRA, [started(lm, ULTRA)])
    before, update = lm.weight(1).clone(), edit.updates[0]
    assert set(update.tensors()) == {"left", "right", "gradients"}
    assert torch.equal(update.to("cpu").kept["gradients"], update.kept["gradients"])
    updates.apply(lm, [update])
    torch.testing.assert_close(lm.weight(1) - before, update.left @ update.right.T, rtol=0, atol=1e-13)


def test_an_edit_is_summarized_by_its_one_forward():
    lm = tiny.tiny_model("gpt2")
    (edit,) = edited(lm, FACTS[1:2], ULTRA, [started(lm, ULTRA)])
    row = editors.summary(edit)
    loss = by_full_forward(lm, FACTS[1], [1])[0].item()
    assert row["steps"] == 1 and row["loss_first"] == row["nll_last"] == pytest.approx(loss, rel=1e-5)


# ------------------------------------------------------------------------------- parameters and warm-up


def test_the_warm_up_takes_facts_evenly_from_all_of_atlas(monkeypatch):
    given = []
    monkeypatch.setattr(lifelong.orders, "open_set", lambda source: list(range(10)) if source == "atlas" else None)
    monkeypatch.setattr(lifelong, "warmed", lambda lm, facts, params: given.append(facts))
    for warm_up in (0, 1, 4, 10):
        lifelong.start_stableedit(None, replace(STABLE, warm_up=warm_up), [], {})
    assert given == [[], [0], [0, 2, 5, 7], list(range(10))]
    for warm_up in (-1, 11):
        with pytest.raises(ValueError, match=f"warm_up is {warm_up}; AtlasFacts has 10 facts"):
            lifelong.start_stableedit(None, replace(STABLE, warm_up=warm_up), [], {})


def test_the_first_state_of_stableedit_has_seen_facts(monkeypatch):
    monkeypatch.setattr(lifelong.orders, "open_set", lambda source: FACTS)
    lm = tiny.tiny_model("gpt2")
    state = lifelong.METHODS["stableedit"].start(lm, replace(STABLE, warm_up=2), [], {})
    assert state.n == sum(update.right.shape[1] for update in state.shift) > 0


@pytest.mark.parametrize("alpha", (0.0, -1.0, float("nan")))
def test_a_ridge_that_is_not_positive_is_refused(alpha):
    lm = tiny.tiny_model("gpt2")
    with pytest.raises(ValueError, match=f"alpha is {alpha}; a ridge regression needs a positive one"):
        edited(lm, FACTS[:1], replace(ULTRA, alpha=alpha), [started(lm, ULTRA)])


@pytest.mark.parametrize("model", ("tiny-gpt2", "gpt-j-6b"))
@pytest.mark.parametrize("method", lifelong.METHODS)
def test_hyper_parameters_are_read_and_every_line_has_its_meaning_and_source(monkeypatch, method, model):
    monkeypatch.setitem(modules.MODULES, method, lifelong.__name__)
    path = ROOT / f"params/{method}/{model}.yaml"
    params = editors.read_params(method, path)
    assert editors.moment_layers(method, params) == [] and editors.layers_of(params) == params.layers
    lines = path.read_text().splitlines()[1:]
    assert [line.split(":")[0] for line in lines] == [field.name for field in fields(params)]
    assert all(line.split("  # ")[1].count("; ") for line in lines)


def test_the_facts_of_a_warm_up_are_a_condition_of_a_run():
    lm, one = tiny.tiny_model("gpt2"), editors.Editing("stableedit", STABLE, ["{}"], {})
    states = [lifelong.warmed(lm, facts, STABLE) for facts in (FACTS[:2], FACTS[:2], FACTS[1:3])]
    made_under = [sequence.fingerprint(lm, replace(one, start=state))["start_sha256"] for state in states]
    assert made_under[0] == made_under[1] != made_under[2]
