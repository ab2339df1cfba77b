"""Seconds of parts are written down as they were measured, and read again."""

import pytest

from editscale.files import sealed, sha256_file, write_json
from editscale.workflow import timing


def test_parts_are_timed_in_their_order(tmp_path, monkeypatch):
    clock = iter([0.0, 1.5, 10.0, 10.25])
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(clock))
    times = timing.Timing()
    with times.of("recall", 20):
        pass
    with times.of("spectra"):
        pass
    times.add("texts", 7, 2)
    path = times.save(tmp_path)
    write_json(tmp_path / "done.json", sealed({"files": {path.name: sha256_file(path)}}))
    assert timing.read(tmp_path) == [
        {"part": "recall", "n": 20, "seconds": 1.5},
        {"part": "spectra", "n": 1, "seconds": 0.25},
        {"part": "texts", "n": 7, "seconds": 2},
    ]


def test_a_folder_without_times_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"no timing.jsonl in {tmp_path}; run the notebook"):
        timing.read(tmp_path)
