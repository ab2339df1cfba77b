"""Scores: their arithmetic by hand, and prompt scores against full forwards one by one."""

import math

import pytest
import tiny
import torch

from editscale import metrics, tokens
from editscale.facts import Fact
from editscale.metrics import PromptScore

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
    row = metrics.fact_scores(by_kind)
    assert tuple(row) == metrics.COLUMNS
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
    row = metrics.fact_scores({kind: [tie] for kind in metrics.KINDS})
    assert row["efficacy"] == row["paraphrase"] == row["neighborhood"] == 0


def test_a_kind_without_prompts_has_no_score():
    row = metrics.fact_scores({"efficacy": [PromptScore(1.0, 2.0, True, False)], "paraphrase": [], "neighborhood": []})
    assert row["efficacy"] == 1 and math.isnan(row["paraphrase"]) and math.isnan(row["neighborhood_accuracy"])


def test_harmonic_score_reproduces_a_published_row():
    """GPT-2 XL with ROME: ES 100.0, PS 96.4, NS 75.4 give S 89.2 (arXiv:2202.05262, table 4)."""
    assert metrics.harmonic_score(100.0, 96.4, 75.4) == pytest.approx(89.2, abs=0.05)
    assert metrics.harmonic_score(100.0, 0.0, 75.4) == 0


def one_by_one(lm, prompt, target):
    """NLL per token and greedy correctness from one full forward, the definition of methods in the reference."""
    before, after = tokens.prompt_ids(lm.tokenizer, prompt), tokens.target_ids(lm.tokenizer, prompt, target)
    log_p = lm.model(torch.tensor([before + after])).logits[0].log_softmax(-1)
    at = [len(before) + i - 1 for i in range(len(after))]
    nll = -sum(log_p[p, t].item() for p, t in zip(at, after, strict=True)) / len(after)
    return nll, all(log_p[p].argmax().item() == t for p, t in zip(at, after, strict=True))


@pytest.mark.parametrize("batch_tokens", (1, 40, 4096))
@pytest.mark.parametrize("model_type", ("gpt2", "gptj", "llama", "gemma2"))
def test_packed_scores_equal_full_forwards_one_by_one(model_type, batch_tokens):
    lm = tiny.tiny_model(model_type, dtype=torch.float64)
    prompts = [
        (prompt, new, true)
        for prompt in ("Ada Example plays the", "The mother tongue of Bo Sample is", "Lund")
        for new, true in (("harp", "cello"), ("old Swedish harp", "Danish"), ("in", "a house by the river"))
    ]
    for (prompt, new, true), score in zip(
        prompts, metrics.score_prompts(lm, prompts, batch_tokens=batch_tokens), strict=True
    ):
        for target, nll, correct in (
            (new, score.nll_new, score.correct_new),
            (true, score.nll_true, score.correct_true),
        ):
            expected, flag = one_by_one(lm, prompt, target)
            assert nll == pytest.approx(expected, abs=1e-9 if model_type == "gpt2" else 1e-5) and correct == flag


def test_facts_are_scored_by_kind():
    lm = tiny.tiny_model("gpt2")
    (scores,) = metrics.score_facts(lm, [FACT])
    assert [len(scores[kind]) for kind in metrics.KINDS] == [1, 1, 2]
    assert scores["neighborhood"] == metrics.score_prompts(
        lm, [(p, "old harp", "cello") for p in FACT.neighborhood_prompts]
    )
