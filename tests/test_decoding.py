"""Greedy continuations of many prompts together are those of each prompt alone, whatever is kept between calls."""

import pytest
import tiny
import torch

from editscale.models import anatomy, decoding, hidden_states, tokens

BEGINNING = "The town is in Denmark.\nA : e\n\nThe harp.\nA : n\n\nThe "
TEXTS = (
    "harp of Ada Example is in the city of Lund.\nA :",
    "river runs through the town.\nA :",
    "house was empty. \nA :",
    "bridge was closed at noon.\nA :",
    "river runs through the old town and the city.\nA :",
    "mother tongue of Bo Sample is Danish\nA :",
    "capital of Sweden\nA :",
    "house was empty. \nA :",
)


def one_by_one(lm, prompt, n_new):
    """The definition: one full forward for every new token."""
    ids = list(prompt)
    for _ in range(n_new):
        ids.append(lm.model(torch.tensor([ids])).logits[0, -1].argmax().item())
    return tuple(ids[len(prompt) :])


def endless(model_type, **options):
    lm = tiny.tiny_model(model_type, dtype=torch.float64, tied=False, **options)
    lm.model.generation_config.eos_token_id = None
    return lm, [tokens.prompt_ids(lm.tokenizer, BEGINNING + text) for text in TEXTS]


@pytest.mark.parametrize(("tree_tokens", "batch_tokens"), ((512, 1), (512, 40), (512, 4096), (30, 60), (30, 4096)))
@pytest.mark.parametrize("model_type", ("gpt2", "gptj", "llama", "gemma", "gemma2"))
def test_tokens_equal_full_forwards_one_by_one(model_type, tree_tokens, batch_tokens, monkeypatch):
    monkeypatch.setattr(hidden_states, "TREE_TOKENS", tree_tokens)
    lm, prompts = endless(model_type)
    new = decoding.Greedy(lm, prompts, 3, batch_tokens=batch_tokens)()
    assert new == [one_by_one(lm, prompt, 3) for prompt in prompts]
    assert len(set(new)) > 3  # the prompts are told apart


@pytest.mark.parametrize("batch_tokens", (30, 4096))
@pytest.mark.parametrize("room", (0, 30_000, 10**7))
@pytest.mark.parametrize("model_type", ("gpt2", "gptj", "llama", "gemma"))
def test_what_is_kept_changes_no_token_along_edits(model_type, room, batch_tokens, monkeypatch):
    monkeypatch.setattr(hidden_states, "TREE_TOKENS", 30)
    lm, prompts = endless(model_type)
    greedy, seen = decoding.Greedy(lm, prompts, 3, layer=2, max_bytes=room, batch_tokens=batch_tokens), []
    for _ in range(3):
        seen.append(greedy())
        assert seen[-1] == [one_by_one(lm, prompt, 3) for prompt in prompts]
        lm.weight(2).mul_(-0.9)  # changes tokens, some of them back
    assert seen[0] != seen[1]


@pytest.mark.parametrize("room", (0, 10**7))
def test_of_the_prompts_only_the_upper_blocks_run_again(room):
    lm, prompts = endless("gpt2")
    greedy, ran = decoding.Greedy(lm, prompts, 3, layer=2, max_bytes=room, batch_tokens=4096), {1: [], 3: []}
    greedy()
    with (
        anatomy.watching(lm.mlp(1), lambda given, _: ran[1].append(given.shape[1])),
        anatomy.watching(lm.mlp(3), lambda given, _: ran[3].append(given.shape[1])),
    ):
        greedy()
    assert ran[3][2:] == [8, 8]  # the beginning, the rests, twice a new token for each prompt
    assert ran[1] == (ran[3][2:] if room else ran[3])
    assert 0 < greedy.held <= room if room else greedy.held == 0


def test_rows_that_memory_did_not_suffice_for_leave_nothing_behind(monkeypatch):
    lm, prompts = endless("gpt2")
    greedy = decoding.Greedy(lm, prompts, 3, layer=2, max_bytes=10**7, batch_tokens=4096)
    run = greedy._run

    def full(name, function, tensors):
        if tensors["ids"].numel() > 60 and name != "beginning":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return run(name, function, tensors)

    monkeypatch.setattr(greedy, "_run", full)
    with pytest.warns(UserWarning, match="not enough memory"):
        assert greedy() == [one_by_one(lm, prompt, 3) for prompt in prompts]
    assert set(greedy.prepared) == {(), *(tuple(map(tuple, rows)) for rows in greedy.rows)} and len(greedy.rows) > 1


@pytest.mark.parametrize(
    "prompts",
    [
        [(5, 6, 7)],  # all of it is shared
        [(5, 6, 7), (5, 6, 7)],
        [(5, 6), (5, 6, 7, 8), (5, 6, 7)],  # one is the beginning of the others
        [(5, 6), (7, 8, 9)],  # nothing is shared
        [(5,), (6, 7)],
    ],
)
@pytest.mark.parametrize("layer", (0, 2))
def test_prompts_may_share_all_or_nothing(prompts, layer):
    lm, _ = endless("llama")
    expected = [one_by_one(lm, prompt, 3) for prompt in prompts]
    longer = [*prompts, *(prompt + tuple(new[:2]) for prompt, new in zip(prompts, expected, strict=True))]
    for asked in (prompts, longer):  # what a prompt is answered with is what a longer one holds
        greedy = decoding.Greedy(lm, asked, 3, layer=layer, max_bytes=10**6)
        assert greedy() == greedy() == [one_by_one(lm, prompt, 3) for prompt in asked]


@pytest.mark.parametrize("as_list", (False, True))
def test_an_end_token_ends_the_answer(as_list):
    lm = tiny.tiny_model("gpt2", tied=False)
    prompt = (5, 6, 7)
    first, second, third = one_by_one(lm, prompt, 3)
    assert second not in (first, third)
    lm.model.generation_config.eos_token_id = [first + 1000, second] if as_list else second
    assert decoding.Greedy(lm, [prompt], 3)() == [(first,)]


def test_no_prompts_have_no_continuations():
    assert decoding.Greedy(tiny.tiny_model("gpt2"), [], 3)() == []


def test_a_prompt_that_is_too_long_for_the_model_is_an_error():
    lm = tiny.tiny_model("gpt2")  # 128 positions
    assert len(decoding.Greedy(lm, [(5,) * 126], 3)()[0]) <= 3
    with pytest.raises(ValueError, match="129 tokens is longer than max_position_embeddings = 128"):
        decoding.Greedy(lm, [(5,), (5,) * 127], 3)


def test_a_layer_that_is_not_there_is_an_error():
    with pytest.raises(ValueError, match="layer 4 is not one of the 4 layers"):
        decoding.Greedy(tiny.tiny_model("gpt2"), [(5,)], 3, layer=4)
