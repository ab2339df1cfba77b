"""ROME and its variants as mathematics: what the update does to keys, against a few lines of NumPy."""

import functools
from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
from test_values import CONTEXTS, FACTS

from editscale.editing import rome, updates

PARAMS = rome.RomeParams(
    layer=1,
    v_num_grad_steps=4,
    v_lr=0.3,
    v_weight_decay=0.5,
    clamp_norm_factor=4.0,
    kl_factor=0.0625,
    mom2_adjustment=True,
)


def moment(d_key, seed=0):
    """A well-conditioned second moment. Made once, and copied."""
    return _moment(d_key, seed).clone()


@functools.cache
def _moment(d_key, seed):
    x = torch.randn(4 * d_key, d_key, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x.T @ x / len(x)


def edited(model_type, variant, fact, dtype=torch.float64):
    lm = tiny.tiny_model(model_type, dtype=dtype)
    factor = torch.linalg.cholesky(moment(lm.d_key))
    return lm, rome.edit(lm, fact, PARAMS, CONTEXTS, {1: factor}, variant=variant)


@pytest.mark.parametrize("model_type", ("gpt2", "llama", "gemma2"))
@pytest.mark.parametrize("variant", rome.VARIANTS)
@pytest.mark.parametrize("fact", FACTS.values(), ids=FACTS)
def test_edited_weight_sends_the_key_to_the_value(model_type, variant, fact):
    """W'k = v* for the key in the denominator: the bare prompt's (ROME, p-ROME) or the mean key (r-ROME)."""
    lm, edit = edited(model_type, variant, fact)
    bias = getattr(lm.projection(1), "bias", None)
    updates.apply(lm, edit.updates)
    reached = lm.weight(1) @ edit.trace["key"] + (0 if bias is None else bias)
    expected = edit.trace["init"] + edit.trace["delta"]
    torch.testing.assert_close(reached, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("variant", rome.VARIANTS)
def test_update_is_the_closed_form_of_the_paper(variant):
    """ΔW = (v* − Wk)(C⁻¹k_u)ᵀ / ((C⁻¹k_u)ᵀ k), eq. 2 with the variant's keys, in NumPy."""
    lm, edit = edited("llama", variant, FACTS["middle, many tokens"])
    keys, c = edit.trace["keys"].numpy(), moment(lm.d_key).numpy()
    w = lm.weight(1).numpy()
    mean, bare = keys.mean(0), keys[0]
    k_u, k = {"rome": (mean, bare), "r-rome": (mean, mean), "p-rome": (bare, bare)}[variant]
    solved = np.linalg.solve(c, k_u)
    v = (edit.trace["init"] + edit.trace["delta"]).numpy()
    np.testing.assert_allclose(
        edit.updates[0].matrix().numpy(), np.outer(v - w @ k, solved) / (solved @ k), rtol=1e-7, atol=1e-10
    )
    assert np.linalg.matrix_rank(edit.updates[0].matrix().numpy()) == 1


def test_variants_are_one_when_there_is_one_context():
    lm = tiny.tiny_model("gpt2", dtype=torch.float64)
    factors = {1: torch.linalg.cholesky(moment(lm.d_key))}
    matrices = [
        rome.edit(lm, FACTS["last"], PARAMS, ["{}"], factors, variant=v).updates[0].matrix() for v in rome.VARIANTS
    ]
    for matrix in matrices[1:]:
        torch.testing.assert_close(matrix, matrices[0], rtol=1e-9, atol=1e-12)


def test_conv1d_and_linear_are_edited_alike():
    """A GPT-2 whose projection is replaced by the equal Linear gets the same ΔW, also where W is square."""
    for d_key in (48, 32):
        one, two = (tiny.tiny_model("gpt2", dtype=torch.float64, d_key=d_key) for _ in range(2))
        conv = two.projection(1)
        linear = torch.nn.Linear(d_key, two.d_model, dtype=torch.float64)
        linear.weight.data, linear.bias.data = conv.weight.data.T.clone(), conv.bias.data.clone()
        two.block(1).mlp.c_proj = linear.requires_grad_(False)
        factors = {1: torch.linalg.cholesky(moment(d_key))}
        edits = [rome.edit(lm, FACTS["last"], PARAMS, CONTEXTS, factors) for lm in (one, two)]
        torch.testing.assert_close(edits[0].updates[0].matrix(), edits[1].updates[0].matrix(), rtol=1e-9, atol=1e-12)
        for lm, edit in zip((one, two), edits, strict=True):
            updates.apply(lm, edit.updates)
        ids = torch.tensor([[5, 9, 30, 7]])
        torch.testing.assert_close(one.model(ids).logits, two.model(ids).logits, rtol=1e-9, atol=1e-9)


def test_direction_is_the_key_itself_without_a_moment_and_for_the_identity():
    key = torch.arange(1.0, 5.0, dtype=torch.float64)
    for factor in (None, torch.eye(4, dtype=torch.float64), 3 * torch.eye(4, dtype=torch.float64)):
        torch.testing.assert_close(rome.direction(key, factor), key / key.norm())


def test_a_moment_of_another_size_is_named():
    with pytest.raises(ValueError, match="keys have 4 entries but the second moment is 3 × 3"):
        rome.direction(torch.ones(4), torch.eye(3, dtype=torch.float64))


def test_the_edit_makes_the_target_more_likely():
    for model_type in ("gpt2", "llama"):
        lm, edit = edited(model_type, "rome", FACTS["first, one token"], torch.float32)
        nll = edit.trace["nll_per_prompt"]
        assert nll[-1].mean() < nll[0].mean()


def test_unknown_variant_is_an_error():
    with pytest.raises(ValueError, match="rome, r-rome, p-rome"):
        rome.edit(tiny.tiny_model("gpt2"), FACTS["last"], PARAMS, ["{}"], {}, variant="q-rome")


@pytest.mark.parametrize("variant", rome.VARIANTS)
@pytest.mark.parametrize("adjusted", (True, False))
def test_directions_ahead_are_those_of_the_edits_whatever_was_edited_before(variant, adjusted):
    lm = tiny.tiny_model("gpt2", dtype=torch.float64)
    editing = replace(PARAMS, mom2_adjustment=adjusted), CONTEXTS, {1: torch.linalg.cholesky(moment(lm.d_key))}
    ahead = rome.directions(lm, list(FACTS.values()), *editing, variant=variant)
    for fact, known in zip(FACTS.values(), ahead, strict=True):
        edit = rome.edit(lm, fact, *editing, variant=variant)
        (given,) = rome.edit_each(lm, [fact], *editing, [known], variant=variant)
        for name in ("u", "key", "key_mean", "denominator", "delta"):
            torch.testing.assert_close(given.trace[name], edit.trace[name], rtol=1e-9, atol=1e-12)
        updates.apply(lm, edit.updates)
