"""Orders edited in one batch leave the ledgers that notebook 02a goes on from."""

import json
from pathlib import Path

import pytest

from editscale.editing import moments
from editscale.models import loading
from editscale.sequences import sequence
from editscale.sequences.ledger import Ledger
from editscale.workflow import cli, parameters, together

PARAMS = "params/rome/tiny-gpt2.yaml"
RUNS = [
    {"method": "rome", "hparams": PARAMS, "order": 0, "reverse": False},
    {"method": "r-rome", "hparams": PARAMS, "order": 1, "reverse": True, "n_edits": 2},
]
NAMES = ["rome/order-0", "r-rome/order-1-reversed"]


@pytest.fixture(scope="module")
def edited(tmp_path_factory):
    """Notebook 02's values, and the folders of two orders that were edited in one batch."""
    folder = tmp_path_factory.mktemp("together")
    lm = loading.load("tests/golden/tiny_gpt2")
    documents = [list(range(1, 60)), list(range(100, 160)), list(range(200, 600))]
    collected = moments.collect(lm, [d[:90] for d in documents], [2], progress=False)
    collected.moments[2].diagonal().add_(0.1)
    moments.save(collected, folder / "moments.safetensors")
    given = {name: one.default for name, one in parameters.notebook_parameters(together.NOTEBOOK).items()}
    given |= {"n_edits": 3, "moments": str(folder / "moments.safetensors"), "n_short_prefixes": 1, "n_long_prefixes": 0}
    folders = [folder / name for name in NAMES]
    together.edit(given, RUNS, folders)
    return given, folders


def test_every_order_gets_its_ledger_which_names_the_others(edited):
    _, folders = edited
    books = [Ledger(folder) for folder in folders]
    assert [len(book) for book in books] == [3, 2] and [len(book.unedited()) for book in books] == [3, 2]
    assert all(book.fingerprint["together"] == NAMES for book in books)
    assert [book.fingerprint["method"] for book in books] == ["rome", "r-rome"]
    assert [row["case_id"] for row in books[0].rows] != [row["case_id"] for row in books[1].rows]


def test_started_again_it_goes_on_where_the_ledgers_end(edited):
    given, folders = edited
    before = [Path(folder, "edits.log").read_bytes() for folder in folders]
    together.edit(given, RUNS, folders)
    assert [Path(folder, "edits.log").read_bytes() for folder in folders] == before
    # The reversed order of three facts begins with another fact than that of two.
    longer = [RUNS[0], RUNS[1] | {"n_edits": 3}]
    with pytest.raises(ValueError, match="edit 1 of the ledger at .*order-1-reversed is case"):
        together.edit(given, longer, folders)


def test_a_fact_that_several_runs_edit_is_checked_once(edited, tmp_path, monkeypatch):
    given, _ = edited
    checked, check = [], sequence.check_facts
    monkeypatch.setattr(sequence, "check_facts", lambda lm, facts, of: (checked.extend(facts), check(lm, facts, of)))
    together.edit(given, [RUNS[0], RUNS[0] | {"method": "r-rome"}], [tmp_path / name for name in ("one", "two")])
    assert len(checked) == len({fact.case_id for fact in checked}) == given["n_edits"]


@pytest.mark.parametrize(
    "other",
    ({"method": "memit", "hparams": "params/memit/tiny-gpt2.yaml"}, {"hparams": "params/rome/smollm2-135m.yaml"}),
)
def test_runs_that_cannot_share_a_batch_are_refused_before_a_model_is_loaded(tmp_path, other):
    with pytest.raises(ValueError, match="runs of rome.* are no batch"):
        together.edit({"n_edits": 3, "facts_per_step": 1}, [RUNS[0], RUNS[0] | other], [tmp_path, tmp_path])


def test_a_batch_that_the_grid_lacks_is_refused(capsys):
    assert cli.main(["together", "smoke", "p-rome"]) == 2
    assert "p-rome is no batch of smoke; its grid has rome" in capsys.readouterr().err


def test_runs_of_a_batch_take_as_many_facts_in_a_step_and_whole_steps(tmp_path):
    line = {"method": "memit", "hparams": "params/memit/tiny-gpt2.yaml", "order": 0, "reverse": False}
    given = {name: one.default for name, one in parameters.notebook_parameters(together.NOTEBOOK).items()}
    assert given["facts_per_step"] == 1
    (tmp_path / "grid.yaml").write_text(json.dumps({"runs": [line | {"facts_per_step": 10}]}))
    assert parameters.read_grid(tmp_path / "grid.yaml")["memit", "order-0"]["facts_per_step"] == 10
    (tmp_path / "grid.yaml").write_text(json.dumps({"runs": [line | {"facts_per_step": True}]}))
    with pytest.raises(ValueError, match="a run has method"):
        parameters.read_grid(tmp_path / "grid.yaml")
    with pytest.raises(ValueError, match="runs of memit are no batch"):
        together.edit(given, [line, line | {"order": 1, "facts_per_step": 2}], [tmp_path / "a", tmp_path / "b"])
    with pytest.raises(ValueError, match="n_edits is 6, no multiple of facts_per_step 4"):
        together.edit(given | {"facts_per_step": 4}, [line], [tmp_path / "a"])
