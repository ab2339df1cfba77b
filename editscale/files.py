"""Files: those that come with the package, JSON, sha256, and writing a file or folder whole or not at all."""

import hashlib
import json
import os
import shutil
import tempfile
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
    """A file beside `path` to write to. Once written, and on the disk, it takes that name; on an error it goes."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    try:
        yield part
        _to_disk(part)
        os.replace(part, path)
        _to_disk(path.parent)  # the name too
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def whole_folder(path, *, replacing=False):
    """A folder beside `path` to fill. It takes that name when the block ends without error.

    Where `path` is there by then it stays, and FileExistsError is raised, or with `replacing` it is exchanged.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    old = building.with_name(building.name + ".old")
    try:
        yield building
        building.chmod(0o755)
        if replacing and path.exists():
            os.replace(path, old)
        elif path.exists():
            raise FileExistsError(f"{path} is there already; choose another folder, or delete it")
        os.replace(building, path)
    finally:
        for left in (building, old):
            shutil.rmtree(left, ignore_errors=True)


def _to_disk(path):
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
