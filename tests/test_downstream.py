"""Answers against those of transformers, and their scores by hand."""

import dataclasses
import math

import pytest
import tiny
import torch

from editscale.data import glue
from editscale.metrics import downstream
from editscale.models import tokens

# Single letters as answer words, so that a model of random weights gives all three kinds of answers.
FORM = glue.Format("The {sentence}\nA :", {"e": 1, "n": 0}, ("no", "yes"))
SENTENCES = (
    "harp of Ada Example is in the city of Lund.",
    "river runs through the town.",
    "house was empty. ",
    "bridge was closed at noon.",
    "river runs through the old town and the city.",
    "mother tongue of Bo Sample is Danish",
    "capital of Sweden",
    "house was empty. ",
)
TASK = glue.Task(
    "letters",
    FORM,
    ({"sentence": "town is in Denmark.", "label": 1}, {"sentence": "harp.", "label": 0}),
    tuple({"sentence": text, "label": i % 2} for i, text in enumerate(SENTENCES)),
    "here",
    False,
)


def prompts_of(lm, task=TASK):
    return [tokens.prompt_ids(lm.tokenizer, prompt) for prompt in task.prompts]


@pytest.mark.parametrize("model_type", ("gpt2", "llama", "gemma"))
def test_answers_equal_those_of_generate(model_type):
    lm = tiny.tiny_model(model_type, seed=1, dtype=torch.float64, tied=False)
    expected = []
    for prompt in prompts_of(lm):
        ids = torch.tensor([prompt])
        out = lm.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=3, do_sample=False)
        expected.append(FORM.parse(lm.tokenizer.decode(out[0], skip_special_tokens=True)))
    assert downstream.TaskPrompts(lm, TASK).answers() == expected
    assert set(expected) == {0, 1, glue.INVALID}  # answers of every kind were compared


@pytest.mark.parametrize("value", (math.nan, math.inf))
def test_a_model_with_non_finite_weights_gives_invalid_answers(value):
    lm = tiny.tiny_model("llama")
    lm.weight(1).fill_(value)
    row = downstream.TaskPrompts(lm, TASK).row()
    assert row == {"task": "letters", "n_examples": 8, "accuracy": 0, "f1": 0, "mcc": 0, "invalid": 1}


@pytest.mark.parametrize(("positions", "advice"), ((55, "with shots 1 all prompts fit"), (30, "without any shot")))
def test_prompts_that_are_too_long_say_how_many_shots_fit(positions, advice):
    lm = tiny.tiny_model("gpt2")
    lm.model.config.max_position_embeddings = positions
    with pytest.raises(ValueError, match=f"letters with 2 shots: a text of 64 tokens is longer than .*{advice}"):
        downstream.TaskPrompts(lm, TASK)
    if positions == 55:
        downstream.TaskPrompts(lm, dataclasses.replace(TASK, demonstrations=TASK.demonstrations[:1]))


def test_a_row_scores_the_model_as_it_stands():
    lm = tiny.tiny_model("gpt2", seed=1, tied=False)
    before = downstream.TaskPrompts(lm, TASK).answers()
    row = downstream.TaskPrompts(lm, dataclasses.replace(TASK, examples=TASK.examples[:4])).row()
    assert row == {"task": "letters", "n_examples": 4, **downstream.scores(before[:4], [0, 1, 0, 1])}
    assert 0 < row["accuracy"] < 1
    kept = downstream.TaskPrompts(lm, TASK, layer=2, max_bytes=10**6)
    assert kept.row() == downstream.TaskPrompts(lm, TASK).row()
    lm.weight(2).mul_(-3)
    assert downstream.TaskPrompts(lm, TASK).answers() == kept.answers() != before


# --------------------------------------------------------------------------------------------------- scores


def test_scores_by_hand():
    """True 0: answered 0, 0, 1, invalid. True 1: answered 1, 1, 1, 0.

    F1 of 0 is 2·2/(4 + 3), of 1 2·3/(4 + 4), both weigh a half. R_K: s = 8, c = 5, Σ p t = 3·4 + 4·4 = 28,
    (5·8 − 28) / √((64 − 9 − 16 − 1)(64 − 32)).
    """
    row = downstream.scores([0, 0, 1, -1, 1, 1, 1, 0], [0, 0, 0, 0, 1, 1, 1, 1])
    assert row["accuracy"] == 5 / 8 and row["invalid"] == 1 / 8
    assert row["f1"] == pytest.approx((4 / 7 + 6 / 8) / 2)
    assert row["mcc"] == pytest.approx(12 / math.sqrt(38 * 32))


def test_f1_weighs_a_class_with_how_often_it_is_true():
    """True 0 three times, hit twice; true 1 once, hit once: F1 4/5 and 2/3."""
    row = downstream.scores([0, 0, 1, 1], [0, 0, 0, 1])
    assert row["f1"] == pytest.approx(0.75 * 4 / 5 + 0.25 * 2 / 3)
    assert row["mcc"] == pytest.approx(2 / math.sqrt(3 * 1 * 2 * 2))  # (TP·TN − FP·FN) / √(…) of two classes


def test_right_and_wrong_answers_have_the_extreme_scores():
    labels = [0, 1, 1, 0]
    right = downstream.scores(labels, labels)
    assert right == {"accuracy": 1, "f1": 1, "mcc": 1, "invalid": 0}
    wrong = downstream.scores([1, 0, 0, 1], labels)
    assert wrong == {"accuracy": 0, "f1": 0, "mcc": -1, "invalid": 0}


@pytest.mark.parametrize("label", (0, 1))
def test_a_constant_classifier_of_balanced_examples_has_a_third_of_f1(label):
    row = downstream.scores([label] * 200, [0, 1] * 100)
    assert row["f1"] == pytest.approx(1 / 3) and (row["accuracy"], row["mcc"], row["invalid"]) == (0.5, 0, 0)


def test_invalid_answers_alone_have_no_score():
    row = downstream.scores([glue.INVALID] * 200, [0, 1] * 100)
    assert row == {"accuracy": 0, "f1": 0, "mcc": 0, "invalid": 1}


def test_references_are_the_better_constant_and_a_coin():
    balanced = downstream.references([0, 1] * 5)
    assert balanced["constant"]["f1"] == pytest.approx(1 / 3)
    assert balanced["chance"] == {"accuracy": 0.5, "f1": 0.5, "mcc": 0, "invalid": 0}
    skewed = downstream.references([0, 1, 1, 1])
    assert skewed["constant"] == downstream.scores([1] * 4, [0, 1, 1, 1]) and skewed["constant"]["accuracy"] == 0.75
    assert skewed["chance"]["accuracy"] == 0.5


@pytest.mark.parametrize(("answers", "labels"), [([], []), ([0, 1], [0])])
def test_answers_and_labels_must_belong_together(answers, labels):
    with pytest.raises(ValueError, match="one answer for each example"):
        downstream.scores(answers, labels)
