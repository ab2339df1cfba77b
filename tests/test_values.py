"""The cached forward computes what full forwards through the unmodified model compute."""

from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch
from tools.plain import plain_forward

from editscale.data.facts import Fact
from editscale.editing import finetune, suffix, values
from editscale.editing.descent import Descent, descend
from editscale.models import anatomy, tokens

PARAMS = SimpleNamespace(v_num_grad_steps=6, v_lr=0.3, v_weight_decay=0.5, clamp_norm_factor=4.0, kl_factor=0.0625)
CONTEXTS = ["{}", "The river. {}", "No one answered the door, because. {}"]
FACTS = {
    "first, one token": Fact(0, "Ada Example", "{} plays the", "harp", "cello"),
    "middle, many tokens": Fact(1, "Bo Sample", "The mother tongue of {} is", "old Swedish from Stockholm", "Danish"),
    "last": Fact(2, "Lund", "There is a river in the town of {}", "Denmark", "Sweden"),
    "one token at position 0": Fact(3, "L", "{} is in", "the house of Bo", "Sweden"),
}
# Hugging Face computes RMSNorm, softmax and GPT-J's attention in float32 whatever the model's dtype; only GPT-2 is
# float64 throughout. The tolerance of the others is what float32 leaves after a few layers.
EXACT = ("gpt2",)


@pytest.mark.parametrize("at", ("mlp", "block"))
@pytest.mark.parametrize("model_type", anatomy.FAMILIES)
def test_cached_and_plain_forwards_agree_at_any_offset(model_type, at):
    lm = tiny.tiny_model(model_type, dtype=torch.float64)
    tolerance = 1e-10 if model_type in EXACT else 2e-5
    for name, fact in FACTS.items():
        rows = [values.target_rows(lm, fact, CONTEXTS)]
        for layer in (0, 1, lm.n_layers - 1):
            ways = [way(lm, rows, layer, at) for way in (suffix.cached_forward, plain_forward)]
            for ours, oracle in zip(ways[0][:3], ways[1][:3], strict=True):
                torch.testing.assert_close(ours[0], oracle[0], rtol=tolerance, atol=tolerance)
            generator = torch.Generator().manual_seed(layer)
            delta = 0.5 * ways[0][0].norm() * torch.randn(1, lm.d_model, generator=generator, dtype=lm.dtype)
            for one, two in zip(ways[0][3](delta), ways[1][3](delta), strict=True):
                torch.testing.assert_close(one, two, rtol=tolerance, atol=tolerance, msg=f"{name}, layer {layer}")


@pytest.mark.parametrize("model_type", ("gpt2", "llama", "gemma"))
@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
def test_cached_and_plain_optimization_agree(model_type, dtype):
    lm = tiny.tiny_model(model_type, dtype=dtype)
    tolerance = 1e-9 if dtype == torch.float64 and model_type in EXACT else 5e-4
    for fact in FACTS.values():
        (cached,), (plain,) = (
            values.optimize(lm, [fact], CONTEXTS, 1, PARAMS, at="block", forward=way) for way in (None, plain_forward)
        )
        torch.testing.assert_close(cached.losses, plain.losses, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(
            cached.delta, plain.delta, rtol=tolerance, atol=tolerance * cached.delta.norm().item()
        )


@pytest.mark.parametrize("at", ("mlp", "block"))
def test_texts_in_rows_of_their_own_and_together_give_the_same(at, monkeypatch):
    """Of facts together too, whose texts are of different lengths and share their first tokens."""
    lm, found = tiny.tiny_model("gpt2", dtype=torch.float64), []
    contexts = [*CONTEXTS, "The river is long. {}"]
    for shared in (0, 1e9):
        monkeypatch.setattr(suffix, "SHARED", shared)
        found.append(values.optimize(lm, list(FACTS.values()), contexts, 1, PARAMS, at=at))
    for one, two in zip(*found, strict=True):
        for name in ("init", "delta", "losses", "keys", "outputs"):
            torch.testing.assert_close(getattr(one, name), getattr(two, name), rtol=1e-9, atol=1e-11)


def test_gradients_of_both_ways_agree():
    lm = tiny.tiny_model("gpt2", dtype=torch.float64)
    rows = [values.target_rows(lm, FACTS["middle, many tokens"], CONTEXTS)]
    gradients = []
    for way in (suffix.cached_forward, plain_forward):
        init, _, _, forward = way(lm, rows, 1, "mlp")
        delta = (0.1 * init).requires_grad_()
        nll, log_p, _ = forward(delta)
        (nll.mean() + log_p[0, 3]).backward()
        gradients.append(delta.grad)
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-12)


def test_the_model_is_left_as_it_was():
    lm = tiny.tiny_model("gptj")
    before = {name: weight.clone() for name, weight in lm.model.state_dict().items()}
    ids = torch.tensor([tokens.prompt_ids(lm.tokenizer, "Lund is in")])
    logits = lm.model(ids).logits
    values.optimize(lm, [FACTS["first, one token"]], CONTEXTS, 2, PARAMS, at="mlp")
    assert all(torch.equal(weight, before[name]) for name, weight in lm.model.state_dict().items())
    assert torch.equal(lm.model(ids).logits, logits)
    hooked = [name for name, module in lm.model.named_modules() if module._forward_hooks or module._forward_pre_hooks]
    assert hooked == []


def quadratic(target):
    """A forward whose NLL is ‖δ − target‖² and whose KL distribution does not move."""
    log_p = torch.log(torch.tensor([[0.25, 0.75]], dtype=target.dtype))
    return lambda delta: (((delta - target) ** 2).sum(dim=1, keepdim=True), log_p.expand(len(delta), 2))


def descended(forward, init, params):
    """δ, losses and NLLs of one fact."""
    descent = Descent(init[None], params, n_contexts=1, n_vocabulary=2)
    descend(forward, descent)
    return descent.results()[0]


def test_descent_stops_before_the_update_that_follows_a_small_loss():
    init = torch.ones(3, dtype=torch.float64)
    params = SimpleNamespace(**{**vars(PARAMS), "v_num_grad_steps": 50, "v_weight_decay": 0.0})
    delta, losses, _ = descended(quadratic(0.2 * init), init, params)
    assert losses[-1, 0] < 0.05 <= losses[-2, 0]
    assert losses[-1, 4] == delta.norm()  # nothing moved after the last forward


def test_steps_are_forwards_and_one_update_fewer():
    init = torch.ones(3, dtype=torch.float64)
    one, _, _ = descended(quadratic(5 * init), init, SimpleNamespace(**{**vars(PARAMS), "v_num_grad_steps": 1}))
    two, losses, _ = descended(quadratic(5 * init), init, SimpleNamespace(**{**vars(PARAMS), "v_num_grad_steps": 2}))
    assert one.norm() == 0 and len(losses) == 2
    torch.testing.assert_close(two, torch.full_like(init, PARAMS.v_lr))  # Adam's first step is the learning rate


def test_delta_stays_in_its_ball():
    init = torch.ones(3, dtype=torch.float64)
    params = SimpleNamespace(**{**vars(PARAMS), "clamp_norm_factor": 0.25})
    delta, losses, _ = descended(quadratic(5 * init), init, params)
    torch.testing.assert_close(delta.norm(), 0.25 * init.norm())
    assert (losses[1:, 4] <= 0.25 * init.norm() * (1 + 1e-12)).all()


def test_loss_parts_follow_the_released_code():
    init = torch.tensor([3.0, 4.0], dtype=torch.float64)
    log_p = [torch.log(torch.tensor([p], dtype=torch.float64)) for p in ([0.5, 0.5], [0.9, 0.1])]
    calls = iter(log_p)
    params = SimpleNamespace(**{**vars(PARAMS), "v_num_grad_steps": 2})
    _, losses, _ = descended(lambda delta: ((delta.sum(dim=1, keepdim=True) + 2.0), next(calls)), init, params)
    kl = 0.9 * torch.log(torch.tensor(0.9 / 0.5)) + 0.1 * torch.log(torch.tensor(0.1 / 0.5))
    norm = losses[1, 4]
    expected = [losses[1, 1] + losses[1, 2] + losses[1, 3], losses[1, 1], 0.0625 * kl, 0.5 * norm / 25, norm]
    torch.testing.assert_close(losses[1], torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=0)
    assert losses[0, 2] == losses[0, 3] == 0


def test_a_context_that_begins_with_the_subject_does_not_carry_the_offset_there():
    """The bare prompt's subject is a beginning of the context's text; δ belongs after the first only."""
    lm = tiny.tiny_model("gpt2", dtype=torch.float64)
    fact = Fact(5, "Ada Example", "{} plays the", "old harp", "cello")
    rows = [values.target_rows(lm, fact, ["{}", "Ada Example plays the harp. {}"])]
    ways = [way(lm, rows, 1, "mlp") for way in (suffix.cached_forward, plain_forward)]
    delta = torch.ones(1, lm.d_model, dtype=lm.dtype)
    for one, two in zip(ways[0][3](delta), ways[1][3](delta), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("at", ("mlp", "block"))
@pytest.mark.parametrize("model_type", ("gpt2", "llama", "gemma2"))
def test_facts_together_are_what_each_is_alone(model_type, at):
    """Ragged rows; subjects first, middle and last; one and many target tokens."""
    lm = tiny.tiny_model(model_type, dtype=torch.float64)
    facts = list(FACTS.values())
    together = values.optimize(lm, facts, CONTEXTS, 1, PARAMS, at=at)
    tolerance = 1e-9 if model_type in EXACT else 5e-4
    for fact, ours in zip(facts, together, strict=True):
        (alone,) = values.optimize(lm, [fact], CONTEXTS, 1, PARAMS, at=at)
        for name, expected in vars(alone).items():
            scale = expected.abs().max().item()
            torch.testing.assert_close(getattr(ours, name), expected, rtol=0, atol=tolerance * scale, msg=name)


def test_each_fact_stops_by_itself():
    init = torch.ones(3, 3, dtype=torch.float64)
    targets = init * torch.tensor([[0.3], [3.0], [90.0]], dtype=torch.float64)
    params = SimpleNamespace(**{**vars(PARAMS), "v_num_grad_steps": 40, "v_weight_decay": 0.0})
    together = Descent(init, params, n_contexts=1, n_vocabulary=2)
    descend(quadratic(targets), together)
    steps = []
    for ours, target in zip(together.results(), targets, strict=True):
        alone = descended(quadratic(target), init[0], params)
        steps.append(len(alone[1]))
        for one, two in zip(ours, alone, strict=True):
            assert torch.equal(one, two)
    assert steps[0] < steps[1] < steps[2] == 40


def test_adam_is_torchs():
    generator = torch.Generator().manual_seed(0)
    init, target = torch.randn(2, 4, 3, generator=generator, dtype=torch.float64)
    params = SimpleNamespace(**{**vars(PARAMS), "v_num_grad_steps": 7, "v_weight_decay": 0.0, "clamp_norm_factor": 1e9})
    descent = Descent(init, params, n_contexts=1, n_vocabulary=2)
    descend(quadratic(9 * target), descent)
    delta = torch.zeros_like(init, requires_grad=True)
    adam = torch.optim.Adam([delta], lr=params.v_lr)
    for _ in range(6):
        adam.zero_grad()
        ((delta - 9 * target) ** 2).sum().backward()
        adam.step()
    torch.testing.assert_close(descent.delta, delta.detach(), rtol=1e-12, atol=1e-14)


def test_facts_share_rows_each_in_one_and_none_overfull():
    generator = np.random.default_rng(0)
    sizes = np.stack([generator.integers(1, 40, 30), generator.integers(0, 90, 30)], axis=1)
    room = np.array([40, 120])
    rows = suffix._shared_rows(sizes, room)
    assert sorted(i for row in rows for i in row) == list(range(30)) and len(rows) < 30
    assert all((sizes[row].sum(axis=0) <= room).all() for row in rows)


def test_sizes_are_rounded_up_by_less_than_a_quarter_and_to_few():
    rounded = [suffix._rounded(n) for n in range(1, 2000)]
    assert all(n <= r < n * 1.25 + 1 for n, r in enumerate(rounded, start=1))
    assert len(set(rounded)) <= 4 * 11  # four in each of eleven octaves


# Invented, with subjects, prompts and targets of many lengths.
MANY = [
    Fact(i, "Ada Example of Lund " * (i % 5) + "Bo Sample", "{} " + "plays the " * (1 + i % 7), new, "town")
    for i, new in enumerate(["harp", "cello in the town", "Danish", "house"] * 12)
]
TWENTY = ["{}", *(f"{'The river of Lund is in the town. '[: 3 * n + 9]}{{}}" for n in range(20))]


def sizes(rows):
    """Tokens of one fact's rows on a GPU that run once, that each step runs, that it reads, and scored positions."""
    packed = suffix._pack([rows])
    ((_, (after, before)),), of = packed.by_fact(), suffix.multiples(packed)
    found = (len(packed.trees[0].ids), of.lower), (len(after), of.after), (len(before), of.before)
    scored = suffix._rounded(len(suffix.scored_positions(rows[:-1])))
    return *(-(-n // multiple) * multiple for n, multiple in found), scored


@pytest.mark.parametrize("contexts", [TWENTY, TWENTY[:6], ["{}"]])
def test_sizes_on_a_gpu_are_those_of_the_rows_that_are_laid_out_and_hold_all_tokens(contexts):
    lm = tiny.tiny_model("gpt2")
    gpu = SimpleNamespace(device=SimpleNamespace(type="cuda"), n_layers=4, weight=lm.weight)
    for fact in MANY:
        rows = values.target_rows(lm, fact, contexts)
        packed = suffix._pack([rows])
        of, (lower, after, before, positions) = suffix.multiples(packed), sizes(rows)
        layout = suffix._lay_out(gpu, packed, 1, of.after, of.before)
        assert layout.after.shape == (1, after, 2) and layout.before.shape == (1, before, 2)
        ids, *_ = tokens.tree_inputs(packed.trees, "cpu", torch.float32, multiple=of.lower)
        assert ids.shape == (1, lower) and positions >= sum(len(row.targets) for row in rows)
        held = {tuple(slot) for slot in np.concatenate([layout.after[0], layout.before[0]]) if slot[0] >= 0}
        assert held == {(0, i) for i in range(len(packed.trees[0].ids))}


def test_facts_of_a_sequence_have_few_sizes():
    lm = tiny.tiny_model("gpt2")
    found = [sizes(values.target_rows(lm, fact, TWENTY)) for fact in MANY]
    assert len(set(found)) < len(MANY)
    assert {after for _, after, _, _ in found} <= {2**n * m for n in range(4, 12) for m in (2, 3)}


@pytest.mark.parametrize("kind", ("offset", "weights"))
def test_a_descent_goes_on_in_other_tensors_that_hold_its_state(kind):
    def made():
        if kind == "offset":
            return Descent(torch.ones(2, 3), PARAMS, 1, 2)
        params = finetune.FtParams(layer=0, num_steps=4, lr=0.1, weight_decay=0.1, norm_constraint=1.0)
        return finetune.WeightDescent(torch.ones(2, 3, 4), torch.ones(2, 3), params)

    def forward(point):
        if kind == "weights":
            return sum(((part - 3) ** 2).flatten(1).sum(dim=1) for part in point.values())
        return ((point - 3) ** 2).sum(dim=1, keepdim=True), torch.zeros(2, 2)

    whole, begun = made(), made()
    for state in (whole, begun):
        state.advance(forward, update=True)
    other = begun.on({name: tensor.clone() for name, tensor in begun.tensors().items()})
    whole.advance(forward, update=True)
    other.advance(forward, update=True)
    assert all(torch.equal(tensor, whole.tensors()[name]) for name, tensor in other.tensors().items())
    assert begun.step.item() == 1  # what the state was held in before is left alone
