"""What README and gallery find, number by number, is what the recorded tables say to a reader without this package."""

import ast
import json
import re
from pathlib import Path

import pytest
from tools import findings

TEXT = " ".join(Path("README.md").read_text().partition("## What it finds")[2].partition("\n## ")[0].split())
# No results: SmolLM2-135M, intervals of 95 % and of 20 edits, thresholds. A figure says its own sentence.
STATED = ["2", "135", "95", "20", "0.1", "0.1", "0.5"]
OF_FIGURE_2A = re.search(r"\*Half of the learned facts.*?\*", TEXT)[0]


@pytest.fixture(scope="module")
def numbers():
    return findings.numbers()


def test_every_number_is_the_recomputed_one(numbers):
    assert [words.replace("{}", x) for words, x in numbers.items() if words.replace("{}", x) not in TEXT] == []


def test_no_number_of_the_findings_is_left_out(numbers):
    text = TEXT.replace(OF_FIGURE_2A, "")
    text = re.sub(r"\]\([^)]*\)", "]", text)  # without what links lead to
    for words in sorted(numbers, key=len, reverse=True):
        pattern = r"[\d.,]*\d".join(re.escape(part) for part in re.split(r"\{\}|[\d.,]*\d", words))
        text = re.sub(pattern, lambda found: re.sub(r"[\d.,]*\d", "#", found[0]), text)
    assert sorted(re.findall(r"\d[\d.,]*\d|\d", text)) == sorted(STATED)


@pytest.mark.parametrize("scale", ["smollm2", "mitigations", "interventions", "twenty-counterfact"])
def test_the_numbers_in_the_sentences_of_figures_are_the_recomputed_ones(scale):
    """Those of figures 2, 2a and 7 are `recompute`'s."""
    about = {path.stem: json.loads(path.read_text()) for path in Path("figures", scale).glob("fig*.json")}
    said = {name: re.findall(r"(?<![\w.])-?\d[\d,]*(?:\.\d+)?", of["found"]) for name, of in about.items()}
    elsewhere = {"fig2_facts_forgotten", "fig2a_recall", "fig7_findings"}
    found = findings.of_figures(scale, {name: of["parameters"] for name, of in about.items()})
    assert {name: of for name, of in said.items() if name not in elsewhere} == found


def test_nothing_of_the_package_is_imported():
    tree = ast.parse(Path(findings.__file__).read_text())
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not [name for name in names if name.startswith(("editscale", "tools"))]
