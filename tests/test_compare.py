"""Comparing two executed runs finds what differs and nothing else."""

import json
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from test_report import code, stream, write_executed

from editscale.workflow import cli, compare
from editscale.workflow.provenance import SHOWN, made_with


def edits(**columns):
    """A table of four edits with one score."""
    table = pd.DataFrame({"method": "rome", "order": 0, "edits": [1, 2, 3, 4], "efficacy": [1.0, 0.5, None, 0.25]})
    return table.assign(**columns)


def write_run(folder, table, *, printed="4 edits\n", started="2026-01-01T10:00:00+00:00", commit="a" * 12):
    """An executed run: a notebook, its tables and its record."""
    folder.mkdir(parents=True)
    table.to_parquet(folder / "edits.parquet")
    table.to_csv(folder / "fig1.csv", index=False)
    (folder / "edits.jsonl").write_text("".join(json.dumps(row) + "\n" for row in table.to_dict("records")))
    (folder / "timing.jsonl").write_text(f'{{"edit": 1, "seconds": "{started}"}}\n')
    outputs = [stream(printed), stream(f"{started} 100%|███|", "stderr"), stream(f"at {started}, <x at 0x{commit}>")]
    outputs += [new_output("display_data", {"text/plain": commit, "text/html": f"<b>{commit}</b>"}, metadata=SHOWN)]
    write_executed(folder / "notebooks/02_edits.ipynb", new_markdown_cell("# 2"), code("run()", *outputs))
    record = made_with({"n_edits": len(table)}, "0" * 64) | {
        "started": started,
        "git": {"commit": commit, "dirty": False},
    }
    (folder / "done.json").write_text(json.dumps({**record, "finished": started, "files": {}}))
    return folder


@pytest.fixture
def run_a(tmp_path):
    return write_run(tmp_path / "a", edits())


def test_runs_that_differ_in_times_and_commits_alone_are_equal(run_a, tmp_path):
    b = write_run(tmp_path / "b", edits(), started="2026-02-02T11:11:11+00:00", commit="b" * 12)
    lines, same = compare.compare(run_a, b)
    assert same and "Tables: 3 of 3 equal" in lines and "Notebooks: 1 of 1 equal" in lines


def test_a_failed_notebook_beside_the_one_that_did_not_fail_is_no_difference(run_a, tmp_path):
    b = write_run(tmp_path / "b", edits())
    (b / "notebooks/02_edits.failed.ipynb").write_text("{}")
    (b / "notebooks/.1a2b.part.ipynb").write_text("{}")
    assert compare.compare(run_a, b)[1]


def test_a_changed_number_is_found_in_every_table_with_its_row_and_size(run_a, tmp_path):
    b = write_run(tmp_path / "b", edits(efficacy=[1.0, 0.4, None, 0.24]))
    lines, same = compare.compare(run_a, b)
    assert not same and "Tables: 0 of 3 equal" in lines and "Notebooks: 1 of 1 equal" in lines
    expected = "efficacy: 2 of 4 rows, at most 0.1 at method rome, order 0, edits 2, relative 0.2"
    assert sum(line.strip() == expected for line in lines) == 3


def test_rows_are_matched_by_what_they_measure_and_not_by_their_place():
    shuffled = edits().iloc[[2, 0, 3, 1]]
    assert compare.table_difference(edits(), shuffled) == []
    lines = compare.table_difference(edits(), edits(edits=[1, 2, 3, 5]))
    assert lines == [
        "1 of 4 rows only in A: method rome, order 0, edits 4",
        "1 of 4 rows only in B: method rome, order 0, edits 5",
    ]


def test_rows_that_share_their_keys_are_matched_in_their_order():
    a, b = edits(edits=1), edits(edits=1).iloc[:3]
    assert compare.table_difference(a, b) == ["1 of 4 rows only in A: method rome, order 0, edits 1, 4. of its kind"]
    a, b = pd.DataFrame({"value": [1.0, 2.0]}), pd.DataFrame({"value": [1.0, 3.0]})
    assert compare.table_difference(a, b) == ["value: 1 of 2 rows, at most 1 at row 2, relative 0.333"]


@pytest.mark.parametrize(
    ("columns", "line"),
    [
        ({"efficacy": [1.0, 0.5, 0.5, 0.25]}, "efficacy: 1 of 4 rows, 1 not finite on one side, first nan and 0.5 at"),
        (
            {"efficacy": [1.0, float("inf"), None, 0.25]},
            "efficacy: 1 of 4 rows, 1 not finite on one side, first 0.5 and inf",
        ),
        ({"status": "edited"}, "columns only in B: status"),
        ({"order": 1}, "4 of 4 rows only in A: method rome, order 0, edits 1; method rome, order 0, edits 2; "),
    ],
)
def test_each_kind_of_difference_between_tables_has_its_line(columns, line):
    assert any(found.startswith(line) for found in compare.table_difference(edits(), edits(**columns)))


def test_text_that_differs_is_counted_and_shown():
    a, b = edits(status="edited"), edits(status=["edited", "edited", "non-finite", "edited"])
    line = "status: 1 of 4 rows, first edited and non-finite at method rome, order 0, edits 3"
    assert compare.table_difference(a, b) == [line]


def test_equal_values_in_other_bytes_are_equal(run_a, tmp_path):
    b = write_run(tmp_path / "b", edits())
    edits().to_parquet(b / "edits.parquet", compression="gzip")
    assert (b / "edits.parquet").read_bytes() != (run_a / "edits.parquet").read_bytes()
    assert compare.compare(run_a, b)[1]


def test_a_changed_output_or_source_of_a_notebook_is_shown(run_a, tmp_path):
    b = write_run(tmp_path / "b", edits(), printed="5 edits\n")
    lines, same = compare.compare(run_a, b)
    text = [line.strip() for line in lines]
    assert not same and "-  4 edits" in text and "+  5 edits" in text
    notebook = "notebooks/02_edits.ipynb"
    assert any("5 edits" in line for line in compare.notebook_difference(run_a / notebook, b / notebook))
    other = write_executed(tmp_path / "c.ipynb", new_markdown_cell("# 2"), code("run(again=True)"))
    assert any("run(again=True)" in line for line in compare.notebook_difference(run_a / notebook, other))


def test_a_file_or_run_on_one_side_only_is_a_difference(run_a, tmp_path):
    b = write_run(tmp_path / "b", edits())
    (b / "fig1.csv").unlink()
    (b / "done.json").unlink()
    lines, same = compare.compare(run_a, b)
    text = "\n".join(lines)
    assert not same and "fig1.csv\n      only in A" in text and "finished only in A" in text


def test_parameters_are_a_difference_and_versions_are_only_told(run_a, tmp_path):
    b = write_run(tmp_path / "b", edits())
    record = json.loads((b / "done.json").read_text())
    record["packages"]["torch"] = "1.0"
    (b / "done.json").write_text(json.dumps(record))
    lines, same = compare.compare(run_a, b)
    assert same and any("packages.torch" in line and "1.0" in line for line in lines)
    record["parameters"]["n_edits"] = 5
    (b / "done.json").write_text(json.dumps(record))
    lines, same = compare.compare(run_a, b)
    assert not same and any("n_edits 4 and 5" in line for line in lines)


def test_the_exit_status_is_that_of_diff(run_a, tmp_path, capsys):
    b = write_run(tmp_path / "b", edits(efficacy=0.0))
    assert cli.main(["compare", str(run_a), str(run_a)]) == 0
    assert cli.main(["compare", str(run_a), str(b)]) == 1
    assert cli.main(["compare", str(run_a), str(tmp_path / "missing")]) == 2
    assert "missing, which does not exist" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda a, b: (b / "edits.jsonl").write_text('{"edit"'), "edits.jsonl cannot be read as a table"),
        (lambda a, b: (b / "edits.parquet").write_bytes(b"x"), "edits.parquet cannot be read as a table"),
        (lambda a, b: (b / "fig1.csv").write_text(""), "fig1.csv cannot be read as a table"),
        (lambda a, b: (b / "done.json").write_text("{}"), "done.json is not what record.finish writes"),
        (lambda a, b: (b / "notebooks/02_edits.ipynb").write_text("{"), "02_edits.ipynb"),
    ],
)
def test_files_that_cannot_be_compared_are_named(run_a, tmp_path, capsys, spoil, problem):
    b = write_run(tmp_path / "b", edits())
    spoil(run_a, b)
    assert cli.main(["compare", str(run_a), str(b)]) == 2
    assert problem in capsys.readouterr().err


def test_only_two_of_a_kind_with_something_in_them_can_be_compared(run_a, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.txt").touch()
    for other, problem in [
        (tmp_path / "empty", "holds no table and no notebook"),
        (tmp_path / "text.txt", "neither a folder"),
        (run_a / "notebooks/02_edits.ipynb", "two of one kind"),
    ]:
        with pytest.raises(ValueError, match=problem):
            compare.compare(run_a, other)


def test_a_missing_text_is_equal_to_a_missing_text():
    table = edits(status=["edited", None, "edited", None])
    assert compare.table_difference(table, table.copy()) == []


def test_git_shows_the_cell_that_was_added_to_a_notebook_that_was_executed(tmp_path):
    """With the driver that the Makefile sets up, in a checkout whose name holds a space."""
    makefile = (Path(__file__).parents[1] / "Makefile").read_text()
    options = re.search("^WRITTEN := (.*)", makefile, re.M)[1]
    assert "git-nbdiffdriver' diff $(WRITTEN)\"" in makefile
    root = tmp_path / "my checkout"
    (root / "bin").mkdir(parents=True)
    (root / "bin/git-nbdiffdriver").symlink_to(Path(sys.executable).parent / "git-nbdiffdriver")

    def git(*arguments):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "color.ui=never"]
        command = ["git", *identity, *arguments]
        return subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout

    git("init")
    (root / ".gitattributes").write_text("*.ipynb diff=jupyternotebook")
    git("config", "diff.jupyternotebook.command", f"'{root}/bin/git-nbdiffdriver' diff --no-color {options}")
    notebook = new_notebook(cells=[new_code_cell("edits.head()"), new_code_cell("edits.tail()")])
    nbformat.write(notebook, root / "a.ipynb")
    git("add", ".")
    git("commit", "-m", "a notebook")
    notebook.cells.insert(1, new_code_cell("edits.describe()"))
    notebook.metadata["language_info"] = {"name": "python"}
    for cell in notebook.cells:
        cell.update(execution_count=7, outputs=[stream("many rows\n" * 99)], metadata={"execution": {"busy": "12:00"}})
    nbformat.write(notebook, root / "a.ipynb")
    shown = git("diff")
    assert "edits.describe()" in shown and "inserted" in shown
    assert not re.search("many rows|12:00|language_info|edits.head", shown) and len(shown.splitlines()) < 12
