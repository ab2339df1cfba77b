"""Files of records: JSON, JSON lines, CSV, TSV and parquet, each of them gzipped or not, told apart by their content.

The name of a file is never asked. A table (CSV, TSV, or ; between cells) names its columns in its first line; an empty
cell is a missing value. A cell of several values is a JSON list, or holds | between them; or each value has a column of
its own, numbered: paraphrase_1, paraphrase_2.
"""

import ast
import csv
import gzip
import io
import json
import re
import zlib
from dataclasses import dataclass
from pathlib import Path

from editscale.data.fact_formats import LISTS, NAMES, plain_name

MOST_BYTES = 2**30  # of an unpacked file
COUNTERFACT_AGAIN = "python -m editscale counterfact FOLDER"
NO_FACTS = {  # the first bytes of files that hold no facts in a form read here
    b"PK\x03\x04": "a zip archive or an Excel workbook; unpack it, or save the sheet as CSV UTF-8",
    b"BZh": "packed with bzip2; unpack it, or pack it with gzip",
    b"\xfd7zXZ": "packed with xz; unpack it, or pack it with gzip",
    b"\x28\xb5\x2f\xfd": "packed with zstd; unpack it, or pack it with gzip",
    b"\x1f\x8b": "packed with gzip twice; unpack it once",
    b"\x80": "a pickle or other binary file; pickles are not read, save the records as JSON",
    b"<": "a web page or XML; fetch the file itself (the raw file, on a code host)",
    b"version https://git-lfs": "a Git LFS pointer; fetch the file that it points to (git lfs pull)",
}


@dataclass(frozen=True)
class Records:
    """What a file holds: its form in words, its records, and of each where it is: "record 3 (line 5)"."""

    form: str
    records: list
    places: list


def read(path):
    """The `Records` of a file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is truncated, or in none of the forms that are read; the message names file and line.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no facts file {path}; CounterFact: {COUNTERFACT_AGAIN}")
    data, packed = _unpacked(path)
    if data.startswith(b"PAR1"):
        form, records, places = "parquet", *_parquet(path, data)
    else:
        text = _text(path, data)
        read_text = _json if text.lstrip()[:1] in ("[", "{") else _table
        form, records, places = read_text(path, text, len(data))
    return Records(form + packed, records, places or [f"record {i}" for i in range(len(records))])


def _unpacked(path):
    """A file's bytes, unpacked where they are gzipped, and what to say of that."""
    with open(path, "rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        try:
            data = (gzip.GzipFile(fileobj=file) if packed else file).read(MOST_BYTES + 1)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(f"{path} is a damaged or incomplete gzip file ({error}); make or fetch it anew") from error
    if len(data) > MOST_BYTES:
        raise ValueError(f"{path} holds more than {MOST_BYTES:,} bytes; split it into smaller files")
    for start, what in NO_FACTS.items():
        if data.lstrip().startswith(start):
            raise ValueError(f"{path} is {what}")
    if not data.strip():
        raise ValueError(f"{path} is empty ({len(data)} bytes), expected records of facts")
    return data, ", gzipped" if packed else ""


def _text(path, data):
    """Bytes as text: UTF-8, or UTF-16 and UTF-32 where a byte order mark or zero bytes announce it."""
    encoding = json.detect_encoding(data)
    try:
        return data.decode(encoding).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ValueError(
            f"{path} is not complete JSON, JSON lines or CSV: its bytes are no {encoding.upper()} text (line {line}: "
            f"{error.reason}); save it as UTF-8 (in Excel: CSV UTF-8)"
        ) from error


def _json(path, text, size):
    """Form, records and places of a JSON list of records, of JSON lines, or of one record alone."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        lines = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
        if len(lines) > 1 and _is_object(lines[0][1]):
            return _json_lines(path, lines)
        raise ValueError(
            f"{path} is not complete JSON ({size:,} bytes; {error}); mend it there, or, if it was cut off while it was "
            f"fetched or copied, copy it again or fetch it anew (CounterFact: {COUNTERFACT_AGAIN})"
        ) from error
    if isinstance(content, list):
        return "JSON", content, None
    names = {plain_name(name) for name in content}
    needed = {"subject", "src", "requested_rewrite"} & names
    if needed and any(isinstance(content.get(name), str) for name in content if plain_name(name) in {"subject", "src"}):
        return "JSON lines", [content], ["record 0 (line 1)"]
    if "requested_rewrite" in needed and isinstance(content["requested_rewrite"], dict | list):
        return "JSON lines", [content], ["record 0 (line 1)"]
    hint = "; it holds columns: write records (in pandas, to_json with orient='records')" if needed else ""
    lists = [name for name, value in content.items() if isinstance(value, list) and value]
    hint = hint or (f"; its field {lists[0]!r} holds a list: give that list alone" if lists else "")
    raise ValueError(f"{path} holds a JSON {type(content).__name__}, expected a list of fact records{hint}")


def _is_object(line):
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _json_lines(path, lines):
    records = []
    for number, line in lines:
        try:
            records.append(json.loads(line))
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"{path}, line {number} is not complete JSON ({error}), expected one record in each line; mend it, or "
                "copy or fetch the file again if it was cut off there"
            ) from error
    return "JSON lines", records, [f"record {i} (line {number})" for i, (number, _) in enumerate(lines)]


def _parquet(path, data):
    import pyarrow.parquet

    try:
        return pyarrow.parquet.read_table(io.BytesIO(data)).to_pylist(), None
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"{path} is a damaged or incomplete parquet file ({reason}); make or fetch it anew") from error


# ------------------------------------------------------------------------------------------------------- tables


def _table(path, text, size):
    """Form, records and places of a table, its cells as text or lists of texts."""
    first = text.lstrip().split("\n", 1)[0].strip()
    found = {cell: [plain_name(name) for name in _split(first, cell)] for cell in ",\t;"}
    separator = max(found, key=lambda cell: len({_base(name) for name in found[cell]} & set(NAMES)))
    if not {_base(name) for name in found[separator]} & set(NAMES):
        raise ValueError(
            f"{path} is neither JSON nor a table of facts: its first line is {first[:80]!r}, expected the names of its "
            "columns, such as subject,prompt,target_new"
        )
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True, skipinitialspace=True)
    header, records, places, line = None, [], [], 1
    try:
        for row in reader:
            cells = [cell.strip() for cell in row]
            if any(cells) and header is None:
                header = _header(path, cells)
            elif any(cells):
                place = f"record {len(records)} (line {line})"
                records.append(_record(f"{path}, {place}", header, cells))
                places.append(place)
            line = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(
            f"{path}, line {line}: {error}; a cell with quotation marks in it stands between quotation marks, and has "
            'each of its own doubled: "the ""great"" harp"'
        ) from error
    return {",": "CSV", "\t": "TSV", ";": "CSV with semicolons"}[separator], records, places


def _split(line, separator):
    try:
        return next(csv.reader([line], delimiter=separator, skipinitialspace=True), [])
    except csv.Error:
        return []


def _header(path, cells):
    header = [cell or f"column {i} without a name" for i, cell in enumerate(cells, start=1)]
    plain = [plain_name(name) for name in header]
    twice = [name for i, name in enumerate(plain) if name in plain[:i]]
    if twice:
        raise ValueError(f"{path} has two columns {twice[0]!r}; number them ({twice[0]}_1, {twice[0]}_2) or rename one")
    return header


def _base(name):
    """The name of a numbered column without its number, where it is that of a list: paraphrase_2 is a paraphrase."""
    base = re.sub(r"_?\d+$", "", name)
    return base if NAMES.get(base) in LISTS else name


def _record(where, header, cells):
    """A row as a record: empty cells left out, lists split, numbered columns as one list, case_id as an integer."""
    if len(cells) != len(header):
        remedy = "put a cell that holds the separator between quotation marks"
        if len(cells) < len(header):
            remedy = "write the separators of empty cells at the end of a row too"
        raise ValueError(f"{where} has {len(cells)} cells, expected {len(header)} ({', '.join(header)}); {remedy}")
    record, numbered = {}, {}
    for name, cell in zip(header, cells, strict=True):
        plain = plain_name(name)
        base = _base(plain)
        if base != plain:
            numbered.setdefault(base, {})[int(plain.removeprefix(base).strip("_"))] = cell
        elif cell and NAMES.get(plain) in LISTS:
            record[name] = _values(where, name, cell)
        elif cell:
            number = re.fullmatch(r"(-?\d{1,18})(\.0)?", cell) if plain == "case_id" else None
            record[name] = int(number[1]) if number else cell
    for base in numbered:
        if base in map(plain_name, record):
            raise ValueError(f"{where}: column {base} and numbered ones ({base}_1, …) both have values; keep one kind")
    return record | _paired(where, numbered)


def _values(where, name, cell):
    """The values in one cell: a JSON list (or Python's, as pandas writes it), or texts with | between them."""
    if not (cell.startswith("[") and cell.endswith("]")):
        return [value.strip() for value in cell.split("|")]
    try:
        values = json.loads(cell)
    except (ValueError, RecursionError):
        try:
            values = ast.literal_eval(cell)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            raise ValueError(
                f"{where}: {name} is {cell[:80]!r}, which looks like a list and is none in JSON; "
                'write ["one", "two"], or one | two'
            ) from None
    return values


def _paired(where, numbered):
    """Numbered columns as lists; answers stand in the places of their prompts, "" where a prompt has none."""
    lists = {}
    of = {NAMES[base]: (base, values) for base, values in numbered.items()}
    for field, (base, values) in of.items():
        filled = sorted(number for number, cell in values.items() if cell)
        prompts = field.replace("_answers", "_prompts")
        if field != prompts and prompts in of and filled:
            asked = sorted(number for number, cell in of[prompts][1].items() if cell)
            if extra := set(filled) - set(asked):
                prompt = f"{of[prompts][0]}_{min(extra)}"
                raise ValueError(f"{where}: {base}_{min(extra)} answers no prompt; fill {prompt}, which is empty")
            filled = asked
        if filled:
            lists[base] = [values.get(number, "") for number in filled]
    return lists
