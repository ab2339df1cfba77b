"""What a projection is given where a norm follows it: reached where it can be, else as near as brute force comes."""

import numpy as np
import pytest
import tiny
import torch
from test_memit import factors_of
from test_rome_multi import CONTEXTS, at_subject
from test_values import FACTS
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm

from editscale.editing import editors, memit, post_norm, rome_multi, updates
from editscale.editing.memit import MemitParams
from editscale.editing.rome import RomeParams
from editscale.metrics import scoring

FACT = FACTS["middle, many tokens"]


def drawn(seed, n=4, d=12):
    """A norm with gains of either sign, and outputs that enter it."""
    generator = torch.Generator().manual_seed(seed)
    norm = Gemma3RMSNorm(d, eps=1e-6)
    norm.weight.data = 0.8 * torch.randn(d, generator=generator)
    return norm.requires_grad_(False), 3 * torch.randn(n, d, generator=generator), generator


def added(norm, values):
    """The norm in float64, in which transformers does not compute."""
    y = values.double()
    return (1 + norm.weight.double()) * y / (y.square().mean(-1, keepdim=True) + norm.eps).sqrt()


def brute_force(norm, wanted, start):
    """The smallest distance ‖N(y) − wanted‖ that a descent on y finds, from 20 starts."""
    generator, best = torch.Generator().manual_seed(9), np.inf
    for _ in range(20):
        y = torch.randn(start.shape, dtype=torch.float64, generator=generator).requires_grad_()
        search = torch.optim.LBFGS([y], max_iter=500, line_search_fn="strong_wolfe", tolerance_grad=1e-12)

        def loss(y=y, search=search):
            search.zero_grad()
            value = (added(norm, y) - wanted).square().sum()
            value.backward()
            return value

        search.step(loss)
        best = min(best, (added(norm, y) - wanted).norm().item())
    return best


@pytest.mark.parametrize("kind", (Gemma2RMSNorm, Gemma3RMSNorm))
def test_a_norm_of_gemma_is_the_one_that_the_module_inverts(kind):
    norm, values, _ = drawn(0)
    other = kind(len(norm.weight), eps=norm.eps)
    other.weight.data = norm.weight.data
    torch.testing.assert_close(added(norm, values).float(), other(values), rtol=0, atol=1e-6)


def test_what_some_output_adds_is_reached_at_the_size_that_the_output_has():
    norm, values, generator = drawn(1)
    other = torch.randn(values.shape, generator=generator)
    other *= values.norm(dim=1, keepdim=True) / other.norm(dim=1, keepdim=True)
    change = post_norm.change(norm, values, added(norm, other) - added(norm, values))
    torch.testing.assert_close(change, other.double() - values.double(), rtol=0, atol=1e-6)
    assert post_norm.change(norm, values, torch.zeros_like(values)).abs().max() < 1e-12


@pytest.mark.parametrize("size", (0.01, 0.5, 3.0, 50.0))
def test_what_no_output_adds_is_approached_as_closely_as_any_can(size):
    norm, values, generator = drawn(2)
    wanted = size * torch.randn(values.shape, dtype=torch.float64, generator=generator)
    changed = values + post_norm.change(norm, values, wanted)
    torch.testing.assert_close(changed.norm(dim=1), values.double().norm(dim=1))
    for y, y_new, r in zip(values, changed, wanted, strict=True):
        target = added(norm, y) + r
        # Another size of y could win back ε / (2 mean(y²)) of what is added.
        assert (added(norm, y_new) - target).norm().item() == pytest.approx(brute_force(norm, target, y), abs=1e-6)


def test_a_small_change_that_is_reached_is_the_smallest_that_reaches_it():
    """Up to second order: along the output itself nothing is added, and that part of the change is 0."""
    norm, values, generator = drawn(3)
    moved = values + 1e-4 * torch.randn(values.shape, generator=generator)
    change = post_norm.change(norm, values, added(norm, moved) - added(norm, values))
    along = torch.cosine_similarity(change, values.double(), dim=1).abs()
    assert along.max() < 1e-3 and (change.norm(dim=1) <= (moved - values).norm(dim=1).double() * (1 + 1e-3)).all()


@pytest.mark.parametrize("model_type", ("gemma2", "gemma3_text"))
def test_with_one_layer_and_context_the_block_comes_as_near_to_z_as_its_projection_can_bring_it(model_type):
    lm = tiny.tiny_model(model_type, dtype=torch.float64)
    params = rome_multi.RomeMultiParams([1], 4, 0.3, 0.5, 2.0, 0.0625)
    (edit,) = editors.method("rome-multi").edit(lm, [FACT], params, ["{}"], factors_of(lm))
    z, norm = edit.trace["z"][:, 0], lm.block(1).get_submodule(lm.family.post_norm)
    _, values = at_subject(lm, FACT, ["{}"], lm.projection(1))
    _, out = at_subject(lm, FACT, ["{}"], lm.block(1))
    nearest = brute_force(norm, z - out[0] + added(norm, values[0]), values[0])
    updates.apply(lm, edit.updates)
    _, now = at_subject(lm, FACT, ["{}"], lm.block(1))
    assert (z - now[0]).norm().item() == pytest.approx(nearest, rel=1e-4)  # the model's norms are in float32
    assert nearest < (z - out[0]).norm()


@pytest.mark.parametrize("model_type", ("gemma2", "gemma3_text"))
def test_every_layer_brings_the_last_output_nearer_to_z(model_type):
    lm = tiny.tiny_model(model_type, dtype=torch.float64)
    params = MemitParams([0, 1, 2], 6, 0.3, 0.01, 2.0, 0.0625, 1e-6)
    edit = memit.edit(lm, [FACT], params, [["{}"]], factors_of(lm))
    missing = [(edit.trace["z"] - edit.trace[layer]["current"]).norm() for layer in params.layers]
    updates.apply(lm, edit.updates)
    _, out = at_subject(lm, FACT, ["{}"], lm.block(2))
    missing.append((edit.trace["z"][:, 0] - out[0]).norm())
    assert all(after < before for before, after in zip(missing, missing[1:], strict=False))


@pytest.mark.parametrize("method", ("rome", "r-rome", "memit"))
def test_an_edit_of_a_tiny_gemma_3_takes(method):
    lm, fact = tiny.tiny_model("gemma3_text", dtype=torch.float64), FACTS["last"]
    params, contexts = RomeParams(1, 40, 0.3, 0.01, 8.0, 0.0, True), CONTEXTS
    if method == "memit":
        params, contexts = MemitParams([0, 1], 40, 0.3, 0.01, 8.0, 0.0, 1e-3), [CONTEXTS[:1], CONTEXTS[1:]]
    before = scoring.score_facts(lm, [fact])[0]["efficacy"][0]
    (edit,) = editors.method(method).edit(lm, [fact], params, contexts, factors_of(lm))
    updates.apply(lm, edit.updates)
    assert scoring.score_facts(lm, [fact])[0]["efficacy"][0].nll_new < before.nll_new - 2
