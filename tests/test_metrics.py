"""Scores: their arithmetic by hand, and prompt scores against full forwards one by one."""

import math
from dataclasses import replace

import pytest
import tiny
import torch

from editscale.columns import harmonic_half_width, harmonic_score
from editscale.data.facts import Fact
from editscale.metrics import scoring
from editscale.metrics.scoring import PromptScore
from editscale.models import hidden_states, stacks, tokens

FACT = Fact(
    0,
    "Ada Example",
    "{} plays the",
    "old harp",
    "cello",
    paraphrase_prompts=("The master of the art is Ada Example, on the",),
    neighborhood_prompts=("Bo Sample plays the", "Lund is in"),
)


def test_scores_by_hand():
    by_kind = {
        "efficacy": [PromptScore(1.0, 2.0, True, False)],
        "paraphrase": [PromptScore(1.0, 2.0, False, False), PromptScore(3.0, 2.0, True, True)],
        "neighborhood": [
            PromptScore(1.0, 2.0, True, False),
            PromptScore(3.0, 2.0, False, True),
            PromptScore(3.0, 2.5, False, True),
            PromptScore(4.0, 1.0, False, False),
        ],
    }
    row = scoring.fact_scores(by_kind)
    assert tuple(row) == scoring.COLUMNS
    assert (row["efficacy"], row["paraphrase"], row["neighborhood"]) == (1, 0.5, 0.75)
    assert (row["efficacy_accuracy"], row["paraphrase_accuracy"], row["neighborhood_accuracy"]) == (1, 0.5, 0.5)
    assert row["efficacy_magnitude"] == pytest.approx(math.exp(-1) - math.exp(-2))
    assert row["paraphrase_magnitude"] == pytest.approx((math.exp(-1) - math.exp(-2) + math.exp(-3) - math.exp(-2)) / 2)
    expected = [
        math.exp(-2) - math.exp(-1),
        math.exp(-2) - math.exp(-3),
        math.exp(-2.5) - math.exp(-3),
        math.exp(-1) - math.exp(-4),
    ]
    assert row["neighborhood_magnitude"] == pytest.approx(sum(expected) / 4)


@pytest.mark.parametrize("tie", (PromptScore(2.0, 2.0, True, True), PromptScore(math.nan, 2.0, True, True)))
def test_ties_and_nan_count_as_failure(tie):
    row = scoring.fact_scores({kind: [tie] for kind in scoring.KINDS})
    assert row["efficacy"] == row["paraphrase"] == row["neighborhood"] == 0


def test_a_kind_without_prompts_has_no_score():
    row = scoring.fact_scores({"efficacy": [PromptScore(1.0, 2.0, True, False)], "paraphrase": [], "neighborhood": []})
    assert row["efficacy"] == 1 and math.isnan(row["paraphrase"]) and math.isnan(row["neighborhood_accuracy"])


def test_a_missing_true_object_is_no_failure_but_no_score():
    none = PromptScore(1.0, None, True, None)
    row = scoring.fact_scores({"efficacy": [none], "paraphrase": [none, none], "neighborhood": [none]})
    assert row["efficacy_accuracy"] == row["paraphrase_accuracy"] == 1
    missing = [name for name, score in row.items() if math.isnan(score)]
    assert missing == [name for name in scoring.COLUMNS if name not in ("efficacy_accuracy", "paraphrase_accuracy")]


def test_prompts_without_one_object_are_left_out_of_the_means_of_the_others():
    scores = [PromptScore(2.0, 1.0, False, True), PromptScore(None, 1.0, None, False)]
    row = scoring.fact_scores({"efficacy": [], "paraphrase": [], "neighborhood": scores})
    assert row["neighborhood"] == 1 and row["neighborhood_accuracy"] == 0.5
    assert row["neighborhood_magnitude"] == math.exp(-1) - math.exp(-2)


def test_portability_has_columns_only_where_it_was_asked():
    asked = [PromptScore(1.0, None, True, None), PromptScore(2.0, None, False, None)]
    by_kind = {"efficacy": [], "paraphrase": [], "neighborhood": []}
    row = scoring.fact_scores(by_kind | {"portability": asked})
    assert tuple(row) == (*scoring.COLUMNS, "portability_magnitude", "portability_accuracy")
    assert (row["portability_accuracy"], row["portability_magnitude"]) == (0.5, (math.exp(-1) + math.exp(-2)) / 2)
    assert tuple(scoring.fact_scores(by_kind | {"portability": []})) == scoring.COLUMNS


def test_the_harmonic_score_is_missing_where_a_score_is():
    assert math.isnan(harmonic_score(100.0, math.nan, 0.0)) and math.isnan(harmonic_score(math.nan, 0.0, 1.0))
    assert math.isnan(harmonic_half_width([math.nan, 1.0, 0.0], [1, 1, 1]))


def test_harmonic_score_reproduces_a_published_row():
    """GPT-2 XL with ROME: ES 100.0, PS 96.4, NS 75.4 give S 89.2 (arXiv:2202.05262, table 4)."""
    assert harmonic_score(100.0, 96.4, 75.4) == pytest.approx(89.2, abs=0.05)
    assert harmonic_score(100.0, 0.0, 75.4) == 0


def one_by_one(lm, prompt, target):
    """NLL per token and greedy correctness from one full forward, the definition of methods in the reference."""
    before, after = tokens.prompt_ids(lm.tokenizer, prompt), tokens.target_ids(lm.tokenizer, prompt, target)
    log_p = lm.model(torch.tensor([before + after])).logits[0].log_softmax(-1)
    at = [len(before) + i - 1 for i in range(len(after))]
    nll = -sum(log_p[p, t].item() for p, t in zip(at, after, strict=True)) / len(after)
    return nll, all(log_p[p].argmax().item() == t for p, t in zip(at, after, strict=True))


@pytest.mark.parametrize(("tree_tokens", "batch_tokens"), ((512, 1), (512, 40), (512, 4096), (30, 60), (30, 4096)))
@pytest.mark.parametrize("model_type", ("gpt2", "gptj", "llama", "gemma2"))
def test_packed_scores_equal_full_forwards_one_by_one(model_type, tree_tokens, batch_tokens, monkeypatch):
    monkeypatch.setattr(hidden_states, "TREE_TOKENS", tree_tokens)
    lm = tiny.tiny_model(model_type, dtype=torch.float64)
    prompts = [
        (prompt, new, true)
        for prompt in ("Ada Example plays the", "The mother tongue of Bo Sample is", "Lund")
        for new, true in (("harp", "cello"), ("old Swedish harp", "Danish"), ("in", "a house by the river"))
    ]
    for (prompt, new, true), score in zip(
        prompts, scoring.score_prompts(lm, prompts, batch_tokens=batch_tokens), strict=True
    ):
        for target, nll, correct in (
            (new, score.nll_new, score.correct_new),
            (true, score.nll_true, score.correct_true),
        ):
            expected, flag = one_by_one(lm, prompt, target)
            assert nll == pytest.approx(expected, abs=1e-9 if model_type == "gpt2" else 1e-5) and correct == flag


def test_facts_are_scored_by_kind():
    lm = tiny.tiny_model("gpt2")
    (scores,) = scoring.score_facts(lm, [FACT])
    assert [len(scores[kind]) for kind in scoring.KINDS] == [1, 1, 2]
    assert scores["neighborhood"] == scoring.score_prompts(
        lm, [(p, "old harp", "cello") for p in FACT.neighborhood_prompts]
    )


def test_each_prompt_is_scored_with_the_answers_that_belong_to_it():
    lm = tiny.tiny_model("gpt2", dtype=torch.float64)
    fact = replace(
        FACT,
        target_true="",
        neighborhood_answers=("cello", "old harp"),
        portability_prompts=("The strings of the harp of Ada Example are",),
        portability_answers=("of Danish wood",),
    )
    for (scores,) in (scoring.score_facts(lm, [fact]), scoring.score_each(lm, [fact])):
        asked = [(kind, prompt) for kind, of in scoring.prompts_of(fact).items() for prompt in of]
        found = [score for kind in scoring.prompts_of(fact) for score in scores[kind]]
        objects = [("old harp", ""), ("old harp", ""), ("old harp", "cello"), ("", "old harp"), ("of Danish wood", "")]
        for (_, prompt), (new, true), score in zip(asked, objects, found, strict=True):
            for target, nll, correct in (
                (new, score.nll_new, score.correct_new),
                (true, score.nll_true, score.correct_true),
            ):
                if not target:
                    assert nll is None and correct is None
                    continue
                expected, flag = one_by_one(lm, prompt, target)
                assert nll == pytest.approx(expected, abs=1e-9) and correct == flag


def test_facts_with_and_without_true_objects_are_scored_together_as_alone():
    lm = tiny.tiny_model("gpt2", dtype=torch.float64)
    mixed = [FACT, replace(FACT, target_true=""), *others(2)]
    for together in (scoring.score_facts(lm, mixed), scoring.score_facts(lm, mixed, batch_tokens=20)):
        for fact, scores in zip(mixed, together, strict=True):
            (alone,) = scoring.score_facts(lm, [fact])
            for kind in scoring.KINDS:
                for one, two in zip(scores[kind], alone[kind], strict=True):
                    assert one.nll_new == pytest.approx(two.nll_new, abs=1e-12)
                    assert one.nll_true == (two.nll_true and pytest.approx(two.nll_true, abs=1e-12))
    assert scoring.without_true(mixed).startswith("1 of 4 facts have no true answer")
    assert scoring.without_true([FACT]) == ""


def others(n):
    """Facts of other lengths than FACT's, with fewer and more prompts."""
    return [
        Fact(
            i,
            subject,
            "{} is in the",
            "town",
            "house by the river",
            paraphrase_prompts=(f"The river of {subject} is the",) * (i % 2),
            neighborhood_prompts=("Sweden is in the", "Copenhagen is in the", "Lund")[: i + 1],
        )
        for i, subject in enumerate(("Bo Sample", "Lund", "Stockholm", "Denmark")[:n])
    ]


def flat(by_fact):
    return [score for by_kind in by_fact for kind in scoring.KINDS for score in by_kind[kind]]


def assert_same(scores, expected, tolerance):
    assert len(scores) == len(expected)
    for one, two in zip(scores, expected, strict=True):
        assert (one.correct_new, one.correct_true) == (two.correct_new, two.correct_true)
        nlls = (two.nll_new, two.nll_true)
        assert (one.nll_new, one.nll_true) == pytest.approx(nlls, rel=0, abs=tolerance, nan_ok=True)


@pytest.mark.parametrize("model_type", ("gpt2", "llama", "gemma"))
def test_facts_each_in_a_row_get_the_scores_they_get_together(model_type):
    lm, facts = tiny.tiny_model(model_type, dtype=torch.float64), [FACT, *others(3)]
    each, together = scoring.score_each(lm, facts), scoring.score_facts(lm, facts)
    assert [{k: len(v) for k, v in by.items()} for by in each] == [
        {k: len(v) for k, v in by.items()} for by in together
    ]
    assert_same(flat(each), flat(together), 1e-12 if model_type == "gpt2" else 1e-5)


def test_fact_i_is_scored_on_copy_i():
    lm, facts = tiny.tiny_model("gpt2", dtype=torch.float64), [FACT, *others(2)]
    stack = stacks.copies(lm, [1], 3)
    for i, factor in enumerate((1, -1, 2)):
        stack.weight(1)[i] *= factor
    each = scoring.score_each(stack, facts)
    for i, factor in enumerate((1, -1, 2)):
        one = tiny.tiny_model("gpt2", dtype=torch.float64)
        one.weight(1).mul_(factor)
        assert_same(flat(each[i : i + 1]), flat(scoring.score_facts(one, facts[i : i + 1])), 1e-12)
    assert flat(each[2:]) != flat(scoring.score_facts(lm, facts[2:]))


@pytest.mark.parametrize("room", (0, 25, 10_000))
@pytest.mark.parametrize("model_type", ("gpt2", "llama", "gemma"))
def test_kept_states_change_no_score_of_more_and_more_prompts_along_edits(model_type, room, monkeypatch):
    monkeypatch.setattr(hidden_states, "TREE_TOKENS", 40)
    lm = tiny.tiny_model(model_type, dtype=torch.float64)
    kept = hidden_states.StateCache(lm, 1, room * lm.d_model * 8)
    prompts = [(fact.rewrite_prompt, fact.target_new, fact.target_true) for fact in [FACT, *others(4)]]
    for n in (2, 3, 5, 5):
        for batch_tokens in (40, 4096):
            scores = scoring.score_prompts(lm, prompts[:n], batch_tokens=batch_tokens, kept=kept)
            expected = scoring.score_prompts(lm, prompts[:n])
            assert_same(scores, expected, 1e-12 if model_type == "gpt2" else 1e-5)
        lm.weight(1).add_(0.05)
        lm.weight(2).mul_(-1)
    assert 0 <= kept.held <= room * lm.d_model * 8 and bool(kept.held) == bool(room)


def test_a_broken_model_scores_nan_with_kept_states_too():
    lm = tiny.tiny_model("gpt2")
    kept, prompts = hidden_states.StateCache(lm, 1, 10**6), [("Lund is in", "Denmark", "Sweden")]
    (before,) = scoring.score_prompts(lm, prompts, kept=kept)
    lm.weight(1).fill_(math.nan)
    (after,) = scoring.score_prompts(lm, prompts, kept=kept)
    assert math.isfinite(before.nll_new) and math.isnan(after.nll_new) and math.isnan(after.nll_true)


def test_a_failed_edit_scores_zero_only_where_the_fact_has_a_score():
    assert str(scoring.failed_scores({"a": 0.5, "b": math.nan})) == str({"a": 0.0, "b": math.nan})


@pytest.mark.parametrize("model_type", ("gpt2", "llama"))  # without and with a token that begins every text
@pytest.mark.parametrize("prompt", ("", " "))
def test_an_empty_prompt_is_refused_before_anything_is_scored(model_type, prompt):
    lm = tiny.tiny_model(model_type)
    with pytest.raises(ValueError, match=f"prompt '{prompt}' is empty, so nothing can be scored after it"):
        scoring.check_prompts(lm, [replace(FACT, paraphrase_prompts=(prompt,))])
