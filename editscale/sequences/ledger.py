"""The durable record of a sequence of edits: one folder, append-only, format 2.

    ledger.json      what determines the result (the fingerprint), and the edited weights' shapes and norms
    edits.log        every edit, one frame (`frames`) after another: its row as a line of JSON, then its tensors
    edits.jsonl      the rows again, to be read: fact, losses, norms, scores, status, sha256 of the tensors
    unedited.jsonl   scores of the unedited model, one row per fact, with a chain of its own that begins alike
    timing.jsonl     seconds of each edit; the one file that differs from run to run

Tensors are safetensors: "<layer>.left", "<layer>.right", … of each `updates.Update`. The chain before the first edit
is the sha256 of ledger.json; that of edit n names edits 1 to n and the conditions they were made under.

What is promised, of one machine and device:

- An edit is in the ledger whole or not at all, and is there for good when `append` returns: one write, one fsync.
- A torn, short or damaged last edit, as a killed process or a lost power supply leaves it, is found when the ledger is
  opened, reported (a warning, and `dropped`), and cut off when it is opened for appending: it is made again then. So is
  every edit that a log no longer holds because its end is missing.
- Damage before that is refused with the number of the edit: opening reads all rows and the last edit, opening for
  appending all bytes; tensors are checked each time they are read. edits.jsonl must say what the log says, or end
  early.
- ledger.json and unedited.jsonl hold what was written into them, or are refused by name.
- Another fingerprint is refused, what differs named. One process at a time may append (a lock on the file `.lock`).
- The same sequence started again resumes after the last complete edit, and the files become those of a sequence that
  never stopped, byte for byte. Editing draws no random numbers (contexts are sampled before, and are in the
  fingerprint), so there is no position of a generator to keep.

Not promised: the same bits on another device, with another version of torch or another number of threads; that somebody
who rewrites all of a ledger is found out, unless its chain or done.json is kept elsewhere. Reading needs no torch.
"""

import hashlib
import json
import math
import os
import warnings
from pathlib import Path

from editscale.editing.updates import arrays, from_bytes, to_bytes
from editscale.files import read_json, sealed, sha256_file, unsealed, write_all, write_whole
from editscale.sequences import frames

FORMAT = 2


def _line(row):
    """A row as one line of strict JSON: NaN and infinities, which JSON cannot hold, become null."""
    clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
    return (json.dumps(clean, allow_nan=False, ensure_ascii=False) + "\n").encode()


class Ledger:
    """A ledger folder, opened for reading, or for appending with `fingerprint`.

    Args:
        folder: made if it is missing and a fingerprint is given.
        fingerprint: str ↦ JSON value, everything that determines the edits.
        weights: layer ↦ {"shape": [d_value, d_key], "norm": ‖W₀‖}, kept for drift.

    Attributes:
        rows: one dict per edit. fingerprint, weights: as recorded.
        dropped: what was torn off the end, in words; "" for a ledger that ends with a whole edit.

    Raises:
        FileNotFoundError: no ledger there, and no fingerprint to begin one.
        ValueError: a fingerprint that differs (naming what differs), or damage before the tail (naming the edit).
        RuntimeError: opened for appending while another process has it so.
    """

    def __init__(self, folder, fingerprint=None, weights=None):
        self.folder = Path(folder)
        self.log, self._copy = self.folder / "edits.log", self.folder / "edits.jsonl"
        head, appending = self.folder / "ledger.json", fingerprint is not None
        if appending:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = _locked(self.folder)
        if not head.exists():
            self._begin(head, fingerprint, weights)
        self.fingerprint, self.weights = _read_head(head)
        if appending:
            self.check(fingerprint)
        copied = self._copy.read_bytes() if self._copy.exists() else b""  # before the log, which may be growing
        self.rows, self._frames, self.dropped = [], [], ""
        self._begins_with = bytes.fromhex(sha256_file(head))
        self._read_log(check_tensors=appending)
        self._check_copy(copied)
        if self.dropped:
            warnings.warn(f"{self.log}: {self.dropped}{'; cut off' if appending else ''}", stacklevel=2)
        if appending:
            self._cut_back(copied)

    def _begin(self, head, fingerprint, weights):
        if fingerprint is None:
            raise FileNotFoundError(f"no ledger at {self.folder}; run notebook 02a with out={self.folder} first")
        if self.log.exists() and self.log.stat().st_size:
            raise ValueError(
                f"{self.folder} has edits but no ledger.json, which says under which conditions they were made; "
                "restore it from a copy, or move the folder away to begin again"
            )
        write_whole(self.log, b"")
        write_whole(head, _head(sealed({"format": FORMAT, "fingerprint": fingerprint, "weights": weights})))

    def check(self, given, but=(), remedy="choose another out folder, or move this one away to begin again"):
        """Raise ValueError, naming what differs, if a fingerprint is not the ledger's in all entries `but` some."""
        given = json.loads(json.dumps(given))
        names = {*given, *self.fingerprint} - set(but)
        differing = sorted(k for k in names if given.get(k) != self.fingerprint.get(k))
        if differing:
            details = "; ".join(f"{k}: ledger {self.fingerprint.get(k)!r}, now {given.get(k)!r}" for k in differing)
            raise ValueError(f"the ledger at {self.folder} was made under other conditions ({details}); {remedy}")

    def _read_log(self, check_tensors):
        """Take in the frames of the log up to the last whole one."""
        if not self.log.is_file():
            raise ValueError(
                f"{self.folder} lacks {self.log.name}, which holds its edits; restore it from a copy, or move the "
                "folder away to begin again"
            )
        with open(self.log, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            while self._end < size:
                edit = len(self) + 1
                try:
                    frame = frames.read(file, size, self._end, edit, self._chain)
                    row = json.loads(frame.line)
                    if (check_tensors or frame.end == size) and not _holds(file, frame, row):
                        raise frames.Broken("its tensors are not what was recorded")
                except frames.Broken as problem:
                    if frames.later(file, self._end, edit):
                        raise ValueError(
                            f"{self.log} is damaged at edit {edit}, before its last one ({problem}); restore it from "
                            f"a copy, or keep only what is before that edit: truncate -s {self._end} {self.log}"
                        ) from None
                    self.dropped = (
                        f"the last {size - self._end:,} bytes, after edit {edit - 1}, are no edit ({problem})"
                    )
                    return
                self.rows.append(row)
                self._frames.append(frame)

    def _check_copy(self, copied):
        """Raise ValueError if edits.jsonl says something else than the log before its last line."""
        lines = copied.splitlines(keepends=True)
        for edit, (line, frame) in enumerate(zip(lines, self._frames, strict=False), start=1):
            if line != frame.line and edit < len(lines):
                raise ValueError(
                    f"{self._copy} is damaged at edit {edit}: the line is not what {self.log.name} recorded; delete "
                    f"{self._copy.name}, and it is written again from there"
                )
        missing = sum(line.endswith(b"\n") for line in lines) - len(self)
        if missing > 0 and not self.dropped:
            self.dropped = f"{missing} edits after edit {len(self)} are missing that {self._copy.name} lists"

    def _cut_back(self, copied):
        """Take off what follows the last whole edit, and write edits.jsonl anew unless it is the copy.

        What killed processes were writing (`files.whole_file`) goes too.
        """
        for part in self.folder.glob(".*.part"):
            part.unlink()
        os.truncate(self.log, self._end)
        own = b"".join(frame.line for frame in self._frames)
        if copied != own:
            write_whole(self._copy, own)
        timing = self.folder / "timing.jsonl"
        if timing.exists():
            lines = timing.read_bytes().splitlines(keepends=True)
            write_whole(timing, b"".join(line for line in lines if _edit_of(line) in range(1, len(self) + 1)))

    def __len__(self):
        return len(self.rows)

    @property
    def facts_per_step(self):
        """Edits that were made in one call of the method. Their updates are recorded with the last of them."""
        return self.fingerprint.get("facts_per_step", 1)

    @property
    def _end(self):
        return self._frames[-1].end if self._frames else 0

    @property
    def _chain(self):
        return self._frames[-1].chain if self._frames else self._begins_with

    def chain(self, edit):
        """What names the first `edit` edits and the conditions they were made under: 64 hexadecimal digits."""
        return (self._frames[edit - 1].chain if edit else self._begins_with).hex()

    def append(self, row, updates, seconds):
        """Record the next edit: its row and its updates (a list, empty if the edit was not applied).

        Raises OSError if it could not be recorded, the ledger being as before then; RuntimeError if something else has
        written to the log since it was opened.
        """
        edit, tensors = len(self) + 1, to_bytes(updates)
        line = _line({"edit": edit, **row, "factors_sha256": hashlib.sha256(tensors).hexdigest()})
        fd = os.open(self.log, os.O_WRONLY | os.O_APPEND)
        try:
            if (size := os.fstat(fd).st_size) != self._end:
                raise RuntimeError(
                    f"{self.log} has {size:,} bytes, not {self._end:,} as after edit {edit - 1} here: something else "
                    "writes to it; stop that, and run the same command again"
                )
            self._frames.append(frames.append(fd, self._end, edit, self._chain, line, tensors))
        except OSError as error:
            raise OSError(error.errno, f"edit {edit} could not be recorded in {self.log}: {error.strerror}") from error
        finally:
            os.close(fd)
        self.rows.append(json.loads(line))
        self._add_line("edits.jsonl", line)
        self._add_line("timing.jsonl", _line({"edit": edit, "seconds": round(seconds, 3)}))

    def _add_line(self, name, line):
        """Without fsync: what is lost of these is written again from the log, or was a time."""
        fd = os.open(self.folder / name, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            write_all(fd, line)
        finally:
            os.close(fd)

    def _tensors(self, edit):
        """The safetensors of an edit as bytes. ValueError if they are not those that were recorded."""
        frame, row = self._frames[edit - 1], self.rows[edit - 1]
        with open(self.log, "rb") as file:
            data = _payload(file, frame)
        if hashlib.sha256(data).hexdigest() != row["factors_sha256"]:
            raise ValueError(
                f"the tensors in {self.log} are not what edit {edit} recorded; restore it from a copy, or move the "
                "ledger away to begin again"
            )
        return data

    def factors(self, edit):
        """{"<layer>.left": array, "<layer>.right": array, …} of an edit, as NumPy; {} if it was not applied.

        See `updates.Update`: a full matrix has no right, and there may be a "<layer>.bias".

        bfloat16, which NumPy lacks, comes as float32. Raises ValueError if they are not what was recorded.
        """
        return arrays(self._tensors(edit))

    def updates(self, edit):
        """The updates of an edit as recorded, on the CPU; applying edits 1 … n rebuilds the model bit for bit."""
        return from_bytes(self._tensors(edit))

    @property
    def files(self):
        """Paths of the small files that are there: what a record of a finished run lists."""
        names = ("ledger.json", "edits.jsonl", "unedited.jsonl", "timing.jsonl")
        return [path for name in names if (path := self.folder / name).is_file()]

    def unedited(self):
        """Scores of the unedited model, one row per fact, or [] if they were not recorded yet.

        Raises ValueError that names the row if it is not what was recorded.
        """
        path = self.folder / "unedited.jsonl"
        rows, chain = [], self._begins_with
        lines = path.read_bytes().splitlines() if path.exists() else []
        chained = any(b'"chain"' in line for line in lines)  # an earlier version wrote none
        for number, line in enumerate(lines, start=1):
            try:
                row = json.loads(line)
                recorded = row.pop("chain") if chained else ""
                chain = frames.next_chain(chain, _line(row))
                if chained and recorded != chain.hex():
                    raise ValueError("it is not what was recorded")
            except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
                raise ValueError(
                    f"{path} is damaged in line {number} ({error}); delete it and run notebook 02a again"
                ) from error
            rows.append(row)
        return rows

    def write_unedited(self, rows):
        lines, chain = [], self._begins_with
        for row in rows:
            chain = frames.next_chain(chain, _line(row))
            lines.append(_line({**row, "chain": chain.hex()}))
        write_whole(self.folder / "unedited.jsonl", b"".join(lines))


def _locked(folder):
    """The lock of the one process that may append, released with the last Ledger that holds it."""
    from filelock import FileLock, Timeout

    lock = FileLock(folder / ".lock", is_singleton=True)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise RuntimeError(
            f"the ledger at {folder} is open for appending in another process; wait for that one or stop it (a "
            "notebook keeps it until its kernel ends), or choose another out folder"
        ) from None
    return lock


def _head(contents):
    return (json.dumps(contents, indent=1, sort_keys=True) + "\n").encode()


def _read_head(head):
    """Fingerprint and weights of a ledger.json."""
    remedy = "restore it from a copy, or move the folder away to begin again"
    contents = read_json(head, remedy)
    if contents.get("format") != FORMAT:
        raise ValueError(
            f"{head} has format {contents.get('format')!r}; this version reads format {FORMAT}: move the folder away "
            "to begin again"
        )
    found = unsealed(contents, head, remedy)
    if head.read_bytes() != _head(contents) or not all(type(found.get(x)) is dict for x in ("fingerprint", "weights")):
        raise ValueError(f"{head} is damaged: it is not as it was written; {remedy}")
    return found["fingerprint"], found["weights"]


def read_timing(folder):
    """Rows of a ledger's timing.jsonl: edit (from 1) and seconds, whole lines only; [] if the folder has none."""
    path = Path(folder) / "timing.jsonl"
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if _edit_of(line)]


def _edit_of(line):
    """The edit that a line of timing.jsonl is about; None for a torn line."""
    try:
        return json.loads(line)["edit"] if line.endswith(b"\n") else None
    except (ValueError, KeyError, TypeError):
        return None


def _payload(file, frame):
    file.seek(frame.payload_at)
    return file.read(frame.end - frame.payload_at)


def _holds(file, frame, row):
    """Whether the tensors of a frame are those of its row."""
    return hashlib.sha256(_payload(file, frame)).hexdigest() == row["factors_sha256"]
