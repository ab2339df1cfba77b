"""Files and folders are written whole or not at all, whatever goes wrong and whoever else writes."""

import errno
import hashlib
import json
import os

import pytest

from editscale import files
from editscale.files import read_record, sealed, sha256_file, vouched, whole_file, whole_folder, write_json, write_whole


def test_a_file_that_fails_on_the_way_leaves_the_old_one_and_nothing_else(tmp_path):
    path = write_whole(tmp_path / "folder" / "a.txt", b"old")
    with pytest.raises(RuntimeError, match="on the way"), whole_file(path) as part:
        part.write_bytes(b"half")
        raise RuntimeError("on the way")
    with pytest.raises(KeyboardInterrupt), whole_file(path) as part:
        part.write_bytes(b"half")
        raise KeyboardInterrupt
    with pytest.raises(FileNotFoundError), whole_file(path):
        pass  # nothing was written
    assert [file.name for file in path.parent.iterdir()] == ["a.txt"] and path.read_bytes() == b"old"


@pytest.mark.parametrize("call", ("write", "fsync", "replace"))
def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch, call):
    path = write_whole(tmp_path / "a.txt", b"old")

    def fails(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fails)
        with pytest.raises(OSError, match="No space left"):
            write_whole(path, b"new")
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"] and path.read_bytes() == b"old"
    assert write_whole(path, b"new") == path and path.read_bytes() == b"new"


def test_a_file_does_not_take_the_place_of_a_folder(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(OSError, match="directory"):
        write_whole(tmp_path / "a", b"new")
    assert [file.name for file in tmp_path.iterdir()] == ["a"] and (tmp_path / "a").is_dir()


def test_two_writers_of_a_file_each_write_it_whole(tmp_path):
    path = tmp_path / "a.txt"
    with whole_file(path) as one:
        one.write_bytes(b"the first one, which is longer")
        with whole_file(path) as two, open(two, "wb") as open_file:
            open_file.write(b"the second")
            open_file.flush()
            assert not path.exists() and one != two
        assert path.read_bytes() == b"the second"
    assert path.read_bytes() == b"the first one, which is longer"
    assert list(tmp_path.iterdir()) == [path]


def fill(folder, text):
    (folder / "a").mkdir()
    (folder / "a" / "b.txt").write_text(text)


def names(folder):
    return [file.name for file in folder.iterdir()]


def test_a_folder_takes_its_name_when_it_is_complete(tmp_path):
    with whole_folder(tmp_path / "deep" / "model") as building:
        fill(building, "new")
        assert not (tmp_path / "deep" / "model").exists()
    assert names(tmp_path / "deep") == ["model"] and (tmp_path / "deep/model/a/b.txt").read_text() == "new"


@pytest.mark.parametrize(("mask", "file", "folder"), [(0o022, 0o644, 0o755), (0o077, 0o600, 0o700)])
def test_files_and_folders_are_as_open_as_the_user_wants_them(tmp_path, mask, file, folder):
    before = os.umask(mask)
    try:
        write_whole(tmp_path / "a.txt", b"new")
        with whole_folder(tmp_path / "model"):
            pass
    finally:
        os.umask(before)
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in ("a.txt", "model")] == [file, folder]


@pytest.mark.parametrize("name", ["n" * 255, "д" * 127])
def test_the_longest_names_can_be_written(tmp_path, name):
    assert write_whole(tmp_path / name, b"new").read_bytes() == b"new"
    with whole_folder(tmp_path / "deep" / name):
        pass
    assert names(tmp_path / "deep") == [name]


@pytest.mark.parametrize("replacing", (False, True))
def test_a_folder_that_fails_on_the_way_leaves_the_old_one_and_nothing_else(tmp_path, replacing):
    fill(tmp_path, "old")
    with pytest.raises(OSError, match="No space"), whole_folder(tmp_path / "a", replacing=replacing) as building:
        fill(building, "new")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert names(tmp_path) == ["a"] and (tmp_path / "a/b.txt").read_text() == "old"


@pytest.mark.parametrize("there", ("folder", "empty folder", "file"))
def test_a_folder_that_is_there_stays(tmp_path, there):
    path = tmp_path / "a"
    with (
        pytest.raises(FileExistsError, match="a is there already; choose another folder"),
        whole_folder(path) as building,
    ):
        if there == "folder":
            fill(tmp_path, "another process was faster")
        elif there == "file":
            path.write_text("file")
        else:
            path.mkdir()
        fill(building, "new")
    assert names(tmp_path) == ["a"] and not (path / "a").exists()


def test_a_folder_that_comes_up_at_the_last_moment_stays(tmp_path, monkeypatch):
    path, real = tmp_path / "a", os.replace

    def late(source, target):
        fill(tmp_path, "another process was faster")
        real(source, target)

    monkeypatch.setattr(os, "replace", late)
    with pytest.raises(FileExistsError, match="is there already"), whole_folder(path) as building:
        fill(building, "new")
    assert names(tmp_path) == ["a"] and (path / "b.txt").read_text() == "another process was faster"


def test_a_folder_is_exchanged_whole(tmp_path):
    fill(tmp_path, "old")
    (tmp_path / "a" / "only_old.txt").touch()
    with whole_folder(tmp_path / "a", replacing=True) as building:
        (building / "b.txt").write_text("new")
    assert names(tmp_path) == ["a"] and names(tmp_path / "a") == ["b.txt"]


def test_a_folder_that_cannot_be_exchanged_stays(tmp_path, monkeypatch):
    fill(tmp_path, "old")
    real, calls = os.replace, []

    def fails_second(*of):
        calls.append(of)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(*of)

    monkeypatch.setattr(os, "replace", fails_second)
    with pytest.raises(OSError, match="No space"), whole_folder(tmp_path / "a", replacing=True) as building:
        fill(building, "new")
    assert names(tmp_path) == ["a"] and (tmp_path / "a/b.txt").read_text() == "old"


def test_json_comes_back_as_it_was_written(tmp_path):
    content = {"é": [1, 2.5, None], "a": {"b": "ω"}}
    path = files.write_json(tmp_path / "a.json", content)
    assert files.read_json(path, "") == content and path.read_bytes().endswith(b"}\n") and "é" in path.read_text()


def test_sha256_of_json_does_not_depend_on_the_order_of_keys():
    assert files.sha256_json({"a": 1, "b": [2]}) == files.sha256_json({"b": [2], "a": 1}) != files.sha256_json({"a": 1})
    assert files.sha256_json("é") == hashlib.sha256(json.dumps("é", ensure_ascii=False).encode()).hexdigest()


def test_bundled_files_are_there():
    assert files.bundled("sentences.txt").read_text(encoding="utf-8").count("\n") == 6


@pytest.fixture
def table(tmp_path):
    """A result with the record that names it."""
    path = write_whole(tmp_path / "runs/a/edits.parquet", b"table")
    write_json(path.with_name("done.json"), sealed({"n": 0.1, "files": {"runs/a/edits.parquet": sha256_file(path)}}))
    return path


def test_a_result_is_read_as_its_record_names_it(table, tmp_path):
    assert vouched(table, "run it") == b"table"
    moved = table.parent.rename(tmp_path / "elsewhere") / table.name
    assert vouched(moved, "run it") == b"table"
    recorded = write_whole(tmp_path / "tables/recall/history.parquet", b"rows")
    files = {"recall/history.parquet": sha256_file(recorded)}
    write_json(tmp_path / "tables/record.json", sealed({"files": files}))
    assert vouched(recorded, "record it") == b"rows"


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda path: path.write_bytes(b"other"), ValueError, "edits.parquet is not the file that .*done.json names"),
        (lambda path: path.unlink(), FileNotFoundError, "no edits.parquet in .*; run it"),
        (
            lambda path: path.with_name("done.json").unlink(),
            FileNotFoundError,
            "no done.json or record.json that vouches",
        ),
        (lambda path: write_json(path.with_name("done.json"), {}), ValueError, "is not among the files that .* run it"),
        (lambda path: path.with_name("done.json").write_text("{"), ValueError, "done.json is not the JSON object"),
        (lambda path: write_json(path.with_name("done.json"), {"files": 3}), ValueError, "done.json lists no files"),
    ],
)
def test_what_no_record_names_is_refused_by_name(table, change, error, message):
    change(table)
    with pytest.raises(error, match=message):
        vouched(table, "run it")


def test_an_entry_altered_after_sealing_is_noticed_and_a_record_without_a_seal_is_read(table):
    path = table.with_name("done.json")
    record = json.loads(path.read_text())
    assert read_record(path, "run it") == {name: value for name, value in record.items() if name != "sha256"}
    path.write_text(json.dumps(record))  # other spaces
    assert read_record(path, "run it")["n"] == 0.1
    write_json(path, record | {"n": 0.2})
    with pytest.raises(ValueError, match="done.json does not hold what was written into it: .*; run it"):
        read_record(path, "run it")
    write_json(path, {name.replace("sha256", "sha257"): value for name, value in record.items()})
    with pytest.raises(ValueError, match="done.json does not hold what was written into it"):
        read_record(path, "run it")
    write_json(path, {"n": 0.2, "files": {}})
    assert read_record(path, "run it")["n"] == 0.2
