"""Files: those that come with the package, JSON, sha256, and writing a file or folder whole or not at all.

What is read back is checked. A sealed JSON object holds the sha256 of its other entries (`SEAL`), and the records that
notebooks leave, done.json and record.json, hold that of each file that they name (`vouched`).
"""

import errno
import hashlib
import json
import os
import secrets
import shutil
from contextlib import contextmanager
from pathlib import Path

DATA = "data"  # the folder of the package whose files `bundled` gives
SEAL = "sha256"  # entry of a sealed JSON object


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
        content = json_of(Path(path).read_bytes())
        if type(content) is dict:
            return content
        error = f"it holds a {type(content).__name__}"
    except (ValueError, RecursionError) as problem:
        error = str(problem)
    raise ValueError(f"{path} is not the JSON object it should be ({error}); {remedy}")


def json_of(data):
    """The JSON value in bytes. ValueError if they hold none, or an object in them states a name twice."""

    def unique(pairs):
        content = dict(pairs)
        if len(content) < len(pairs):
            names = [name for name, _ in pairs]
            raise ValueError(f"it states {next(name for name in names if names.count(name) > 1)!r} twice")
        return content

    return json.loads(data, object_pairs_hook=unique)


def write_json(path, content):
    """Write a value as indented JSON, whole (`whole_file`); the path."""
    return write_whole(path, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())


def sealed(content):
    """A JSON object with the sha256 of its entries as a further one."""
    return {**content, SEAL: sha256_json(json.loads(json.dumps(content)))}


def unsealed(content, path, remedy):
    """A JSON object read from `path` without its seal; one that an earlier version wrote has none.

    Raises ValueError that names the file and ends in `remedy` if it holds something else than when it was sealed.
    """
    damaged = not _seals(content, SEAL) if SEAL in content else any(_seals(content, name) for name in content)
    if damaged:  # what it holds, or the name of its seal
        raise ValueError(f"{path} does not hold what was written into it: it was altered or is damaged; {remedy}")
    return {name: value for name, value in content.items() if name != SEAL}


def _seals(content, name):
    """Whether that entry is the sha256 of the others."""
    seal, rest = content[name], {other: value for other, value in content.items() if other != name}
    return type(seal) is str and len(seal) == 64 and seal == sha256_json(rest)


def read_record(path, remedy):
    """What is in a done.json, record.json or a figure's json, `files` among it: name ↦ sha256.

    Raises FileNotFoundError, or ValueError as `read_json` and `unsealed` do, or if its files are no such object.
    """
    record = unsealed(read_json(path, remedy), path, remedy)
    files = record.setdefault("files", {})
    if type(files) is not dict or not all(type(sha256) is str for sha256 in files.values()):
        raise ValueError(f"{path} lists no files with their sha256; {remedy}")
    return record


def check_files(record, folder, path, remedy):
    """Raise ValueError that names it if a file that a record, read from `path`, names in `folder` is missing or another
    one."""
    for name, sha256 in record["files"].items():
        if not (file := Path(folder) / name).is_file() or sha256_file(file) != sha256:
            state = "is not the file that" if file.is_file() else "is missing, which"
            raise ValueError(f"{file} {state} {path} names: one of the two was altered or is damaged; {remedy}")


def vouched(path, remedy):
    """The bytes of a result file, those that the record beside it names: done.json, or record.json of recorded tables.

    Raises FileNotFoundError if there is no such file, or no record that names it; ValueError if it is another file.
    Both name it and end in `remedy`.
    """
    path = Path(path)
    places = (path.parent / "done.json", path.parent / "record.json", path.parent.parent / "record.json")
    beside = next((place for place in places if place.is_file()), None)
    if not path.is_file() or beside is None:
        missing = path.name if not path.is_file() else f"done.json or record.json that vouches for {path.name}"
        raise FileNotFoundError(f"no {missing} in {path.parent}; {remedy}")
    files = read_record(beside, remedy)["files"]
    known = {sha256 for name, sha256 in files.items() if Path(name).name == path.name}
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() not in known:
        said = "is not the file that" if known else "is not among the files that"
        raise ValueError(f"{path} {said} {beside} names: one of the two was altered or is damaged; {remedy}")
    return content


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
