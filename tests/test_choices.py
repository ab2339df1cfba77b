"""Choices: read from every form, scored as a plain forward does, and what no item is is named."""

import json
import math
import re
from collections import Counter

import numpy as np
import pytest
import tiny
import torch

from editscale.data import choice_files
from editscale.data.choice_files import Choices, Item
from editscale.metrics import choices

REVISION = "0123456789abcdef0123456789abcdef01234567"
BLIMP = {"sentence_good": "A cat sleeps.", "sentence_bad": "A cat sleep.", "linguistics_term": "agreement", "UID": "x"}
PIQA = {"goal": "Dry a shoe.", "sol1": "Put it in a lake.", "sol2": "Put it in the sun.", "label": 1}
HELLASWAG = {
    "activity_label": "Roofing",
    "ctx_a": "A man [header] sits [title] on a roof.",
    "ctx_b": "he",
    "endings": ["sings.", "[step] is a fish.", "flies  off.", "melts."],
    "label": "2",
}
OWN = {"context": "The ice is", "continuations": ["cold.", "loud."], "right": 0, "phenomenon": "winter"}
ITEMS = (
    Item("The harp of Ada Example is in the city of", ("Lund", "Denmark and Sweden"), 0, "places"),
    Item("The harp of Ada Example is in the", ("house.", "town by the river.", "Danish"), 2, "places"),
    Item("", ("The river runs through the town.", "The river run through the town."), 0, "verbs"),
    Item("", ("Ada plays the cello.", "Ada play the cello."), 1, "verbs"),
)
SET = Choices("mixed", ITEMS, "here")


@pytest.fixture
def write(tmp_path):
    def write(*rows, name="mine.jsonl"):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return str(tmp_path / name)

    return write


# -------------------------------------------------------------------------------------------------- what is read


def test_lines_of_every_form_are_read_from_one_file(write):
    found = choice_files.open_choices(path := write(OWN, BLIMP, PIQA, HELLASWAG))
    assert (found.name, found.source, [file.as_posix() for file in found.files]) == ("mine", path, [path])
    assert found.items == (
        Item("The ice is", ("cold.", "loud."), 0, "winter"),
        Item("", ("A cat sleeps.", "A cat sleep."), 0, "agreement"),
        Item("Question: Dry a shoe.\nAnswer:", ("Put it in a lake.", "Put it in the sun."), 1),
        Item("Roofing: A man sits. on a roof. He", ("sings.", "is a fish.", "flies off.", "melts."), 2),
    )


@pytest.mark.parametrize(
    ("name", "called", "asked"),
    [
        (f"nyu-mll/blimp/wh_island/train@{REVISION}", "wh_island", ("nyu-mll/blimp", "wh_island", "train")),
        (f"Rowan/hellaswag/validation@{REVISION}", "hellaswag", ("Rowan/hellaswag", None, "validation")),
    ],
)
def test_a_data_set_of_the_hub_is_read_at_its_revision(monkeypatch, name, called, asked):
    import datasets

    seen = []

    def load_dataset(*args, **given):
        seen.append((*args, given["split"], given["revision"]))
        return [BLIMP, BLIMP | {"sentence_good": "A dog sleeps."}]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    found = choice_files.open_choices(name)
    assert (found.name, found.source, found.files, len(found.items)) == (called, name, (), 2)
    assert seen == [(*asked, REVISION)]
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: [BLIMP, {"text": "A cat."}])
    with pytest.raises(ValueError, match=f"{REVISION}, row 2 has the fields text; an item is"):
        choice_files.open_choices(name)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: 1 / 0)
    with pytest.raises(FileNotFoundError, match="could not be read: ZeroDivisionError.*or give a .jsonl file"):
        choice_files.open_choices(name)


def test_fewer_items_keep_the_shares_of_the_phenomena():
    whole, some = choice_files.open_choices("minimal_pairs"), choice_files.open_choices("minimal_pairs", 18)
    assert set(Counter(item.phenomenon for item in some.items).values()) == {2}
    assert [item for item in whole.items if item in some.items] == list(some.items)
    assert choice_files.open_choices("minimal_pairs", 10**6) == whole


def test_the_bundled_pairs_are_whole_sentences_that_differ_in_one_place():
    items = choice_files.open_choices("minimal_pairs").items
    counts = Counter(item.phenomenon for item in items)
    assert len(counts) == 9 and set(counts.values()) == {24}
    assert len({text for item in items for text in item.continuations}) == 2 * len(items)
    for item in items:
        assert item.context == "" and item.right == 0 and len(item.continuations) == 2
        good, bad = (re.findall(r"[\w']+", text) for text in item.continuations)
        assert len(good) == len(bad) and sum(a != b for a, b in zip(good, bad, strict=True)) in (1, 2, 3, 4), item
        assert sorted(good) == sorted(bad) or sum(a != b for a, b in zip(good, bad, strict=True)) == 1, item
        for text in item.continuations:
            assert re.fullmatch(r"[A-Z][A-Za-z ,']+[.?]", text) and "  " not in text, text


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "A cat."}, "has the fields text; an item is"),
        (OWN | {"context": None}, "has None where a text"),
        (OWN | {"phenomenon": 3}, "has 3 where a text"),
        (OWN | {"continuations": "cold."}, "has None where a text, or a list of texts"),
        (OWN | {"continuations": []}, "has None where a text, or a list of texts"),
        (OWN | {"continuations": ["cold.", 1]}, "has 1 where a text"),
        (OWN | {"continuations": ["cold."]}, "continuations are two or more"),
        (OWN | {"continuations": ["cold.", "cold."]}, "the right continuation is among the wrong ones too: 'cold.'"),
        (OWN | {"continuations": ["cold.", " "]}, "none is empty"),
        (OWN | {"right": 2}, "the right continuation is 2, expected 0 to 1"),
        (OWN | {"right": True}, "the right continuation is True"),
        (PIQA | {"label": -1}, "the right continuation is -1, expected 0 to 1; test splits"),
        (PIQA | {"goal": None}, "has None where a text belongs, goal"),
        (HELLASWAG | {"ctx_b": 1}, "has 1 where a text belongs, ctx_b"),
        (HELLASWAG | {"endings": None}, "has None where a text"),
        (HELLASWAG | {"endings": ["sings.", None]}, "has None where a text"),
        (HELLASWAG | {"label": ""}, "the right continuation is '', expected 0 to 3"),
        (OWN | {"context": "The ice is "}, "the context ends in white space"),
        (BLIMP | {"sentence_bad": None}, "has None where a text"),
    ],
)
def test_what_is_no_item_is_an_error_that_names_its_line(write, row, message):
    with pytest.raises(ValueError, match=rf"mine.jsonl, line 2.*{message}"):
        choice_files.open_choices(write(OWN, row))


def test_what_is_no_set_of_choices_is_named(write, tmp_path):
    for name in ("blimp", "nyu-mll/blimp", "nyu-mll/blimp/train@main", "pairs.csv"):
        with pytest.raises(ValueError, match=f"unknown choices '{name}'; give minimal_pairs, a .jsonl file, or a data"):
            choice_files.open_choices(name)
    with pytest.raises(FileNotFoundError, match="none.jsonl, which the parameter choices names"):
        choice_files.open_choices(str(tmp_path / "none.jsonl"))
    with pytest.raises(ValueError, match="holds no item; each is one like"):
        choice_files.open_choices(write())
    with pytest.raises(ValueError, match="choices are empty; give one or more"):
        choice_files.open_all([])
    with pytest.raises(ValueError, match="name minimal_pairs twice"):
        choice_files.open_all(["minimal_pairs", write(OWN, name="minimal_pairs.jsonl")])
    for n in (-1, True, 2.0):
        with pytest.raises(ValueError, match=f"n_items {n} is not a number of items"):
            choice_files.open_choices("minimal_pairs", n)


# --------------------------------------------------------------------------------------------------- scores


def plain(lm, item):
    """Scores of an item by one plain forward for each continuation."""
    bos, scores = lm.tokenizer("")["input_ids"], []
    for text in item.continuations:
        whole = f"{item.context} {text}" if item.context else text
        ids = lm.tokenizer(whole)["input_ids"]
        n = len(lm.tokenizer(item.context)["input_ids"]) if item.context else 1
        ids = torch.tensor([ids if bos or item.context else [0, *ids]])  # 0 is <|endoftext|>
        log_p = lm.model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[n - 1 :, 0]
        scores.append((log_p.mean() if item.context else log_p.sum()).item())
    return scores


@pytest.mark.parametrize("model_type", ("gpt2", "llama"))  # without a start token and with one
@pytest.mark.parametrize("given", ({}, {"batch_tokens": 8}, {"layer": 2, "max_bytes": 10**6}, {"layer": 2}))
def test_scores_are_those_of_a_plain_forward(model_type, given):
    lm = tiny.tiny_model(model_type, seed=1, dtype=torch.float64, tied=False)
    asks = choices.ChoicePrompts(lm, SET, **given)
    for _ in range(2):
        for item, found in zip(ITEMS, asks.scores(), strict=True):
            np.testing.assert_allclose(found, plain(lm, item), rtol=1e-6)  # transformers rotates in float32
        lm.weight(2).mul_(-3)  # an edit: what is kept of lower layers stays right


def test_rows_are_of_all_items_and_of_each_phenomenon():
    lm = tiny.tiny_model("gpt2", seed=1, tied=False)
    rows = choices.ChoicePrompts(lm, SET).rows()
    assert [(row["task"], row["phenomenon"], row["n_examples"]) for row in rows] == [
        ("mixed", "all", 4),
        ("mixed", "places", 2),
        ("mixed", "verbs", 2),
    ]
    assert rows[0]["chance"] == pytest.approx((3 / 2 + 1 / 3) / 4) and rows[2]["chance"] == 0.5
    for name in ("accuracy", "margin"):
        assert rows[0][name] == pytest.approx((rows[1][name] + rows[2][name]) / 2)
    assert len(choices.ChoicePrompts(lm, Choices("one", ITEMS[:2], "")).rows()) == 1


def test_a_summary_by_hand():
    """Right, wrong, a draw of two, and one without a number: ½·(1 + ½) of 4 right, margins 2, −1, 0."""
    scores = [np.array(of) for of in ([-1.0, -3.0], [-2.0, -1.0, -5.0], [-1.0, -1.0], [-1.0, math.nan])]
    found = choices.summary(scores, [0, 0, 1, 0])
    assert found["accuracy"] == 1.5 / 4 and found["accuracy_se"] == pytest.approx(math.sqrt(0.375 * 0.625 / 4))
    assert found["margin"] == pytest.approx(1 / 3) and found["invalid"] == 0.25
    assert found["margin_se"] == pytest.approx(np.std([2, -1, 0], ddof=1) / math.sqrt(3))
    assert found["chance"] == pytest.approx((3 / 2 + 1 / 3) / 4) and found["n_examples"] == 4
    assert math.isnan(choices.summary(scores[:1], [0])["margin_se"])


@pytest.mark.parametrize("value", (math.nan, math.inf))
def test_a_model_with_non_finite_weights_has_invalid_items_and_no_margin(value):
    lm = tiny.tiny_model("llama")
    lm.weight(1).fill_(value)
    row = choices.ChoicePrompts(lm, SET).rows()[0]
    assert (row["accuracy"], row["invalid"]) == (0, 1) and math.isnan(row["margin"]) and math.isnan(row["margin_se"])


def test_texts_that_cannot_be_scored_are_refused_before_anything_runs():
    lm = tiny.tiny_model("gpt2")
    with pytest.raises(ValueError, match="longer than max_position_embeddings"):
        choices.ChoicePrompts(lm, Choices("long", (Item("the " * 127 + "the", ("a", "the river"), 0),), ""))


def test_a_small_model_finds_most_of_the_bundled_pairs():
    """Not its score: that the pairs carry a signal, 2 of each phenomenon."""
    lm = tiny.smollm2()
    row = choices.ChoicePrompts(lm, choice_files.open_choices("minimal_pairs", 18)).rows()[0]
    assert row["accuracy"] >= 0.75 and row["margin"] > 3 * row["margin_se"]
