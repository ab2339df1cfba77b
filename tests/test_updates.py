"""Updates: what they add, what undoing restores, and that replaying them gives the same bits."""

import pytest
import tiny
import torch

from editscale.editing import updates
from editscale.editing.updates import Update
from editscale.models import stacks


def random_update(lm, layer, rank=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return Update(layer, *(torch.randn(n, rank, generator=generator, dtype=lm.dtype) for n in lm.weight(layer).shape))


@pytest.mark.parametrize("model_type", ("gpt2", "llama"))
def test_weights_and_biases_are_put_back_after_a_block_and_after_an_error(model_type):
    lm = tiny.tiny_model(model_type)
    before = {name: tensor.clone() for name, tensor in lm.model.state_dict().items()}
    for error in (None, KeyboardInterrupt):
        try:
            with updates.put_back(lm, [1, 2]) as weights:
                assert set(weights) == {1, 2}
                lm.weight(1).fill_(float("nan"))
                if lm.bias(2) is not None:
                    lm.bias(2).add_(1)
                if error:
                    raise error
        except KeyboardInterrupt:
            pass
        assert all(torch.equal(tensor, before[name]) for name, tensor in lm.model.state_dict().items())


@pytest.mark.parametrize("model_type", ("gpt2", "llama"))
def test_apply_adds_the_matrix_to_the_weight_in_w_space(model_type):
    lm = tiny.tiny_model(model_type, dtype=torch.float64)
    before, update = lm.weight(2).clone(), random_update(lm, 2, rank=3)
    updates.apply(lm, [update])
    torch.testing.assert_close(lm.weight(2) - before, update.left @ update.right.T, rtol=0, atol=1e-13)


def test_norm_is_the_norm_of_the_matrix():
    update = random_update(tiny.tiny_model("gpt2", dtype=torch.float64), 1, rank=4)
    assert update.norm() == pytest.approx(update.matrix().norm().item(), rel=1e-12)


def test_the_same_updates_in_the_same_order_give_the_same_bits():
    one, two = tiny.tiny_model("llama"), tiny.tiny_model("llama")
    recorded = [random_update(one, layer, seed=seed) for seed in range(20) for layer in (1, 2)]
    updates.apply(one, recorded)
    for update in recorded:
        updates.apply(two, [update])
    assert all(torch.equal(one.weight(layer), two.weight(layer)) for layer in (1, 2))


def test_restore_brings_back_the_original_bits():
    lm = tiny.tiny_model("gpt2")
    saved = updates.saved_weights(lm, [0, 3])
    updates.apply(lm, [random_update(lm, 0), random_update(lm, 3)])
    assert not torch.equal(lm.weight(0), saved[0])
    updates.restore(lm, saved)
    assert all(torch.equal(lm.weight(layer), weight) for layer, weight in saved.items())


def test_an_update_that_does_not_fit_changes_nothing():
    lm = tiny.tiny_model("gpt2")
    before = lm.weight(0).clone()
    wrong = Update(1, torch.ones(3, 1), torch.ones(lm.d_key, 1))
    with pytest.raises(ValueError, match=r"update of layer 1 has left \(3, 1\), right \(48, 1\)"):
        updates.apply(lm, [random_update(lm, 0), wrong])
    assert torch.equal(lm.weight(0), before)


def test_non_finite_factors_are_seen():
    lm = tiny.tiny_model("gpt2")
    update = random_update(lm, 0)
    assert update.is_finite()
    update.left[1] = float("nan")
    assert not update.is_finite()


def full_update(lm, layer, seed=0):
    """A whole matrix, and a change of the bias where the model has one."""
    generator = torch.Generator().manual_seed(seed)
    left = torch.randn(lm.weight(layer).shape, generator=generator, dtype=lm.dtype)
    bias = None if lm.bias(layer) is None else torch.randn(lm.d_model, generator=generator, dtype=lm.dtype)
    return Update(layer, left, bias=bias)


@pytest.mark.parametrize("model_type", ("gpt2", "llama"))
def test_a_full_matrix_and_a_bias_are_added_and_taken_off_again(model_type):
    lm = tiny.tiny_model(model_type)
    saved, update = updates.saved_weights(lm, [1]), full_update(lm, 1)
    updates.apply(lm, [update])
    assert torch.equal(lm.weight(1), saved[1] + update.left)
    if model_type == "gpt2":
        assert torch.equal(lm.bias(1), saved.biases[1] + update.bias)
        assert torch.equal(lm.projection(1).bias, lm.bias(1))
    assert update.norm() == pytest.approx(update.left.norm().item(), rel=1e-6)
    updates.restore(lm, saved)
    assert torch.equal(lm.weight(1), saved[1])
    assert all(torch.equal(lm.bias(1), bias) for bias in saved.biases.values())


def test_copies_of_a_model_have_biases_of_their_own():
    lm = tiny.tiny_model("gpt2")
    stack, changes = stacks.copies(lm, [1, 2], 3), [full_update(lm, 1, seed) for seed in range(3)]
    for i, update in enumerate(changes):
        updates.apply(stack, [update], copy=i)
    updates.apply(lm, [changes[1]])
    for model in (stack, stacks.copies(stack, [1], 3)):
        assert torch.equal(model.bias(1)[1], lm.bias(1)) and torch.equal(model.weight(1)[1], lm.weight(1))
    assert torch.equal(stacks.subset(stack, [2, 1]).bias(1)[1], lm.bias(1))


def test_a_full_matrix_or_bias_that_does_not_fit_is_refused():
    lm = tiny.tiny_model("llama")
    with pytest.raises(ValueError, match=r"update of layer 1 has left \(3, 4\); the weight of tiny_llama"):
        updates.apply(lm, [Update(1, torch.ones(3, 4))])
    with pytest.raises(ValueError, match=r"bias \(32,\); the weight of tiny_llama is \(32, 48\), its bias None"):
        updates.apply(lm, [Update(1, torch.ones(32, 48), bias=torch.ones(32))])


def test_a_bias_that_is_not_finite_is_seen():
    update = full_update(tiny.tiny_model("gpt2"), 1)
    assert update.is_finite()
    update.bias[0] = float("inf")
    assert not update.is_finite()
