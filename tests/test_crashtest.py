"""Sequences of edits that are stopped lose nothing, and a ledger that lost something would be noticed."""

import os
from pathlib import Path

import forked
import pytest

CODE = """
import sys; sys.path.insert(0, {tests!r})
from tools import crashtest
print(crashtest.main(["7", "--seed", "5", "--studies", "0"]))
append, run, held = crashtest.ledger.Ledger.append, crashtest.Sequence.run, []
def late(*of):  # writes an edit when the next one comes
    held.append(of)
    if len(held) > 1:
        append(*held.pop(0))
def run_late(sequence, folder):
    held.clear()
    run(sequence, folder)
    append(*held[0])
crashtest.ledger.Ledger.append, crashtest.Sequence.run = late, run_late
print(crashtest.main(["2", "--seed", "3", "--studies", "0", "--methods", "rome"]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_sequences_are_the_uninterrupted_one_and_a_late_write_is_noticed():
    code = CODE.format(tests=str(Path(__file__).parent))
    done = forked.run("forked:script", code, cwd=Path(__file__).parents[1])
    lines = done.stdout.splitlines()
    assert "0" in lines, done.stdout + done.stderr
    first = lines.index("0")
    assert lines[first - 1] == "7 kills, 7 identical, 0 lost", done.stdout + done.stderr
    stops = {line.split()[0]: [int(n) for n in line.split()[-4:]] for line in lines[1 : first - 1]}
    assert {"SIGTERM", "SIGINT"} <= stops.keys() and sum(n for n, _, _, _ in stops.values()) == 7, done.stdout
    assert lines[-1] == "1" and not lines[-2].endswith(" 0 lost"), done.stdout + done.stderr
