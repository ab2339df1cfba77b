"""Kill a sequence of edits again and again, and see that nothing is lost: `make crashtest N=100`.

A sequence of the smoke scale (tiny GPT-2, invented facts; ROME, MEMIT or FT-C) runs in a process of its own, which is
killed (SIGKILL) at a random moment, or inside a write to its ledger: after a random number of bytes, when the disk
is full, when fsync fails, with a system that writes a few bytes at a time. Some logs then lose bytes of their last
edit, or have a bit flipped there. The sequence is started again, until it ends; its ledger and tables must then be
those of the sequence that was never stopped, byte for byte.

Counted for each kill: *identical* if what it left was the beginning of the uninterrupted log and the files were right
in the end; *lost* are edits whose `append` had returned and that the ledger did not have afterwards.
"""

import argparse
import errno
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import warnings
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import torch

from editscale import files as editscale_files
from editscale.analysis import tables
from editscale.data import facts
from editscale.data.orders import in_order
from editscale.editing import editors
from editscale.models import loading
from editscale.sequences import frames, ledger, sequence

ROOT = Path(__file__).parents[2]
N_EDITS = 6
SAMPLED = ["The river. {}", "One day. {}"]
CONTEXTS = {"rome": ["{}", *SAMPLED], "memit": [["{}"], SAMPLED], "ft-c": ["{}"]}


class Sequence:
    """The first facts of the smoke scale, edited into the tiny GPT-2 with one method."""

    def __init__(self, lm, method, n_edits=N_EDITS):
        self.lm, self.method = lm, method
        params = editors.read_params(method, ROOT / f"params/{method}/tiny-gpt2.yaml")
        self.facts = in_order(facts.load(ROOT / "params/smoke/invented_facts.json"), 0, n_edits)
        with np.load(ROOT / "tests/golden/second_moments.npz") as file:
            layers = editors.moment_layers(method, params)
            known = {layer: torch.from_numpy(file[f"mom2.layer{layer}"]) for layer in layers}
        factors = editors.cholesky_factors(known, lm.device)
        self.editing = editors.Editing(method, params, CONTEXTS[method], factors)

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


def in_a_process(function, folder, fault=None, seconds=None):
    """Run `function(folder)` in a forked process: whether it ended by itself, and how many appends had returned.

    Args:
        fault: a `FaultyFiles` for what it writes. An error ends in a kill, as that of a machine that goes down.
        seconds: when to kill it, or None.
    """
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
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
        finally:
            die()
    os.close(writing)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    with open(reading, "rb") as file:
        return status == 0, len(file.read())


def files(folder):
    """The bytes of all files of a run but its lock and its times."""
    kept = [path for path in Path(folder).rglob("*") if path.is_file() and path.name not in (".lock", "timing.jsonl")]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in kept}


def draw_fault(chance, n_bytes, seconds):
    """What goes wrong next: its name, a `FaultyFiles` or None, seconds until a kill or None."""
    place, at_most = chance.randrange(n_bytes), chance.choice((2**30, chance.randrange(50, 5000)))
    kind = chance.choice(("moment", "moment", "write", "write", "full disk", "fsync"))
    if kind == "moment":
        return kind, FaultyFiles(at_most), chance.uniform(0, seconds)
    options = {
        "write": {"kill_after": place},
        "full disk": {"full_after": place},
        "fsync": {"failing_fsync": chance.randrange(1, N_EDITS + 6)},
    }
    return kind, FaultyFiles(at_most, **options[kind]), None


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


def crash(sequence_of, whole, folder, seconds, chance, at_most):
    """Run one sequence to its end through up to `at_most` kills: numbers of kills, of identical ones, of lost edits."""
    n_kills = n_identical = n_lost = 0
    while True:
        kind = fault = moment = None
        if n_kills < at_most and (n_kills == 0 or chance.random() < 0.6):
            kind, fault, moment = draw_fault(chance, len(whole["edits.log"]), seconds)
        before = survived(folder)
        ended, n_acknowledged = in_a_process(sequence_of.run, folder, fault, moment)
        if ended:
            break
        if kind is None:
            raise RuntimeError(
                f"the sequence in {folder} died of itself when it was started again; run it there to see why"
            )
        n_kills += 1
        log = Path(folder) / "edits.log"
        left, n_left = (log.read_bytes() if log.exists() else b""), survived(folder)
        if n_left < before + n_acknowledged:
            n_lost += before + n_acknowledged - n_left
            print(f"{folder}: {before} + {n_acknowledged} edits were recorded, {n_left} are left ({kind})")
        n_identical += whole["edits.log"].startswith(left)
        damage(chance, folder)
    if files(folder) != whole:
        different = sorted(name for name in {**files(folder), **whole} if files(folder).get(name) != whole.get(name))
        print(f"{folder}: {', '.join(different)} differ from the uninterrupted run's")
        n_identical = 0
    return n_kills, n_identical, n_lost


def main(arguments):
    """Exit status: 0 if every kill left what it should."""
    parser = argparse.ArgumentParser(description="Kill sequences of edits and compare what comes of them.")
    parser.add_argument("n", type=int, metavar="N", help="how many kills")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    chance, lm = random.Random(given.seed), loading.load(ROOT / "tests/golden/tiny_gpt2")
    totals = [0, 0, 0]
    with tempfile.TemporaryDirectory(prefix="editscale-crash-") as top:
        wholes = {}
        for method in CONTEXTS:
            sequence_of, folder, began = Sequence(lm, method), Path(top) / method, time.monotonic()
            ended, n = in_a_process(sequence_of.run, folder)
            if not ended or n != N_EDITS:
                print(f"the uninterrupted sequence with {method} did not end")
                return 1
            wholes[method] = sequence_of, files(folder), time.monotonic() - began
        while totals[0] < given.n:
            sequence_of, whole, seconds = wholes[chance.choice(list(CONTEXTS))]
            folder = tempfile.mkdtemp(prefix="crash-", dir=top)
            found = crash(sequence_of, whole, folder, seconds, chance, given.n - totals[0])
            shutil.rmtree(folder)
            totals = [total + part for total, part in zip(totals, found, strict=True)]
    n_kills, n_identical, n_lost = totals
    print(f"{n_kills} kills, {n_identical} identical, {n_lost} lost")
    return 0 if n_kills == n_identical and not n_lost else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
