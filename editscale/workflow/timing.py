"""Where the time of a notebook goes: seconds of its parts, in `timing.jsonl` beside its tables.

A row is one measurement: part, n (how many facts, examples or tokens it was about), seconds. No record lists the file,
and `compare` passes it by: times differ from run to run.
"""

import json
import time
from contextlib import contextmanager
from pathlib import Path

from editscale.files import vouched, write_whole

NAME = "timing.jsonl"


class Timing:
    """Rows of seconds, in the order in which they were measured."""

    def __init__(self):
        self.rows = []

    def add(self, part, n, seconds):
        self.rows.append({"part": part, "n": n, "seconds": round(seconds, 4)})

    @contextmanager
    def of(self, part, n=1):
        """Time what is done in the `with` block. On a GPU it must end in numbers on the CPU, which wait for the GPU."""
        began = time.perf_counter()
        yield
        self.add(part, n, time.perf_counter() - began)

    def save(self, out):
        """Write the rows to `out/timing.jsonl`, its path."""
        return write_whole(Path(out) / NAME, "".join(json.dumps(row) + "\n" for row in self.rows).encode())


def read(folder):
    """The rows in a folder. Raises as `files.vouched`."""
    content = vouched(Path(folder) / NAME, f"run the notebook that writes into {folder} again")
    return [json.loads(line) for line in content.splitlines()]
