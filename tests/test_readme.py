"""The README shows the committed figures and quotes their computed captions word for word."""

import json
import re
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
FIGURES = ("fig1_editing_proficiency", "fig4_weight_drift")


def test_the_readme_quotes_each_figures_caption():
    quotes = [line.removeprefix("> ") for line in README.splitlines() if line.startswith("> ")]
    assert quotes == [json.loads((ROOT / f"figures/laptop/{name}.json").read_text())["caption"] for name in FIGURES]


def test_every_linked_file_exists():
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert len(links) > 10 and all((ROOT / link).exists() for link in links), links


def test_the_committed_figures_hold_a_sequence_of_fifty_facts_and_its_reverse():
    plotted = pd.read_csv(ROOT / "figures" / "laptop" / "fig4_weight_drift.csv")
    runs = plotted.groupby(["method", "order", "reversed"])["edits"].max()
    assert set(runs.index) >= {("rome", 0, False), ("rome", 0, True)}
    assert (runs >= 50).all()
