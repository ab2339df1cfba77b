"""Orders edited in one batch leave the ledgers that notebook 02 goes on from."""

from pathlib import Path

import pytest

from editscale import models, moments, parameters, together
from editscale.ledger import Ledger

RUNS = [{"order": 0, "reverse": False}, {"order": 1, "reverse": True}]
NAMES = ["order-0", "order-1-reversed"]


@pytest.fixture(scope="module")
def edited(tmp_path_factory):
    """Notebook 02's values, and the folders of two orders that were edited in one batch."""
    folder = tmp_path_factory.mktemp("together")
    lm = models.load("tests/golden/tiny_gpt2")
    documents = [list(range(1, 60)), list(range(100, 160)), list(range(200, 600))]
    collected = moments.collect(lm, [d[:90] for d in documents], [2], progress=False)
    collected.moments[2].diagonal().add_(0.1)
    moments.save(collected, folder / "moments.safetensors")
    given = {name: one.default for name, one in parameters.notebook_parameters(together.NOTEBOOK).items()}
    given |= {"n_edits": 3, "moments": str(folder / "moments.safetensors"), "n_short_prefixes": 1, "n_long_prefixes": 0}
    folders = [folder / name for name in NAMES]
    together.edit(given, RUNS, "params/rome/tiny-gpt2.yaml", folders)
    return given, folders


def test_every_order_gets_its_ledger_which_names_the_others(edited):
    _, folders = edited
    books = [Ledger(folder) for folder in folders]
    assert [len(book) for book in books] == [3, 3] and [len(book.unedited()) for book in books] == [3, 3]
    assert all(book.fingerprint["together"] == NAMES for book in books)
    assert [row["case_id"] for row in books[0].rows] != [row["case_id"] for row in books[1].rows]


def test_started_again_it_goes_on_where_the_ledgers_end(edited):
    given, folders = edited
    before = [Path(folder, "edits.log").read_bytes() for folder in folders]
    together.edit(given, RUNS, "params/rome/tiny-gpt2.yaml", folders)
    assert [Path(folder, "edits.log").read_bytes() for folder in folders] == before
    # The reversed order of four facts begins with another fact than that of three.
    with pytest.raises(ValueError, match="edit 1 of the ledger at .*order-1-reversed is case"):
        together.edit(given | {"n_edits": 4}, RUNS, "params/rome/tiny-gpt2.yaml", folders)


def test_a_method_that_the_grid_lacks_is_refused(capsys):
    assert together.main(["smoke", "p-rome"]) == 2
    assert "the grid of smoke has 0 runs of p-rome with" in capsys.readouterr().err
