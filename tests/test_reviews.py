"""The bundled set `reviews`: balanced, well formed, and every sentence its own."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest

import editscale

LINES = (Path(editscale.__file__).parent / "data" / "reviews.jsonl").read_text(encoding="utf-8").splitlines()


@pytest.fixture(scope="module")
def reviews():
    return [json.loads(line) for line in LINES]


@pytest.fixture(scope="module")
def words(reviews):
    """Each sentence as lower-case words, hyphens split, apostrophes kept."""
    return [re.findall(r"[a-z0-9']+", review["sentence"].lower()) for review in reviews]


def shared_ngrams(words, n):
    """The n-word sequences that occur in more than one sentence, with the number of those sentences."""
    counts = Counter(ngram for sentence in words for ngram in set(zip(*(sentence[i:] for i in range(n)), strict=False)))
    return {" ".join(ngram): count for ngram, count in counts.items() if count > 1}


def test_every_line_is_one_object_with_the_four_fields_of_the_schema(reviews):
    assert all(list(review) == ["idx", "sentence", "label", "split"] for review in reviews)
    assert [review["idx"] for review in reviews] == list(range(204))
    for review in reviews:
        assert type(review["idx"]) is int and type(review["label"]) is int and review["label"] in (0, 1)
        assert review["split"] in ("examples", "demonstrations")


def test_there_are_200_balanced_examples_followed_by_four_demonstrations_in_turn(reviews):
    assert [review["split"] for review in reviews] == ["examples"] * 200 + ["demonstrations"] * 4
    assert Counter(review["label"] for review in reviews[:200]) == {0: 100, 1: 100}
    assert [review["label"] for review in reviews[200:]] == [0, 1, 0, 1]


def test_labels_of_the_examples_come_in_no_regular_order(reviews):
    labels = [review["label"] for review in reviews[:200]]
    runs = re.findall(r"0+|1+", "".join(map(str, labels)))
    assert max(map(len, runs)) <= 8
    # A shuffle of 100 and 100 has 101 runs on average, standard deviation 7; alternating labels have 200.
    assert 80 <= len(runs) <= 122
    assert all(40 <= 2 * sum(labels[i : i + 50]) <= 60 for i in range(0, 200, 50))


def test_every_sentence_is_plain_text_on_one_line_from_capital_to_full_stop(reviews):
    for review in reviews:
        # Quotation marks, braces and the prompt's own line breaks would interfere with a prompt.
        assert re.fullmatch(r"[A-Z][A-Za-z ,;:'-]+[.?!]", review["sentence"]), review
        assert "  " not in review["sentence"]


def test_no_two_sentences_are_the_same(words):
    assert len(set(map(tuple, words))) == 204


def test_no_two_sentences_share_four_words_in_a_row(words):
    assert shared_ngrams(words, 4) == {}


def test_the_search_for_shared_sequences_finds_a_planted_one(words):
    planted = [*words, ["then", *words[0][1:5], "then"]]
    assert shared_ngrams(planted, 4) == {" ".join(words[0][1:5]): 2}


def test_openings_are_varied(words):
    assert max(Counter(tuple(sentence[:2]) for sentence in words).values()) <= 3
    assert len({sentence[0] for sentence in words}) > 100


def test_lengths_run_from_5_to_30_words_and_do_not_give_the_label_away(reviews, words):
    lengths = [len(sentence) for sentence in words]
    assert 5 <= min(lengths) <= 7 and 25 <= max(lengths) <= 30
    sums = {label: sum(n for n, review in zip(lengths, reviews, strict=True) if review["label"] == label)
            for label in (0, 1)}  # fmt: skip
    assert abs(sums[0] - sums[1]) / 102 < 1  # words per sentence


def test_the_answer_words_occur_in_no_sentence(reviews):
    assert [review for review in reviews if re.search("positiv|negativ|sentiment", review["sentence"], re.I)] == []
