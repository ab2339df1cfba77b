"""Tables of several runs become one folder that notebooks take for a run."""

import json

import pandas as pd
import pytest

from editscale import record, tables
from editscale.provenance import sha256_file

GRID = """\
runs:
  - {method: rome, hparams: params/rome/tiny-gpt2.yaml, order: 0, reverse: false}
  - {method: rome, hparams: params/rome/tiny-gpt2.yaml, order: 1, reverse: false}
"""


@pytest.fixture
def study(tmp_path, monkeypatch):
    """Two runs with all their tables, order 1 without the downstream part."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params/tiny").mkdir(parents=True)
    (tmp_path / "params/tiny/grid.yaml").write_text(GRID)
    for order in (0, 1):
        run = tmp_path / f"runs/tiny/rome/order-{order}"
        for part, names in record.PARTS.items():
            if (order, part) == (1, "downstream"):
                continue
            (run / part).mkdir(parents=True, exist_ok=True)
            for name in names:
                row = {"method": "rome", "order": order, "reversed": False, "edits": 1, "efficacy": 1 / 3}
                pd.DataFrame([row]).to_parquet(run / part / f"{name}.parquet")
            (run / part / "done.json").write_text(json.dumps({"parameters": {"part": part}, "files": {"a": "b"}}))
        (run / "ledger.json").write_text(json.dumps({"fingerprint": {"device": "cuda"}}))
    return tmp_path


def test_what_is_missing_is_named(study):
    with pytest.raises(FileNotFoundError, match="no runs/tiny/rome/order-1/downstream/done.json, one of 3 results"):
        record.record("tiny")


def test_recorded_tables_hold_the_rows_of_all_runs_and_say_what_made_them(study):
    written = record.record("tiny", partly=True)
    folder = study / "figures/tiny/tables"
    about = json.loads((folder / "record.json").read_text())
    assert {name: sha256_file(folder / name) for name in about["files"]} == about["files"]
    assert len(written) == len(about["files"]) + 1 == 9
    first, second = about["runs"].values()
    assert set(first) == {"edits", "recall", "downstream"} and set(second) == {"edits", "recall"}
    assert first["edits"] == {"parameters": {"part": ""}, "fingerprint": {"device": "cuda"}}
    history = tables.gather(["figures/tiny/tables"], "recall/history")
    assert list(history["order"]) == [0, 1] and history["efficacy"].dtype == "float64"
    assert history["efficacy"].sub(1 / 3).abs().max() < 1e-7
    assert pd.read_parquet(folder / "recall/history.parquet")["efficacy"].dtype == "float32"
    assert list(tables.gather(["figures/tiny/tables"], "downstream/downstream")["order"]) == [0]


def test_a_whole_study_needs_every_part(study):
    run = study / "runs/tiny/rome"
    (run / "order-1/downstream").mkdir()
    for path in (run / "order-0/downstream").iterdir():
        (run / "order-1/downstream" / path.name).write_bytes(path.read_bytes())
    for name, folder in record.BESIDE.items():
        (study / f"runs/tiny/{folder}").mkdir()
        pd.DataFrame({"case_id": [7]}).to_parquet(study / f"runs/tiny/{folder}/{name}.parquet")
    assert len(record.record("tiny")) == 11
    assert pd.read_parquet(study / "figures/tiny/tables/single.parquet")["case_id"].item() == 7


def test_the_command_says_what_it_wrote_or_what_is_missing(study, capsys):
    assert record.main(["tiny", "--partly"]) == 0
    assert capsys.readouterr().out.startswith("9 files in figures/tiny/tables, 0.0 MB")
    assert record.main(["tiny"]) == 2 and "record it --partly" in capsys.readouterr().err
