"""What recorded tables do not know of facts: made from the facts, the tokenizer, and keys of the unedited model."""

import math

import numpy as np
import pandas as pd
import pytest
import tiny
from test_overlap import prepared
from test_sequence import FACTS
from tools import traits

from editscale.analysis import going_first
from editscale.columns import RUN
from editscale.models import tokens
from editscale.sequences import overlap

KEY = {"method": "r-rome", "order": 0, "reversed": False}


@pytest.fixture(scope="module")
def lm():
    return tiny.tiny_model("gpt2")


def recorded(lm, editing, collapse=math.inf):
    """edits, history, perplexity and drift of a run that learned all facts and still recalls them after its last."""
    n, at = len(FACTS), (2, len(FACTS))
    told = overlap.unit_products(lm, FACTS, editing)[1]
    edits = pd.DataFrame({"edits": range(1, n + 1), "case_id": [fact.case_id for fact in FACTS], "denominator": told})
    asked = [{"edits": e, "edit": i, "case_id": FACTS[i - 1].case_id} for e in at for i in range(1, e + 1)]
    perplexity = pd.DataFrame(
        {"edits": range(n + 1), "perplexity": [20.0 + 99 * (e >= collapse) for e in range(n + 1)]}
    )
    drift = pd.DataFrame({"edits": range(1, n + 1), "layer": 1, "update_norm": np.linspace(1, 2, n)})
    made = edits, pd.DataFrame(asked), perplexity, drift
    return [table.assign(**KEY, efficacy_accuracy=1.0) for table in made]


def test_traits_count_tokens_as_they_are_read_and_number_objects(lm):
    found = traits.traits(lm, FACTS[::-1]).set_index("case_id")
    assert tuple(found.reset_index()) == going_first.TRAITS and found.index.is_monotonic_increasing
    for fact in FACTS:
        row, text = found.loc[fact.case_id], lm.tokenizer(f" {fact.subject}")["input_ids"]
        assert row["subject_tokens"] == len(text) and row["relation_id"] == fact.relation_id
        assert row["target_tokens"] == len(tokens.target_ids(lm.tokenizer, fact.rewrite_prompt, fact.target_new))
    objects = {fact.target_new_id or fact.target_new for fact in FACTS}
    assert found["new_object"].nunique() == len(objects)


def test_interference_of_a_recorded_run_is_that_of_its_update_sizes_and_of_keys(lm, capsys):
    editing, n = prepared(lm, "r-rome"), len(FACTS)
    found = traits.interference(lm, FACTS, {"r-rome": editing}, recorded(lm, editing))
    assert tuple(found) == going_first.INTERFERENCE and found["case_id"].tolist() == [f.case_id for f in FACTS[:2]]
    products, norms = overlap.unit_products(lm, FACTS, editing)[0], np.linspace(1, 2, n)
    expected = np.sqrt(((norms[2:, None] * products[2:, :2]) ** 2).sum(axis=0))
    np.testing.assert_allclose(found["interference"], expected)
    np.testing.assert_allclose(found["own"], np.abs(norms * products.diagonal())[:2])
    assert (found[list(RUN)] == list(KEY.values())).all(
        axis=None
    ) and "off the recorded by 0 (" in capsys.readouterr().out


def test_after_the_collapse_nothing_is_computed_and_other_keys_or_facts_are_refused(lm):
    editing = prepared(lm, "r-rome")
    given = recorded(lm, editing)
    with pytest.raises(ValueError, match="of other facts"):
        traits.interference(lm, FACTS[::-1], {"r-rome": editing}, given)
    given[0]["denominator"] *= 1.1
    with pytest.raises(ValueError, match=f"of {len(FACTS)} of {len(FACTS)} facts is off the recorded one"):
        traits.interference(lm, FACTS, {"r-rome": editing}, given)
    with pytest.raises(ValueError, match="no fact is at risk"):
        traits.interference(lm, FACTS, {"r-rome": editing}, recorded(lm, editing, collapse=2))
