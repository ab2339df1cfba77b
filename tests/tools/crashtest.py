"""Stop sequences of edits, and a study, again and again, and see that nothing is lost: `make crashtest N=100`.

A sequence of the smoke scale (tiny GPT-2, invented facts; a line of `CONTEXTS`) runs in a process of its own, which
is stopped (SIGKILL, SIGTERM, SIGINT) at a random moment, or killed inside a write to its ledger: after a random number
of bytes, when the disk is full, when fsync fails, with a system that writes a few bytes at a time. Some logs then lose
bytes of their last edit, or have a bit flipped there. The sequence is started again, until it ends; its ledger and
tables must then be those of the sequence that was never stopped, byte for byte.

Then `make figures SCALE=smoke` runs in a copy of the checkout, is stopped as a whole, each time by another signal,
and started again until it ends. Its ledgers and tables must be those of a copy in which nothing was stopped. At last
bits are flipped there, N in what the study left and N in a recorded scale (`flips`).

Counted for each stop: *identical* if what it left was the beginning of the uninterrupted log and the files were right
in the end; *lost* are edits whose `append` had returned and that the ledger did not have afterwards; *said* if a
message named how many edits are kept, which SIGKILL leaves no time for. The exit status is 1 if anything was lost or
differs, a message was wrong, or a flip was neither named nor without effect.
"""

import argparse
import errno
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
sys.path.insert(0, str(Path(__file__).parents[1]))  # where `tools` is, for `make crashtest`

import numpy as np
import pandas as pd
import torch

from editscale import files as editscale_files
from editscale.analysis import tables
from editscale.data import facts
from editscale.data.orders import in_order
from editscale.editing import editors, hparams
from editscale.models import loading
from editscale.sequences import frames, ledger, sequence, stopping
from tools import flips

ROOT = Path(__file__).parents[2]
N_EDITS = 6
SAMPLED = ["The river. {}", "One day. {}"]
STOPS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
MOST = 50  # sequences for each stop that is asked for
GRACE = 10  # seconds that kernels have to notice that what started them is gone
CONTEXTS = {"rome": ["{}", *SAMPLED], "memit": [["{}"], SAMPLED], "ft-c": ["{}"]}
CONTEXTS |= {"memit-seq": CONTEXTS["memit"], "ultraedit": ["{}"]}  # with a state between edits
CONTEXTS["memit-seq by 3"] = CONTEXTS["memit"]  # and three facts in a step


class Sequence:
    """The first facts of the smoke scale, edited into the tiny GPT-2 with one method."""

    def __init__(self, lm, method, n_edits=N_EDITS):
        method, _, size = method.partition(" by ")
        self.lm, self.method = lm, method
        params = editors.read_params(method, hparams.folder(method) / "tiny-gpt2.yaml")
        self.facts = in_order(facts.load(ROOT / "params/smoke/invented_facts.json"), 0, n_edits)
        with np.load(ROOT / "tests/golden/second_moments.npz") as file:
            layers = editors.moment_layers(method, params)
            known = {layer: torch.from_numpy(file[f"mom2.layer{layer}"]) for layer in layers}
        factors = editors.cholesky_factors(known, lm.device)
        editing = editors.Editing(method, params, CONTEXTS[method], factors, facts_per_step=int(size or 1))
        self.editing = editors.begun(lm, editing)

    def run(self, folder):
        """Edit from where the ledger in `folder` ends, then write the tables. The model is edited."""
        book = ledger.Ledger(
            folder,
            sequence.fingerprint(self.lm, self.editing),
            sequence.weights_record(self.lm, self.editing.layers),
        )
        sequence.run(self.lm, self.facts, self.editing, book)
        for name in ("edits", "unedited", "drift"):
            table = getattr(tables, f"{name}_table")(book, self.method, 0, False)
            table.to_parquet(Path(folder) / f"{name}.parquet", index=False)
        return book


class FaultyFiles:
    """Stands in for the module `os` in what writes ledgers: the same, but for what is to go wrong.

    Args:
        at_most: bytes that one write takes. kill_after, full_after: bytes written until the process is killed, or the
            disk is full. failing_fsync: number of the fsync that fails.
    """

    def __init__(self, at_most=2**30, kill_after=None, full_after=None, failing_fsync=None):
        self.at_most, self.kill_after, self.full_after, self.failing_fsync = (
            at_most,
            kill_after,
            full_after,
            failing_fsync,
        )
        self.written = self.synced = 0

    def __getattr__(self, name):
        return getattr(os, name)

    def write(self, fd, data):
        limits = [after for after in (self.kill_after, self.full_after) if after is not None]
        room = min(limits, default=2**40) - self.written
        n = os.write(fd, data[: min(self.at_most, max(room, 0))])
        self.written += n
        if room <= n and self.kill_after is not None:
            die()
        if not n and self.full_after is not None:
            raise OSError(errno.ENOSPC, "No space left on device")
        return n

    def fsync(self, fd):
        self.synced += 1
        if self.synced == self.failing_fsync:
            raise OSError(errno.EIO, "Input/output error")
        os.fsync(fd)


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def in_a_process(function, folder, fault=None, seconds=None, number=signal.SIGKILL):
    """Run `function(folder)` in a forked process: whether it ended by itself, how many appends had returned, and how
    many edits it said are kept when it was stopped, None if it said nothing.

    Args:
        fault: a `FaultyFiles` for what it writes. An error ends in a kill, as that of a machine that goes down.
        seconds: when to send it the signal `number`, or None.
    """
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
            warnings.simplefilter("ignore")
            if fault:
                editscale_files.os = frames.os = ledger.os = fault
            append = ledger.Ledger.append

            def acknowledged(*of):
                append(*of)
                os.write(writing, b".")

            ledger.Ledger.append = acknowledged
            function(folder)
            os._exit(0)
        except (stopping.Stopped, stopping.Interrupted) as stop:
            os.write(writing, str(stop).encode())
        finally:
            die()
    os.close(writing)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(pid, number)
    _, status = os.waitpid(pid, 0)
    with open(reading, "rb") as file:
        written = file.read().decode()
    said = re.search(r"(\d+) of \d+ edits are kept", written)
    return status == 0, len(written) - len(written.lstrip(".")), int(said[1]) if said else None


def files(folder):
    """The bytes of all files of a run but its lock and its times."""
    kept = [path for path in Path(folder).rglob("*") if path.is_file() and path.name not in (".lock", "timing.jsonl")]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in kept}


KINDS = ("SIGKILL", "SIGTERM", "SIGINT", "write", "write", "full disk", "fsync")  # of faults: each as often as here


def draw_fault(chance, kind, n_bytes, seconds):
    """What goes wrong next, of a kind: the options of `in_a_process` that let it happen."""
    place, at_most = chance.randrange(n_bytes), chance.choice((2**30, chance.randrange(50, 5000)))
    if kind.startswith("SIG"):
        return {
            "fault": FaultyFiles(at_most),
            "seconds": chance.uniform(0, seconds),
            "number": signal.Signals[kind],
        }
    options = {
        "write": {"kill_after": place},
        "full disk": {"full_after": place},
        "fsync": {"failing_fsync": chance.randrange(1, N_EDITS + 6)},
    }
    return {"fault": FaultyFiles(at_most, **options[kind])}


def damage(chance, folder):
    """Now and then cut or flip something in the last edit of a log: whether that was done."""
    log = Path(folder) / "edits.log"
    if chance.random() < 0.7 or not log.exists() or not log.stat().st_size:
        return False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ends = [0, *(frame.end for frame in ledger.Ledger(folder)._frames)]
    if len(ends) < 2:
        return False
    os.truncate(log, ends[-1])  # a torn edit after it would no longer be the last one
    if chance.random() < 0.5:
        os.truncate(log, chance.randrange(ends[-2], ends[-1]))
    else:
        with open(log, "r+b") as file:
            place = chance.randrange(ends[-2], ends[-1])
            file.seek(place)
            (byte,) = file.read(1)
            file.seek(place)
            file.write(bytes([byte ^ (1 << chance.randrange(8))]))
    return True


def survived(folder):
    """How many whole edits a ledger has."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return len(ledger.Ledger(folder)) if (Path(folder) / "ledger.json").exists() else 0


def crash(sequence_of, whole, folder, seconds, chance, at_most, kinds):
    """Run one sequence to its end through up to `at_most` stops: a Counter of (kind of stop, what came of it).

    Args:
        kinds: of the next faults, a list that is taken from and filled; a kind stays until it stopped a sequence, so
            that how fast a machine is does not decide which kinds there are.
    """
    found, stops = Counter(), []
    while True:
        kind, options = None, {}
        if len(stops) < at_most and (not stops or chance.random() < 0.6):
            if not kinds:
                kinds += chance.sample(KINDS, len(KINDS))
            kind = kinds[0]
            options = draw_fault(chance, kind, len(whole["edits.log"]), seconds)
        before = survived(folder)
        ended, n_acknowledged, said = in_a_process(sequence_of.run, folder, **options)
        if ended:
            break
        if kind is None:
            raise RuntimeError(
                f"the sequence in {folder} died of itself when it was started again; run it there to see why"
            )
        kinds.pop(0)
        log = Path(folder) / "edits.log"
        left, n_left = (log.read_bytes() if log.exists() else b""), survived(folder)
        if n_left < before + n_acknowledged:
            found[kind, "lost"] += before + n_acknowledged - n_left
            print(f"{folder}: {before} + {n_acknowledged} edits were recorded, {n_left} are left ({kind})")
        if said not in (None, n_left):
            found[kind, "wrong"] += 1
            print(f"{folder}: {said} edits were said to be kept, {n_left} are ({kind})")
        found[kind, "said"] += said is not None
        stops.append((kind, whole["edits.log"].startswith(left)))
        damage(chance, folder)
    same = files(folder) == whole
    if not same:
        different = sorted(name for name in {**files(folder), **whole} if files(folder).get(name) != whole.get(name))
        print(f"{folder}: {', '.join(different)} differ from the uninterrupted run's")
    for kind, identical in stops:
        found[kind, "stops"] += 1
        found[kind, "identical"] += identical and same
    return found


class Study:
    """`make figures SCALE=smoke` in a copy of the checkout, with its environment.

    Args:
        target: what to make, "" for all.
    """

    LEFT_OUT = (".git", ".venv", "runs", ".snakemake", "__pycache__", ".pytest_cache", ".ruff_cache")
    COMPARED = (".parquet", ".log", ".jsonl", ".csv")  # safetensors order their headers anew each time

    def __init__(self, folder, target=""):
        self.folder, self.target = folder, target
        shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(*self.LEFT_OUT))
        (folder / ".venv").symlink_to(Path(sys.prefix))

    def make(self, seconds=None, number=signal.SIGKILL):
        """Exit status of make, after it ended or, some seconds on, got a signal with all of its processes."""
        own = {"PYTHONPATH": str(self.folder), "TMPDIR": str(self.folder / "tmp")}
        (self.folder / "tmp").mkdir(exist_ok=True)
        command = ["make", "-o", ".venv/.installed", "figures", "SCALE=smoke", f"ARGS={self.target}"]
        with open(self.folder / "make.log", "ab") as log:
            make = subprocess.Popen(
                command, cwd=self.folder, env=os.environ | own, stdout=log, stderr=log, start_new_session=True
            )
            try:
                return make.wait(seconds)
            except subprocess.TimeoutExpired:
                os.killpg(make.pid, number)
                return make.wait()

    def processes(self):
        """Processes of this copy's interpreter that still run: kernels are in no group of make's."""
        found = subprocess.run(["pgrep", "-f", str(self.folder)], capture_output=True, text=True)
        return found.stdout.split()

    def results(self):
        """Bytes of ledgers and tables by path; times differ."""
        runs = self.folder / "runs/smoke"
        kept = [path for path in runs.rglob("*") if path.suffix in self.COMPARED and path.name != "timing.jsonl"]
        return {path.relative_to(runs).as_posix(): path.read_bytes() for path in kept}


def stop_study(top, n_stops, chance, target=""):
    """Stop `make figures` as a whole n_stops times, and let it end: a Counter as that of `crash`."""
    found, whole, study = Counter(), Study(top / "whole", target), Study(top / "stopped", target)
    began = time.monotonic()
    if whole.make() != 0:
        raise RuntimeError(f"make figures failed; see {whole.folder / 'make.log'}")
    seconds = time.monotonic() - began
    stops = []
    while len(stops) < n_stops:
        number = STOPS[len(stops) % len(STOPS)]
        if study.make(chance.uniform(0, seconds / 2), number) == 0:
            break
        stops.append(number)
        time.sleep(GRACE)
        if left := study.processes():
            found[f"make, {number.name}", "wrong"] += 1
            print(f"{study.folder}: processes {left} are left after {number.name}")
    status, here, there = study.make(), study.results(), whole.results()
    different = sorted(name for name in {**here, **there} if here.get(name) != there.get(name))
    same = status == 0 and not different
    if not same:
        print(f"{study.folder}: make ended with status {status}; {', '.join(different) or 'no file'} differ")
    for number in stops:
        found[f"make, {number.name}", "stops"] += 1
        found[f"make, {number.name}", "identical"] += same
    return found


def table(found):
    """Kinds of stop and what came of them, as text."""
    rows = [
        {"stop": kind, **{name: found[kind, name] for name in ("stops", "identical", "lost", "said")}}
        for kind in sorted({kind for kind, _ in found})
    ]
    return pd.DataFrame(rows).to_string(index=False)


def main(arguments):
    """Exit status: 0 if every stop left what it should."""
    parser = argparse.ArgumentParser(description="Stop sequences of edits and compare what comes of them.")
    parser.add_argument("n", type=int, metavar="N", help="how many stops of sequences")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--methods", nargs="+", default=list(CONTEXTS), choices=list(CONTEXTS))
    parser.add_argument("--studies", type=int, default=3, metavar="N", help="how many stops of make figures")
    parser.add_argument("--target", default="", help="what make figures makes, all if not given")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    chance, lm = random.Random(given.seed), loading.load(ROOT / "tests/golden/tiny_gpt2")
    found, failures = Counter(), []
    with tempfile.TemporaryDirectory(prefix="editscale-crash-") as top:
        wholes, kinds, most = {}, [], MOST * given.n
        for method in given.methods:
            sequence_of, folder, began = Sequence(lm, method), Path(top) / method, time.monotonic()
            ended, n, _ = in_a_process(sequence_of.run, folder)
            if not ended or n != N_EDITS:
                print(f"the uninterrupted sequence with {method} did not end")
                return 1
            wholes[method] = sequence_of, files(folder), time.monotonic() - began
        while (left := given.n - sum(n for (_, what), n in found.items() if what == "stops")) > 0:
            sequence_of, whole, seconds = wholes[chance.choice(given.methods)]
            folder = tempfile.mkdtemp(prefix="crash-", dir=top)
            found += crash(sequence_of, whole, folder, seconds, chance, left, kinds)
            shutil.rmtree(folder)
            most -= 1
            if not most:
                raise RuntimeError(
                    f"{MOST * given.n} sequences ran, and {left} stops are still wanted: none stopped by {kinds[:1]}"
                )
        if given.studies:
            found += stop_study(Path(top), given.studies, chance, given.target)
        if given.studies and not given.target:
            os.chdir(Path(top) / "whole")
            counts, failures = flips.flipped_study(chance, given.n)
            print(counts.to_string(index=False), *failures, sep="\n")
            os.chdir(ROOT)
    print(table(found))
    totals = Counter()
    for (_, what), n in found.items():
        totals[what] += n
    print(f"{totals['stops']} kills, {totals['identical']} identical, {totals['lost']} lost")
    return 0 if totals["stops"] == totals["identical"] and not (totals["lost"] or totals["wrong"] or failures) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
