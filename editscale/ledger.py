"""The durable record of a sequence of edits: one folder, append-only.

    ledger.json            what determines the result (the fingerprint), and the edited weights' shapes and norms
    unedited.jsonl         scores of the unedited model on the facts, one row per fact
    edits.jsonl            one row per edit: fact, losses, norms, scores, sha256 of its factors
    timing.jsonl           seconds of each edit; the one file that differs from run to run
    factors/000001.safetensors   the low-rank factors of edit 1: "<layer>.left" (d_value, r), "<layer>.right" (d_key, r)

An edit is in the ledger whole or not at all: its factors are written first (temporary file, fsync, rename), then its
row (one line, fsync). Opening a ledger again drops a torn last line, and refuses damage anywhere before it, a
fingerprint that differs, and factors that do not match their row. Reading needs no torch.
"""

import hashlib
import json
import math
import os
import tempfile
from pathlib import Path

FORMAT = 1


def write_atomically(path, data):
    """Write bytes so that the file at `path` is the old one or the whole new one, whatever happens."""
    path = Path(path)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name + ".")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def _line(row):
    """A row as one line of strict JSON: NaN and infinities, which JSON cannot hold, become null."""
    clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
    return json.dumps(clean, allow_nan=False, ensure_ascii=False) + "\n"


class Ledger:
    """A ledger folder, opened for reading, or for appending with `fingerprint`.

    Args:
        folder: made if it is missing and a fingerprint is given.
        fingerprint: str ↦ JSON value, everything that determines the edits.
        weights: layer ↦ {"shape": [d_value, d_key], "norm": ‖W₀‖}, kept for drift.

    Raises:
        FileNotFoundError: no ledger there, and no fingerprint to begin one.
        ValueError: a fingerprint that differs (naming what differs), or damage before the tail (naming the edit).
    """

    def __init__(self, folder, fingerprint=None, weights=None):
        self.folder = Path(folder)
        head = self.folder / "ledger.json"
        if not head.exists():
            if fingerprint is None:
                raise FileNotFoundError(f"no ledger at {self.folder}; run notebook 02 with out={self.folder} first")
            (self.folder / "factors").mkdir(parents=True, exist_ok=True)
            contents = {"format": FORMAT, "fingerprint": fingerprint, "weights": weights}
            write_atomically(head, (json.dumps(contents, indent=1, sort_keys=True) + "\n").encode())
        contents = json.loads(head.read_text())
        if contents["format"] != FORMAT:
            raise ValueError(f"{head} has format {contents['format']}; this version reads format {FORMAT}")
        self.fingerprint, self.weights = contents["fingerprint"], contents["weights"]
        if fingerprint is not None:
            self._check_fingerprint(fingerprint)
        self.rows, self.dropped = self._read_rows()
        if fingerprint is not None and self.dropped:
            kept = "".join(_line(row) for row in self.rows)
            write_atomically(self.folder / "edits.jsonl", kept.encode())

    def _check_fingerprint(self, given):
        given = json.loads(json.dumps(given))
        differing = sorted(k for k in {*given, *self.fingerprint} if given.get(k) != self.fingerprint.get(k))
        if differing:
            details = "; ".join(f"{k}: ledger {self.fingerprint.get(k)!r}, now {given.get(k)!r}" for k in differing)
            raise ValueError(
                f"the ledger at {self.folder} was made under other conditions ({details}); choose another "
                "out folder, or delete this one to begin again"
            )

    def _read_rows(self):
        path = self.folder / "edits.jsonl"
        lines = path.read_bytes().split(b"\n") if path.exists() else [b""]
        complete, tail = lines[:-1], lines[-1]
        rows = []
        for i, line in enumerate(complete, start=1):
            try:
                row = json.loads(line)
                if row["edit"] != i:
                    raise ValueError
            except (ValueError, KeyError, TypeError):
                if i == len(complete):
                    return rows, True
                raise ValueError(
                    f"{path} is damaged at edit {i}, before its last line; restore it from a copy, or "
                    "delete the folder to begin again"
                ) from None
            rows.append(row)
        return rows, bool(tail)

    def __len__(self):
        return len(self.rows)

    def append(self, row, updates, seconds):
        """Record the next edit: its row and its updates (a list, empty if the edit was not applied)."""
        import torch
        from safetensors.torch import save

        edit = len(self.rows) + 1
        factors = {
            f"{u.layer}.{name}": tensor.detach().to("cpu").contiguous()
            for u in updates
            for name, tensor in u.tensors().items()
        } or {"none": torch.zeros(0)}
        data = save(factors, metadata={"edit": str(edit)})  # one entry: safetensors writes several in any order
        write_atomically(self.factors_path(edit), data)
        row = {"edit": edit, **row, "factors_sha256": hashlib.sha256(data).hexdigest()}
        self._append_line("timing.jsonl", {"edit": edit, "seconds": round(seconds, 3)})
        self._append_line("edits.jsonl", row)
        self.rows.append(json.loads(_line(row)))

    def _append_line(self, name, row):
        with open(self.folder / name, "ab") as file:
            file.write(_line(row).encode())
            file.flush()
            os.fsync(file.fileno())

    def factors_path(self, edit):
        return self.folder / "factors" / f"{edit:06d}.safetensors"

    def factors(self, edit):
        """{"<layer>.left": array, "<layer>.right": array} of an edit, as NumPy; {} if it was not applied. See
        `updates.Update`: a full matrix has no right, and there may be a "<layer>.bias".

        Raises ValueError if the file is not the one that was recorded.
        """
        from safetensors.numpy import load

        data = self.factors_path(edit).read_bytes()
        if hashlib.sha256(data).hexdigest() != self.rows[edit - 1]["factors_sha256"]:
            raise ValueError(
                f"{self.factors_path(edit)} is not what edit {edit} recorded; restore it from a copy, or "
                "delete the ledger to begin again"
            )
        return {name: tensor for name, tensor in load(data).items() if name != "none"}

    def updates(self, edit):
        """The updates of an edit as recorded, on the CPU; applying edits 1 … n rebuilds the model bit for bit."""
        import torch

        from editscale.updates import Update

        factors = {name: torch.from_numpy(array) for name, array in self.factors(edit).items()}
        by_layer = {}
        for name, tensor in factors.items():
            layer, part = name.split(".")
            by_layer.setdefault(int(layer), {})[part] = tensor
        return [Update(layer, **parts) for layer, parts in sorted(by_layer.items())]

    def unedited(self):
        """Scores of the unedited model, one row per fact, or [] if they were not recorded yet."""
        path = self.folder / "unedited.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def write_unedited(self, rows):
        write_atomically(self.folder / "unedited.jsonl", "".join(_line(row) for row in rows).encode())
