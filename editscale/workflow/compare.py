"""What differs between two executed runs of a study: `python -m editscale compare runs/laptop ../other/runs/laptop`.

Tables (parquet, csv, jsonl) are compared as values, row by row; executed notebooks by nbdime, sources and outputs.
A and B are two folders, such as a scale's or one run's, or two executed notebooks.

Not compared, because they differ between two runs that found the same: times (timing.jsonl, start and end, dates in
outputs, progress bars), commits, addresses of objects, and the table a notebook shows of what it was made with. What
done.json says about machine, versions and code is listed where it differs, but is no difference; parameters are one.
Pictures and weights are not compared as files: their numbers are in tables, a notebook's pictures among its outputs.
"""

import filecmp
import io
import json
import re
from pathlib import Path

from editscale.files import read_record

# The columns that name a row of our tables. Rows that share them are counted in their order.
KEYS = ("method", "order", "reversed", "layer", "task", "metric", "edits", "edit", "case_id", "n_tokens", "rank")
TABLES = (".parquet", ".csv", ".jsonl")
IGNORED_FILES = ("timing.jsonl", ".failed.ipynb")
IGNORED_FOLDERS = ("html", "models")
MADE_WITH = ("python", "packages", "platform", "cpu", "gpu", "code_sha256")


def compare(a: str | Path, b: str | Path, *, color: bool = False) -> tuple[list[str], bool]:
    """Lines that say what differs between `a` and `b`, and whether nothing does.

    Raises FileNotFoundError or ValueError for a side that is missing, of another kind than the other, without anything
    to compare, or not readable."""
    a, b = Path(a), Path(b)
    for side, path in (("A", a), ("B", b)):
        if not path.exists():
            raise FileNotFoundError(f"{side} is {path}, which does not exist; give two folders or two notebooks")
        if path.is_file() and path.suffix != ".ipynb":
            raise ValueError(f"{side} is {path}, neither a folder of an executed run nor an executed notebook")
    if a.is_dir() != b.is_dir():
        raise ValueError(f"{a} and {b} are a folder and a notebook; give two of one kind")
    if a.is_file():
        difference = notebook_difference(a, b, color=color)
        return difference or ["The notebooks are equal."], not difference
    names = sorted({name for folder in (a, b) for name in _files(folder)})
    for side, folder in (("A", a), ("B", b)):
        if not any((folder / name).is_file() for name in names):
            raise ValueError(f"{side}, {folder}, holds no table and no notebook; give the folder of an executed run")
    lines, same = _compare_records(a, b)
    notebooks = [name for name in names if name.endswith(".ipynb")]
    for title, chosen in (("Tables", [name for name in names if name not in notebooks]), ("Notebooks", notebooks)):
        results = {name: _compare_file(a / name, b / name, color) for name in chosen}
        unequal = sum(result != [] for result in results.values())
        lines += ["", f"{title}: {len(chosen) - unequal} of {len(chosen)} equal"]
        for name, result in results.items():
            lines += [f"  {'differs' if result else 'equal  '}  {name}", *(f"      {line}" for line in result)]
        same = same and not unequal
    return lines, same


# --------------------------------------------------------------------------------------------------- tables


def table_difference(a, b) -> list[str]:
    """How two tables (pandas) differ, a line per column or kind of row; [] if they hold the same values.

    Rows are matched by those of KEYS that both have. Numbers are equal if they are the same, NaN included; relative
    differences are of the larger of the two."""
    lines = []
    for side, one, other in (("A", a, b), ("B", b, a)):
        if only := [str(name) for name in one if name not in other]:
            lines.append(f"columns only in {side}: {', '.join(only)}")
    keys = [key for key in KEYS if key in a and key in b]
    a, b = _by_row(a, keys), _by_row(b, keys)
    for side, one, other in (("A", a, b), ("B", b, a)):
        only = one.index[~one.index.isin(other.index)]
        if len(only):
            shown = "; ".join(_row_name(keys, row) for row in only[:3]) + ("; …" if len(only) > 3 else "")
            lines.append(f"{len(only)} of {len(one)} rows only in {side}: {shown}")
    common = a.index[a.index.isin(b.index)]
    a, b = a.loc[common], b.loc[common]
    return lines + [line for name in a if name in b for line in _column_difference(name, a[name], b[name], keys)]


def _by_row(table, keys):
    """The table indexed by its keys and, among rows that share them, by their order."""
    groups = table.groupby(keys, dropna=False, sort=False) if keys else table.groupby(lambda _: 0)
    return table.assign(_nth=groups.cumcount()).set_index([*keys, "_nth"])


def _row_name(keys, row) -> str:
    row = row if isinstance(row, tuple) else (row,)
    named = ", ".join(f"{key} {value}" for key, value in zip(keys, row, strict=False))
    return f"{named}, {row[-1] + 1}. of its kind" if keys and row[-1] else named or f"row {row[-1] + 1}"


def _column_difference(name, a, b, keys) -> list[str]:
    import numpy as np
    from pandas.api.types import is_bool_dtype, is_numeric_dtype

    numbers = all(is_numeric_dtype(side) and not is_bool_dtype(side) for side in (a, b))
    unequal = a.astype(float if numbers else str).compare(b.astype(float if numbers else str))
    if unequal.empty:
        return []
    text = f"{name}: {len(unequal)} of {len(a)} rows"
    gap = (unequal["self"] - unequal["other"]).abs() if numbers else unequal["self"].map(lambda _: np.inf)
    finite, rest = gap[np.isfinite(gap)], unequal[~np.isfinite(gap)]
    if len(finite):
        relative = (finite / unequal.loc[finite.index].abs().max(axis=1)).max()
        text += f", at most {finite.max():.3g} at {_row_name(keys, finite.idxmax())}, relative {relative:.3g}"
    if len(rest):
        text += f", {len(rest)} not finite on one side" if numbers else ""
        x, y = rest.iloc[0]
        text += f", first {x} and {y} at {_row_name(keys, rest.index[0])}"
    return [text]


def _read_table(path: Path):
    import pandas as pd

    try:
        if path.suffix == ".parquet":
            return pd.read_parquet(path)
        if path.suffix == ".csv":
            return pd.read_csv(path)
        return pd.DataFrame([json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()])
    except (ValueError, OSError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read as a table: {error}") from error


# ------------------------------------------------------------------------------------------------ notebooks


def notebook_difference(a: str | Path, b: str | Path, *, color: bool = False) -> list[str]:
    """nbdime's diff of two executed notebooks as lines, [] if their sources and outputs are the same."""
    from nbdime import diff_notebooks
    from nbdime.prettyprint import PrettyPrintConfig, pretty_print_diff

    old, new = _comparable(a), _comparable(b)
    difference = diff_notebooks(old, new)
    text = io.StringIO()
    # Python's own diff, not git's or diff's: the text is the same everywhere.
    pretty_print_diff(old, difference, "", PrettyPrintConfig(text, use_git=False, use_diff=False, use_color=color))
    return text.getvalue().splitlines()


def _comparable(path: str | Path):
    """A notebook's sources and outputs as text, without what the module's first lines call not compared."""
    from nbformat.v4 import new_notebook

    from editscale.workflow.parameters import read_notebook

    cells = []
    for i, cell in enumerate(read_notebook(path).cells):
        if "papermill-error-cell-tag" in cell.metadata.get("tags", []):
            continue
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if _strip_output(output)]
            cell.execution_count = None
        cell.metadata, cell.id = {}, f"cell-{i}"
        cells.append(cell)
    return new_notebook(cells=cells)


def _strip_output(output) -> bool:
    """Take out of an output what is not compared; whether something is left."""
    if output.output_type == "stream":
        output.text = _timeless(output.text)
        return output.name != "stderr"
    if output.output_type == "error":
        output.traceback = []  # holds paths
        return True
    if "editscale" in output.metadata:  # what provenance.start shows
        return False
    output.metadata = {}
    if "execution_count" in output:
        output.execution_count = None
    if plain := output.data.get("text/plain"):
        output.data.pop("text/html", None)  # the same table, less readable
        output.data["text/plain"] = _timeless(plain)
    return True


def _timeless(text: str) -> str:
    text = re.sub(r"\b0x[0-9a-f]{6,}", "0x…", text)
    return re.sub(r"\b\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d(\.\d+)?)?([+-]\d\d:\d\d|Z)?", "<time>", text)


# ---------------------------------------------------------------------------------------------------- files


def _files(folder: Path) -> list[str]:
    """Tables and notebooks below `folder`, by their path from there; notebooks that failed beside one that did not are
    no results."""
    found = []
    for path in folder.rglob("*"):
        place = path.relative_to(folder)
        hidden = any(part.startswith(".") or part in IGNORED_FOLDERS for part in place.parts)
        if path.suffix in (*TABLES, ".ipynb") and not (hidden or path.name.endswith(IGNORED_FILES)):
            found.append(place.as_posix())
    return found


def _compare_file(a: Path, b: Path, color: bool) -> list[str]:
    if not (a.is_file() and b.is_file()):
        return [f"only in {'A' if a.is_file() else 'B'}"]
    if filecmp.cmp(a, b, shallow=False):
        return []
    if a.suffix == ".ipynb":
        return notebook_difference(a, b, color=color)
    return table_difference(_read_table(a), _read_table(b))


def _compare_records(a: Path, b: Path) -> tuple[list[str], bool]:
    """Lines about what the runs were made with and asked for, from every done.json; whether parameters are equal."""
    made, asked = {}, []
    names = sorted({path.relative_to(side).as_posix() for side in (a, b) for path in side.rglob("done.json")})
    for name in names:
        run = Path(name).parent.as_posix()
        if not ((a / name).is_file() and (b / name).is_file()):
            asked.append(f"  {run}: finished only in {'A' if (a / name).is_file() else 'B'}")
            continue
        old, new = (_flat_record(side / name) for side in (a, b))
        for fact in sorted({*old, *new}):
            values = old.get(fact, "none"), new.get(fact, "none")
            if values[0] != values[1] and fact.startswith("parameters."):
                asked.append(f"  {run}: {fact.removeprefix('parameters.')} {values[0]} and {values[1]}")
            elif values[0] != values[1]:
                made.setdefault((fact, *values), []).append(run)
    lines = []
    if made:
        lines += ["", "Made with (no difference of results)"]
        for (fact, old, new), runs in made.items():
            lines.append(f"  {fact}: {old} and {new} ({len(runs)} of {len(names)} runs)")
    if asked:
        lines += ["", "Parameters and runs: differ", *asked]
    return lines, not asked


def _flat_record(path: Path) -> dict[str, str]:
    try:
        record = read_record(path, "run that notebook again")
        nested = {kind: dict(record[kind]) for kind in ("parameters", "packages")}
        flat = {name: record[name] for name in MADE_WITH if name not in nested}
        flat["code_sha256"] = flat["code_sha256"][:12]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} is not what record.finish writes ({error!r}); run that notebook again") from error
    flat |= {f"{kind}.{name}": value for kind, content in nested.items() for name, value in content.items()}
    return {name: json.dumps(value, ensure_ascii=False) for name, value in flat.items()}
