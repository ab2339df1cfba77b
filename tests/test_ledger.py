"""The ledger: an edit is in it whole or not at all, damage is found and named, and one process at a time writes."""

import errno
import json
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from editscale.editing.updates import Update
from editscale.files import write_whole
from editscale.sequences import frames
from editscale.sequences.ledger import Ledger

CONDITIONS = {"method": "rome", "seed": 3}
WEIGHTS = {"1": {"shape": [4, 6], "norm": 2.0}}
PROPERTY = settings(max_examples=60, deadline=None, derandomize=True, database=None)


def update(edit, layer=1, dtype=torch.float32):
    generator = torch.Generator().manual_seed(edit)
    left, right = (torch.randn(n, 1, generator=generator).to(dtype) for n in (4, 6))
    return Update(layer, left, right)


def row(edit):
    return {"case_id": 100 + edit, "status": "edited", "loss": edit / 3, "denominator": float("nan")}


def write(folder, n=5, start=0):
    """A ledger of n edits, the first `start` of which are there."""
    book = Ledger(folder, CONDITIONS, WEIGHTS)
    assert len(book) == start
    for edit in range(start + 1, n + 1):
        book.append(row(edit), [update(edit)], 0.5)
    return book


def files(folder):
    """The bytes of all files of a ledger but its lock and its times."""
    return {
        path.relative_to(folder): path.read_bytes()
        for path in Path(folder).rglob("*")
        if path.is_file() and path.name not in ("timing.jsonl", ".lock")
    }


def frames_of(folder):
    """Where the frames of a log begin, and where the last one ends."""
    return [0, *(frame.end for frame in Ledger(folder)._frames)]


def cut(folder, n):
    """Leave only the first n edits, as if the run had been stopped there."""
    os.truncate(Path(folder) / "edits.log", frames_of(folder)[n])
    lines = (Path(folder) / "edits.jsonl").read_bytes().splitlines(keepends=True)
    (Path(folder) / "edits.jsonl").write_bytes(b"".join(lines[:n]))


def flip(path, place, bit=1):
    with open(path, "r+b") as file:
        file.seek(place)
        (byte,) = file.read(1)
        file.seek(place)
        file.write(bytes([byte ^ bit]))


def quietly(function, *arguments):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function(*arguments)


def test_what_is_appended_is_read_back(tmp_path):
    write(tmp_path)
    book = Ledger(tmp_path)
    assert len(book) == 5 and book.dropped == "" and book.fingerprint == CONDITIONS and book.weights == WEIGHTS
    for edit in range(1, 6):
        (read,) = book.updates(edit)
        assert read.layer == 1 and torch.equal(read.left, update(edit).left)
        np.testing.assert_array_equal(book.factors(edit)["1.right"], update(edit).right.numpy())
        assert book.rows[edit - 1]["case_id"] == 100 + edit and book.rows[edit - 1]["denominator"] is None
    lines = (tmp_path / "edits.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == book.rows
    assert [json.loads(line)["edit"] for line in (tmp_path / "timing.jsonl").read_text().splitlines()] == [
        1,
        2,
        3,
        4,
        5,
    ]


@pytest.mark.parametrize("dtype", (torch.float64, torch.float32, torch.float16, torch.bfloat16))
def test_tensors_keep_their_bits_in_every_dtype(tmp_path, dtype):
    book = Ledger(tmp_path, CONDITIONS, WEIGHTS)
    bias = torch.randn(4, generator=torch.Generator().manual_seed(0)).to(dtype)
    book.append(row(1), [Update(3, update(1, dtype=dtype).left, update(1, dtype=dtype).right, bias), update(2)], 0.1)
    first, second = Ledger(tmp_path).updates(1)
    assert (first.layer, second.layer, second.bias) == (1, 3, None) or (first.layer, second.layer) == (1, 3)
    assert first.bias is None and second.left.dtype == dtype and torch.equal(second.bias, bias)
    np.testing.assert_array_equal(
        Ledger(tmp_path).factors(1)["3.bias"], bias.to(torch.float32 if dtype == torch.bfloat16 else dtype).numpy()
    )


def test_a_full_matrix_is_an_update_without_right_factor(tmp_path):
    book = Ledger(tmp_path, CONDITIONS, WEIGHTS)
    matrix = torch.arange(24.0).reshape(4, 6)
    book.append(row(1), [Update(1, matrix, None)], 0.1)
    (read,) = Ledger(tmp_path).updates(1)
    assert read.right is None and torch.equal(read.left, matrix) and set(book.factors(1)) == {"1.left"}


def test_an_edit_that_was_not_applied_has_no_tensors(tmp_path):
    Ledger(tmp_path, CONDITIONS, WEIGHTS).append(row(1), [], 0.1)
    assert Ledger(tmp_path).updates(1) == [] and Ledger(tmp_path).factors(1) == {}


def test_a_ledger_is_read_without_torch(tmp_path):
    write(tmp_path)
    code = f"""import sys
from editscale.metrics import drift
from editscale.sequences import ledger
book = ledger.Ledger({str(tmp_path)!r})
print(len(drift.of_ledger(book)), "torch" in sys.modules, "filelock" in sys.modules)"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["5", "False", "False"]


def test_an_append_waits_for_the_disk_once(tmp_path, monkeypatch):
    book, synced = write(tmp_path, 2), []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (synced.append(os.readlink(f"/proc/self/fd/{fd}")), real(fd)))
    book.append(row(3), [update(3)], 0.5)
    assert synced == [str(tmp_path / "edits.log")]


def test_the_history_names_all_edits_and_their_conditions(tmp_path):
    one, two = write(tmp_path / "one"), write(tmp_path / "two")
    assert [one.chain(i) for i in range(6)] == [two.chain(i) for i in range(6)]
    other = Ledger(tmp_path / "other", {**CONDITIONS, "seed": 4}, WEIGHTS)
    other.append(row(1), [update(1)], 0.5)
    assert other.chain(1) != one.chain(1) and len({one.chain(i) for i in range(6)}) == 6
    changed = Ledger(tmp_path / "changed", CONDITIONS, WEIGHTS)
    changed.append(row(1), [update(2)], 0.5)
    assert changed.chain(1) != one.chain(1)


# What is cut back, and what is refused


@PROPERTY
@given(lost=st.integers(1, 10**6))
def test_a_log_that_ends_early_is_cut_back_to_its_last_whole_edit_and_goes_on_alike(tmp_path_factory, lost):
    folder = tmp_path_factory.mktemp("cut")
    write(folder)
    whole, ends, log = files(folder), frames_of(folder), folder / "edits.log"
    lost = 1 + lost % (ends[-1] - 1)
    os.truncate(log, ends[-1] - lost)
    n = max(i for i, end in enumerate(ends) if end <= ends[-1] - lost)
    with pytest.warns(UserWarning, match=f"edits.log: .*after edit {n}"):
        assert len(Ledger(folder)) == n
    assert log.stat().st_size == ends[-1] - lost, "reading changed the log"
    quietly(write, folder, 5, n)
    assert files(folder) == whole


@PROPERTY
@given(place=st.integers(0, 10**6), bit=st.integers(0, 7))
def test_no_flipped_bit_of_the_log_goes_unnoticed(tmp_path_factory, place, bit):
    folder = tmp_path_factory.mktemp("flip")
    write(folder)
    whole, ends = files(folder), frames_of(folder)
    place %= ends[-1]
    flip(folder / "edits.log", place, 1 << bit)
    damaged = max(i for i, end in enumerate(ends) if end <= place) + 1
    if damaged < 5:
        with pytest.raises(
            ValueError, match=rf"edits.log is damaged at edit {damaged}, .*truncate -s {ends[damaged - 1]} "
        ):
            Ledger(folder, CONDITIONS, WEIGHTS)
        os.truncate(folder / "edits.log", ends[damaged - 1])  # as the message says
    with pytest.warns(UserWarning, match=f"after edit {damaged - 1}.*; cut off"):
        Ledger(folder, CONDITIONS, WEIGHTS)
    quietly(write, folder, 5, damaged - 1)
    assert files(folder) == whole


def test_tensors_are_checked_when_they_are_read(tmp_path):
    write(tmp_path)
    flip(tmp_path / "edits.log", frames_of(tmp_path)[2] - 3)
    book = Ledger(tmp_path)  # for reading, all rows and the last edit are whole
    assert len(book) == 5 and book.updates(1)
    with pytest.raises(ValueError, match="not what edit 2 recorded; restore it from a copy"):
        book.updates(2)
    with pytest.raises(ValueError, match="not what edit 2 recorded"):
        book.factors(2)
    flip(tmp_path / "edits.log", (tmp_path / "edits.log").stat().st_size - 3)
    with pytest.warns(UserWarning, match="after edit 4, are no edit .its tensors are not what was recorded"):
        assert len(Ledger(tmp_path)) == 4


def rearranged(folder, *order):
    """Write the frames of a log in another order; 0 is the first frame of another ledger's."""
    log, ends = folder / "edits.log", frames_of(folder)
    other = Ledger(folder.parent / "other", {"method": "memit"}, WEIGHTS)
    other.append(row(1), [update(1)], 0.5)
    data = log.read_bytes()
    parts = [(folder.parent / "other" / "edits.log").read_bytes()]
    parts += [data[a:b] for a, b in zip(ends, ends[1:], strict=False)]
    log.write_bytes(b"".join(parts[i] for i in order))


@pytest.mark.parametrize(
    ("order", "damaged"), [((1, 3, 2, 4, 5), 2), ((1, 2, 4, 5), 3), ((0, 2, 3, 4, 5), 1), ((2, 3, 4, 5), 1)]
)
def test_exchanged_missing_and_foreign_edits_are_refused(tmp_path, order, damaged):
    write(tmp_path / "mine")
    rearranged(tmp_path / "mine", *order)
    with pytest.raises(
        ValueError, match=f"damaged at edit {damaged}, before its last one .its row, or what is before it"
    ):
        Ledger(tmp_path / "mine")


def test_conditions_changed_afterwards_are_noticed(tmp_path):
    write(tmp_path)
    head = tmp_path / "ledger.json"
    head.write_text(head.read_text().replace('"norm": 2.0', '"norm": 3.0'))
    with pytest.raises(ValueError, match="ledger.json does not hold what was written into it"):
        Ledger(tmp_path)
    head.write_text(head.read_text().replace('"norm": 3.0', '"norm":  2.0'))
    with pytest.raises(ValueError, match="ledger.json is damaged: it is not as it was written"):
        Ledger(tmp_path)


def test_a_changed_row_of_the_copy_is_refused_and_a_torn_end_written_again(tmp_path):
    write(tmp_path)
    whole, copy = files(tmp_path), tmp_path / "edits.jsonl"
    copy.write_bytes(copy.read_bytes().replace(b'"case_id": 102', b'"case_id": 103'))
    for conditions in ((), (CONDITIONS, WEIGHTS)):
        with pytest.raises(ValueError, match="edits.jsonl is damaged at edit 2: .*delete edits.jsonl"):
            Ledger(tmp_path, *conditions)
    copy.unlink()  # as the message says
    for kept in (None, -30, 5):
        if kept:
            copy.write_bytes(whole[Path("edits.jsonl")][:kept])
        assert Ledger(tmp_path, CONDITIONS, WEIGHTS).dropped == "" and files(tmp_path) == whole


def test_rows_that_the_log_lacks_are_reported(tmp_path):
    write(tmp_path)
    os.truncate(tmp_path / "edits.log", frames_of(tmp_path)[3])
    with pytest.warns(UserWarning, match="2 edits after edit 3 are missing that edits.jsonl lists"):
        Ledger(tmp_path, CONDITIONS, WEIGHTS)
    assert len((tmp_path / "edits.jsonl").read_bytes().splitlines()) == 3


def test_times_of_edits_that_were_cut_off_are_dropped(tmp_path):
    write(tmp_path)
    cut(tmp_path, 3)
    with open(tmp_path / "timing.jsonl", "a") as file:
        file.write('{"edit": 6, "sec')
    write(tmp_path, 4, 3)
    times = [json.loads(line)["edit"] for line in (tmp_path / "timing.jsonl").read_text().splitlines()]
    assert times == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: (f / "ledger.json").unlink(), "has edits but no ledger.json"),
        (lambda f: (f / "edits.log").unlink(), "lacks edits.log"),
        (lambda f: (f / "ledger.json").write_text('{"format": 2'), "ledger.json is not the JSON object"),
        (lambda f: (f / "ledger.json").write_text("[]"), "ledger.json is not the JSON object"),
        (lambda f: (f / "ledger.json").write_text("[" * 10**5), "ledger.json is not the JSON object"),
        (lambda f: (f / "ledger.json").write_bytes(b"\xff\xfe"), "ledger.json is not the JSON object"),
        (
            lambda f: (f / "ledger.json").write_text('{"format": 2}'),
            "ledger.json is damaged: it is not as it was written",
        ),
        (lambda f: (f / "ledger.json").write_text('{"format": 1}'), "has format 1; this version reads format 2"),
    ],
)
def test_a_folder_that_is_no_whole_ledger_is_refused(tmp_path, change, message):
    write(tmp_path)
    change(tmp_path)
    with pytest.raises(ValueError, match=message):
        Ledger(tmp_path, CONDITIONS, WEIGHTS)


def test_damaged_scores_of_the_unedited_model_are_named(tmp_path):
    book = write(tmp_path)
    book.write_unedited([{"case_id": 1, "efficacy": float("inf")}])
    assert book.unedited() == [{"case_id": 1, "efficacy": None}]
    book.write_unedited([{"case_id": n, "efficacy": 0.5} for n in (1, 2, 3)])
    path, whole = tmp_path / "unedited.jsonl", (tmp_path / "unedited.jsonl").read_text()
    for old, new in (('"case_id": 2, "efficacy": 0.5', '"case_id": 2, "efficacy": 0.25'), ("chain", "chair")):
        path.write_text(whole.replace(old, new, 1))
        with pytest.raises(ValueError, match="unedited.jsonl is damaged in line [12] "):
            book.unedited()
    path.write_text("".join(whole.splitlines(keepends=True)[1:]))
    with pytest.raises(ValueError, match="unedited.jsonl is damaged in line 1 "):
        book.unedited()
    (tmp_path / "unedited.jsonl").write_text('{"case_id": 1, "effi\n')
    with pytest.raises(ValueError, match="unedited.jsonl is damaged .*delete it and run notebook 02a again"):
        book.unedited()


def test_reading_a_missing_ledger_says_what_makes_one(tmp_path):
    with pytest.raises(FileNotFoundError, match="run notebook 02a"):
        Ledger(tmp_path / "none")


def test_a_fingerprint_that_differs_is_refused_with_all_that_differs(tmp_path):
    write(tmp_path)
    with pytest.raises(ValueError, match="method: ledger 'rome', now 'memit'; seed: ledger 3, now None"):
        Ledger(tmp_path, {"method": "memit"}, WEIGHTS)


# Writing


def test_one_process_at_a_time_may_append(tmp_path):
    write(tmp_path, 2)
    code = f"""import sys; from editscale.sequences.ledger import Ledger
book = Ledger({str(tmp_path)!r}, {CONDITIONS!r}, {WEIGHTS!r}); print("open", flush=True); sys.stdin.read()"""
    other = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "open\n"
    with pytest.raises(RuntimeError, match="open for appending in another process; wait for that one or stop it"):
        Ledger(tmp_path, CONDITIONS, WEIGHTS)
    assert len(Ledger(tmp_path)) == 2  # for reading
    other.kill()
    other.communicate()
    write(tmp_path, 3, 2)


def test_a_log_that_somebody_else_appended_to_is_not_appended_to(tmp_path):
    one, two = write(tmp_path, 2), Ledger(tmp_path, CONDITIONS, WEIGHTS)
    one.append(row(3), [update(3)], 0.5)
    with pytest.raises(RuntimeError, match=r"edits.log has [\d,]+ bytes, not [\d,]+ as after edit 2 here"):
        two.append(row(3), [update(3)], 0.5)
    assert len(Ledger(tmp_path)) == 3


@pytest.mark.parametrize("failing", ("write", "fsync"))
@pytest.mark.parametrize("error", (OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()))
def test_an_edit_that_cannot_be_written_leaves_the_ledger_as_it_was(tmp_path, monkeypatch, failing, error):
    book = write(tmp_path, 3)
    before, real = files(tmp_path), os.write

    def fails(fd, *data):
        if data:
            real(fd, data[0][:50])
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(os, failing, fails)
        with pytest.raises(type(error), match=None if isinstance(error, KeyboardInterrupt) else "edit 4 could not be"):
            book.append(row(4), [update(4)], 0.5)
    assert files(tmp_path) == before and len(book) == 3
    book.append(row(4), [update(4)], 0.5)
    assert len(Ledger(tmp_path)) == 4


def test_a_system_that_writes_a_few_bytes_at_a_time_gets_all_written(tmp_path, monkeypatch):
    write(tmp_path / "whole")
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, data[:7]))
    write(tmp_path / "short")
    assert files(tmp_path / "whole") == files(tmp_path / "short")


def test_a_file_written_atomically_is_the_old_one_until_it_is_the_new_one(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_whole(path, b"old")

    def fails(*_):
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fails)
        with pytest.raises(OSError, match="Input/output error"):
            write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    write_whole(path, b"new")
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"] and path.read_bytes() == b"new"


def test_what_a_killed_process_was_writing_goes_when_the_ledger_is_opened_for_appending(tmp_path):
    write(tmp_path)
    left = tmp_path / ".edits.jsonl.0123abcd.part"
    left.write_bytes(b"half")
    Ledger(tmp_path)
    assert left.exists()
    Ledger(tmp_path, CONDITIONS, WEIGHTS)
    assert not left.exists()


# Frames of anything


@PROPERTY
@given(
    contents=st.lists(st.tuples(st.binary(max_size=40), st.binary(max_size=200)), min_size=1, max_size=6),
    noise=st.binary(max_size=100),
)
def test_frames_come_back_as_they_were_written_and_noise_after_them_is_no_frame(tmp_path_factory, contents, noise):
    path = tmp_path_factory.mktemp("frames") / "log"
    path.write_bytes(b"")
    chain, written = b"\0" * 32, []
    fd = os.open(path, os.O_RDWR | os.O_APPEND)
    for number, (line, payload) in enumerate(contents, start=1):
        end = written[-1].end if written else 0
        written.append(frames.append(fd, end, number, chain, line, payload))
        chain = written[-1].chain
    os.write(fd, noise)
    os.close(fd)
    size, at, before = path.stat().st_size, 0, b"\0" * 32
    with open(path, "rb") as file:
        for frame, (line, payload) in zip(written, contents, strict=True):
            assert frames.read(file, size, at, frame.number, before) == frame and frame.line == line
            file.seek(frame.payload_at)
            assert file.read(frame.end - frame.payload_at) == payload
            at, before = frame.end, frame.chain
        with pytest.raises(frames.Broken, match=re.escape("its header is damaged or incomplete")):
            frames.read(file, size, at, len(contents) + 1, before)
        assert not frames.later(file, 0, len(contents)) and frames.later(file, 0, 1) == (len(contents) > 1)
