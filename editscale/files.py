"""Files: those that come with the package, JSON, sha256, and writing a file or folder whole or not at all."""

import errno
import hashlib
import json
import os
import secrets
import shutil
from contextlib import contextmanager
from pathlib import Path

DATA = "data"  # the folder of the package whose files `bundled` gives


def bundled(name, *, counts=True):
    """Path of a data file that comes with the package. Name it by a string: `dependencies` reads these calls.

    `counts=False` is for a file of which the reader names to `dependencies` itself what a result rests on.
    """
    return Path(__file__).parent / DATA / name


def sha256_file(path):
    """Hexadecimal sha256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_json(value):
    """sha256 of a JSON value in canonical form."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def read_json(path, remedy):
    """The JSON object in a file. ValueError that names the file and ends in `remedy` if it holds none."""
    try:
        content = json.loads(Path(path).read_bytes())
        if type(content) is dict:
            return content
        error = f"it holds a {type(content).__name__}"
    except (ValueError, RecursionError) as problem:
        error = str(problem)
    raise ValueError(f"{path} is not the JSON object it should be ({error}); {remedy}")


def write_json(path, content):
    """Write a value as indented JSON, whole (`whole_file`); the path."""
    return write_whole(path, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())


def write_whole(path, data):
    """Write bytes so that the file at `path` is the old one or the whole new one, whatever happens; the path."""
    with whole_file(path) as part:
        fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        try:
            write_all(fd, data)
        finally:
            os.close(fd)
    return Path(path)


def write_all(fd, data):
    """Write all bytes to an open file, however many the system takes at a time."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(fd, rest) :]


@contextmanager
def whole_file(path):
    """A new file beside `path` to write to. Once written, and on the disk, it takes that name; on an error it goes.

    Of several writers at a time each writes a file of its own, and the last to end leaves what is there. Of a process
    that is killed its file stays, `.<name>.<number>.part`, a long name cut short.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = _beside(path, ".part")
    try:
        yield part
        _to_disk(part)
        os.replace(part, path)
        _to_disk(path.parent)  # the name too
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def whole_folder(path, *, replacing=False):
    """A new folder beside `path` to fill. It takes that name when the block ends without error; on an error it goes.

    Where `path` is there by then it stays, and FileExistsError is raised; with `replacing` it is exchanged, or stays
    where that fails.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    building, old = _beside(path, ""), _beside(path, ".old")
    building.mkdir()
    try:
        yield building
        if replacing and path.exists():
            os.replace(path, old)
        try:
            _take_name(building, path)
        except OSError:
            if old.exists() and not path.exists():
                os.replace(old, path)
            raise
    finally:
        for left in (building, old):
            shutil.rmtree(left, ignore_errors=True)


def _beside(path, suffix):
    """A path that nobody else has, in the folder of `path`, that says what it is for."""
    return path.with_name(f".{os.fsdecode(os.fsencode(path.name)[:200])}.{secrets.token_hex(4)}{suffix}")


def _take_name(folder, path):
    try:
        if path.exists():  # a rename would put a folder in the place of an empty one
            raise OSError(errno.EEXIST, "")
        os.replace(folder, path)
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY):
            raise FileExistsError(f"{path} is there already; choose another folder, or move it away") from None
        raise


def _to_disk(path):
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
