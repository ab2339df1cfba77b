"""Every dtype that is offered works from second moments to answers, finite and near float32, in every family."""

import math

import pytest
import tiny
import torch
from test_downstream import TASK

from editscale.data.facts import Fact
from editscale.editing import editors, moments, updates
from editscale.editing.finetune import FtParams
from editscale.editing.memit import MemitParams
from editscale.editing.rome import VARIANTS, RomeParams
from editscale.editing.rome_multi import RomeMultiParams
from editscale.metrics import downstream, generation, scoring
from editscale.models import anatomy, decoding, hidden_states, loading, tokens

FACT = Fact(0, "Ada Example", "The harp of {} is in", "Stockholm", "Lund", neighborhood_prompts=("Bo Sample is in",))
ROME = RomeParams(1, 5, 0.3, 0.01, 4.0, 0.0625, True)
PARAMS = {
    **dict.fromkeys(VARIANTS, ROME),
    "memit": MemitParams([0, 1], 5, 0.3, 0.01, 4.0, 0.0625, 15000.0),
    "rome-multi": RomeMultiParams([0, 1], 5, 0.3, 0.01, 4.0, 0.0625),
    "ft-c": FtParams(1, 5, 5e-3, 0.0, 5e-2),
}
# Relative, of losses and scores: float16 keeps 11 bits of a weight, and bfloat16 8.
NEAR = {"float32": 0.0, "float64": 1e-4, "float16": 0.02, "bfloat16": 0.1}


def results(model_type, dtype, method, contexts):
    """Numbers of all that a study does with a model: [losses and scores], [others, which need only be finite]."""
    lm = tiny.tiny_model(model_type, dtype=getattr(torch, dtype), n_layers=3)
    documents = torch.randint(tiny.N_TOKENS, (10, 60), generator=torch.manual_seed(0)).tolist()
    collected = moments.collect(lm, documents, [0, 1], progress=False).moments
    params, factors = PARAMS[method], editors.cholesky_factors(collected, "cpu")
    ahead = editors.method(method).ahead
    given = [ahead(lm, [FACT], params, contexts, factors)] if ahead else []
    editing = editors.Editing(method, params, contexts, factors)
    (edit,) = editors.edit_each(editing, lm, [FACT], *given)
    assert editors.status(edit) == "edited" and {u.left.dtype for u in edit.updates} == {lm.dtype}
    asked = [tokens.prompt_ids(lm.tokenizer, FACT.rewrite_prompt)]
    kept = hidden_states.StateCache(lm, editing.layers[0], 10**6)
    updates.apply(lm, edit.updates)
    score = scoring.score_facts(lm, [FACT])[0]["efficacy"][0]
    found = decoding.Greedy(lm, asked, 3, layer=editing.layers[0], max_bytes=10**6)()
    assert found == decoding.Greedy(lm, asked, 3)()
    assert generation.generate(lm, ["The harp"], 9, torch.manual_seed(0))[0].finite
    losses = editors.summary(edit)
    near = [losses["loss_first"], losses["loss_last"], score.nll_new, score.nll_true]
    near += [math.log(generation.perplexity(lm, ["The river runs."], kept=of)) for of in (None, kept)]
    return near, [u.norm() for u in edit.updates] + [downstream.TaskPrompts(lm, TASK).row()["f1"]]


@pytest.mark.parametrize("model_type", anatomy.FAMILIES)
def test_every_dtype_gives_what_float32_gives_from_moments_to_answers(model_type):
    for method in ("rome", "memit"):
        contexts = [["{}"], ["The river. {}"]] if method == "memit" else ["{}", "The river. {}"]
        expected, _ = results(model_type, "float32", method, contexts)
        for dtype in loading.DTYPES:
            near, finite = results(model_type, dtype, method, contexts)
            assert near == pytest.approx(expected, rel=NEAR[dtype]) and all(map(math.isfinite, finite)), (method, dtype)


@pytest.mark.parametrize("method", sorted(set(PARAMS) - {"rome", "memit"}))
def test_so_do_the_other_methods(method):
    expected, _ = results("gpt2", "float32", method, ["{}", "The river. {}"])
    for dtype in loading.DTYPES:
        near, finite = results("gpt2", dtype, method, ["{}", "The river. {}"])
        assert near == pytest.approx(expected, rel=NEAR[dtype]) and all(map(math.isfinite, finite)), dtype


def test_factors_in_float16_do_not_underflow():
    left, right = torch.full((3, 1), 40.0), torch.full((5, 1), 1e-8)
    halves = [factor.float() for factor in updates.factors(left, right, torch.float16)]
    torch.testing.assert_close(halves[0] @ halves[1].T, left @ right.T, rtol=2e-3, atol=0)
    for dtype in (torch.float32, torch.bfloat16):  # as they are
        assert all(map(torch.equal, updates.factors(left, right, dtype), (left.to(dtype), right.to(dtype))))


def test_losses_steps_and_logits_of_sixteen_bits_are_in_float32_and_others_as_they_are():
    for dtype in map(torch.__dict__.get, loading.DTYPES):
        lm = tiny.tiny_model("gemma2", dtype=dtype)
        full = torch.float32 if dtype.itemsize < 4 else dtype
        assert lm.logits(torch.ones(1, 32, dtype=dtype)).dtype == full
        assert anatomy.in_full(torch.ones(1, dtype=dtype)).dtype == full
