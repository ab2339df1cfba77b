"""Pages of figures show what was found, what the paper shows, and links that lead there from each page."""

import json
import re
from pathlib import Path

import pandas as pd
import pytest
from tools import gallery

from editscale.analysis import claims


@pytest.fixture
def folder(tmp_path):
    """Figures of two scales, the recorded one with an executed copy of its first notebook."""
    for scale in gallery.SCALES[:2]:
        here = tmp_path / "figures" / scale
        (here / "notebooks").mkdir(parents=True)
        for name in ("fig1_editing_proficiency", "fig7_findings"):
            about = {"found": f"Found in {name}.", "caption": f"Found in {name}. Bands are intervals."}
            (here / f"{name}.json").write_text(json.dumps(about))
        pd.DataFrame({"verdict": ["not comparable"]}).to_csv(here / "fig7_findings.claims.csv")
        pd.DataFrame({"n": [1]}).to_csv(here / "fig7_findings.over_orders.csv")
        pd.DataFrame({"edits": [1]}).to_csv(here / "fig4_weight_drift.csv")
        gallery.place(tmp_path / "figures", scale).write_text("")
    (tmp_path / "figures" / gallery.SCALES[0] / "notebooks" / "02b_editing_proficiency.ipynb").write_text("")
    return tmp_path / "figures"


def test_what_the_paper_shows_is_put_together_from_its_numbers():
    shown = gallery.paper_shows("fig1_editing_proficiency")
    assert "Neighborhood score: 78 → 45 % in 1,000 edits (rome, Figure 1c); 82 → 50 %" in shown
    assert {entry["ours"] for entry in claims.PAPER.values()} <= set(gallery.FIGURES)
    assert all(gallery.paper_shows(name) or remark for name, (_, remark) in gallery.FIGURES.items())


def test_a_page_says_what_was_found_and_folds_the_rest_away(folder):
    text = gallery.page(folder, gallery.SCALES[0])
    assert "**Here.** Found in fig1_editing_proficiency. ([notebook]" in text and "## Figure 7: findings" in text
    folded = re.findall("<details>.*?</details>", text, re.S)
    assert len(folded) == 2 and all("Bands are intervals." in part and "Found" not in part for part in folded)


@pytest.mark.parametrize("scale", gallery.SCALES[:2])
def test_links_lead_from_each_page_to_its_files(folder, scale):
    page = gallery.place(folder, scale)
    links = re.findall(r"\]\((?!http)([^)]+)\)", gallery.page(folder, scale))
    there = {Path(page.parent / link).resolve().relative_to(folder.parent).as_posix() for link in links}
    expected = {f"figures/{scale}/fig1_editing_proficiency.png", f"figures/{scale}/fig7_findings.png"}
    expected |= {"notebooks/02b_editing_proficiency.ipynb", "notebooks/07_findings.ipynb"}
    if scale == gallery.SCALES[0]:
        expected.add(f"figures/{scale}/notebooks/02b_editing_proficiency.ipynb")
    expected |= {gallery.place("figures", other).as_posix() for other in gallery.SCALES if other != scale}
    assert there == expected
