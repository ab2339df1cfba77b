"""The bundled sentence pairs are balanced, well formed and written one by one, not filled into templates."""

import json
import re
from collections import Counter
from pathlib import Path

import editscale

PATH = Path(editscale.__file__).parent / "data" / "paraphrases.jsonl"
PAIRS = [json.loads(line) for line in PATH.read_text(encoding="utf-8").splitlines()]
EXAMPLES = [pair for pair in PAIRS if pair["split"] == "examples"]
DEMONSTRATIONS = [pair for pair in PAIRS if pair["split"] == "demonstrations"]


def words(sentence):
    return re.findall(r"[a-z0-9'-]+", sentence.lower())


def sentences(pair):
    return pair["sentence1"], pair["sentence2"]


def overlap(pair):
    """Shared share of the distinct words of the two sentences, 0–1."""
    first, second = (set(words(sentence)) for sentence in sentences(pair))
    return len(first & second) / len(first | second)


def shared_by_pairs(parts):
    """Parts that more than one pair has ↦ idx of those pairs; `parts` maps a sentence to a list."""
    owners = {}
    for pair in PAIRS:
        for part in {part for sentence in sentences(pair) for part in parts(sentence)}:
            owners.setdefault(part, []).append(pair["idx"])
    return {part: idx for part, idx in owners.items() if len(idx) > 1}


def five_word_sequences(sentence):
    spelled = words(sentence)
    return [" ".join(spelled[i : i + 5]) for i in range(len(spelled) - 4)]


def test_every_line_has_the_same_typed_fields():
    form = {"idx": int, "sentence1": str, "sentence2": str, "label": int, "split": str}
    assert [pair for pair in PAIRS if {name: type(value) for name, value in pair.items()} != form] == []
    assert {pair["split"] for pair in PAIRS} == {"examples", "demonstrations"}
    assert [pair["idx"] for pair in PAIRS] == list(range(206))


def test_examples_are_balanced_and_mixed():
    assert Counter(pair["label"] for pair in EXAMPLES) == {0: 100, 1: 100}
    assert all(8 <= sum(pair["label"] for pair in EXAMPLES[i : i + 20]) <= 12 for i in range(0, 200, 20))


def test_the_six_demonstrations_follow_the_examples_with_their_labels_in_the_order_of_mrpc_prompts():
    assert PAIRS == EXAMPLES + DEMONSTRATIONS
    assert [pair["label"] for pair in DEMONSTRATIONS] == [0, 1, 0, 1, 1, 0]


def test_no_sentence_occurs_twice():
    spelled = Counter(" ".join(words(sentence)) for pair in PAIRS for sentence in sentences(pair))
    assert len(PAIRS) == 206 and spelled.most_common(1)[0][1] == 1


def test_no_two_pairs_share_five_words_in_a_row():
    assert shared_by_pairs(five_word_sequences) == {}


def test_no_two_pairs_open_with_the_same_three_words():
    assert shared_by_pairs(lambda sentence: [" ".join(words(sentence)[:3])]) == {}


def test_sentences_have_8_to_22_words_and_end_in_a_full_stop():
    for pair in PAIRS:
        for sentence in sentences(pair):
            assert 8 <= len(words(sentence)) <= 22, sentence
            assert re.fullmatch(r"[A-Z][ -~]*[a-z0-9]\.", sentence) and "  " not in sentence, sentence


def test_word_overlap_alone_does_not_tell_the_labels_apart():
    overlaps = {label: [overlap(pair) for pair in EXAMPLES if pair["label"] == label] for label in (0, 1)}
    means = {label: sum(values) / len(values) for label, values in overlaps.items()}
    assert abs(means[1] - means[0]) < 0.1
    best = max(
        sum((overlap(pair) >= threshold) == pair["label"] for pair in EXAMPLES) / len(EXAMPLES)
        for threshold in overlaps[0] + overlaps[1]
    )
    assert best < 0.7  # a threshold chosen with the labels in hand


def test_paraphrases_are_reworded_and_not_only_a_word_exchanged():
    assert max(overlap(pair) for pair in PAIRS if pair["label"] == 1) < 0.75
    assert max(abs(len(words(a)) - len(words(b))) for a, b in map(sentences, PAIRS)) <= 8
