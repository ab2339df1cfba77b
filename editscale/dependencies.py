"""What a result rests on: the modules that its code imports, one through another, and the data files they name.

One mechanism for three uses: the fingerprint of a ledger, the graph of notebooks, and the code identity of figures.
Words do not count: docstrings, comments and blank lines may change without changing an identity. Code of one's own
counts like that of the package, and packages that are installed do not, but for those with a method (`METHODS`).
"""

import ast
import functools
import hashlib
import importlib.metadata
import importlib.util
import io
import json
import re
import sysconfig
import tokenize
from dataclasses import dataclass, field
from pathlib import Path

import editscale
from editscale.files import DATA, sha256_file

PACKAGE = Path(__file__).resolve().parent
METHODS = "editscale.methods"  # group of the entry points by which an installed package offers editing methods


def closure(code, package=PACKAGE):
    """The files that Python `code` rests on: modules, `__init__` of their packages, and data files of the package.

    A data file counts where a module that is imported calls `files.bundled("its name")`. Imports within functions
    count too. Raises ValueError, naming the module, for a relative import, and for a call of `bundled` that does not
    name its file by a string.
    """
    return sorted(_closure(code, package))


def _closure(code, package):
    """`closure`: path ↦ the text of a module, and None of a data file."""
    todo, found = set(_mentioned(code, package, "the given code")), {}
    while todo:
        path = todo.pop()
        found[path] = text = path.read_text(encoding="utf-8") if path.suffix == ".py" else None
        if text is not None:
            todo |= _mentioned(text, package, path) - found.keys()
    return found


def identity(code, package=PACKAGE):
    """sha256 of `code` and of all that it rests on (`closure`), without its words."""
    total = hashlib.sha256(without_words(code).encode())
    for path, text in sorted(_closure(code, package).items()):
        sha256 = sha256_file(path) if text is None else _sha256_without_words(text)
        name = path.relative_to(package).as_posix() if path.is_relative_to(package) else path.name
        total.update(f"{name} {sha256}\n".encode())
    return total.hexdigest()


def of_modules(*names):
    """`identity` of modules, by their full names."""
    return identity("".join(f"import {name}\n" for name in names))


def of_notebook(path, modules=()):
    """`identity` of a notebook's code cells but the one tagged `parameters`, whose values are recorded themselves.

    Args:
        modules: full names of those that it imports by name, such as that of the method it edits with.
    """
    try:
        cells = json.loads(Path(path).read_bytes().decode("utf-8-sig"))["cells"]
        code = [cell for cell in cells if cell["cell_type"] == "code"]
        tagged = [cell for cell in code if "parameters" not in ((cell.get("metadata") or {}).get("tags") or [])]
        sources = [_python("".join(cell.get("source") or "")) for cell in tagged]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} is not a notebook of format 4: {error!r}") from error
    package = Path(path).resolve().parents[1] / "editscale"
    source = "\n".join(sources + [f"import {name}" for name in modules])
    return identity(source, package if package.is_dir() else PACKAGE)


def _python(cell):
    """The code of a cell; what IPython reads and Python does not (`%time`, `!ls`) becomes a string that counts."""
    for code in (cell, re.sub(r"^([ \t]*)([%!].*)$", lambda line: f"{line[1]}magic({line[2]!r})", cell, flags=re.M)):
        try:
            ast.parse(code)
            return code
        except (SyntaxError, ValueError):
            continue
    return f"magic({cell!r})"


@functools.cache
def without_words(code):
    """Python code without comments, blank lines and strings that nothing reads (docstrings). Others keep every byte."""
    seen, lines = _seen(code), code.splitlines()
    verbatim = {i for first, _, last, _ in seen.long for i in range(first, last + 1)}
    for first, _, last, _ in seen.unread:
        verbatim -= set(range(first, last + 1))
    for first, start, last, end in [*seen.unread, *_comments(code, lines, seen)]:
        head, tail = lines[first - 1].encode()[:start].decode(), lines[last - 1].encode()[end:].decode()
        lines[first - 1 : last] = [head + tail] + [""] * (last - first)
    return "\n".join(line for i, line in enumerate(lines, 1) if i in verbatim or line.strip())


@functools.cache
def _sha256_without_words(code):
    return hashlib.sha256(without_words(code).encode()).hexdigest()


@dataclass
class _Seen:
    """What is read of Python code. Spans are (first line, offset, last line, offset), offsets in bytes.

    Attributes:
        names: what is imported, in full; relative: the line of a relative import, 0 without one.
        bundled: (line, the file that a call of `bundled` names, or None; whether it counts).
        unread: spans of strings that nothing reads. long: those of strings over several lines, of all kinds, and
        short: those of strings within one; formatted: those of `long` that hold expressions.
    """

    names: set = field(default_factory=set)
    relative: int = 0
    bundled: list = field(default_factory=list)
    unread: list = field(default_factory=list)
    long: list = field(default_factory=list)
    short: list = field(default_factory=list)
    formatted: set = field(default_factory=set)


@functools.cache
def _seen(code):
    """What some code holds, in one walk."""
    seen = _Seen()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, (ast.Constant, ast.JoinedStr)):
            if isinstance(node, ast.JoinedStr) or isinstance(node.value, (str, bytes)):
                span = node.lineno, node.col_offset, node.end_lineno, node.end_col_offset
                (seen.long if node.end_lineno > node.lineno else seen.short).append(span)
                if isinstance(node, ast.JoinedStr):
                    seen.formatted.add(span)
        elif isinstance(node, ast.Expr):
            if isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
                seen.unread.append((node.lineno, node.col_offset, node.end_lineno, node.end_col_offset))
        elif isinstance(node, ast.Import):
            seen.names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                seen.relative = seen.relative or node.lineno
            else:
                seen.names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "editscale":
            seen.names.add(editscale.LATER.get(node.attr, "editscale"))
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) == "bundled":
            one = len(node.args) == 1 and isinstance(node.args[0], ast.Constant)
            seen.bundled.append((node.lineno, node.args[0].value if one else None, not node.keywords))
    return seen


def _comments(code, lines, seen):
    """Spans of the comments of some code. Its tokens, which are slow to find, are only looked at where they must be."""
    within = {}
    for first, start, _, end in seen.short:
        within.setdefault(first, []).append((start, end))
    for span in seen.long:
        first, start, last, end = span
        if any("#" in line for line in lines[first - 1 : last]):
            if span in seen.formatted or not _is_one_literal(lines, span):
                return _comment_tokens(code, lines)
            for row in range(first, last + 1):
                whole = len(lines[row - 1].encode())
                within.setdefault(row, []).append((start if row == first else 0, end if row == last else whole))
    found = []
    for row, line in enumerate(lines, 1):
        if "#" in line:
            line = line.encode()
            for at in (i for i, byte in enumerate(line) if byte == ord("#")):
                if not any(start <= at < end for start, end in within.get(row, ())):
                    found.append((row, at, row, len(line)))
                    break
    return found


def _is_one_literal(lines, span):
    """Whether a string over several lines is one in triple quotes, and not several with a comment in between."""
    first, start, last, end = span
    inside = [line.encode() for line in lines[first - 1 : last]]
    inside[-1], inside[0] = inside[-1][:end], inside[0][start:]
    text = b"\n".join(inside).lstrip(b"rRbBuU")
    quotes = text[:3]
    return quotes in (b'"""', b"'''") and text.find(quotes, 3) == len(text) - 3


def _comment_tokens(code, lines):
    tokens = [t for t in tokenize.generate_tokens(io.StringIO(code).readline) if t.type == tokenize.COMMENT]
    return [
        (row, len(lines[row - 1][:start].encode()), row, len(lines[row - 1][:end].encode()))
        for (row, start), (_, end) in ((token.start, token.end) for token in tokens)
    ]


@functools.cache
def _mentioned(code, package, where):
    """Files of the package that some code imports, and data files it names."""
    seen, files = _seen(code), set()
    if seen.relative:
        raise ValueError(f"{where}, line {seen.relative}: a relative import; name the module in full")
    for line, name, _ in seen.bundled:
        if name is None:
            raise ValueError(f"{where}, line {line}: bundled(…) must name its file by one string")
    for top, *parts in (name.split(".") for name in seen.names):
        folder = package if top == "editscale" else _own(top)
        if folder is not None and folder.suffix == ".py":
            files.add(folder)
        elif folder is not None:
            # Importing a module runs the __init__ of each package above it.
            files |= {folder.joinpath(*parts[:n], "__init__.py") for n in range(len(parts) + 1)}
            files.add(folder.joinpath(*parts).with_suffix(".py"))
    data = {package / DATA / name for _, name, counts in seen.bundled if counts}
    return frozenset(file for file in files if file.is_file()) | data


def _own(top):
    """File or folder of a top-level module that is neither Python's nor installed, but for methods; else None."""
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):  # __main__ has none
        return None
    if spec is None:
        return None
    folders = list(spec.submodule_search_locations or [])  # of a package; one without __init__.py has no origin
    if not folders and not str(spec.origin).endswith(".py"):
        return None
    path = Path(folders[0] if folders else spec.origin).resolve()
    installed = any(path.is_relative_to(folder) for folder in _installed())
    return None if installed and top not in _offering() else path


@functools.cache
def _installed():
    """Folders of what is installed."""
    return [Path(sysconfig.get_path(kind)).resolve() for kind in ("stdlib", "platstdlib", "purelib", "platlib")]


@functools.cache
def _offering():
    """Installed packages that offer editing methods."""
    return {entry.module.split(".")[0] for entry in importlib.metadata.entry_points(group=METHODS)}
