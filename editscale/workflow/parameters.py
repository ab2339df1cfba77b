"""Parameters of a notebook, checked before it runs, and the grid of runs that share them.

papermill itself lets an unknown name pass with a warning (nteract/papermill#818) and checks no type. The
contract with notebooks is one cell tagged `parameters` that holds typed literals only.
"""

import ast
import difflib
import json
import re
from dataclasses import dataclass
from pathlib import Path

from editscale.columns import method_label
from editscale.editing import modules
from editscale.files import SEAL, sealed

SEALED = "editscale_sha256"  # entry of the metadata of executed notebooks
TYPES = {"str": str, "int": int, "float": float, "bool": bool, "list": list, "dict": dict}


@dataclass(frozen=True)
class Parameter:
    """One line of a parameters cell: `name: type = default`."""

    name: str
    type: type
    default: object


def notebook_parameters(notebook: str | Path) -> dict[str, Parameter]:
    """Parameters by name, in the order of the one cell tagged `parameters`.

    ValueError when there is not exactly one such cell, or when it holds anything but literals of the six
    `TYPES`."""
    cells = read_notebook(notebook).cells
    tagged = [cell for cell in cells if "parameters" in cell.metadata.get("tags", [])]
    if len(tagged) != 1:
        tags = sorted({tag for cell in cells for tag in cell.metadata.get("tags", [])})
        hint = f"; its tags are {', '.join(map(repr, tags))}" if tags else ""
        raise ValueError(f"{notebook} has {len(tagged)} cells tagged 'parameters', not exactly one{hint}")
    parameters = {}
    try:
        lines = ast.parse(tagged[0].source).body
    except (SyntaxError, ValueError) as error:  # a null byte is a ValueError
        raise ValueError(f"the parameters cell of {notebook} is not Python: {error}") from error
    for line in lines:
        try:
            annotated = isinstance(line, ast.AnnAssign)
            name = (line.target if annotated else line.targets[0]).id
            default = ast.literal_eval(line.value)
            kind = TYPES[line.annotation.id if annotated else type(default).__name__]
            if not _fits(default, kind):
                raise TypeError
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"the parameters cell of {notebook} holds '{ast.unparse(line)}'; it takes only lines such as "
                f"'order: int = 0', with one of the types {', '.join(TYPES)}"
            ) from error
        parameters[name] = Parameter(name, kind, default)
    return parameters


def read_parameters(path: str | Path) -> dict:
    """Values by name from a flat YAML file. ValueError when it is no mapping or sets a name twice."""
    import yaml

    if not Path(path).is_file():
        raise FileNotFoundError(f"no parameters file {path}")
    try:
        text = Path(path).read_text(encoding="utf-8")
        node, values = yaml.compose(text, yaml.SafeLoader), yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not readable as YAML: {' '.join(str(error).split())}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold lines 'parameter: value'; it holds one {type(values).__name__}")
    names = [key.value for key, _ in node.value]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"{path} sets {', '.join(twice)} more than once")
    return {str(name): value for name, value in values.items()}


def parse_value(text: str, parameter: Parameter) -> object:
    """A command line's `text` as the parameter's type: a str as it is, a float as Python reads it, else YAML.

    What cannot be read comes back as text, for `check_value` to refuse."""
    import yaml

    if parameter.type is str:
        return text
    try:
        return float(text) if parameter.type is float else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError):
        return text


def check_value(parameter: Parameter, value: object, where: str) -> object:
    """`value` as the notebook gets it, a whole number given for a float as a float.

    ValueError when its type is not the parameter's: a bool is no int, and a default list whose items are
    all of one type asks for items of that type. `where` names the notebook and what set the value."""
    expected, fits = parameter.type.__name__, _fits(value, parameter.type)
    if fits and parameter.type is list:
        kinds = {type(item) for item in parameter.default}
        if len(kinds) == 1 and not all(_fits(item, *kinds) for item in value):
            expected, fits = f"a list of {kinds.pop().__name__}", False
    if fits:
        return float(value) if parameter.type is float else value
    hint = ""
    if parameter.type is float and isinstance(value, str) and _is_number(value):
        hint = "; YAML takes it for text, write it with a point and a sign: 1.0e-3"
    raise ValueError(
        f"parameter {parameter.name} of {where} must be {expected} (default {parameter.default!r}), "
        f"not {value!r} ({type(value).__name__}){hint}"
    )


def collect_parameters(notebook: str | Path, files: list, pairs: list) -> dict:
    """Checked values for `notebook`: from the YAML `files` in order, then the (name, text) `pairs`; later
    ones win.

    `out`, the folder for results that every notebook has, is always among them."""
    known = notebook_parameters(notebook)
    if "out" not in known:
        raise ValueError(f"{notebook} has no parameter 'out', the folder for its results")
    values = {"out": known["out"].default}
    for file in files:
        for name, value in read_parameters(file).items():
            where = f"{Path(notebook).name} in {file}"
            values[name] = check_value(_look_up(name, known, where), value, where)
    for name, text in pairs:
        where = f"{Path(notebook).name} after -p"
        parameter = _look_up(name, known, where)
        values[name] = check_value(parameter, parse_value(text, parameter), where)
    return values


def files_named(notebook: str | Path, file: str | Path) -> list[str]:
    """The files that values of a notebook's parameters name, but for results in runs/ and figures/, which rules make.

    Values are those of the YAML `file`, else the defaults; texts within lists and dicts count, and the files beside a
    named YAML file that it names in its turn, as a task's does its examples."""
    values = {name: parameter.default for name, parameter in notebook_parameters(notebook).items()}
    todo, found = [*(values | read_parameters(file)).values()], set()
    while todo:
        value = todo.pop()
        if isinstance(value, (list, dict)):
            todo += value if isinstance(value, list) else value.values()
        elif isinstance(value, str) and value.split("/")[0] not in ("runs", "figures") and _is_file(value):
            found |= {value, *_files_beside(Path(value))}
    return sorted(found)


def _is_file(path: str | Path) -> bool:
    """Whether there is such a file; a text that can be no path (too long, a NUL) is none."""
    try:
        return Path(path).is_file()
    except (OSError, ValueError):
        return False


def _files_beside(path: Path) -> set[str]:
    """The files that values of a YAML file name, from its folder. One that cannot be read names none: what reads it
    says why."""
    try:
        values = read_parameters(path).values() if path.suffix in (".yaml", ".yml") else []
    except (ValueError, OSError):
        return set()
    return {str(path.parent / value) for value in values if isinstance(value, str) and _is_file(path.parent / value)}


def checked_scale(name: str) -> str:
    """The name of a scale, which is a folder of params, runs and figures. ValueError if it would leave these."""
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise ValueError(f"{name!r} is not the name of a scale: a folder of params/, such as laptop")
    return name


def read_grid(path: str | Path) -> dict[tuple[str, str], dict]:
    """Runs of a grid file, one line each under `runs`, by (what the method is called, sequence).

    A run has `method` (its name, or my_module:function), `hparams` (its YAML file), `order` (of facts) and `reverse`,
    and may have `n_edits` and `facts_per_step` instead of the scale's, `batch`, see `batches`, and `label`, what its
    method is called there; its sequence is order-0 or order-0-reversed. ValueError names the line that lacks one of
    them, has another type or comes twice, and the label that is another method's or has several files of
    hyper-parameters."""
    kinds = {"method": str, "hparams": str, "order": int, "reverse": bool}
    optional = {"n_edits": int, "facts_per_step": int, "batch": str, "label": str}
    lines, runs = read_parameters(path).get("runs"), {}
    if not lines or type(lines) is not list:
        raise ValueError(f"{path} lists no run under 'runs'")
    for line in lines:
        given = {name: type(value) for name, value in line.items()} if isinstance(line, dict) else {}
        if given != kinds | {name: kind for name, kind in optional.items() if name in given}:
            wanted = ", ".join(f"{name} ({kind.__name__})" for name, kind in kinds.items())
            raise ValueError(f"{path}: a run has {wanted}, not {line}")
        named = {"method": method_label(line["method"]), "batch": line.get("batch", "x")}
        for name, text in named.items():  # they name folders and files of the scale
            if not re.fullmatch(r"[a-z0-9][a-z0-9-]*", text):
                raise ValueError(f"{path}: {line[name]!r} is no name of a {name}: small letters, digits and hyphens")
        try:
            name = modules.called(line["method"], line.get("label", ""))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        run = name, f"order-{line['order']}" + ("-reversed" if line["reverse"] else "")
        if run in runs:
            raise ValueError(f"{path} lists {' '.join(run)} twice")
        runs[run] = line
    _check_labels(runs, path)
    return runs


def _check_labels(runs, path):
    """Raise ValueError unless what each label of a grid names is one method, with one file of hyper-parameters."""
    for (name, _), run in runs.items():
        if not run.get("label"):
            continue
        for (other, _), line in runs.items():
            if line["method"] != run["method"] and name in (other, method_label(line["method"])):
                raise ValueError(
                    f"{path}: {name}, a label of {run['method']}, names {line['method']} too; choose another"
                )
            if other == name and line["hparams"] != run["hparams"]:
                raise ValueError(
                    f"{path}: runs called {name} have hyper-parameters {run['hparams']} and {line['hparams']}; give "
                    "each file a label of its own"
                )


def edits_together(path: str | Path) -> bool:
    """Whether a grid file asks for its runs to be edited in batches (`editscale.workflow.together`)."""
    value = read_parameters(path).get("together", False)
    if type(value) is not bool:
        raise ValueError(f"{path}: together must be true or false, not {value!r}")
    return value


def batches(grid: dict) -> dict[str, list]:
    """The runs of a grid that are edited in one batch, by its name: a run's `batch`, or else its label or method."""
    found = {}
    for key, run in grid.items():
        found.setdefault(run.get("batch", key[0]), []).append(key)
    return found


def read_notebook(path: str | Path):
    """The notebook at `path` as an nbformat 4 node, with what editors and strippers leave out of it filled in.

    That is whatever says nothing: empty metadata, outputs, counts, ids, the version's minor number, a mark of UTF-8 at
    the front. ValueError, naming the file, if it is not a notebook."""
    import nbformat

    if not Path(path).is_file():
        raise FileNotFoundError(f"no notebook {path}")
    try:
        content = json.loads(Path(path).read_bytes().decode("utf-8-sig"))
        if type(content) is not dict or type(content.get("nbformat")) is not int:
            raise ValueError("it holds JSON, but no nbformat")
        if content["nbformat"] < 4:
            content = nbformat.convert(nbformat.reads(json.dumps(content), as_version=nbformat.NO_CONVERT), 4)
        if content["nbformat"] > 4:
            raise ValueError(f"it has nbformat {content['nbformat']}; save it in format 4")
        notebook = nbformat.v4.to_notebook(_filled_in(content))
        nbformat.validate(notebook)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, nbformat.ValidationError) as error:
        says = isinstance(error, (ValueError, nbformat.ValidationError))
        reason = str(error).strip().splitlines()[0] if says else repr(error)
        raise ValueError(f"{path} is not a notebook: {reason}") from error
    return notebook


def seal(notebook):
    """Put into an executed notebook's metadata the sha256 of all else that it holds; the notebook."""
    notebook.metadata.pop(SEALED, None)
    notebook.metadata[SEALED] = sealed(json.loads(json.dumps(notebook)))[SEAL]
    return notebook


def altered(notebook) -> bool:
    """Whether a notebook, as `read_notebook` gives it, was sealed and holds something else by now."""
    content = json.loads(json.dumps(notebook))
    recorded = content["metadata"].pop(SEALED, None)
    return recorded is not None and recorded != sealed(content)[SEAL]


def _filled_in(content):
    """The JSON of a notebook with all fields that format 4.5 asks for; of its cells the fields that this knows."""
    cells, ids = [], set()
    for number, cell in enumerate(content["cells"], start=1):
        name = cell.get("id") if cell.get("id") not in ids else None
        whole = {
            "cell_type": cell["cell_type"],
            "id": name or f"cell-{number}",
            "metadata": _said(cell.get("metadata")),
            "source": cell.get("source") or "",
        }
        ids.add(whole["id"])
        if cell["cell_type"] == "code":
            whole |= {"execution_count": cell.get("execution_count"), "outputs": cell.get("outputs") or []}
        elif cell.get("attachments"):
            whole["attachments"] = cell["attachments"]
        cells.append(whole)
    return {"nbformat": 4, "nbformat_minor": 5, "metadata": _said(content.get("metadata")), "cells": cells}


def _said(metadata):
    """Metadata without entries that say nothing: null, a kernel or a language without name, notes that are no notes."""
    needed = {"kernelspec": {"name", "display_name"}, "language_info": {"name"}, "papermill": set()}
    return {
        name: value
        for name, value in (metadata or {}).items()
        if value is not None and (name not in needed or (type(value) is dict and needed[name] <= set(value)))
    }


def _look_up(name: str, known: dict[str, Parameter], where: str) -> Parameter:
    if name in known:
        return known[name]
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]}?" if close else f"the notebook has {', '.join(known)}"
    raise ValueError(f"unknown parameter {name} of {where}; {hint}")


def _fits(value: object, kind: type) -> bool:
    return type(value) is kind or (kind is float and type(value) is int)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
