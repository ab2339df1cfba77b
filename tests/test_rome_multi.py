"""ROME over several layers: each layer's constraint, the limit of MEMIT that it is, and how the residual is parted."""

import pytest
import tiny
import torch
from test_copies import EXACT
from test_memit import factors_of
from test_rome import moment
from test_values import CONTEXTS, FACTS

from editscale.editing import editors, memit, rome, rome_multi, updates
from editscale.editing.rome import RomeParams
from editscale.editing.rome_multi import RomeMultiParams
from editscale.models import anatomy, stacks, tokens
from editscale.sequences import single

PARAMS = RomeMultiParams([0, 1, 2], 4, 0.3, 0.5, 2.0, 0.0625)
FACT = FACTS["middle, many tokens"]
EDIT = {two: rome_multi.METHODS["rome-multi" + "-two-keys" * two].edit for two in (False, True)}


def edited(lm, layers=(0, 1, 2), facts=(FACT,)):
    params = RomeMultiParams(list(layers), 4, 0.3, 0.5, 2.0, 0.0625)
    return EDIT[False](lm, list(facts), params, CONTEXTS, factors_of(lm))


def at_subject(lm, fact, contexts, module):
    """Inputs and outputs of a module at the subject's last token after each context, by full forwards."""
    seen = []
    for row in tokens.context_rows(lm.tokenizer, contexts, fact.prompt, fact.subject):
        note = seen.append
        with anatomy.watching(
            module, lambda x, y, row=row, note=note: note((x[0, row.subject_last], y[0, row.subject_last]))
        ):
            lm.model(torch.tensor([row.ids]))
    return [torch.stack(part) for part in zip(*seen, strict=True)]


@pytest.mark.parametrize("model_type", ("gpt2", "llama"))
def test_one_layer_sends_the_mean_key_to_the_wanted_output_exactly(model_type):
    lm = tiny.tiny_model(model_type, dtype=torch.float64)
    keys, _ = at_subject(lm, FACT, CONTEXTS, lm.projection(1))
    _, out = at_subject(lm, FACT, ["{}"], lm.block(1))
    (edit,) = edited(lm, [1])
    before, (update,) = lm.weight(1) @ keys.mean(0), edit.updates
    updates.apply(lm, edit.updates)
    wanted = edit.trace["z"][:, 0] - out[0]
    assert update.left.shape[1] == 1
    tolerance = 1e-10 if model_type == "gpt2" else 1e-5
    torch.testing.assert_close(lm.weight(1) @ keys.mean(0) - before, wanted, rtol=0, atol=tolerance)


def test_solve_is_memits_at_a_vanishing_weight_of_the_moment():
    key = torch.randn(40, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    factor = torch.linalg.cholesky(moment(40))
    limit = memit.solve(key, factor, 1e-12)
    torch.testing.assert_close(rome_multi.solve(key, factor), limit, rtol=1e-9, atol=1e-12)


def test_solve_is_the_least_change_of_other_keys_that_meets_the_constraint():
    """Of all a with aᵀk = 1 it has the smallest aᵀCa, so aᵀCd = 0 for every d with dᵀk = 0."""
    generator = torch.Generator().manual_seed(1)
    c, (key, other) = moment(12), torch.randn(2, 12, 1, dtype=torch.float64, generator=generator)
    solved = rome_multi.solve(key, torch.linalg.cholesky(c))
    assert (solved.T @ key).item() == pytest.approx(1, rel=1e-12)
    free = other - key * (key.T @ other) / (key.T @ key)
    assert (solved.T @ c @ free).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("model_type", ("gpt2", "llama", "gptj"))
def test_layers_take_even_parts_of_what_the_layers_below_left(model_type):
    """Keys and residuals of each layer, recomputed by full forwards through a model that carries the lower updates."""
    lm = tiny.tiny_model(model_type, dtype=torch.float64)
    (edit,) = edited(lm)
    z = edit.trace["z"][:, 0]
    for i, update in enumerate(edit.updates):
        keys, _ = at_subject(lm, FACT, CONTEXTS, lm.projection(update.layer))
        _, out = at_subject(lm, FACT, ["{}"], lm.block(2))
        solved = torch.linalg.solve(moment(lm.d_key, update.layer), keys.mean(0))
        part = (z - out[0]) / (3 - i)  # the last layer takes all that is left
        expected = torch.outer(part, solved / (keys.mean(0) @ solved))
        torch.testing.assert_close(update.matrix(), expected, rtol=0, atol=1e-10 if model_type == "gpt2" else 1e-5)
        torch.testing.assert_close(update.matrix() @ keys.mean(0), part, rtol=0, atol=1e-5)
        updates.apply(lm, [update])


@pytest.mark.parametrize("model_type", ("gpt2", "llama"))
def test_facts_together_on_a_stack_are_edited_as_each_alone_on_its_copy(model_type):
    lm, facts = tiny.tiny_model(model_type, dtype=torch.float64), list(FACTS.values())
    stack = stacks.copies(lm, (0, 1, 2), len(facts))
    for i in range(len(facts)):
        stack.weight(1)[i].mul_(1 + 0.1 * i)
    for i, (fact, edit) in enumerate(zip(facts, edited(stack, facts=facts), strict=True)):
        (alone,) = edited(stacks.subset(stack, [i]), facts=[fact])
        for ours, expected in zip(edit.updates, alone.updates, strict=True):
            scale = expected.matrix().norm().item()
            torch.testing.assert_close(ours.matrix(), expected.matrix(), rtol=0, atol=10 * EXACT[model_type] * scale)


def test_a_key_of_another_size_is_refused():
    with pytest.raises(ValueError, match="keys have 3 entries but the second moment is 4 × 4"):
        rome_multi.solve(torch.ones(3, 1), torch.eye(4, dtype=torch.float64))


def test_it_is_a_method_with_the_contexts_of_rome():
    known = editors.method("rome-multi")
    assert known.contexts is editors.method("rome").contexts and known.moments
    assert editors.moment_layers("rome-multi", PARAMS) == [0, 1, 2]


NO_DECAY = {"v_num_grad_steps": 4, "v_lr": 0.3, "v_weight_decay": 0.0, "clamp_norm_factor": 1e6, "kl_factor": 0.0625}


def at_one_layer(model_type, variant, fact=FACT, *, two_keys):
    """An edit of a ROME variant, and that of ROME over several layers at its only one: no decay, no clamp that acts."""
    lm = tiny.tiny_model(model_type, dtype=torch.float64)
    of_rome = rome.edit(
        lm, fact, RomeParams(1, mom2_adjustment=True, **NO_DECAY), CONTEXTS, factors_of(lm), variant=variant
    )
    given = [fact], RomeMultiParams([1], **NO_DECAY), CONTEXTS, factors_of(lm)
    (ours,) = EDIT[two_keys](lm, *given)
    return of_rome, ours


@pytest.mark.parametrize("fact", FACTS.values(), ids=FACTS)
@pytest.mark.parametrize("model_type", ("gpt2", "llama", "gptj"))
def test_with_two_keys_and_one_layer_it_is_rome(model_type, fact):
    """δ at the block's output is δ at the MLP's, which is added there; decay and clamp alone see the difference."""
    of_rome, ours = at_one_layer(model_type, "rome", fact, two_keys=True)
    expected = of_rome.updates[0].matrix()
    tolerance = (1e-9 if model_type == "gpt2" else 1e-4) * expected.norm().item()
    torch.testing.assert_close(ours.updates[0].matrix(), expected, rtol=0, atol=tolerance)
    torch.testing.assert_close(ours.trace["denominator"], of_rome.trace["denominator"].double(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("model_type", ("gpt2", "llama"))
def test_with_one_key_and_one_layer_only_a_term_of_the_value_parts_it_from_r_rome(model_type):
    """r-ROME asks for m₀ + δ − m̄ along the same direction, ROME over layers for δ; m̄ is the mean over the contexts."""
    of_rome, ours = at_one_layer(model_type, "r-rome", two_keys=False)
    seen = of_rome.trace
    term = torch.outer(seen["init"] - seen["value"], ours.trace[1]["solved"][:, 0])
    assert term.norm() > 1e-3 * ours.updates[0].norm()  # it is there
    difference = of_rome.updates[0].matrix() - ours.updates[0].matrix()
    tolerance = (1e-9 if model_type == "gpt2" else 1e-4) * ours.updates[0].norm()
    torch.testing.assert_close(difference, term, rtol=0, atol=tolerance)


@pytest.mark.parametrize("model_type", ("gpt2", "llama"))
def test_with_two_keys_each_layer_sends_the_bare_key_to_its_part_along_the_mean_key(model_type):
    lm = tiny.tiny_model(model_type, dtype=torch.float64)
    params, factors = RomeMultiParams([0, 1, 2], 4, 0.3, 0.5, 2.0, 0.0625), factors_of(lm)
    (edit,) = EDIT[True](lm, [FACT], params, CONTEXTS, factors)
    denominators = []
    for i, update in enumerate(edit.updates):
        keys, _ = at_subject(lm, FACT, CONTEXTS, lm.projection(update.layer))
        _, out = at_subject(lm, FACT, ["{}"], lm.block(2))
        part = (edit.trace["z"][:, 0] - out[0]) / (3 - i)
        torch.testing.assert_close(update.matrix() @ keys[0], part, rtol=0, atol=1e-5)
        u = torch.linalg.solve(moment(lm.d_key, update.layer), keys.mean(0))
        denominators.append((keys[0] @ u / u.norm()).item())
        expected = torch.outer(part, u / (keys[0] @ u))
        torch.testing.assert_close(update.matrix(), expected, rtol=0, atol=1e-10 if model_type == "gpt2" else 1e-5)
        updates.apply(lm, [update])
    assert [edit.trace[layer]["denominator"].item() for layer in (0, 1, 2)] == pytest.approx(denominators, rel=1e-5)
    assert editors.summary(edit)["denominator"] == edit.trace[0]["denominator"].item()


def test_its_denominator_is_known_from_the_unedited_model_and_shown_layer_by_layer():
    lm = tiny.tiny_model("gpt2", dtype=torch.float64)
    factors = factors_of(lm)
    editing = editors.Editing("rome-multi-two-keys", PARAMS, CONTEXTS, factors)
    (first,) = EDIT[True](lm, [FACT], PARAMS, CONTEXTS, factors)
    updates.apply(lm, first.updates)
    (again,) = editors.edit_each(editing, lm, [FACT])
    torch.testing.assert_close(again.trace["denominator"], first.trace["denominator"], rtol=1e-9, atol=0)
    parts, _ = single.shown_edit(lm, FACT, editing)
    shown = parts.loc["denominator"].tolist()
    assert shown == pytest.approx([again.trace[layer]["denominator"].item() for layer in (0, 1, 2)], rel=1e-9)
    assert len(set(shown)) == 3


def test_the_denominator_follows_from_the_solve_sign_and_all():
    mean, bare = torch.randn(2, 12, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    factor = torch.linalg.cholesky(moment(12))
    u = rome.direction(mean[:, 0], factor)
    for key in (bare, -bare):
        found = rome_multi._denominator(mean, rome_multi.solve(mean, factor, key))
        assert found.item() == pytest.approx((key[:, 0] @ u).item(), rel=1e-12)
