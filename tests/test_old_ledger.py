"""A ledger that the flat package wrote (commit a116b20) is read and replayed; only its code keeps it from going on."""

import shutil
from pathlib import Path

import pytest

from editscale.editing import editors, updates
from editscale.sequences import past_runs, sequence
from editscale.sequences.ledger import Ledger

OLD = Path(__file__).parent / "golden/ledger"


@pytest.fixture
def run(monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[1])
    return past_runs.reopen(OLD)


def test_an_old_ledger_is_reopened_and_replayed_from_its_recorded_updates(run):
    assert run.key == {"method": "rome", "order": 0, "reversed": False} and len(run.ledger) == 3
    before = run.lm.weight(2).clone()
    for edits in past_runs.replayed(run, [0, 1, 3]):
        moved = sum(update.matrix() for edit in range(1, edits + 1) for update in run.ledger.updates(edit))
        assert (run.lm.weight(2) - before - moved).abs().max() < 1e-6
    assert (run.lm.weight(2) == before).all()


def test_an_old_ledger_is_refused_for_its_code_alone(run, tmp_path):
    folder = shutil.copytree(OLD, tmp_path / "ledger")
    params = editors.read_params("rome", run.parameters["hparams"])
    editing = editors.Editing("rome", params, past_runs.contexts_of(run), {})
    fingerprint = sequence.fingerprint(run.lm, editing)
    known = {"moments_sha256", "torch"}  # of a file that is not here, and of this machine's torch
    known |= {*fingerprint} - {*run.ledger.fingerprint}  # it says less
    with pytest.raises(ValueError, match="code_sha256: ledger '93075606") as refused:
        Ledger(folder, fingerprint | {name: run.ledger.fingerprint.get(name) for name in known})
    assert str(refused.value).count(": ledger ") == 1


def test_old_updates_are_applied_bit_for_bit(run):
    before = run.lm.weight(2).clone()
    updates.apply(run.lm, run.ledger.updates(1))
    assert (run.lm.weight(2) == before + run.ledger.updates(1)[0].matrix()).all()
    run.lm.weight(2).copy_(before)
