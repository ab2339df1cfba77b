"""Published formats of facts: what each field becomes, what may be missing, and what is refused by name."""

import copy
import json

import pytest

from editscale.data import facts
from editscale.data.facts import Fact, parse

PLAIN = {"subject": "Ada Example", "prompt": "Ada Example plays the", "target_new": "harp"}
COUNTERFACT = {
    "case_id": 3,
    "requested_rewrite": {
        "prompt": "{} plays the",
        "subject": "Ada Example",
        "target_new": {"str": "harp"},
        "target_true": {"str": "cello"},
    },
}
ZSRE = {
    "subject": "Ada Example",
    "src": "What does Ada Example play?",
    "pred": "tuba",
    "rephrase": "Which instrument does Ada Example play?",
    "alt": "harp",
    "answers": ["cello", "violoncello"],
    "loc": "nq question: what is the capital of denmark",
    "loc_ans": "Copenhagen",
    "cond": "cello >> harp || What does Ada Example play?",
}
KNOWEDIT = {
    **PLAIN,
    "ground_truth": ["cello"],
    "portability": {
        "Subject_Aliasing": [{"prompt": "A. Example plays the", "ground_truth": [["harp", "Celtic harp"]]}],
        "Reasoning": [{"prompt": "The strings of what Ada Example plays are", "ground_truth": "many"}],
        "Logical_Generalization": [],
    },
    "locality": {"Relation_Specificity": [{"prompt": ["Ada Example lives in"], "ground_truth": ["Lund"]}]},
}
MQUAKE = {
    "case_id": 5,
    "requested_rewrite": [
        {
            "prompt": "{} plays the",
            "relation_id": "P1303",
            "target_new": {"str": "harp", "id": "Q1"},
            "target_true": {"str": "cello", "id": "Q2"},
            "subject": "Ada Example",
            "question": "What does Ada Example play?",
        }
    ],
    "questions": ["How many strings has what Ada Example plays?", "What is the instrument of Ada Example made of?"],
    "answer": "four",
    "answer_alias": ["4"],
    "new_answer": "forty-seven",
    "new_answer_alias": [],
    "single_hops": [],
    "new_single_hops": [],
    "orig": {},
}


def test_a_minimal_record_is_a_fact():
    assert parse([PLAIN], "f") == parse([PLAIN | {"prompt": "{} plays the"}], "f") == [
        Fact(0, "Ada Example", "{} plays the", "harp")
    ]  # fmt: skip
    bare = copy.deepcopy(COUNTERFACT)
    del bare["case_id"], bare["requested_rewrite"]["target_true"]
    assert parse([bare], "f") == [Fact(0, "Ada Example", "{} plays the", "harp")]


def test_an_easyedit_neighborhood_prompt_keeps_its_own_answer():
    own = {"locality_prompt": "The capital of Denmark is", "locality_ground_truth": "Copenhagen"}
    (fact,) = parse([PLAIN | {"ground_truth": "cello"} | own], "f")
    assert fact.neighborhood_prompts == ("The capital of Denmark is",) and fact.neighborhood_answers == ("Copenhagen",)
    (same,) = parse([PLAIN | {"ground_truth": "Copenhagen"} | own], "f")
    assert same.neighborhood_answers == ()  # that of CounterFact: the true answer, which has no need to be said again


def test_a_zsre_pair_edits_alt_in_place_of_the_first_answer():
    (fact,) = parse([ZSRE], "f")
    assert fact == Fact(
        0, "Ada Example", "What does {} play?", "harp", "cello",
        paraphrase_prompts=("Which instrument does Ada Example play?",),
        neighborhood_prompts=("nq question: what is the capital of denmark",), neighborhood_answers=("Copenhagen",),
    )  # fmt: skip


def test_a_zsre_pair_without_alt_edits_its_answer_and_says_so(tmp_path):
    path = tmp_path / "zsre.json"
    path.write_text(json.dumps([ZSRE, ZSRE | {"alt": ""}]))
    found = facts.read(path)
    assert (found.facts[1].target_new, found.facts[1].target_true) == ("cello", "")
    assert found.notes == ["no alt: the first of answers is edited in, and there is no true answer (1 of 2 records)"]


def test_records_that_memit_made_of_zsre_have_no_true_answer():
    record = copy.deepcopy(COUNTERFACT)
    record["requested_rewrite"]["target_true"]["str"] = "<|endoftext|>"
    record["neighborhood_prompts"] = [{"prompt": "nq question: who is it?", "target": "Bo"}]
    (fact,) = parse([record], "f")
    assert fact.target_true == "" and fact.neighborhood_prompts == ("nq question: who is it?",)
    assert fact.neighborhood_answers == ("Bo",)


def test_a_knowedit_record_gives_portability_and_neighborhood_prompts_their_first_answers():
    (fact,) = parse([KNOWEDIT], "f")
    assert fact == Fact(
        0, "Ada Example", "{} plays the", "harp", "cello",
        neighborhood_prompts=("Ada Example lives in",), neighborhood_answers=("Lund",),
        portability_prompts=("A. Example plays the", "The strings of what Ada Example plays are"),
        portability_answers=("harp", "many"),
    )  # fmt: skip


@pytest.mark.parametrize(
    "given",
    (
        {"portability_prompt": "Q w", "portability_ground_truth": "e"},
        {"portability_prompts": ["Q w"], "portability_answers": ["e"]},
        {"portability": {"Recalled Relation": "(r)", "New Question": "Q w", "New Answer": "e"}},
        {"portability_inputs": {"one_hop": {"prompt": ["Q w"], "ground_truth": ["e"]}}},
    ),
)
def test_portability_prompts_are_read_in_every_published_shape(given):
    (fact,) = parse([PLAIN | given], "f")
    assert (fact.portability_prompts, fact.portability_answers) == (("Q w",), ("e",))


def test_a_single_edit_of_mquake_asks_its_questions_as_portability_prompts():
    (fact,) = parse([MQUAKE], "f")
    assert fact == Fact(
        5, "Ada Example", "{} plays the", "harp", "cello", "P1303", "Q1", "Q2",
        paraphrase_prompts=("What does Ada Example play?",), portability_prompts=tuple(MQUAKE["questions"]),
        portability_answers=("forty-seven",) * 2,
    )  # fmt: skip


def test_several_edits_of_an_mquake_instance_are_facts_without_its_questions(tmp_path):
    path = tmp_path / "mquake.json"
    path.write_text(json.dumps([MQUAKE, MQUAKE | {"requested_rewrite": MQUAKE["requested_rewrite"] * 2}]))
    found = facts.read(path)
    assert [fact.case_id for fact in found.facts] == [0, 1, 2]
    assert [len(fact.portability_prompts) for fact in found.facts] == [2, 0, 0]
    assert "questions to all of them are not read" in found.notes[0]


@pytest.mark.parametrize("nothing", (None, float("nan")))
def test_null_and_nan_in_a_field_that_may_be_missing_count_as_missing(nothing):
    record = copy.deepcopy(COUNTERFACT) | dict.fromkeys(
        ("attribute_prompts", "generation_prompts", "paraphrase_prompts", "portability"), nothing
    )
    record["requested_rewrite"] |= {"relation_id": nothing, "target_true": {"str": "cello", "id": nothing}}
    assert parse([record], "f") == parse([COUNTERFACT], "f")
    optional = dict.fromkeys(("case_id", "ground_truth", "rephrase_prompt", "locality_prompt", "locality"), nothing)
    assert parse([PLAIN | optional], "f") == parse([PLAIN], "f")


@pytest.mark.parametrize("nothing", (None, float("nan")))
@pytest.mark.parametrize("field", PLAIN)
def test_null_and_nan_in_a_needed_field_are_refused(field, nothing):
    with pytest.raises(ValueError, match=rf"f, record 0: missing {field} \(it is null\)"):
        parse([PLAIN | {field: nothing}], "f")


EMPTY = {
    "neighborhood_prompts": COUNTERFACT | {"neighborhood_prompts": ["a", ""]},
    "paraphrase_prompts": COUNTERFACT | {"paraphrase_prompts": ["a", "\t\n"]},
    "attribute_prompts": COUNTERFACT | {"attribute_prompts": ["a", " "]},
    "generation_prompts": COUNTERFACT | {"generation_prompts": ["a", ""]},
    "rephrase_prompt": PLAIN | {"case_id": 3, "rephrase_prompt": ["a", ""]},
    "locality_prompt": PLAIN | {"case_id": 3, "locality_prompt": ["a", " "]},
    "portability_prompts": COUNTERFACT | {"portability_prompts": ["a", ""], "portability_answers": ["b", "c"]},
}


@pytest.mark.parametrize("field", EMPTY)
def test_an_empty_prompt_is_refused_with_file_record_case_and_field(field):
    with pytest.raises(ValueError, match=rf"some/f\.json, record 0 \(case_id 3\): {field}\[1\] is empty"):
        parse([EMPTY[field]], "some/f.json")


BAD = {
    "an empty answer": ({"locality_prompt": "a b", "locality_ground_truth": ""}, "answer 0 of locality_prompt is ''"),
    "no answer among others": (
        {"neighborhood_prompts": ["a b", "c"], "neighborhood_answers": ["x", None]},
        "answer 1 of neighborhood_prompts is null",
    ),
    "portability without answers": ({"portability_prompt": "a b"}, "portability_prompt without portability_answers"),
    "an empty nested prompt": (
        {"portability": {"Reasoning": [{"prompt": " ", "ground_truth": "x"}]}},
        r"portability\.Reasoning\[0\]\.prompt is empty",
    ),
    "a nested prompt without answer": (
        {"locality": {"x": [{"prompt": "a b"}]}},
        r"locality\.x\[0\] has a prompt without",
    ),
    "an answer of nothing": (
        {"locality": {"x": {"prompt": "a", "ground_truth": [[]]}}},
        "is \\[\\[\\]\\], expected a text",
    ),
    "a text as portability": ({"portability": "x"}, "portability is 'x', expected objects with prompt"),
    "a deep nest": ({"locality": [[[[[{"prompt": "a", "ground_truth": "b"}]]]]]}, "expected objects with prompt"),
    "a number as target": ({"target_new": 1958}, "target_new is 1958, expected a string"),
    "an answer with a space": (
        {"locality_prompt": "a b", "locality_ground_truth": " x"},
        "'  ?x' starts or ends with a space|' x' starts or ends with a space",
    ),
    "a blank true answer": ({"ground_truth": " "}, "ground_truth is empty"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_record_is_refused_by_the_name_that_its_field_has_there(name):
    changes, message = BAD[name]
    with pytest.raises(ValueError, match=f"f, record 0.*: .*{message}"):
        parse([PLAIN | changes], "f")


def test_the_prompt_holds_the_subject_or_its_place():
    with pytest.raises(
        ValueError, match="holds the subject 'Ada Example' 0 times, .*write {} in the prompt in place of"
    ):
        parse([PLAIN | {"prompt": "She plays the"}], "f")
    (fact,) = parse([PLAIN | {"subject": "Ana", "prompt": "In Anatolia, {} plays the"}], "f")
    assert fact.rewrite_prompt == "In Anatolia, Ana plays the"


def test_fields_unknown_to_a_format_are_named(tmp_path):
    record = copy.deepcopy(COUNTERFACT) | {"pararel_idx": 1, "alternative_subject": "x"}
    record["requested_rewrite"]["question"] = "Who?"
    (tmp_path / "f.json").write_text(json.dumps([record]))
    assert facts.read(tmp_path / "f.json").notes == [
        "field alternative_subject is not read (1 of 1 records)",
        "field requested_rewrite.question is not read (1 of 1 records)",
    ]


def test_a_fact_keeps_the_identity_that_ledgers_know_it_by():
    old = Fact(
        5, "Ada Example", "{} plays the", "harp", "cello", "P1303", "Q1", "Q2", ("a b",), ("Bo is",), ("Cy",), ("Di",)
    )
    assert old.identity == "464f64e8634b839962df89be70a29eaaabbfad13e014b12cceed5fc1ad583037"
    assert len({old.identity, Fact(**{**vars(old), "neighborhood_answers": ("x",)}).identity}) == 2
