"""Answers against those of transformers, and their scores by hand."""

import dataclasses
import math

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st

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
    unknown = [row.pop(name) for name in ("valid_accuracy", "valid_accuracy_se")]
    scores = {"accuracy": 0, "f1": 0, "mcc": 0, "invalid": 1, "invalid_se": 0}
    assert row == {"task": "letters", "n_examples": 8, **scores} and np.isnan(unknown).all()
    assert np.isnan(list(downstream.TaskPrompts(lm, TASK).separation().values())).all()


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
    given, labels = before[:4], [0, 1, 0, 1]
    expected = downstream.scores(given, labels) | downstream.apart(given, labels)
    assert row == {"task": "letters", "n_examples": 4, **expected}
    assert 0 < row["accuracy"] < 1
    kept = downstream.TaskPrompts(lm, TASK, layer=2, max_bytes=10**6)
    assert kept.row() == downstream.TaskPrompts(lm, TASK).row()
    words = kept.separation()
    assert words == pytest.approx(downstream.TaskPrompts(lm, TASK).separation()) and 0 < words["auroc"] < 1
    lm.weight(2).mul_(-3)
    assert downstream.TaskPrompts(lm, TASK).answers() == kept.answers() != before
    np.testing.assert_allclose(kept.label_scores(), downstream.TaskPrompts(lm, TASK).label_scores(), rtol=1e-4)
    assert kept.separation() != words


# --------------------------------------------------------------------------------------------- answer words


@pytest.mark.parametrize("model_type", ("gpt2", "llama"))
def test_a_label_has_the_mean_log_probability_of_its_likeliest_word_in_a_plain_forward(model_type):
    lm = tiny.tiny_model(model_type, seed=1, dtype=torch.float64, tied=False)
    form = dataclasses.replace(FORM, words={"yes": 1, "no": 0, "certainly": 1, "Lund": 0})
    task = dataclasses.replace(TASK, format=form, examples=TASK.examples[:3])
    expected = []
    for prompt in task.prompts:
        of_word, before = {}, len(lm.tokenizer(prompt)["input_ids"])
        for word in form.words:
            ids = lm.tokenizer(f"{prompt} {word}", return_tensors="pt")["input_ids"]
            log_p = lm.model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[before - 1 :]
            of_word[word] = log_p.mean().item()
        expected.append([max(of_word["no"], of_word["Lund"]), max(of_word["yes"], of_word["certainly"])])
    found = downstream.TaskPrompts(lm, task)
    assert max(len(ids) for _, ids in found.words.pairs) > 1
    np.testing.assert_allclose(found.label_scores(), expected, rtol=1e-6)  # transformers rotates in float32
    margins = np.diff(expected)[:, 0]  # labels 0, 1, 0
    assert found.separation()["auroc"] == (margins[1] > margins[[0, 2]]).mean()
    assert np.isnan(found.separation()["auroc_se"])  # a single example of label 1


def test_one_label_only_or_three_have_no_area():
    lm = tiny.tiny_model("gpt2", seed=1, tied=False)
    one = dataclasses.replace(TASK, examples=tuple(of for of in TASK.examples if of["label"]))
    form = dataclasses.replace(FORM, words=FORM.words | {"x": 2}, labels=tuple("abc"))
    three = dataclasses.replace(TASK, format=form)
    for task in (one, three):
        assert np.isnan(list(downstream.TaskPrompts(lm, task).separation().values())).all()


FEW = st.lists(st.integers(0, 4), min_size=1, max_size=12)  # with many ties


@given(FEW, FEW)
def test_the_area_is_the_share_of_pairs_in_the_right_order_ties_half(high, low):
    """And DeLong's error is that of its definition: the variances of each score's share over the other kind."""
    pairs = np.array([[(x > y) + 0.5 * (x == y) for y in low] for x in high])
    area, error = downstream.auroc(high, low)
    assert area == pytest.approx(pairs.mean())
    assert downstream.auroc(low, high)[0] == pytest.approx(1 - area)
    if min(pairs.shape) > 1:
        of_high, of_low = (pairs.mean(axis=k) for k in (1, 0))
        variance = of_high.var(ddof=1) / len(high) + of_low.var(ddof=1) / len(low)
        assert error == pytest.approx(math.sqrt(variance), abs=1e-12)
        assert downstream.auroc(np.exp(high), np.exp(low)) == pytest.approx((area, error))  # a matter of ranks
    else:
        assert math.isnan(error)


def test_delongs_error_is_what_the_area_varies_by_and_close_to_hanley_and_mcneils():
    """Two normals 1.2 apart, 100 of each: A = Φ(1.2 / √2) = 0.802. Hanley and McNeil 1982, eq. 2, gives 0.031. Within
    8 %: 400 draws tell a standard deviation to 4 %, and the formula is of another distribution."""
    rng = np.random.default_rng(0)
    found = np.array([downstream.auroc(rng.normal(1.2, 1, 100), rng.normal(0, 1, 100)) for _ in range(400)])
    area, error = found.mean(axis=0)
    q1, q2 = area / (2 - area), 2 * area**2 / (1 + area)
    hanley = math.sqrt((area * (1 - area) + 99 * (q1 + q2 - 2 * area**2)) / 100**2)
    assert area == pytest.approx(0.802, abs=0.005)
    assert error == pytest.approx(found[:, 0].std(), rel=0.08) and error == pytest.approx(hanley, rel=0.08)


@pytest.mark.parametrize(("high", "low"), [([], [1]), ([1], []), ([math.nan, 1], [0, 2]), ([1, 2], [0, math.nan])])
def test_an_area_of_nothing_or_of_nan_is_not_known(high, low):
    assert np.isnan(downstream.auroc(high, low)).all()


def test_valid_and_invalid_answers_are_told_apart_with_their_errors():
    """Of 8 answers 2 invalid, of the 6 valid ones 4 right: √(⅔ · ⅓ / 6) and √(¼ · ¾ / 8)."""
    found = downstream.apart([0, 0, 1, 1, 1, 0, -1, -1], [0, 0, 1, 1, 0, 1, 1, 0])
    assert found["valid_accuracy"] == pytest.approx(2 / 3)
    assert found["valid_accuracy_se"] == pytest.approx(math.sqrt(2 / 9 / 6))
    assert found["invalid_se"] == pytest.approx(math.sqrt(3 / 16 / 8))
    nothing = downstream.apart([-1, -1], [0, 1])
    assert math.isnan(nothing["valid_accuracy"]) and math.isnan(nothing["valid_accuracy_se"])
    assert nothing["invalid_se"] == 0 and math.isnan(downstream.binomial_error(0.5, 0))


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
