"""Relations found by template, and by the objects where a template has several."""

from dataclasses import replace
from pathlib import Path

import pytest

from editscale.data import facts
from editscale.data.facts import Fact
from editscale.data.relations import relations


def fact(case_id, prompt, new, true, relation=""):
    return Fact(case_id, f"subject {case_id}", prompt, new, true, relation)


KNOWN = [
    fact(0, "{} is the capital of", "Spain", "France", "P1376"),
    fact(1, "{} is in", "Spain", "Italy", "P17"),
    fact(2, "{} is in", "Asia", "Africa", "P30"),
    fact(3, "{} is in", "Europe", "Asia", "P30"),
    fact(4, "{} lies on", "Europe", "Africa", "P30"),
]


def test_a_template_of_one_relation_decides_and_an_unknown_one_says_nothing():
    found = relations([fact(7, "{} is the capital of", "x", "y"), fact(8, "{}, you know,", "Spain", "y")], KNOWN)
    assert found == {7: "P1376", 8: ""}


def test_of_several_relations_the_objects_decide():
    asked = [
        fact(7, "{} is in", "Italy", "Oz"),
        fact(8, "{} is in", "Africa", "Oz"),
        fact(9, "{} is in", "Oz", "Narnia"),
    ]
    assert relations(asked, KNOWN) == {7: "P17", 8: "P30", 9: "P30"}  # neither object is known: most of its records
    more = [fact(10, "{} lies on", "Oz", "Narnia")]
    assert relations([*asked[2:], *more], [*KNOWN, fact(5, "{} is in", "Rome", "Oslo", "P17"),
                                           fact(6, "{} is in", "Bern", "Oslo", "P17")])[9] == "P30"  # fmt: skip


def test_relations_that_a_fact_has_stay_and_records_without_are_refused():
    assert relations([fact(7, "{} is in", "Italy", "Oz", "P1")], KNOWN) == {7: "P1"}
    with pytest.raises(ValueError, match="the record of case 3 names no relation"):
        relations([], [replace(KNOWN[3], relation_id="")])


def test_nearly_all_relations_of_held_out_records_are_found():
    """CounterFact's records in its original form, a fifth held out at a time and without ids."""
    folder = Path(__file__).parents[2] / "shared/data"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    easyedit = facts.load(folder / "counterfact_easyedit_sample.json")
    original, right = facts.load(folder / "counterfact_sample.json"), 0
    for fold in range(5):
        held = {one.case_id: one.relation_id for one in original[fold::5]}
        found = relations(easyedit, [one for one in original if one.case_id not in held])
        right += sum(found[case_id] == relation for case_id, relation in held.items())
    assert right > 0.96 * len(original)
