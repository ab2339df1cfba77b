"""MEMIT as mathematics: the solve against the direct one, the spreading over layers, one fact as the limit."""

import numpy as np
import pytest
import tiny
import torch
from test_rome import moment
from test_values import FACTS

from editscale.editing import memit, post_norm, updates
from editscale.models import anatomy, tokens

CONTEXTS = [["{}"], ["The river. {}", "No one answered the door, because. {}"]]
PARAMS = memit.MemitParams(
    layers=[0, 1, 2],
    v_num_grad_steps=4,
    v_lr=0.3,
    v_weight_decay=0.5,
    clamp_norm_factor=2.0,
    kl_factor=0.0625,
    mom2_update_weight=20.0,
)


def factors_of(lm):
    return {layer: torch.linalg.cholesky(moment(lm.d_key, layer)) for layer in range(lm.n_layers)}


@pytest.mark.parametrize("n", (1, 5, 60))
def test_solve_equals_the_direct_solve(n):
    c = moment(40)
    keys = torch.randn(40, n, dtype=torch.float64, generator=torch.Generator().manual_seed(n))
    direct = np.linalg.solve(7.0 * c.numpy() + keys.numpy() @ keys.numpy().T, keys.numpy())
    np.testing.assert_allclose(memit.solve(keys, torch.linalg.cholesky(c), 7.0).numpy(), direct, rtol=1e-10, atol=1e-12)


def test_one_fact_has_the_closed_form():
    c, k = moment(12), torch.arange(1.0, 13.0, dtype=torch.float64)
    g = np.linalg.solve(7.0 * c.numpy(), k.numpy())
    solved = memit.solve(k[:, None], torch.linalg.cholesky(c), 7.0)[:, 0]
    np.testing.assert_allclose(solved.numpy(), g / (1 + k.numpy() @ g), rtol=1e-10)


def test_a_vanishing_moment_weight_makes_the_layer_reach_its_residual():
    """λ → 0 turns the ridge solve into interpolation: ΔW K = R."""
    keys = torch.randn(40, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    solved = memit.solve(keys, torch.linalg.cholesky(moment(40)), 1e-9)
    torch.testing.assert_close(solved.T @ keys, torch.eye(3, dtype=torch.float64), rtol=0, atol=1e-6)


def test_the_bare_prompt_weighs_as_much_as_all_sampled_contexts():
    keys = torch.tensor([[6.0], [1.0], [2.0], [3.0]])
    assert memit.mean_keys(keys, [1, 3]).item() == (6 + 2) / 2


@pytest.mark.parametrize("model_type", ("gpt2", "llama", "gptj", "gemma3_text"))
def test_layers_are_measured_after_the_ones_below_were_updated(model_type):
    """Keys and residuals of each layer, recomputed by full forwards through a model that carries the lower updates."""
    lm = tiny.tiny_model(model_type, dtype=torch.float64)
    facts = [FACTS["first, one token"], FACTS["middle, many tokens"]]
    edit = memit.edit(lm, facts, PARAMS, CONTEXTS, factors_of(lm))
    exact = 1e-10 if model_type == "gpt2" else 1e-6  # Llama's RMSNorm and GPT-J's attention compute in float32
    for i, update in enumerate(edit.updates):
        seen, keys, current, put = {}, [], [], []
        for fact in facts:
            for row in tokens.context_rows(lm.tokenizer, ["{}", *CONTEXTS[1]], fact.prompt, fact.subject):
                with (
                    anatomy.watching(lm.projection(update.layer), lambda k, y, seen=seen: seen.update(key=k, put=y)),
                    anatomy.watching(lm.block(2), lambda _, out, seen=seen: seen.update(out=out)),
                ):
                    lm.model(torch.tensor([row.ids]))
                keys.append(seen["key"][0, row.subject_last])
                current.append(seen["out"][0, row.subject_last])
                put.append(seen["put"][0, row.subject_last])
        k = torch.stack(
            [
                torch.stack([keys[0], (keys[1] + keys[2]) / 2]).mean(0),
                torch.stack([keys[3], (keys[4] + keys[5]) / 2]).mean(0),
            ],
            dim=1,
        )
        residual = (edit.trace["z"] - torch.stack([current[0], current[3]], dim=1)) / (3 - i)
        if lm.family.post_norm:
            norm = lm.block(update.layer).get_submodule(lm.family.post_norm)
            residual = post_norm.change(norm, torch.stack([put[0], put[3]]), residual.T).T
        direct = torch.linalg.solve(20.0 * moment(lm.d_key, update.layer) + k @ k.T, k)
        torch.testing.assert_close(update.matrix(), residual @ direct.T, rtol=0, atol=exact)
        updates.apply(lm, [update])


def test_the_model_is_left_as_it_was_even_after_an_error():
    lm = tiny.tiny_model("gpt2")
    before = updates.saved_weights(lm, range(lm.n_layers))
    memit.edit(lm, [FACTS["last"]], PARAMS, CONTEXTS, factors_of(lm))
    broken = factors_of(lm) | {2: torch.eye(3, dtype=torch.float64)}
    with pytest.raises(ValueError, match="second moment is 3 × 3"):
        memit.edit(lm, [FACTS["last"]], PARAMS, CONTEXTS, broken)
    assert all(torch.equal(lm.weight(layer), weight) for layer, weight in before.items())


def test_updates_have_one_rank_per_fact():
    lm = tiny.tiny_model("llama")
    edit = memit.edit(lm, list(FACTS.values()), PARAMS, CONTEXTS, factors_of(lm))
    assert [u.layer for u in edit.updates] == [0, 1, 2]
    assert all(u.left.shape[1] == u.right.shape[1] == len(FACTS) for u in edit.updates)
