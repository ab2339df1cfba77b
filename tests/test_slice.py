"""A slice of a scale: which jobs there are, that all are done once, and that the time ends them."""

import json
import multiprocessing
import shutil
import subprocess
import time
from pathlib import Path

import pytest
import tiny
from test_sequence import FACTS, edit_sequence
from tools import recorded
from tools import slice as of_scale

from editscale.analysis import tables
from editscale.data.orders import in_order, open_set
from editscale.metrics import text_loss
from editscale.models import loading

GRID = """together: true
runs:
  - {method: rome, hparams: params/rome/tiny-gpt2.yaml, order: 0, reverse: false, n_edits: 2}
  - {method: memit, label: memit-once, hparams: params/memit/tiny-gpt2.yaml, order: 0, reverse: false, n_edits: 6,
     facts_per_step: 6, batch: memits}
  - {method: memit, hparams: params/memit/tiny-gpt2.yaml, order: 1, reverse: true, n_edits: 4, batch: memits}
"""


@pytest.fixture
def scale(tmp_path, monkeypatch):
    """A scale of two batches in a folder of its own, one run of it edited."""
    root = Path(__file__).parents[1]
    for name in ("notebooks", "editscale"):
        (tmp_path / name).symlink_to(root / name)
    folder = tmp_path / "params/small"
    folder.mkdir(parents=True)
    (folder / "grid.yaml").write_text(GRID)
    for name in ("02a_sequential_editing", "03a_recall_history", "04a_glue_eval"):
        (folder / f"{name}.yaml").write_text("")
    monkeypatch.chdir(tmp_path)
    edit_sequence(Path("runs/small/rome/order-0"), facts=FACTS[:2])
    return "small"


def test_batches_with_edits_left_come_first_where_most_are_left(scale):
    assert of_scale.edit_jobs(scale) == [("small", "memits")]
    Path("runs/small/rome/order-0/ledger.json").unlink()
    assert of_scale.edit_jobs(scale) == [("small", "memits"), ("small", "rome")]


def test_only_runs_whose_edits_are_all_there_are_looked_at_and_only_once(scale):
    ((edits, recall),) = of_scale.look_jobs(scale, ["recall"])
    assert edits[2] | {"method": "rome", "order": 0, "reverse": False, "n_edits": 2} == edits[2]
    assert edits[2]["together"] == ["rome/order-0"] and edits[2]["out"] == "runs/small/rome/order-0"
    assert recall == (of_scale.ALONG["recall"], scale, {"run": edits[2]["out"], "out": f"{edits[2]['out']}/recall"})
    for out in ("runs/small/rome/order-0", "runs/small/rome/order-0/recall"):
        Path(out).mkdir(exist_ok=True)
        Path(out, "done.json").write_text("{}")
    assert of_scale.look_jobs(scale, ["recall"]) == []


def test_a_run_is_looked_at_without_notebooks_as_with_them(scale, monkeypatch):
    """Its facts and a text at checkpoints, from its ledger."""
    root, out = Path(__file__).parents[1], Path("runs/small/rome/order-0")
    for name in ("params/rome", "params/smoke"):
        Path(name).symlink_to(root / name)
    Path("text.txt").write_text("A river runs through the old town. " * 40)
    given = {"every": 1, "held_out": "text.txt", "held_out_tokens": 60, "held_out_window": 30}
    Path("params/small/03a_recall_history.yaml").write_text(json.dumps(given))
    monkeypatch.setattr(text_loss, "_check_apart", lambda *_: None)  # there are no second moments
    Path("tests").symlink_to(root / "tests")
    monkeypatch.setattr(tiny, "tiny_model", lambda _: loading.load("tests/golden/tiny_gpt2"))  # the notebooks' default
    shutil.rmtree(out)
    edit_sequence(out, facts=in_order(open_set("params/smoke/invented_facts.json"), 0, 2))
    (job,) = of_scale.look_jobs(scale, ["recall"])
    job[0][2]["together"] = []  # this one was edited by itself
    of_scale.look(job, straight=True)
    history, text = (tables.gather([out], f"recall/{name}") for name in ("history", "held_out"))
    assert history.groupby("edits")["edit"].agg(list).to_dict() == {1: [1], 2: [1, 2]}
    last = history[history["edit"] == history["edits"]].set_index("edits")["efficacy_magnitude"]
    edits = tables.gather([out], "edits").set_index("edits")
    assert (last - edits["efficacy_magnitude"]).abs().max() < 1e-5
    assert text["edits"].tolist() == [0, 1, 2] and (text["held_out_nll"].diff().dropna().abs() > 0).all()
    assert of_scale.look_jobs(scale, ["recall"]) == []
    (run,) = recorded.in_runs(scale).made.values()
    assert set(run) == {"edits", "recall"} and run["recall"]["parameters"]["every"] == 1


def shell(command):
    """A job for `subprocess.check_call`, which a new process has without importing torch."""
    return ("sh", "-c", command)


def test_every_job_is_done_once_by_one_of_the_gpus_and_failures_are_said(tmp_path, capsys):
    jobs = [shell(f"echo $CUDA_VISIBLE_DEVICES >> {tmp_path}/{name}") for name in "abc"] + [shell("exit 3")]
    rows = of_scale.share(jobs, ["3", "5"], subprocess.check_call, time.monotonic() + 120)
    assert sorted(job for job, _, _ in rows) == sorted(jobs)
    assert {(tmp_path / name).read_text() for name in "abc"} <= {"3\n", "5\n"}
    assert [(job, "status 3" in error) for job, _, error in rows if error] == [(jobs[3], True)]
    assert "CalledProcessError" in capsys.readouterr().out


def test_the_time_ends_what_is_at_work(tmp_path):
    began = time.monotonic()
    job = shell(f"sleep 60; touch {tmp_path}/long")
    assert of_scale.share([job], ["0"], subprocess.check_call, began + 1) == []
    assert time.monotonic() - began < 50 and not (tmp_path / "long").exists()
    assert not multiprocessing.active_children()
