"""Texts longer than a sliding window: every path attends as the model of transformers does, which reads each alone."""

import pytest
import tiny
import torch
from tools.plain import plain_forward

from editscale.data.facts import Fact
from editscale.editing import moments, values
from editscale.editing.rome import RomeParams
from editscale.metrics import generation
from editscale.models import anatomy, decoding, hidden_states, tokens

FAMILIES = ("mistral", "qwen2", "qwen3", "gemma2", "gemma3_text")
BEGINNING = "The town is in Denmark.\nA : e\n\nThe harp.\nA : n\n\nThe "
TEXTS = ("harp of Ada Example is in the city of Lund.\nA :", "river runs through the town.\nA :", "house.\nA :")
PARAMS = RomeParams(1, 4, 0.3, 0.01, 4.0, 0.0625, True)


def few_shot(model_type, window, **options):
    """A model that attends to a window, without end tokens, and prompts of 40 to 70 tokens with one beginning."""
    lm = tiny.tiny_model(model_type, dtype=torch.float64, tied=False, window=window, **options)
    lm.model.generation_config.eos_token_id = None
    return lm, [tokens.prompt_ids(lm.tokenizer, BEGINNING + text) for text in TEXTS]


def continued(lm, ids, n_new):
    """Greedy continuation by full forwards of the model as transformers runs it."""
    for _ in range(n_new):
        ids = (*ids, lm.model(torch.tensor([ids])).logits[0, -1].argmax().item())
    return ids


def test_of_the_keys_that_a_query_sees_the_last_ones_stay():
    seen = torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [1, 1, 0, 1]], dtype=torch.bool)[None]
    kept = torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [0, 1, 0, 1]], dtype=torch.bool)[None]
    mask = tokens.additive_mask(seen, torch.float32)
    assert torch.equal(tokens.windowed(mask, 2), tokens.additive_mask(kept, torch.float32))
    assert torch.equal(tokens.windowed(mask, 3), mask)


@pytest.mark.parametrize("window", (5, 30))
@pytest.mark.parametrize("model_type", FAMILIES)
def test_states_of_trees_kept_or_not_are_those_of_each_text_alone(model_type, window):
    lm, prompts = few_shot(model_type, window)
    alone = [lm.model(torch.tensor([ids])).logits[0] for ids in prompts]
    endless = tiny.tiny_model(model_type, dtype=torch.float64, tied=False)
    assert (endless.model(torch.tensor([prompts[0]])).logits[0] - alone[0]).abs().max() > 1  # the window matters
    packed, kept = tokens.tree(prompts), hidden_states.StateCache(lm, 2, 10**6)
    for of in (None, kept, kept):
        logits = lm.logits(hidden_states.final(lm, [packed], of)[0])
        for place, expected in zip(packed.places, alone, strict=True):
            torch.testing.assert_close(logits[place], expected, rtol=0, atol=1e-4)  # RMSNorm, softmax: float32


@pytest.mark.parametrize("model_type", FAMILIES)
def test_answers_and_sampled_texts_are_those_of_each_prompt_alone(model_type):
    lm, prompts = few_shot(model_type, 5)
    expected = [continued(lm, ids, 4)[-4:] for ids in prompts]
    for layer, room, batch_tokens in ((0, 0, 512), (2, 10**6, 30)):
        greedy = decoding.Greedy(lm, prompts, 4, layer=layer, max_bytes=room, batch_tokens=batch_tokens)
        assert greedy() == greedy() == expected
    n, texts = max(map(len, prompts)) + 4, [BEGINNING + text for text in TEXTS]
    sampled = generation.generate(lm, texts, n, torch.Generator(), top_k=1)
    alone = [generation.clean_text(lm.tokenizer, continued(lm, ids, n - len(ids))) for ids in prompts]
    assert [sample.text for sample in sampled] == alone


@pytest.mark.parametrize("model_type", FAMILIES)
def test_second_moments_and_values_are_those_of_full_forwards(model_type):
    lm, prompts = few_shot(model_type, 5)
    keys = []
    with anatomy.watching(lm.projection(2), lambda given, _: keys.append(given[0])):
        for ids in prompts:
            lm.model(torch.tensor([ids]))
    keys, found = torch.cat(keys), moments.collect(lm, prompts, [2], progress=False)
    torch.testing.assert_close(found.moments[2], keys.T @ keys / len(keys), rtol=0, atol=1e-5)  # as above
    # Padding comes last, so that nothing sees it; with a mask that hides it, transformers makes NaN of a window of it.
    unmasked = {"attention_mask": None}
    lm.model.register_forward_pre_hook(lambda _, args, given: (args, given | unmasked), with_kwargs=True)
    fact, contexts = Fact(0, "Ada Example", "The harp of {} is in", "Stockholm", "Lund"), ["{}", "The river runs. {}"]
    ours, plain = (
        values.optimize(lm, [fact], contexts, 1, PARAMS, at="mlp", forward=way)[0] for way in (None, plain_forward)
    )
    torch.testing.assert_close(ours.losses, plain.losses, rtol=0, atol=1e-4)


@pytest.mark.parametrize("model_type", ("llama", "gemma", "qwen2"))
def test_a_window_that_the_model_does_not_use_is_not_used(model_type):
    lm = tiny.tiny_model(model_type, dtype=torch.float64)
    lm.model.config.sliding_window = 5 if model_type != "qwen2" else lm.model.config.sliding_window
    ids = tokens.prompt_ids(lm.tokenizer, BEGINNING)
    logits = lm.logits(hidden_states.final(lm, [tokens.tree([ids])])[0])
    torch.testing.assert_close(logits, lm.model(torch.tensor([ids])).logits[0], rtol=0, atol=1e-4)
