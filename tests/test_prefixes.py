"""Sampled contexts: seeded, short, free of braces, from the most probable tokens."""

import tiny
import torch

from editscale.editing import context_sampling


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_the_seed_decides_the_contexts():
    lm = tiny.tiny_model("gpt2")
    one, again, other = (context_sampling.rome_contexts(lm, [(0,)], generator(seed)) for seed in (0, 0, 1))
    assert one == again != other


def test_rome_has_the_bare_prompt_and_ten_contexts_of_each_length():
    lm = tiny.tiny_model("gpt2")
    contexts = context_sampling.rome_contexts(lm, [(0,)], generator())
    assert len(contexts) == 21 and contexts[0] == "{}"
    assert all(context.endswith(". {}") and context.count("{}") == 1 for context in contexts[1:])
    assert len(context_sampling.rome_contexts(lm, [(0,)], generator(), n_short=3, n_long=2)) == 6


def test_memit_has_two_groups_and_starts_from_the_seed_words():
    bare, sampled = context_sampling.memit_contexts(tiny.tiny_model("llama"), (), generator())
    assert bare == ["{}"]
    assert [text.startswith(word) for text, word in zip(sampled, context_sampling.MEMIT_SEEDS, strict=True)] == [
        True
    ] * 5


def test_every_token_is_among_the_most_probable_ones_and_the_start_counts():
    lm = tiny.tiny_model("gpt2")
    ids = context_sampling.sample(lm, [(0,)] * 4, 7, generator())
    assert ids.shape == (4, 7) and (ids[:, 0] == 0).all()
    top = lm.model(ids).logits.topk(context_sampling.TOP_K).indices
    for i in range(6):
        assert all(ids[row, i + 1] in top[row, i] for row in range(4))


def test_probabilities_of_the_top_tokens_are_renormalized():
    lm = tiny.tiny_model("gpt2", dtype=torch.float64)
    ids = context_sampling.sample(lm, [(0,)] * 2000, 2, generator(), top_k=2)
    top = lm.model(torch.tensor([[0]])).logits[0, 0].topk(2)
    share = (ids[:, 1] == top.indices[0]).double().mean()
    expected = top.values.softmax(-1)[0]
    assert abs(share - expected) < 4 * (expected * (1 - expected) / 2000) ** 0.5  # four standard errors


def test_braces_blank_lines_and_special_tokens_do_not_reach_a_context():
    tokenizer = tiny.tiny_tokenizer()
    ids = tokenizer("<|endoftext|>a {b}\n\nc")["input_ids"]
    assert context_sampling.as_context(tokenizer, ids) == "a  b  c. {}"
