"""Tables of several runs become one folder that notebooks take for a run."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
from tools import record, recorded

from editscale.analysis import tables
from editscale.files import sealed, sha256_file, write_json
from editscale.workflow import cli

GRID = """\
runs:
  - {method: rome, hparams: params/rome/tiny-gpt2.yaml, order: 0, reverse: false}
  - {method: rome, hparams: params/rome/tiny-gpt2.yaml, order: 1, reverse: false}
"""


def finish(folder, **made):
    """Write the done.json of what is in a folder."""
    files = {path.as_posix(): sha256_file(path) for path in folder.iterdir() if path.suffix in (".parquet", ".jsonl")}
    write_json(folder / "done.json", sealed({**made, "files": files}))


@pytest.fixture
def study(tmp_path, monkeypatch):
    """Two runs with all tables but that of a held-out text, order 1 without the downstream part."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params/tiny").mkdir(parents=True)
    (tmp_path / "params/tiny/grid.yaml").write_text(GRID)
    for order in (0, 1):
        run = tmp_path / f"runs/tiny/rome/order-{order}"
        for part, names in recorded.PARTS.items():
            if (order, part) == (1, "downstream"):
                continue
            (run / part).mkdir(parents=True, exist_ok=True)
            for name in (name for name in names if name != "held_out"):
                row = {"method": "rome", "order": order, "reversed": False, "edits": 1, "efficacy": 1 / 3}
                pd.DataFrame([row]).to_parquet(run / part / f"{name}.parquet")
            finish(run / part, parameters={"part": part})
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
    assert len(written) == len(about["files"]) + 1 == 10
    first, second = about["runs"].values()
    assert set(first) == {"edits", "recall", "downstream"} and set(second) == {"edits", "recall"}
    assert first["edits"] == {"parameters": {"part": ""}, "fingerprint": {"device": "cuda"}}
    history = tables.gather(["figures/tiny/tables"], "recall/history")
    assert list(history["order"]) == [0, 1] and history["efficacy"].dtype == "float64"
    assert history["efficacy"].sub(1 / 3).abs().max() < 1e-7
    assert pd.read_parquet(folder / "recall/history.parquet")["efficacy"].dtype == "float32"
    assert list(tables.gather(["figures/tiny/tables"], "downstream/downstream")["order"]) == [0]


def test_a_table_that_only_some_runs_have_is_recorded_and_kept_of_these(study):
    """Here the held-out text; tables that were recorded before there was one have none."""
    record.record("tiny", partly=True)
    path = study / "runs/tiny/rome/order-1/recall/held_out.parquet"
    row = {"method": "rome", "order": 1, "reversed": False, "edits": 0, "held_out_nll": 1 / 3}
    pd.DataFrame([row]).to_parquet(path)
    finish(path.parent, finished="later")
    for _ in ("runs", "tables"):
        assert len(record.record("tiny", partly=True)) == 11
        kept = tables.gather(["figures/tiny/tables"], "recall/held_out")
        assert kept["order"].tolist() == [1] and kept["held_out_nll"].item() == pytest.approx(1 / 3, rel=1e-7)
        assert tables.gather(["figures/tiny/tables"], "recall/history")["order"].tolist() == [0, 1]
        shutil.rmtree("runs", ignore_errors=True)


def test_runs_from_before_choices_were_measured_are_recorded_without_them_and_beside_others(study):
    run = study / "runs/tiny/rome"
    shutil.copytree(run / "order-0/downstream", run / "order-1/downstream")
    (run / "order-1/downstream/choices.parquet").unlink()
    finish(run / "order-1/downstream", parameters={"part": "downstream"})
    record.record("tiny", partly=True)
    assert len(tables.gather_later(["figures/tiny/tables"], "downstream/choices")) == 1
    (run / "order-0/downstream/choices.parquet").unlink()
    finish(run / "order-0/downstream", parameters={"part": "downstream"})
    shutil.rmtree("figures/tiny/tables")
    record.record("tiny", partly=True)
    assert tables.gather_later(["figures/tiny/tables"], "downstream/choices") is None
    assert len(tables.gather(["figures/tiny/tables"], "downstream/downstream")) == 2
    assert "downstream/choices" not in recorded.read("figures/tiny/tables", "tiny").tables
    record.record("tiny", partly=True)  # merged with what is recorded


def test_a_whole_study_needs_every_part(study):
    run = study / "runs/tiny/rome"
    (run / "order-1/downstream").mkdir()
    for path in (run / "order-0/downstream").iterdir():
        (run / "order-1/downstream" / path.name).write_bytes(path.read_bytes())
    for name, folder in recorded.BESIDE.items():
        folder = study / f"runs/tiny/{folder.replace('*', '')}"
        folder.mkdir()
        pd.DataFrame({"case_id": [7]}).to_parquet(folder / f"{name}.parquet")
        finish(folder)
    (study / "runs/tiny/tested-more").mkdir()  # notebook 11 once more
    pd.DataFrame({"case_id": [8]}).to_parquet(study / "runs/tiny/tested-more/tested.parquet")
    finish(study / "runs/tiny/tested-more")
    assert len(record.record("tiny")) == 17  # overlap.parquet is asked of scales with values for its notebook
    of_both = pd.read_parquet(study / "figures/tiny/tables/tested.parquet")
    assert of_both["case_id"].tolist() == [7, 8]
    Path("params/tiny/09a_key_overlap.yaml").write_text("")
    (study / "figures/tiny/tables/record.json").unlink()
    assert len(record.record("tiny")) == 18
    for name in ("overlap", *recorded.GIVEN):
        for path in (study / "runs/tiny").rglob(f"{name}.parquet"):
            path.unlink()
    (study / "figures/tiny/tables/record.json").unlink()
    with pytest.raises(FileNotFoundError, match="no runs/tiny/overlap/overlap.parquet"):
        record.record("tiny")
    assert len(record.record("tiny", partly=True)) == 12  # what is GIVEN is not asked for
    assert pd.read_parquet(study / "figures/tiny/tables/single.parquet")["case_id"].item() == 7


def test_a_piece_made_anew_takes_the_place_of_the_recorded_one_and_others_stay(study):
    def make(folder, layer, case_ids):
        (study / "runs/tiny" / folder).mkdir(exist_ok=True)
        made_with = {"fact_set": "facts.json", "start_token": False, "seed": 1, "layer": layer}
        table = pd.DataFrame({"case_id": case_ids, **made_with})
        table.to_parquet(study / "runs/tiny" / folder / "tested.parquet")
        finish(study / "runs/tiny" / folder)

    def found():
        record.record("tiny", partly=True)
        table = pd.read_parquet(study / "figures/tiny/tables/tested.parquet")
        return table[["layer", "case_id"]].to_numpy().tolist()

    make("tested-3", 3, [7, 8])
    make("tested", 5, [9])
    assert found() == [[5, 9], [3, 7], [3, 8]]
    (study / "runs/tiny/tested/tested.parquet").unlink()
    make("tested-3", 3, [10])
    assert found() == [[5, 9], [3, 10]]


def test_the_command_says_what_it_wrote_or_what_is_missing(study, capsys):
    assert cli.main(["record", "tiny", "--partly"]) == 0
    assert capsys.readouterr().out.startswith("10 files in figures/tiny, 0.0 MB")
    assert cli.main(["record", "tiny"]) == 2 and "record it --partly" in capsys.readouterr().err
    assert (
        cli.main(["record", "tiny", "--from", "elsewhere"]) == 2
        and "no record.json in elsewhere" in capsys.readouterr().err
    )


TABLES = Path("figures/tiny/tables")


def recorded_rows(name, **wanted):
    table = pd.read_parquet(TABLES / f"{name}.parquet")
    return table[(table[list(wanted)] == list(wanted.values())).all(axis=1)]


def make(order, part="", finished="", **values):
    """Finish a part of a run: a row in each of its tables, `values` in place of those of the fixture."""
    run = Path(f"runs/tiny/rome/order-{order}")
    (run / part).mkdir(parents=True, exist_ok=True)
    for name in (name for name in recorded.PARTS[part] if recorded.name_of(part, name) not in recorded.OPTIONAL):
        row = {"method": "rome", "order": order, "reversed": False, "edits": 1, "efficacy": 1 / 3, **values}
        pd.DataFrame([row]).to_parquet(run / part / f"{name}.parquet")
    finish(run / part, finished=finished)


def test_what_is_recorded_stays_when_its_runs_are_gone(study):
    record.record("tiny", partly=True)
    before = {path: path.read_bytes() for path in TABLES.rglob("*.parquet")}
    about = json.loads((TABLES / "record.json").read_text())
    shutil.rmtree("runs")
    assert len(record.record("tiny", partly=True)) == 10
    assert {path: path.read_bytes() for path in TABLES.rglob("*.parquet")} == before
    assert json.loads((TABLES / "record.json").read_text()) == about


def test_a_new_slice_is_put_beside_what_is_recorded_in_the_order_of_the_grid(study):
    shutil.move("runs/tiny/rome/order-0", "kept")
    record.record("tiny", partly=True)
    shutil.rmtree("runs")
    shutil.copytree("kept", "runs/tiny/rome/order-0")
    record.record("tiny", partly=True)
    assert list(pd.read_parquet(TABLES / "recall/history.parquet")["order"]) == [0, 1]
    assert list(json.loads((TABLES / "record.json").read_text())["runs"]) == [
        "runs/tiny/rome/order-0",
        "runs/tiny/rome/order-1",
    ]


def test_a_part_made_again_replaces_only_its_own_rows(study):
    record.record("tiny", partly=True)
    make(1, "recall", "2026-01-02T00:00:00+00:00", efficacy=0.5)
    record.record("tiny", partly=True)
    assert list(pd.read_parquet(TABLES / "recall/history.parquet")["efficacy"]) == [pytest.approx(1 / 3), 0.5]
    assert list(pd.read_parquet(TABLES / "edits.parquet")["efficacy"]) == [pytest.approx(1 / 3)] * 2
    made = json.loads((TABLES / "record.json").read_text())["runs"]["runs/tiny/rome/order-1"]
    assert made["recall"]["finished"] == "2026-01-02T00:00:00+00:00" and "finished" not in made["edits"]


def test_slices_of_several_machines_come_together(study):
    make(2, finished="2026-01-03T00:00:00+00:00")  # not in the grid yet
    record.record("tiny", partly=True)
    (study / "params/tiny/grid.yaml").write_text(GRID + GRID.splitlines()[1].replace("order: 0", "order: 2"))
    shutil.copytree(TABLES, "first")
    shutil.rmtree("figures")
    shutil.rmtree("runs")
    make(2, finished="2026-01-03T00:00:00+00:00")
    make(0, finished="2026-01-02T00:00:00+00:00")  # the same edits again
    record.record("tiny", partly=True)
    shutil.rmtree("runs")
    assert cli.main(["record", "tiny", "--partly", "--from", "first"]) == 0
    assert list(pd.read_parquet(TABLES / "edits.parquet")["order"]) == [0, 1, 2]
    assert list(pd.read_parquet(TABLES / "recall/history.parquet")["order"]) == [0, 1]
    made = json.loads((TABLES / "record.json").read_text())["runs"]
    assert {run: set(parts) for run, parts in made.items()} == {
        "runs/tiny/rome/order-0": {"edits", "recall", "downstream"},
        "runs/tiny/rome/order-1": {"edits", "recall"},
        "runs/tiny/rome/order-2": {"edits"},
    }


def test_of_two_results_the_one_that_finished_last_is_taken_also_if_it_came_from_elsewhere(study):
    make(1, finished="2026-01-02T00:00:00+00:00", edits=7)
    (study / "runs/tiny/rome/order-1/recall/done.json").unlink()
    record.record("tiny", partly=True)
    shutil.move("figures/tiny/tables", "later")
    make(1, finished="2026-01-01T00:00:00+00:00")
    record.record("tiny", partly=True, others=["later"])
    assert recorded_rows("edits", order=1)["edits"].item() == 7


def test_what_was_measured_on_other_edits_is_left_out_and_named(study):
    record.record("tiny", partly=True)
    make(0, finished="2026-01-02T00:00:00+00:00", efficacy=0.25)
    (study / "runs/tiny/rome/order-0/recall/done.json").unlink()
    shutil.rmtree("runs/tiny/rome/order-0/downstream")
    with pytest.warns(UserWarning, match="(recall|downstream) of runs/tiny/rome/order-0 was measured on other edits"):
        record.record("tiny", partly=True)
    assert list(pd.read_parquet(TABLES / "recall/history.parquet")["order"]) == [1]
    assert not (TABLES / "downstream/downstream.parquet").exists()
    assert set(json.loads((TABLES / "record.json").read_text())["runs"]["runs/tiny/rome/order-0"]) == {"edits"}


def test_tables_keep_their_types_where_a_run_knows_no_value_of_a_column(study):
    make(0, denominator=1.5, steps=20)
    make(1, denominator=None)
    record.record("tiny", partly=True)
    shutil.rmtree("runs")
    make(1, finished="2026-01-02T00:00:00+00:00", denominator=None, efficacy=0.5)
    shutil.rmtree(TABLES / "recall")  # asked of order 1 again
    about = json.loads((TABLES / "record.json").read_text())
    about["files"] = {name: sha256 for name, sha256 in about["files"].items() if not name.startswith("recall")}
    for run in about["runs"].values():
        del run["recall"]
    del about["sha256"]
    (TABLES / "record.json").write_text(json.dumps(about))
    record.record("tiny", partly=True)
    edits = pd.read_parquet(TABLES / "edits.parquet")
    assert {"denominator": "float32", "efficacy": "float32", "reversed": "bool", "order": "int64"}.items() <= (
        edits.dtypes.astype(str).to_dict().items()
    )
    assert edits["denominator"].isna().tolist() == [False, True] and list(edits["efficacy"]) == [
        pytest.approx(1 / 3),
        0.5,
    ]


def test_tables_beside_the_runs_stay(study):
    (study / "runs/tiny/single").mkdir()
    pd.DataFrame({"case_id": [7]}).to_parquet(study / "runs/tiny/single/single.parquet")
    finish(study / "runs/tiny/single")
    record.record("tiny", partly=True)
    shutil.rmtree("runs/tiny/single")
    record.record("tiny", partly=True)
    assert pd.read_parquet(TABLES / "single.parquet")["case_id"].item() == 7


def test_without_partly_what_is_recorded_counts(study):
    record.record("tiny", partly=True)
    shutil.rmtree("runs")
    with pytest.raises(FileNotFoundError, match="no runs/tiny/rome/order-1/downstream/done.json, one of 3 results"):
        record.record("tiny")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda about: about, None),
        (lambda about: about["files"].update({"edits.parquet": "0" * 64}), "edits.parquet is not the file that record"),
        (lambda about: about["files"].update({"single.parquet": "0" * 64}), "single.parquet is missing"),
        (
            lambda about: about["files"].update({"../x.parquet": "0" * 64}),
            r"lists \.\./x.parquet, no tables of a study",
        ),
        (lambda about: about.update(scale="other"), "holds tables of scale other, not of tiny"),
        (lambda about: about["runs"].update({"runs/tiny/ft-c/order-0": {}}), "holds runs/tiny/ft-c/order-0, which"),
    ],
)
def test_recorded_tables_that_are_not_those_of_their_record_are_refused(study, change, message):
    record.record("tiny", partly=True)
    about = json.loads((TABLES / "record.json").read_text())
    change(about)
    del about["sha256"]
    (TABLES / "record.json").write_text(json.dumps(about))
    before = {path: path.read_bytes() for path in TABLES.rglob("*") if path.is_file()}
    if message:
        with pytest.raises(ValueError, match=message):
            record.record("tiny", partly=True)
        assert {path: path.read_bytes() for path in TABLES.rglob("*") if path.is_file()} == before
    else:
        record.record("tiny", partly=True)


def test_seconds_of_each_edit_come_from_the_ledgers_and_stay(study):
    ledger = study / "runs/tiny/rome/order-1/timing.jsonl"
    ledger.write_text('{"edit": 1, "seconds": 0.5}\n{"edit": 3, "seconds": 0.25}\n{"edit": 4, "sec')
    finish(ledger.parent)
    written = record.record("tiny", partly=True)
    assert TABLES / "timing.parquet" in written
    times = pd.read_parquet(TABLES / "timing.parquet")
    assert times.to_dict("list") == {
        "method": ["rome"] * 2,
        "order": [1] * 2,
        "reversed": [False] * 2,
        "edits": [1, 3],
        "seconds": [0.5, 0.25],
    }
    ledger.unlink()  # the run is still there, its times are not
    finish(ledger.parent)
    record.record("tiny", partly=True)
    assert pd.read_parquet(TABLES / "timing.parquet").equals(times)


def test_runs_recorded_without_times_have_no_rows(study):
    assert TABLES / "timing.parquet" not in record.record("tiny", partly=True)
    (study / "runs/tiny/rome/order-1/timing.jsonl").write_text('{"edit": 1, "seconds": 2}\n')
    finish(study / "runs/tiny/rome/order-1")
    record.record("tiny", partly=True)
    assert list(pd.read_parquet(TABLES / "timing.parquet")["order"]) == [1]
