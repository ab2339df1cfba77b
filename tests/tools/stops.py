"""Stop commands in all the ways there are, and show what each ends with: `python tests/tools/stops.py [WORD …]`.

A row is a command, what stops it, and when; words choose rows. Shown are its exit status, the seconds until it ended,
whether its one message says how many edits are kept and which command goes on, and what it left: folders in TMPDIR,
kernels, a traceback. The exit status is 1 if a row is not as it should be. Tests take some rows of "small", a notebook
that appends to a ledger and needs no model.
"""

import os
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import nbformat
import pandas as pd

ROOT = Path(__file__).parents[2]
SMALL = (
    'n_edits: int = 99  # edits\nway: str = ""  # how it ends\nout: str = "runs/small"  # folder',
    "import os, time\nfrom editscale.sequences import ledger, stopping\n"
    "book = ledger.Ledger(out, {}, {})\nwith stopping.says_how_to_go_on([book], n_edits):\n"
    "    while True:\n        book.append({'text': 'x' * 500}, [], 0.0)\n        time.sleep(0.05)\n"
    "        if len(book) > 3 and way:\n            exec(way)",
    "1",
)
RUN = "run notebooks/{name}.ipynb {folder}/nb.ipynb -f params/smoke/{name}.yaml -p out {folder}/run"
LM = "--model tests/golden/tiny_gpt2 --hparams params/rome/tiny-gpt2.yaml --method rome"
MOMENTS = "runs/smoke/moments/second_moments.safetensors"
COMMANDS = {
    "small": "run notebooks/small.ipynb {folder}/nb.ipynb -p out {folder}/run",
    "02a": RUN.replace("{name}", "02a_sequential_editing"),
    "03a": RUN.replace("{name}", "03a_recall_history") + " -p run runs/smoke/rome/order-0",
    "together": "together smoke r-rome",
    "try": f"try --facts params/smoke/invented_facts.json {LM} --moments {MOMENTS}",
    "replay": "replay runs/smoke/rome/order-0 --save {folder}/model",
}
LIMITS = {"open files": resource.RLIMIT_NOFILE, "file size": resource.RLIMIT_FSIZE, "memory": resource.RLIMIT_AS}
# Modules that are found before the kernel's own.
BROKEN = {
    "ipykernel is broken": ("ipykernel_launcher.py", "raise SystemExit('no ipykernel here')"),
    "python exits": (
        "sitecustomize.py",
        "import os, sys\n'ipykernel_launcher' in sys.orig_argv and (os.write(2, b'no python here\\n'), os._exit(7))",
    ),
}


@dataclass(frozen=True)
class Stop:
    """One way to stop a command.

    Args:
        command: of `COMMANDS`.
        what: signals, such as "SIGINT SIGINT", a limit of `LIMITS` with its number, a name of `BROKEN`, or code that
            the small notebook executes.
        to: which gets the signals: "process", "group" or "kernel".
        when: after this many "edits", seconds after the "start" or after the "kernel" has started.
        status, says: what the exit status should be, and a part of the message. kept: it names the edits.
    """

    command: str
    what: str
    status: int
    says: str = ""
    to: str = "process"
    when: tuple = ("edits", 3)
    kept: bool = True

    def __str__(self):
        return f"{self.command}: {self.what}, {self.to}, {self.when[0]} {self.when[1]}"


def _signals(command, **options):
    """The rows of all signals that a user, a terminal or a scheduler sends."""
    names = {"SIGINT": 130, "SIGTERM": 143, "SIGHUP": 129}
    return [Stop(command, name, status, "stopped by ", **options) for name, status in names.items()]


def _in_place(command):
    """The rows of a command that runs without a kernel and keeps nothing."""
    rows = [row for seconds in (1.5, 6) for row in _signals(command, when=("start", seconds), kept=False)]
    return [*rows, Stop(command, "file size 20000" if command == "replay" else "memory 1000000000", 1, kept=False)]


def _of_notebook(command, kept=True, when=("edits", 3)):
    """The rows of a command that runs a notebook."""
    options = {"when": when, "kept": kept}
    return [
        *(row for to in ("process", "group", "kernel") for row in _signals(command, to=to, **options)),
        Stop(command, "SIGINT SIGINT", 130, "stopped by SIGINT", **options),
        Stop(command, "SIGTERM SIGTERM", 143, "stopped by SIGTERM", to="group", **options),
        Stop(command, "SIGINT SIGINT", 130, "stopped by SIGINT", to="kernel", **options),
        Stop(command, "SIGKILL", 1, "SIGKILL, probably out of memory", to="kernel", **options),
        Stop(command, "SIGSEGV", 1, "Kernel died with SIGSEGV", to="kernel", **options),
        *_signals(command, when=("start", 0.5), kept=False),
        *_signals(command, when=("kernel", 0), kept=False),
        *_signals(command, when=("kernel", 2), kept=False),
        *(Stop(command, broken, 1, "it last wrote: no ", kept=False) for broken in BROKEN),
        Stop(command, "open files 40", 2, "may open 40 files", kept=False),
    ]


STOPS = [
    *_of_notebook("small"),
    Stop("small", "os._exit(3)", 1, "Kernel died with exit status 3; 4 of 99"),
    Stop("small", "raise MemoryError", 1, "give it more memory"),
    Stop("small", "raise OSError(28, 'No space left on device')", 1, "No space left on device"),
    Stop("small", "raise KeyboardInterrupt('SIGTERM')", 143, "stopped by SIGTERM"),
    Stop("small", "file size 7000", 1, "File too large"),
    *_of_notebook("02a"),
    Stop("02a", "memory 1500000000", 1, kept=False),
    Stop("02a", "file size 12000", 1, "File too large", kept=False),
    *_of_notebook("03a", kept=False, when=("kernel", 12)),
    *_signals("together"),
    Stop("together", "SIGINT SIGINT", 130),
    Stop("together", "file size 6000", 1, "File too large"),
    *_in_place("together"),
    *_in_place("try"),
    *_in_place("replay"),
]


def checkout(folder):
    """A checkout to stop commands in: that of this file, with the small notebook and its environment."""
    left_out = shutil.ignore_patterns(".git", ".venv", "runs", ".snakemake", "__pycache__", ".*_cache")
    shutil.copytree(ROOT, folder, ignore=left_out)
    cells = [nbformat.v4.new_code_cell(source) for source in SMALL]
    cells[0].metadata["tags"] = ["parameters"]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), folder / "notebooks/small.ipynb")
    return folder


def outcome(stop, top, folder):
    """What a stop of a command in the checkout `top` ends with, as a dict; what the command writes goes to `folder`."""
    (folder / "tmp").mkdir(parents=True)
    environment = os.environ | {"PYTHONPATH": str(top), "TMPDIR": str(folder / "tmp"), "OMP_NUM_THREADS": "1"}
    if stop.what in BROKEN:
        name, text = BROKEN[stop.what]
        (folder / "first").mkdir()
        (folder / "first" / name).write_text(text)
        environment["PYTHONPATH"] = f"{folder}/first:{top}"
    limit, _, number = stop.what.rpartition(" ")

    def begin():
        for one in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(one, signal.default_int_handler if one == signal.SIGINT else signal.SIG_DFL)
        if limit in LIMITS:
            resource.setrlimit(LIMITS[limit], (int(number), int(number)))

    arguments = shlex.split(COMMANDS[stop.command].format(folder=folder))
    if stop.command == "small" and not any(stop.what.startswith(word) for word in ("SIG", *LIMITS, *BROKEN)):
        arguments += ["-p", "way", stop.what]
    command = [sys.executable, "-m", "editscale", *arguments]
    with open(folder / "stderr", "wb") as stderr:
        process = subprocess.Popen(
            command, cwd=top, env=environment, stderr=stderr, stdout=stderr, preexec_fn=begin, start_new_session=True
        )
    kernel = _send(stop, process, top / "runs/smoke/r-rome" if stop.command == "together" else folder)
    began = time.monotonic()
    status = process.wait(300)
    seconds, said = time.monotonic() - began, (folder / "stderr").read_text(errors="replace")
    last = said.strip().splitlines()[-1] if said.strip() else ""
    return {
        "status": status,
        "seconds": round(seconds, 1),
        "kept": "edits are kept in" in last,
        "goes on": last.endswith(shlex.join(command)) and "run the same command again" in last,
        "traceback": "Traceback" in said,
        "left": ", ".join(path.name for path in (folder / "tmp").glob("editscale-*")),
        "kernel left": kernel is not None and _asked("ps", "-o", "stat=", "-p", kernel).strip("Z+sl \n") != "",
        "said": last,
    }


def _send(stop, process, folder):
    """Send a process, its group or its kernel the signals of a stop when it is time: its kernel, once there is one."""
    kind, n = stop.when
    kernel, began, numbers = None, time.monotonic(), [word for word in stop.what.split() if word.startswith("SIG")]
    while process.poll() is None:
        if kernel is None and (found := _kernel(process.pid)):
            kernel, began = found, began if kind == "start" else time.monotonic()
        ledgers = [*folder.glob("edits.jsonl"), *folder.glob("*/edits.jsonl")]  # not deeper: folders in tmp come and go
        n_edits = max((path.read_bytes().count(b"\n") for path in ledgers), default=0)
        waited = time.monotonic() - began if kernel or kind == "start" else -1
        if numbers and (n_edits if kind == "edits" else waited) >= n:
            for name in numbers:
                to = {"process": process.pid, "group": -process.pid, "kernel": int(kernel or 0)}[stop.to]
                os.kill(to, signal.Signals[name])
                time.sleep(0.02)
            break
        time.sleep(0.02)
    return kernel


def _kernel(pid):
    """The kernel that a process has started, as text; None if there is none."""
    return _asked("pgrep", "-P", str(pid), "-f", "ipykernel_launcher").strip() or None


def _asked(*command):
    return subprocess.run(command, capture_output=True, text=True).stdout


def right(stop, found):
    """Whether a stop ended as it should."""
    bad_input = found["status"] == 2  # says what to mend
    return (
        found["status"] == stop.status
        and stop.says in found["said"]
        and found["kept"] >= stop.kept
        and (found["goes on"] or bad_input)
        and not (found["traceback"] or found["left"] or found["kernel left"])
    )


def main(words):
    """Exit status: 0 if every stop ended as it should."""
    rows = []
    with tempfile.TemporaryDirectory(prefix="stops-") as top:
        top = checkout(Path(top, "checkout"))
        for part in ("moments", "rome/order-0"):
            shutil.copytree(ROOT / "runs/smoke" / part, top / "runs/smoke" / part)
        grid = top / "params/smoke/grid.yaml"
        grid.write_text(f"together: true\n{grid.read_text()}")
        for n, stop in enumerate(stop for stop in STOPS if all(word in str(stop) for word in words)):
            shutil.rmtree(top / "runs/smoke/r-rome", ignore_errors=True)
            found = outcome(stop, top, top.parent / str(n))
            rows.append({"right": right(stop, found), "stop": str(stop), **found})
            print(rows[-1], file=sys.stderr, flush=True)
    print(pd.DataFrame(rows).drop(columns="said").to_string(index=False))
    return int(not all(row["right"] for row in rows))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
