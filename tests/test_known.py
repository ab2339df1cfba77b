"""Shares of known facts per relation, on the tiny GPT-2 that was trained to know its facts."""

from dataclasses import replace
from pathlib import Path

import pytest
from tools import known

from editscale.data import facts
from editscale.models import loading
from editscale.workflow import cli

ROOT = Path(__file__).parents[1]


def test_the_trained_model_knows_its_facts_and_their_swapped_versions_are_unknown():
    lm = loading.load(str(ROOT / "tests" / "golden" / "tiny_gpt2"))
    invented = facts.load(ROOT / "params" / "smoke" / "invented_facts.json")
    shares = known.known_shares(lm, invented)
    assert set(shares) == {fact.relation_id for fact in invented} and len(shares) == 5
    assert sum(n for n, _ in shares.values()) == len(invented) == 29
    assert all(share == 1 for _, share in shares.values())


def test_the_command_prints_one_line_per_relation_and_a_total(capsys):
    folder = ROOT / "tests" / "golden" / "tiny_gpt2"
    assert (
        cli.main(["known", "--model", str(folder), "--fact-set", str(ROOT / "params/smoke/invented_facts.json")]) == 0
    )
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6 and lines[-1].split() == ["all", "29", "100.0", "%"]


def test_facts_without_a_true_answer_do_not_count():
    lm = loading.load(str(ROOT / "tests" / "golden" / "tiny_gpt2"))
    invented = facts.load(ROOT / "params" / "smoke" / "invented_facts.json")
    without = [replace(fact, target_true="") for fact in invented]
    assert known.known_shares(lm, [*invented[:3], *without[3:]]) == known.known_shares(lm, invented[:3])
    with pytest.raises(ValueError, match="none of these facts has a true answer, so none can be known"):
        known.known_shares(lm, without)
