"""Free generation: what is written is the greedy text, and what counts is stated by hand, in any script."""

import math
import re
import string

import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st

from editscale.data import words
from editscale.metrics import scoring, written
from editscale.models import decoding, tokens

SUBJECTS = ("Ada Example", "Bo Sample", "Lund", "The river", "Danish", "No one", "The harp", "Copenhagen", "Sweden")
RELATIONS = ("is in the city of", "plays the", "speaks", "was closed at", "and the", "is the capital of")
PROMPTS = [f"{subject} {relation}" for subject in SUBJECTS for relation in RELATIONS]
N = 6


@pytest.fixture(scope="module", params=("gpt2", "llama"))
def lm(request):
    """A model of random weights that likes to write whole words, so that it often writes what a tokenizer would."""
    lm = tiny.tiny_model(request.param, seed=1, dtype=torch.float64, tied=False)
    vocabulary = lm.tokenizer.get_vocab()
    lm.model.get_output_embeddings().weight[[i for word, i in vocabulary.items() if len(word) > 3]] *= 4
    return lm


def greedy(lm, prompts, n=N):
    return decoding.Greedy(lm, [tokens.prompt_ids(lm.tokenizer, prompt) for prompt in prompts], n)()


def targets_of(lm):
    """For each prompt a target that the model writes, of one to three tokens, where there is one, and one of another
    prompt."""
    found = []
    for i, (prompt, ids) in enumerate(zip(PROMPTS, greedy(lm, PROMPTS), strict=True)):
        text = lm.tokenizer.decode(ids[: 1 + i % 3])
        found += [(prompt, target) for target in (text, "Lund", " harp", " the town") if target.strip()]
    return found


def can_be_scored(lm, prompt, target):
    try:
        return bool(tokens.target_ids(lm.tokenizer, prompt, target))
    except ValueError:  # they share a token
        return False


# ------------------------------------------------------------------------------- against teacher forcing


def test_the_target_is_the_first_choice_at_every_token_exactly_where_the_greedy_text_begins_with_its_tokens(lm):
    """Teacher-forced accuracy and a prefix of the free text are one statement, of tokens."""
    pairs = [pair for pair in targets_of(lm) if can_be_scored(lm, *pair)]
    scores = scoring.score_prompts(lm, [(prompt, target, " harp") for prompt, target in pairs])
    free = []
    for (prompt, target), ids in zip(pairs, greedy(lm, [prompt for prompt, _ in pairs]), strict=True):
        wanted = tokens.target_ids(lm.tokenizer, prompt, target)
        free.append(ids[: len(wanted)] == wanted)
    assert free == [score.correct_new for score in scores]
    assert len(free) > 150 and 10 < sum(free) < len(free) - 10


def test_a_target_written_in_other_tokens_counts_here_and_is_no_first_choice_token_by_token(lm):
    """A model of random weights seldom writes a text in the tokens that its tokenizer would give it. The other way
    around, a first choice is no answer where the model goes on with the word."""
    pairs = [pair for pair in targets_of(lm) if can_be_scored(lm, *pair) and written.normalized(pair[1])]
    forced = scoring.score_prompts(lm, [(prompt, target, " harp") for prompt, target in pairs])
    free = written.answers(lm, pairs, 12)
    kinds = [(score.correct_new, answer.begins) for score, answer in zip(forced, free, strict=True)]
    assert all(kinds.count((forced, free)) > 3 for forced in (False, True) for free in (False, True))


def test_a_batch_gives_each_prompt_what_it_gives_alone(lm):
    pairs = [(prompt, "Lund") for prompt in PROMPTS[:12]]
    together = written.answers(lm, pairs, 8)
    assert together == [written.answers(lm, [pair], 8)[0] for pair in pairs]
    assert together == written.answers(lm, pairs, 8, batch_tokens=16)
    assert len({answer.text for answer in together}) > 6 and written.answers(lm, [], 8) == []


def test_an_end_of_text_token_ends_the_answer_and_the_tokens_after_it_are_not_read(lm, monkeypatch):
    town = lm.tokenizer(" Lund")["input_ids"][-2:]
    end = lm.tokenizer.eos_token_id
    monkeypatch.setattr(decoding.Greedy, "__call__", lambda _: [(*town, end, *town), town, (*town, *town)])
    n = 2 * len(town) + 1
    found = written.answers(lm, [("It is", "Lund")] * 3, n)
    assert [answer.exact for answer in found] == [True, True, False] and found[0].text.strip() == "Lund"


@pytest.mark.parametrize("value", (math.nan, math.inf))
def test_a_model_with_non_finite_weights_writes_nothing_and_matches_nothing(value):
    lm = tiny.tiny_model("llama")
    lm.weight(1).fill_(value)
    for answer in written.answers(lm, [(PROMPTS[0], "Lund"), (PROMPTS[1], "The")], 12):
        assert answer == written.Written("", "", False, False)


def test_too_few_tokens_an_empty_prompt_and_a_long_one_are_refused_before_anything_is_written(lm):
    with pytest.raises(ValueError, match=r"1 written tokens do not show .* 'Copenhagen', \d tokens.*let it write"):
        written.answers(lm, [("It is", "Copenhagen")], 1)
    with pytest.raises(ValueError, match="longer than max_position_embeddings"):
        written.answers(lm, [("the " * 127, "Lund")], 8)
    if not lm.tokenizer("")["input_ids"]:
        with pytest.raises(ValueError, match="the prompt before 'Lund' has no token"):
            written.answers(lm, [("It is", "Lund"), ("", "Lund")], 8)


# ---------------------------------------------------------------------------------------- what is an answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (" Rome. It is old", "Rome"),
        (" Rome\nIt is old", "Rome"),
        ("\nRome", ""),
        ("", ""),
        (" Rome, where it", "Rome, where it"),
        (" “Rome.” He", "“Rome"),
        (" Rome! Yes", "Rome"),
        (" Rome?", "Rome"),
        (" 3.5 million. It", "3.5 million"),
        (" St. Petersburg. It", "St. Petersburg"),
        (" J. R. R. Tolkien. He", "J. R. R. Tolkien"),
        (" Washington, D.C. is", "Washington, D.C. is"),
        (" Yahoo!Japan", "Yahoo!Japan"),
        ("東京。日本", "東京"),
    ],
)
def test_an_answer_ends_with_its_sentence_or_its_line(text, answer):
    assert written.judged(text, True, "x").answer == answer


@pytest.mark.parametrize(
    ("text", "target", "exact", "begins"),
    [
        (" Rome. It is old", "Rome", True, True),
        (" the Rome.", "Rome", True, True),
        (" ROME!", "Rome", True, True),
        (" Rome, where", "Rome", False, True),
        (" Romeo.", "Rome", False, False),
        (" in Rome.", "Rome", False, False),
        (" New-York.", "New York", False, False),  # as SQuAD has it: newyork
        (" New York City.", "New York", False, True),
        (" St. Petersburg. It", "St. Petersburg", True, True),
        (" St. Louis.", "St. Petersburg", False, False),
        ("\nRome", "Rome", False, False),
        ("", "Rome", False, False),
        ("", "The", False, False),
        (" ...", "The", False, False),
        (" The The. A band", "The The", True, True),
        (" A.", "A", True, True),
        ("", "?!", False, False),
        (" São Paulo.", "Sa\u0303o Paulo", True, True),  # composed or not
        (" Sao Paulo.", "São Paulo", False, False),
        (" STRASSE.", "Straße", True, True),
        (" «Москва».", "москва", True, True),
        (" Москвау.", "Москва", False, False),
        (" हिन्दी।", "हिन्दी", True, True),
        (" हिन्दी है", "हिन्द", False, False),  # an accent goes on with the word
        ("東京です", "東京", False, True),
        ("東京。", "東京", True, True),
        ("도쿄는", "도쿄", False, True),
        (" King’s Lynn.", "King's Lynn", True, True),
        (" Lund\ufffd", "Lund", False, True),
    ],
)
def test_what_counts_by_hand(text, target, exact, begins):
    found = written.judged(text, False, target)
    assert (found.exact, found.begins) == (exact, begins)


def test_a_text_that_was_only_cut_off_is_no_exact_match_and_one_that_the_model_ended_is():
    assert not written.judged(" Rome", False, "Rome").exact and written.judged(" Rome", False, "Rome").begins
    assert written.judged(" Rome", True, "Rome").exact


def squad(text):
    """`normalize_answer` of SQuAD's evaluation, in its own order of steps."""
    bare = "".join(c for c in text.lower() if c not in set(string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())


@given(st.text(st.sampled_from("aAnNtThHeE .,-'$+_\t3"), max_size=20))
def test_normalization_of_ascii_text_is_that_of_squad(text):
    assert not squad(text) or written.normalized(text) == squad(text)


@given(st.text(max_size=15), st.text(max_size=8), st.booleans())
def test_an_exact_match_begins_with_the_target_and_an_empty_answer_is_no_match(text, target, whole):
    found = written.judged(text, whole, target)
    assert found.begins or not found.exact
    assert (found.text == text and found.answer) or not found.exact
    again = written.normalized(text)
    assert written.normalized(again) == again or not squad(again)


def test_a_word_stands_where_no_letter_goes_on_with_it():
    assert words.place("Nothing, No", "No") == 9 and words.place("Nothing", "No") == -1
    assert words.place("not at all", "at") == 4 and words.place("No", "") == -1 and words.place("", "No") == -1
    assert words.place("これは東京です", "東京") == 3 and words.place("x(A)y", "(A)") == 1
