"""Blocks written out by hand are those of the families: forward, backward, with keys and values of earlier tokens."""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import tiny
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from editscale.kernels import blocks, matmul, plain
from editscale.models import anatomy, chain, stacks

MODELS = ("gpt2", "llama")


needs_gpu = pytest.mark.skipif(
    not (torch.cuda.is_available() and matmul._on_tensor_cores(torch.device("cuda"))),
    reason="needs a GPU on which kernels were measured",
)


class Attentions(TorchDispatchMode):
    """While open, counts the attentions of blocks by hand."""

    def __init__(self):
        super().__init__()
        self.n = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.n += func is torch.ops.editscale.attention.default
        return func(*args, **(kwargs or {}))


def a_mask(n_rows, n_tokens, n_earlier, dtype=torch.float64):
    """Texts side by side: some earlier tokens and some of the tokens before are seen, and each token by itself."""
    generator = torch.Generator().manual_seed(1)
    seen = torch.rand(n_rows, n_tokens, n_earlier + n_tokens, generator=generator) < 0.3
    seen[:, :, n_earlier:] &= torch.ones(n_tokens, n_tokens, dtype=torch.bool).tril()
    seen[:, :, n_earlier:] |= torch.eye(n_tokens, dtype=torch.bool)
    return torch.zeros(seen.shape, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min)[:, None]


def inputs(lm, n_rows=2, n_tokens=7, n_earlier=5, rows_of_earlier=2):
    """What enters blocks 1 and up: states, mask, positions, earlier keys and values by name."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(n_rows, n_tokens, lm.d_model, dtype=torch.float64, generator=generator)
    positions = torch.randint(0, 60, (n_rows, n_tokens), generator=generator)
    config = lm.model.config
    n_keys = getattr(config, "num_key_value_heads", config.num_attention_heads)
    shape = rows_of_earlier, n_keys, n_earlier, lm.d_model // config.num_attention_heads
    earlier = {
        f"{kind}.{layer}.0": torch.randn(shape, dtype=torch.float64, generator=generator)
        for kind in ("keys", "values")
        for layer in range(1, lm.n_layers)
    }
    return hidden, a_mask(n_rows, n_tokens, n_earlier), positions, earlier if n_earlier else {}


def outcome(run, hidden):
    """What leaves blocks, and the gradient of its squared sum."""
    x = hidden.clone().requires_grad_()
    out = run(x)
    return out.detach(), *torch.autograd.grad((out**2).sum(), x)


def by_hand(lm, by, mask, positions, cache):
    """A function of what enters blocks 1 and up, the final norm not included."""
    ready = [chain.weights(block, lm.dtype) for block in lm.blocks[1:]]
    rotary = getattr(lm.model.base_model, "rotary_emb", None)
    return lambda x: blocks.run(by, ready, x, mask, rotary and rotary(x, positions), cache)


@pytest.mark.parametrize("model_type", MODELS)
@pytest.mark.parametrize(("n_earlier", "rows_of_earlier"), [(0, 2), (5, 2), (5, 1)])
def test_blocks_by_hand_are_those_of_the_family(model_type, n_earlier, rows_of_earlier):
    lm = tiny.tiny_model(model_type, dtype=torch.float64, d_model=64)
    hidden, mask, positions, earlier = inputs(lm, n_earlier=n_earlier, rows_of_earlier=rows_of_earlier)
    caches = [anatomy.KeyValues(earlier) for _ in range(2)]
    expected = outcome(lambda x: anatomy.segment(lm, 1, lm.n_layers)(x, mask, positions, caches[0]), hidden)
    found = outcome(by_hand(lm, plain, mask, positions, caches[1]), hidden)
    for a, b in zip(expected, found, strict=True):
        # Llama's own code has norms and softmax in float32, whatever the dtype.
        tolerance = 1e-12 if model_type == "gpt2" else 1e-6
        torch.testing.assert_close(b, a, rtol=0, atol=tolerance * a.norm().item())
    assert caches[0].tensors().keys() == caches[1].tensors().keys()
    for name, tensor in caches[0].tensors().items():
        torch.testing.assert_close(caches[1].tensors()[name], tensor, rtol=0, atol=tolerance * tensor.norm().item())


@pytest.mark.parametrize("model_type", MODELS)
def test_blocks_that_are_not_as_their_family_makes_them_are_left_to_it(model_type):
    lm = tiny.tiny_model(model_type, d_model=64)
    assert all(chain.weights(block, torch.float32) for block in lm.blocks)
    assert chain.weights(lm.blocks[0], torch.float64) is None
    with anatomy.watching(lm.projection(1), lambda *_: None):
        assert chain.weights(lm.blocks[1], torch.float32) is None
    assert chain.weights(stacks.copies(lm, [2], 2).blocks[2], torch.float32) is None
    next(lm.blocks[3].parameters()).requires_grad_(True)
    assert chain.weights(lm.blocks[3], torch.float32) is None
    assert chain.weights(tiny.tiny_model(model_type).blocks[0], torch.float32) is None  # heads of 8 numbers


def test_on_a_cpu_no_block_is_taken():
    x = torch.ones(3, 4)
    assert not matmul.takes_blocks(x)
    with matmul.FastLinear():
        assert not matmul.takes_blocks(x)


@needs_gpu
@pytest.mark.parametrize("model_type", MODELS)
@pytest.mark.parametrize("n_tokens", [7, 50])
def test_recorded_blocks_are_those_of_the_family(model_type, n_tokens):
    """No further from float64 than those of torch in float32 are."""
    exact = tiny.tiny_model(model_type, dtype=torch.float64, d_model=64)
    hidden, mask, positions, earlier = inputs(exact, n_tokens=n_tokens)
    expected = outcome(lambda x: anatomy.segment(exact, 1)(x, mask, positions, anatomy.KeyValues(earlier)), hidden)
    lm = tiny.tiny_model(model_type, d_model=64)
    lm = replace(lm, model=lm.model.cuda())
    earlier = {name: tensor.float().cuda() for name, tensor in earlier.items()}
    given = hidden.float().cuda(), mask.clamp(min=torch.finfo(torch.float32).min).float().cuda(), positions.cuda()

    def run():
        cache = anatomy.KeyValues(earlier)
        return outcome(lambda x: anatomy.segment(lm, 1)(x, *given[1:], cache), given[0])

    theirs = run()
    with matmul.recorded(lm.device), Attentions() as seen:
        found, again = run(), run()
    assert seen.n == 2 * (lm.n_layers - 1)
    for ours, same, of, exactly in zip(found, again, theirs, expected, strict=True):
        assert torch.equal(ours, same)
        off, of_torch = ((x.cpu().double() - exactly).norm() / exactly.norm() for x in (ours, of))
        assert off <= max(2 * of_torch, 1e-6)


@needs_gpu
def test_what_follows_a_watched_block_is_left_to_the_family():
    lm = tiny.tiny_model("gpt2", d_model=64)
    lm = replace(lm, model=lm.model.cuda())
    hidden, mask, positions, _ = (x.float().cuda() if torch.is_tensor(x) else x for x in inputs(lm, n_earlier=0))
    run, found = anatomy.segment(lm, 1), []
    with anatomy.watching(lm.mlp(2), lambda _, output: found.append(output)), matmul.recorded(lm.device):
        with Attentions() as seen, torch.no_grad():
            run(hidden, mask, positions.long())
    assert seen.n == 1 and len(found) == 1


@needs_gpu
@pytest.mark.parametrize("model_type", MODELS)
def test_the_operations_of_blocks_are_counted(model_type):
    lm = tiny.tiny_model(model_type, d_model=64)
    lm, counted = replace(lm, model=lm.model.cuda()), []
    hidden, mask, positions, _ = inputs(lm, n_earlier=0)
    for context in (nullcontext(), matmul.recorded(lm.device)):
        with FlopCounterMode(display=False, custom_mapping=matmul.OPERATIONS) as counter, context, torch.no_grad():
            anatomy.segment(lm, 1)(hidden.float().cuda(), mask.float().cuda(), positions.cuda())
        counted.append(counter.get_total_flops())
    assert counted[0] == counted[1] > 0
