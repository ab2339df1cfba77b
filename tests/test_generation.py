"""Entropies and scores of texts by hand; samples and perplexity against Hugging Face's own generation and loss."""

import json
import math

import numpy as np
import pytest
import tiny
import torch
from test_metrics import FACT

from editscale.data.facts import Fact
from editscale.metrics import generation
from editscale.models import hidden_states

PROMPTS = ("The harp of Ada Example is", "Lund", "In 1984 the bridge", "No one answered the door, because the")
TEXTS = ("The river runs through the town.", "The river was closed at noon.", "Lund is in Sweden")


def sample(lm, prompts=PROMPTS, n_tokens=40, seed=0, **options):
    return generation.generate(lm, prompts, n_tokens, torch.Generator().manual_seed(seed), **options)


def poisoned(place, model_type="gpt2", value=math.nan, **options):
    """A tiny model with NaN in its position embedding `place`: it fails from that token on."""
    lm = tiny.tiny_model(model_type, **options)
    lm.model.transformer.wpe.weight.data[place] = value
    return lm


def test_words_are_joined_inside_and_signs_stand_alone():
    text = 'Don\'t pay 3.50 for a well-made harp, she said: "No!"'
    expected = ["Don't", "pay", "3.50", "for", "a", "well-made", "harp", ",", "she", "said", ":", '"', "No", "!", '"']
    assert generation.words(text) == expected


def test_ngram_entropy_by_hand():
    # "a b a b a": bigrams ab, ba twice each; trigrams aba twice, bab once.
    h3 = -(2 / 3 * math.log2(2 / 3) + 1 / 3 * math.log2(1 / 3))
    assert generation.ngram_entropy(["a b a b a"]) == pytest.approx((1 + 2 * h3) / 3)
    # nine distinct words: eight bigrams and seven trigrams, each once
    distinct = (math.log2(8) + 2 * math.log2(7)) / 3
    assert generation.ngram_entropy(["a b c d e f g h i"]) == pytest.approx(distinct)
    assert generation.ngram_entropy(["a b a b a", "a b c d e f g h i"]) == pytest.approx(
        ((1 + 2 * h3) / 3 + distinct) / 2
    )


@pytest.mark.parametrize("text", ("", "a", "a b", "a a a a a a"))
def test_a_text_that_repeats_itself_or_is_too_short_has_no_ngram_entropy(text):
    assert generation.ngram_entropy([text]) == 0


def test_scores_of_no_texts():
    assert math.isnan(generation.ngram_entropy([])) and generation.word_entropy([]) == 0


def test_word_entropy_pools_texts_and_is_normalized():
    assert generation.word_entropy(["The river.", "the town  runs\nriver The"]) == pytest.approx(
        # the 3, river 2, town 1, runs 1 of 7
        -sum(p * math.log2(p) for p in (3 / 7, 2 / 7, 1 / 7, 1 / 7)) / 2
    )
    assert generation.word_entropy(["one two", "three four five"]) == pytest.approx(1)


@pytest.mark.parametrize("texts", (["the the", "The the."], ["", " . "]))
def test_one_distinct_word_or_none_has_word_entropy_zero(texts):
    assert generation.word_entropy(texts) == 0


def test_idf_by_hand():
    idf = generation.inverse_document_frequency(["The harp, a harp", "the town", "The river"])
    assert idf == {"the": 1.0, **dict.fromkeys(("harp", "town", "river"), pytest.approx(math.log(4 / 2) + 1))}


def test_reference_score_by_hand():
    idf = {"harp": 2.0, "town": 1.0, "river": 3.0}
    # texts: harp 2 · 2, town 1; attributes: harp 2, river 3; "cello" has no idf
    score = generation.reference_score(["A harp and cello", "Harp town"], ["harp", "River cello"], idf)
    assert score == pytest.approx(4 * 2 / (math.hypot(4, 1) * math.hypot(2, 3)))
    assert generation.reference_score(TEXTS, TEXTS, dict.fromkeys(("river", "town", "noon"), 1.5)) == pytest.approx(1)
    assert generation.reference_score(["harp"], ["river"], idf) == 0
    assert generation.reference_score(["harp"], ["cello"], idf) == 0
    assert math.isnan(generation.reference_score(["harp"], [], idf))


@pytest.mark.parametrize("model_type", ("gpt2", "gptj", "gpt_neox", "llama", "gemma2", "gemma3_text"))
def test_with_one_candidate_sampling_is_hugging_faces_greedy_generation(model_type):
    lm = tiny.tiny_model(model_type, dtype=torch.float64)
    for prompt, got in zip(PROMPTS, sample(lm, n_tokens=25, top_k=1), strict=True):
        ids = torch.tensor([lm.tokenizer(prompt)["input_ids"]])
        lm.model.generation_config.eos_token_id = None  # go on after an EOS
        expected = lm.model.generate(ids, do_sample=False, max_length=25, attention_mask=torch.ones_like(ids))[0]
        assert len(expected) == 25
        assert got == generation.Sample(generation.clean_text(lm.tokenizer, expected.tolist()), True)


def test_tokens_are_drawn_with_the_renormalized_probabilities_of_the_five_most_probable(n=2000):
    lm = tiny.tiny_model("gpt2")
    ids = lm.tokenizer(PROMPTS[2])["input_ids"]
    top = lm.model(torch.tensor([ids])).logits[0, -1].double().topk(5)
    texts = [generation.clean_text(lm.tokenizer, [*ids, i]) for i in top.indices.tolist()]
    expected = dict(zip(texts, top.values.softmax(0).tolist(), strict=True))
    drawn = [s.text for s in sample(lm, [PROMPTS[2]] * n, len(ids) + 1, batch_rows=n)]
    assert set(drawn) <= set(expected) and min(expected.values()) < 0.15 < max(expected.values())
    for text, p in expected.items():  # four standard deviations
        assert drawn.count(text) / n == pytest.approx(p, abs=4 * math.sqrt(p * (1 - p) / n))


def test_samples_do_not_depend_on_what_they_are_batched_with():
    lm = tiny.tiny_model("llama", dtype=torch.float64)
    together = sample(lm)
    assert [sample(lm, batch_rows=rows) for rows in (1, 3)] == [together, together]
    generator = torch.Generator().manual_seed(0)
    assert [s for p in PROMPTS for s in generation.generate(lm, [p], 40, generator)] == together
    assert sample(lm, PROMPTS[:2]) == together[:2]
    assert sample(lm, seed=1) != together


def test_copies_of_a_prompt_get_different_samples():
    assert len({s.text for s in sample(tiny.tiny_model("gpt2"), PROMPTS[:1] * 4)}) == 4


@pytest.mark.parametrize("value", (math.nan, math.inf))
def test_a_text_ends_where_logits_stop_being_finite_and_is_marked(value):
    sound, broken = tiny.tiny_model("gpt2"), poisoned(25, value=value)
    # What stands at place 25 is drawn before the model reads that place: 26 tokens in all.
    whole, got = sample(sound, n_tokens=26, top_k=1), sample(broken, n_tokens=40, top_k=1)
    assert got == [generation.Sample(s.text, False) for s in whole] and all(s.finite for s in whole)


def test_a_model_of_nan_returns_its_prompts():
    lm = tiny.tiny_model("llama")
    lm.weight(0).fill_(math.nan)
    assert sample(lm) == [generation.Sample(prompt, False) for prompt in PROMPTS]


def test_one_text_that_fails_leaves_the_others_alone():
    lm = tiny.tiny_model("gpt2", dtype=torch.float64, tied=False)
    whole = sample(lm)
    (only_in_second,) = lm.tokenizer("Lund")["input_ids"][:1]
    drawn = [lm.tokenizer(s.text)["input_ids"] for s in whole]
    assert [only_in_second in ids for ids in drawn] == [False, True, False, False]
    lm.model.get_input_embeddings().weight.data[only_in_second] = math.nan
    got = sample(lm)
    assert got[1] == generation.Sample(PROMPTS[1], False)
    assert [got[i] for i in (0, 2, 3)] == [whole[i] for i in (0, 2, 3)]


def test_generate_refuses_prompts_without_room_and_texts_beyond_the_positions():
    lm = tiny.tiny_model("gpt2")
    n = len(lm.tokenizer(PROMPTS[0])["input_ids"])
    assert sample(lm, PROMPTS[:1], n + 1)[0].finite
    with pytest.raises(ValueError, match=f"'The harp of Ada Example is' has {n} tokens; n_tokens is {n}"):
        sample(lm, PROMPTS[:1], n)
    with pytest.raises(ValueError, match="prompt '' has 0 tokens"):
        sample(lm, [""])
    with pytest.raises(ValueError, match="129 tokens is longer than max_position_embeddings = 128"):
        sample(lm, n_tokens=129)


@pytest.mark.parametrize("model_type", ("gpt2", "llama", "gemma"))
def test_teacher_forced_texts_are_the_first_choices_at_every_token(model_type):
    lm = tiny.tiny_model(model_type, dtype=torch.float64)
    prompts = (FACT.rewrite_prompt, *FACT.paraphrase_prompts, *FACT.neighborhood_prompts)
    expected = []
    for prompt in prompts:
        logits = lm.model(torch.tensor([lm.tokenizer(prompt)["input_ids"]])).logits[0]
        expected.append(generation.clean_text(lm.tokenizer, logits.argmax(dim=-1).tolist()))
    assert generation.teacher_forced_texts(lm, FACT) == expected and len(expected) == 4


@pytest.mark.parametrize("value", (math.nan, math.inf))
def test_teacher_forced_texts_of_a_broken_model_are_empty(value):
    dead = generation.teacher_forced_texts(poisoned(3, value=value), FACT)
    assert dead == [""] * 4 and generation.word_entropy(dead) == 0


@pytest.mark.parametrize("model_type", ("gpt2", "llama", "gemma", "gemma2"))
def test_perplexity_is_the_exponential_of_hugging_faces_loss(model_type):
    lm = tiny.tiny_model(model_type)
    total = n = 0
    for text in TEXTS:  # two of them begin alike
        ids = torch.tensor([lm.tokenizer(text)["input_ids"]])
        total += lm.model(ids, labels=ids).loss.item() * (ids.shape[1] - 1)
        n += ids.shape[1] - 1
    assert generation.perplexity(lm, TEXTS) == pytest.approx(math.exp(total / n), rel=1e-5)


@pytest.mark.parametrize("model_type", ("gpt2", "llama", "gemma"))
def test_kept_states_leave_perplexity_as_it_is_after_every_edit(model_type):
    lm = tiny.tiny_model(model_type, dtype=torch.float64)
    kept, values = hidden_states.StateCache(lm, 1, 10**6), []
    for _ in range(3):
        values.append(generation.perplexity(lm, TEXTS, kept=kept))
        assert values[-1] == pytest.approx(generation.perplexity(lm, TEXTS), rel=1e-12)
        lm.weight(1).mul_(1.2)
    assert len(set(values)) == 3
    lm.weight(1).fill_(math.nan)
    assert generation.perplexity(lm, TEXTS, kept=kept) == math.inf


def test_a_model_without_preference_has_the_vocabulary_as_perplexity():
    lm = tiny.tiny_model("gpt2")
    for parameter in lm.model.parameters():
        parameter.data.zero_()
    assert generation.perplexity(lm, TEXTS) == pytest.approx(tiny.N_TOKENS, rel=1e-6)


def test_perplexity_of_a_broken_model_is_infinite():
    lm = tiny.tiny_model("gpt2", tied=False)
    assert math.isfinite(generation.perplexity(lm, TEXTS))
    lm.model.get_output_embeddings().weight.data *= 1e4  # finite logits, a mean too large for exp
    assert generation.perplexity(lm, TEXTS) == math.inf
    assert generation.perplexity(poisoned(2), TEXTS) == math.inf
    assert generation.perplexity(poisoned(2, value=math.inf), TEXTS) == math.inf


def test_perplexity_needs_something_to_predict():
    lm = tiny.tiny_model("gpt2")
    with pytest.raises(ValueError, match="none of the 2 texts has two tokens"):
        generation.perplexity(lm, ["", "a"])
    with pytest.raises(ValueError, match="none of the 0 texts"):
        generation.perplexity(lm, [])


def test_the_fixed_texts_are_six_different_sentences():
    texts = generation.fixed_texts()
    assert len(set(texts)) == 6
    assert all(text.endswith(".") and 10 < len(text.split()) < 25 for text in texts)


@pytest.mark.real_model
def test_perplexity_tells_sentences_from_shuffled_words():
    lm, texts = tiny.smollm2(), generation.fixed_texts()
    assert 100 <= sum(len(lm.tokenizer(text)["input_ids"]) for text in texts) <= 120
    random = np.random.default_rng(0)
    shuffled = [" ".join(random.permutation(text.split())) for text in texts]
    assert generation.perplexity(lm, texts) < 100 < 300 < generation.perplexity(lm, shuffled)


def test_attribute_texts_are_those_of_the_new_object_and_the_relation(tmp_path):
    path = tmp_path / "attribute_snippets.json"
    entry = {"relation_id": "P1", "target_id": "Q2", "samples": [{"name": "a", "text": "Ada plays the harp."}]}
    path.write_text(json.dumps([entry]))
    one = Fact(0, "Bo", "{} plays the", "harp", "cello", relation_id="P1", target_new_id="Q2")
    other = Fact(1, "Bo", "{} plays the", "cello", "harp", relation_id="P1", target_new_id="Q3")
    about = generation.read_attribute_texts(path, [one, other])
    assert about == [["Ada plays the harp."], []]
    scores = generation.scores(["Ada plays the harp", "Bo"], about)
    assert scores["reference_score"] == pytest.approx(1) and scores["word_entropy"] > 0
    assert math.isnan(generation.scores(["Ada plays the harp"])["reference_score"])


def test_attribute_texts_that_are_missing_or_of_another_form_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no attribute texts at"):
        generation.read_attribute_texts(tmp_path / "none.json", [])
    (tmp_path / "other.json").write_text('[{"relation": 1}]')
    with pytest.raises(ValueError, match="is not a list of relation_id"):
        generation.read_attribute_texts(tmp_path / "other.json", [])
