"""Parameters are checked before a kernel starts; a run has succeeded when the results it declares exist."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import papermill
import pytest

from editscale import dependencies
from editscale.workflow import cli, execute
from editscale.workflow.parameters import (
    check_value,
    collect_parameters,
    notebook_parameters,
    read_notebook,
    read_parameters,
)

PARAMETERS = """\
n_edits: int = 4  # facts edited one after another
rate: float = 0.5  # step of the optimizer
reverse: bool = False  # the other way round
method: str = "rome"  # which editor
eval_at: list = [1, 2]  # edit counts
sizes: dict = {}  # by name
out: str = "runs/test"  # folder for results"""
FINISH = """\
from editscale.workflow.provenance import finish, made_with
finish(out, [f"{out}/table.csv"], made_with({}, "0" * 64))"""
WRITE = """\
from pathlib import Path
Path(out, "table.csv").write_text(f"{n_edits},{rate}")"""


def write_notebook(path, *sources, tags=("parameters",)):
    """A notebook of code cells, the first `len(tags)` of them tagged."""
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    for cell, tag in zip(cells, tags, strict=False):
        cell.metadata["tags"] = [tag]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)
    return path


@pytest.fixture
def root(tmp_path):
    """A repository of its own: a folder with pyproject.toml and one notebook."""
    (tmp_path / "pyproject.toml").touch()
    return tmp_path


@pytest.fixture
def notebook(root):
    return write_notebook(root / "notebooks" / "09_test.ipynb", PARAMETERS, WRITE, FINISH)


@pytest.fixture
def no_kernel(monkeypatch):
    """Fails a test in which papermill is asked to execute anything."""

    def start(*_, **__):
        raise AssertionError("a kernel was started")

    monkeypatch.setattr("papermill.execute_notebook", start)


def stopped(capfd, *arguments):
    """The one line with which `editscale run` refuses `arguments`."""
    assert cli.main(["run", *map(str, arguments)]) == 2
    lines = capfd.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def failed(capfd, *arguments):
    """The line with which `editscale run` reports that the notebook failed."""
    assert cli.main(["run", *map(str, arguments)]) == 1
    return capfd.readouterr().err.strip().splitlines()[-1]


# ---------------------------------------------------------------------------------- before a kernel starts


@pytest.mark.parametrize(
    ("yaml", "words"),
    [
        ("n_edit: 4", ["n_edit ", "did you mean n_edits?", "09_test.ipynb", "values.yaml"]),
        ("zzz: 4", ["unknown parameter zzz", "the notebook has n_edits, rate"]),
        ("n_edits: '4'", ["n_edits", "must be int", "'4' (str)", "09_test.ipynb", "values.yaml"]),
        ("n_edits: true", ["n_edits", "must be int", "True (bool)"]),
        ("n_edits: 4.0", ["n_edits", "must be int", "4.0 (float)"]),
        ("n_edits:", ["n_edits", "must be int", "None"]),
        ("rate: 1e-3", ["rate", "must be float", "1.0e-3"]),
        ("reverse: 0", ["reverse", "must be bool"]),
        ("method: 1", ["method", "must be str"]),
        ("eval_at: 1", ["eval_at", "must be list"]),
        ("eval_at: [1, two]", ["eval_at", "a list of int"]),
        ("sizes: []", ["sizes", "must be dict"]),
        ("n_edits: 4\nn_edits: 5", ["values.yaml sets n_edits more than once"]),
        ("- n_edits", ["values.yaml must hold lines 'parameter: value'"]),
        ("n_edits: [", ["values.yaml is not readable as YAML"]),
    ],
)
def test_a_wrong_yaml_stops_with_one_line_that_names_the_parameter(notebook, root, capfd, no_kernel, yaml, words):
    (root / "values.yaml").write_text(yaml)
    line = stopped(capfd, notebook, root / "out.ipynb", "-f", root / "values.yaml")
    for word in words:
        assert word in line


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("order", "1", ["unknown parameter order"]),
        ("n_edits", "four", ["n_edits", "must be int", "after -p"]),
        ("n_edits", "1.5", ["n_edits", "must be int"]),
        ("rate", "fast", ["rate", "must be float"]),
        ("reverse", "1", ["reverse", "must be bool"]),
        ("eval_at", "1", ["eval_at", "must be list"]),
    ],
)
def test_a_wrong_value_on_the_command_line_stops_the_run(notebook, root, capfd, no_kernel, name, text, words):
    line = stopped(capfd, notebook, root / "out.ipynb", "-p", name, text)
    for word in words:
        assert word in line


def test_missing_files_and_folders_that_cannot_be_written_stop_the_run(notebook, root, capfd, no_kernel):
    out = root / "out.ipynb"
    assert "no parameters file" in stopped(capfd, notebook, out, "-f", root / "none.yaml")
    assert "no notebook" in stopped(capfd, root / "none.ipynb", out)
    (root / "plain").write_text("a file, where a folder is needed")
    line = stopped(capfd, notebook, out, "-p", "out", "plain/below")
    assert "cannot write to the output folder" in line and "plain/below" in line
    assert "plain/x" in stopped(capfd, notebook, root / "plain/x/out.ipynb")
    assert "another .ipynb file" in stopped(capfd, notebook, notebook)
    assert notebook.stat().st_size > 0


def test_a_notebook_outside_a_repository_is_refused(tmp_path, capfd, no_kernel):
    loose = write_notebook(tmp_path / "loose.ipynb", PARAMETERS)
    if any((folder / "pyproject.toml").exists() for folder in tmp_path.parents):
        pytest.skip("the temporary folder lies inside a repository")
    assert "pyproject.toml" in stopped(capfd, loose, tmp_path / "out.ipynb")


def test_a_kernel_of_another_environment_is_refused(notebook, root, capfd, no_kernel, monkeypatch):
    folder = root / "kernels" / "python3"
    folder.mkdir(parents=True)
    spec = {"argv": ["/elsewhere/bin/python"], "display_name": "x", "language": "python"}
    (folder / "kernel.json").write_text(json.dumps(spec))
    monkeypatch.setenv("JUPYTER_PATH", str(root))
    assert "/elsewhere/bin/python" in stopped(capfd, notebook, root / "out.ipynb")


@pytest.mark.parametrize(
    ("sources", "tags", "words"),
    [
        (["x: int = 1"], [], "0 cells tagged"),
        (["x: int = 1", "y: int = 1"], ["parameters"] * 2, "2 cells tagged"),
        (["x: int = 1"], ["parameters"], "no parameter 'out'"),
        (["import os"], ["parameters"], "import os"),
        (["x: int = 1 + y"], ["parameters"], "x: int = 1 + y"),
        (["x: int | None = None"], ["parameters"], "int | None"),
        (["x: int = 0.5"], ["parameters"], "x: int = 0.5"),
        (["x, y = 1, 2"], ["parameters"], "x, y"),
    ],
)
def test_a_parameters_cell_holds_typed_literals_only(root, capfd, no_kernel, sources, tags, words):
    path = write_notebook(root / "bad.ipynb", *sources, tags=tags)
    assert words in stopped(capfd, path, root / "out.ipynb")


# ------------------------------------------------------------------------------------------------- values


def test_values_arrive_with_the_type_of_the_default(notebook, root):
    (root / "a.yaml").write_text("n_edits: 7\nrate: 1\neval_at: [3]\nmethod: rome")
    (root / "b.yaml").write_text("n_edits: 8\n")
    pairs = [("method", "1.5"), ("reverse", "true"), ("sizes", "{a: 1}"), ("eval_at", "[1, 5]")]
    values = collect_parameters(notebook, [root / "a.yaml", root / "b.yaml"], pairs)
    assert values == {"n_edits": 8, "rate": 1.0, "reverse": True, "method": "1.5", "eval_at": [1, 5],
                      "sizes": {"a": 1}, "out": "runs/test"}  # fmt: skip
    assert type(values["rate"]) is float


def test_numbers_for_a_float_are_read_as_python_writes_them(notebook):
    assert collect_parameters(notebook, [], [("rate", "1e-3")])["rate"] == 0.001
    assert collect_parameters(notebook, [], [("rate", "-2")])["rate"] == -2.0


def test_a_default_with_an_equals_sign_is_a_parameter_too(root):
    path = write_notebook(root / "a.ipynb", 'out: str = "a=b"  # papermill warns of it')
    assert notebook_parameters(path)["out"].default == "a=b"


def test_an_empty_yaml_file_sets_nothing(root):
    (root / "empty.yaml").write_text("# nothing yet\n")
    assert read_parameters(root / "empty.yaml") == {}


def test_items_of_a_list_without_example_may_be_anything(notebook):
    parameter = notebook_parameters(notebook)["eval_at"]
    free = type(parameter)("free", list, [])
    assert check_value(free, ["a", 1], "a test") == ["a", 1]


# ---------------------------------------------------------------------------------------------- execution


def test_a_run_starts_in_the_root_with_its_parameters_and_one_thread(root, tmp_path_factory, monkeypatch):
    report = """\
import os, sys
from pathlib import Path
from ipykernel.connect import get_connection_info
transport = get_connection_info(unpack=True)["transport"]
facts = [n_edits, rate, os.environ["OMP_NUM_THREADS"], transport, sys.prefix]
Path(out, "table.csv").write_text("|".join(map(str, facts)))
for step in range(5):
    print(step, file=sys.stderr)
    print(step)
os.getcwd()"""
    notebook = write_notebook(root / "notebooks" / "09_test.ipynb", PARAMETERS, report, FINISH)
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    executed = root / "runs" / "nb" / "done.ipynb"
    assert cli.main(["run", str(notebook), str(executed), "-p", "n_edits", "9", "-p", "rate", "2"]) == 0
    written = (root / "runs/test/table.csv").read_text().split("|")
    assert written == ["9", "2.0", "1", "ipc", sys.prefix]
    assert os.environ["OMP_NUM_THREADS"] == "7"
    record = json.loads((root / "runs/test/done.json").read_text())
    assert list(record["files"]) == ["runs/test/table.csv"]
    outputs = [c for c in nbformat.read(executed, 4).cells if "os.getcwd" in c.source][0].outputs
    assert outputs[-1].data["text/plain"] == repr(str(root))
    assert len([o for o in outputs if o.output_type == "stream"]) == 2  # one for each stream, not one a line


def test_a_failing_cell_is_named_and_the_executed_notebook_kept(root, capfd):
    cell = "# a reason\nassert n_edits == 5, 'five were expected'"
    notebook = write_notebook(root / "a.ipynb", PARAMETERS, cell, FINISH)
    for _ in range(2):  # one that failed takes the place of one that failed
        line = failed(capfd, notebook, root / "out.ipynb")
        assert "a.ipynb failed in code cell 2 of 3 (assert n_edits == 5" in line
        assert "five were expected" in line and str(root / "out.ipynb") in line
        assert "AssertionError" in (root / "out.ipynb").read_text()
    assert contents(root).keys() == {"pyproject.toml", "a.ipynb", "out.ipynb"}


def contents(folder):
    """All files of a folder by their path from there."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_run_that_fails_before_its_first_result_leaves_what_an_earlier_one_left(root, capfd):
    """Such as one whose ledger another process has open: neither done.json nor the executed notebook is lost."""
    refused = "assert n_edits == 4, 'refused'"
    notebook = write_notebook(root / "a.ipynb", PARAMETERS, refused, WRITE, FINISH)
    out = root / "out.ipynb"
    assert cli.main(["run", str(notebook), str(out)]) == 0
    before = contents(root)
    line = failed(capfd, notebook, out, "-p", "n_edits", "5")
    after = contents(root)
    assert line.endswith(f"refused; see {root / 'out.failed.ipynb'}")
    assert "AssertionError" in after.pop("out.failed.ipynb").decode() and after == before
    assert nbformat.read(root / "out.failed.ipynb", 4).metadata.papermill.output_path == str(root / "out.failed.ipynb")
    assert cli.main(["run", str(notebook), str(out)]) == 0
    assert contents(root).keys() == before.keys()  # the failed one is of the past


def test_the_record_of_an_earlier_run_is_no_success_of_a_later_one(root, capfd):
    notebook = write_notebook(root / "a.ipynb", PARAMETERS, WRITE, FINISH)
    assert cli.main(["run", str(notebook), str(root / "out.ipynb")]) == 0
    write_notebook(notebook, PARAMETERS, WRITE)
    line = failed(capfd, notebook, root / "out.ipynb")
    assert f"left no {root / 'runs/test/done.json'}" in line and "out.failed.ipynb" in line


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_run_that_is_stopped_names_its_cell_and_says_how_to_go_on(root, number):
    wait = "Path(out, 'started').touch()\nimport time\ntime.sleep(60)"
    notebook = write_notebook(root / "a.ipynb", PARAMETERS, f"from pathlib import Path\n{wait}", FINISH)
    command = [sys.executable, "-m", "editscale", "run", str(notebook), str(root / "out.ipynb")]

    def default():
        signal.signal(signal.SIGINT, signal.default_int_handler)

    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=default) as process:
        while not (root / "runs/test/started").exists():
            time.sleep(0.05)
        process.send_signal(number)
        line = process.stderr.read().splitlines()[-1]
    assert process.returncode == 128 + number and f"a.ipynb was stopped by {number.name} in code cell 2 of 3" in line
    assert "run the same command again" in line and (root / "out.ipynb").is_file()


ODD = {
    "no language": lambda nb: nb["metadata"].update(kernelspec={"name": "python3", "display_name": "Python 3"}),
    "no metadata": lambda nb: nb.pop("metadata"),
    "null metadata": lambda nb: nb.update(metadata=None),
    "a kernel of VS Code": lambda nb: nb["metadata"].update(
        kernelspec={"name": "venv (3.11)", "display_name": ".venv (3.11.2)"}
    ),
    "a kernel without name": lambda nb: nb["metadata"].update(kernelspec={"language": "python"}),
    "a kernel of R": lambda nb: nb["metadata"].update(kernelspec={"name": "ir", "display_name": "R", "language": "R"}),
    "Colab's metadata": lambda nb: nb["metadata"].update(
        colab={"provenance": []}, accelerator="GPU", kernelspec={"name": "python3", "display_name": "Python 3"}
    ),
    "an older minor version, and ids": lambda nb: nb.update(nbformat_minor=0),
    "a newer minor version": lambda nb: nb.update(nbformat_minor=9),
    "no minor version": lambda nb: nb.pop("nbformat_minor"),
    "no ids": lambda nb: [cell.pop("id") for cell in nb["cells"]],
    "one id twice": lambda nb: [cell.update(id="a") for cell in nb["cells"]],
    "no metadata of cells": lambda nb: [cell.pop("metadata") for cell in nb["cells"][1:]],
    "null metadata of cells": lambda nb: [cell.update(metadata=None) for cell in nb["cells"][1:]],
    "null tags": lambda nb: [cell["metadata"].update(tags=None) for cell in nb["cells"][1:]],
    "no outputs": lambda nb: [cell.pop("outputs") for cell in nb["cells"]],
    "no counts": lambda nb: [cell.pop("execution_count") for cell in nb["cells"]],
    "sources as lists": lambda nb: [cell.update(source=cell["source"].splitlines(True)) for cell in nb["cells"]],
    "a null source": lambda nb: nb["cells"].append({"cell_type": "code", "source": None}),
    "a cell without source": lambda nb: nb["cells"].append({"cell_type": "markdown"}),
    "lines as Windows ends them": lambda nb: [
        cell.update(source=cell["source"].replace("\n", "\r\n")) for cell in nb["cells"]
    ],
    "notes of papermill that are none": lambda nb: nb["metadata"].update(papermill=[1]),
}


def odd(path, *changes):
    """A notebook changed as a tool would leave it, as a file with a mark of UTF-8 at its front."""
    content = json.loads(write_notebook(path, PARAMETERS, WRITE, FINISH).read_text())
    for cell in content["cells"]:
        cell["source"] = "".join(cell["source"])
    for change in changes:
        change(content)
    path.write_text(json.dumps(content), encoding="utf-8-sig")
    return path


@pytest.mark.parametrize("name", ODD)
def test_a_notebook_is_read_as_editors_and_strippers_leave_it(root, name):
    path = odd(root / "notebooks/09_odd.ipynb", ODD[name])
    assert list(notebook_parameters(path)) == [line.split(":")[0] for line in PARAMETERS.splitlines()]
    plain = write_notebook(root / "notebooks/09_plain.ipynb", PARAMETERS, WRITE, FINISH)
    cells = [cell.source for cell in read_notebook(path).cells if cell.source]
    assert [cell.replace("\r\n", "\n") for cell in cells] == [cell.source for cell in read_notebook(plain).cells]
    if "Windows" not in name and "null source" not in name:
        assert dependencies.of_notebook(path) == dependencies.of_notebook(plain)


def test_a_notebook_runs_as_editors_and_strippers_leave_it(root):
    names = ("a kernel of R", "an older minor version, and ids", "null metadata of cells", "no outputs", "no counts")
    path = odd(root / "notebooks/09_odd.ipynb", *(ODD[name] for name in names))
    assert cli.main(["run", str(path), str(root / "out.ipynb")]) == 0
    assert (root / "runs/test/table.csv").read_text() == "4,0.5"


def test_what_is_no_notebook_or_of_another_version_is_named(root, capfd, no_kernel):
    page = {"nbformat": 3, "nbformat_minor": 0, "metadata": {"name": ""}, "worksheets": [{"cells": [], "metadata": {}}]}
    wrong = {
        "empty": "",
        "html": "<!DOCTYPE html><html></html>",
        "cut": '{"nbformat": 4, "cells": [',
        "longer": json.dumps(nbformat.v4.new_notebook()) + "}",
        "list": "[]",
        "json": "{}",
        "later": json.dumps({"nbformat": 5, "cells": []}),
        "cells": json.dumps({"nbformat": 4, "cells": 3}),
        "cell": json.dumps({"nbformat": 4, "cells": [{"cell_type": "code", "source": 3}]}),
        "deep": "[" * 100_000,
    }
    for name, text in wrong.items():
        (root / f"{name}.ipynb").write_text(text)
        assert f"{name}.ipynb is not a notebook: " in stopped(capfd, root / f"{name}.ipynb", root / "out.ipynb"), name
    (root / "latin.ipynb").write_bytes(b'{"nbformat": 4, "cells": "\xe9"}')
    assert "latin.ipynb is not a notebook" in stopped(capfd, root / "latin.ipynb", root / "out.ipynb")
    (root / "old.ipynb").write_text(json.dumps(page))
    assert "old.ipynb has 0 cells tagged 'parameters'" in stopped(capfd, root / "old.ipynb", root / "out.ipynb")
    tagged = write_notebook(root / "tag.ipynb", PARAMETERS, tags=("Parameters",))
    assert "its tags are 'Parameters'" in stopped(capfd, tagged, root / "out.ipynb")
    magic = write_notebook(root / "magic.ipynb", f"%matplotlib inline\n{PARAMETERS}")
    assert "the parameters cell of" in (line := stopped(capfd, magic, root / "out.ipynb")) and "is not Python" in line


@pytest.mark.parametrize("name", ["with space", "{braces}", 'it\'s "quoted" 100% $HOME', "größe-данные-数", "n" * 200])
def test_a_run_works_in_a_folder_of_any_name(tmp_path, name):
    root = tmp_path / name
    notebook = write_notebook(root / "notebooks" / f"{name[:100]}.ipynb", PARAMETERS, WRITE, FINISH)
    (root / "pyproject.toml").touch()
    out = f"runs/{name}"
    assert cli.main(["run", str(notebook), str(root / out / f"{name[:100]}.ipynb"), "-p", "out", out]) == 0
    record = json.loads((root / out / "done.json").read_text(encoding="utf-8"))
    assert list(record["files"]) == [f"{out}/table.csv"]


def test_a_temporary_folder_with_a_long_name_or_none_at_all_holds_no_run_up(notebook, root, monkeypatch):
    """A socket's path has about 100 bytes; schedulers make longer folders."""
    long = root / ("scratch-" * 12)
    long.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(long))
    assert cli.main(["run", str(notebook), str(root / "out.ipynb")]) == 0 and not any(long.iterdir())
    monkeypatch.setattr("tempfile.tempdir", str(root / "gone"))
    with execute._sockets() as folder:
        assert Path(folder).is_dir() and str(root) not in folder
    monkeypatch.setattr("socket.socket.bind", lambda *_: (_ for _ in ()).throw(OSError("no sockets here")))
    with pytest.raises(OSError, match="set TMPDIR to a local folder"), execute._sockets():
        pass


def test_a_disk_that_is_full_is_said_to_be_and_leaves_no_half_of_a_notebook(notebook, root, capfd, monkeypatch):
    real = papermill.execute_notebook

    def full(*arguments, **options):
        real(*arguments, **options)
        path = next(root.glob(".*.part.ipynb"))
        path.write_bytes(path.read_bytes()[:500])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("papermill.execute_notebook", full)
    line = failed(capfd, notebook, root / "out.ipynb")
    assert f"{root / 'out.ipynb'} could not be written: OSError: [Errno 28] No space left on device" in line
    assert not list(root.glob("*out*")) and not list(root.glob(".*"))


def test_a_name_that_is_too_long_is_refused_before_anything_runs(notebook, root, capfd, no_kernel):
    assert "File name too long" in stopped(capfd, notebook, root / f"{'n' * 248}.ipynb")


def test_leaving_through_sys_exit_is_a_failure_even_after_the_last_result(root, capfd):
    notebook = write_notebook(root / "a.ipynb", PARAMETERS, WRITE, f"{FINISH}\nimport sys; sys.exit()")
    line = failed(capfd, notebook, root / "out.ipynb")
    assert "sys.exit" in line and "code cell 3 of 3" in line


def test_a_kernel_that_dies_is_a_failure_that_names_its_cell(root, capfd):
    notebook = write_notebook(root / "a.ipynb", PARAMETERS, "import os; os._exit(0)", FINISH)
    line = failed(capfd, notebook, root / "out.ipynb")
    assert "code cell 2 of 3 (import os; os._exit(0))" in line and "DeadKernelError" in line


@pytest.mark.parametrize(
    ("last_cell", "words"),
    [
        ("1 + 1", "left no"),
        (f'{FINISH}\nPath(out, "table.csv").write_text("other")', "runs/test/table.csv"),
        ('Path(out, "done.json").write_text("{}")', "lists no files"),
        ("""Path(out, "done.json").write_text('{"files": {}}')""", "no file"),
    ],
)
def test_a_notebook_that_ends_without_its_declared_results_has_failed(root, capfd, last_cell, words):
    notebook = write_notebook(root / "a.ipynb", PARAMETERS, WRITE, last_cell)
    line = failed(capfd, notebook, root / "out.ipynb")
    assert words in line and "done.json" in line and str(root / "out.ipynb") in line


def test_the_command_line_names_its_commands_and_passes_on_the_exit_status(tmp_path):
    def editscale(*arguments):
        command = [sys.executable, "-m", "editscale", *arguments]
        return subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1])

    for arguments in ([], ["rum"]):
        answer = editscale(*arguments)
        assert answer.returncode == 2 and "run " in answer.stderr
    assert editscale("--help").returncode == 0
    answer = editscale("run", str(tmp_path / "none.ipynb"), str(tmp_path / "out.ipynb"))
    assert answer.returncode == 2 and answer.stderr.startswith("editscale run: no notebook")
