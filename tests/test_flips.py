"""A recorded scale, altered by one bit: whoever reads it is told which file that is."""

import random
import shutil
from pathlib import Path

import pytest
from tools import flips, gallery

from editscale.workflow.parameters import altered, read_notebook

FIGURES = Path(__file__).parents[1] / "figures"


def test_a_flipped_bit_in_recorded_tables_figures_and_copies_is_named_or_has_no_effect(tmp_path):
    scale = shutil.copytree(FIGURES / "twenty-counterfact", tmp_path / "twenty")
    rng, recorded = random.Random(0), [*scale.glob("tables/**/*.*")]
    counts, failures = flips.flipped(recorded, lambda path: flips.read_recorded(scale / "tables", path), rng, n=2)
    assert failures == [] and counts["named"].sum() > len(recorded)
    beside = [*scale.glob("fig*.*"), *scale.glob("notebooks/*.ipynb")]
    counts, failures = flips.flipped(beside, flips.read_beside, rng, n=1)
    assert failures == [] and len(beside) > 50 and counts["named"].sum() > len(beside) / 2


@pytest.mark.parametrize("path", sorted(FIGURES.glob("*/*.json")), ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_recorded_figure_is_the_one_that_was_drawn(path):
    assert path.parent.name == "cost" or flips.read_beside(path)


@pytest.mark.parametrize("path", sorted(FIGURES.glob("*/notebooks/*.ipynb")), ids=lambda path: path.parent.parent.name)
def test_every_recorded_copy_of_a_notebook_is_the_one_that_was_written(path):
    notebook = read_notebook(path)
    assert "editscale_sha256" in notebook.metadata and not altered(notebook)


def test_a_page_of_an_altered_figure_is_not_written(tmp_path):
    folder = shutil.copytree(FIGURES / "twenty-counterfact", tmp_path / "twenty-counterfact").parent
    assert gallery.page(folder, "twenty-counterfact").startswith("# Figures, scale twenty-counterfact")
    table = folder / "twenty-counterfact/fig2a_recall.csv"
    table.write_bytes(table.read_bytes().replace(b"1", b"2", 1))
    with pytest.raises(ValueError, match="fig2a_recall.csv is not the file that .*fig2a_recall.json names"):
        gallery.page(folder, "twenty-counterfact")
