"""Every command answers bad input with one line on stderr and status 2; a command imports only what it needs."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tools import light

from editscale.sequences import stopping
from editscale.workflow import cli, execute

ROOT = Path(__file__).parents[1]


def test_help_lists_every_command_once_under_what_it_is_for(capsys):
    assert cli.main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    named = [line.split()[0] for line in lines if line.startswith("  ") and line[2:3].islower()]
    places = [lines.index(f"{title}:") for title in cli.SECTIONS]
    assert named == [name for names in cli.SECTIONS.values() for name in names] and places == sorted(places)
    assert set(named) == {*cli.app.commands, *cli.TOOLS}


@pytest.mark.parametrize("name", [name for names in cli.SECTIONS.values() for name in names])
def test_every_command_explains_itself(name, capsys):
    assert cli.main([name, "--help"]) == 0
    assert f"Usage: editscale {name} " in capsys.readouterr().out


@pytest.mark.parametrize("arguments", ([], ["rum"]))
def test_a_command_that_is_none_is_answered_with_the_list(arguments, capsys):
    assert cli.main(arguments) == 2
    printed = capsys.readouterr().err
    assert "  run  " in printed and "  verify  " in printed
    assert not arguments or "No such command 'rum'" in printed


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["gallery", "none"], "no figure in figures/none"),
        (["sweep", "none.yaml", "out.csv"], "no parameters file none.yaml"),
        (["sweep", "params/smoke/grid.yaml", "out.csv"], "params/smoke/grid.yaml lacks model, model_cache"),
        (["sweep", "params/sweep/smollm2-135m.yaml", "out.csv", "--part", "1"], "--part is 1, expected K/N"),
        (["known", "--model", "tests/none"], "tests/none"),
        (["bench", "--facts", "none.json"], "none.json"),
        (["bench", "--device", "gpu"], "gpu"),
        (["verify", "tests/none"], "tests/none"),
        (["rerun", "none"], "no record.json in figures/none/tables"),
        (["full-cost", "none", "--of", "smoke"], "none"),
        (["record", "none"], "params/none/grid.yaml"),
        (["together", "none", "rome"], "params/none/02a_sequential_editing.yaml"),
        (["report", "none"], "run `make figures SCALE=none` first"),
        (["compare", "none", "tests"], "none, which does not exist"),
        (["replay", "tests/none"], "tests/none"),
        (["orders", "none.json"], "none.json"),
        (["counterfact", "pyproject.toml"], "pyproject.toml"),
        (["shape", "gpt-5", "none"], "gpt-5 is no published shape; give one of gpt2-small"),
    ],
)
def test_bad_input_is_one_line_on_stderr(command, message, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    assert cli.main(command) == 2
    printed = capsys.readouterr()
    lines = [line for line in printed.err.splitlines() if not line.startswith("\r")]
    assert lines[-1].startswith(f"editscale {command[0]}: ") and message in lines[-1] and len(lines) == 1
    assert printed.out == "" and not (ROOT / "out.csv").exists()


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ValueError("no"), 2),
        (FileNotFoundError("no"), 2),
        (execute.RunFailed("no"), 1),
        (stopping.Stopped("no"), 1),
        (stopping.Interrupted("no"), 130),
        (stopping.Interrupted("no", signal.SIGTERM), 143),
    ],
)
def test_the_status_says_whether_the_command_began(error, status, monkeypatch, capsys):
    def fails(_):
        raise error

    monkeypatch.setattr(light, "write", fails)
    assert cli.main(["record", "tiny", "--notebooks"]) == status
    assert capsys.readouterr().err == "editscale record: no\n"


def test_a_bug_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr(light, "write", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cli.main(["record", "tiny", "--notebooks"])


def test_outside_a_checkout_the_tools_say_where_they_are(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cli, "__file__", str(tmp_path / "site-packages/editscale/workflow/cli.py"))
    assert cli.main(["verify", "tests/golden"]) == 2
    assert "verify comes with the repository" in capsys.readouterr().err


def test_the_command_line_is_imported_without_what_commands_need():
    code = (
        "import sys, editscale.workflow.cli; print({'torch', 'pandas', 'numpy', 'nbformat', 'yaml'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_what_a_terminal_cannot_show_stops_no_command():
    """An ASCII locale, and a scale with a name in another alphabet."""
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}
    for arguments, status in ((["--help"], 0), (["report", "größe 1"], 2)):
        command = [sys.executable, "-m", "editscale", *arguments]
        answer = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **plain})
        assert answer.returncode == status and "Traceback" not in answer.stderr
