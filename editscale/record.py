"""Record the result tables of a scale that needs a GPU, so that its figures are drawn anywhere.

    python -m editscale record SCALE [--partly]

`figures/<scale>/tables` is laid out like one run's folder and holds the rows of all runs: edits.parquet, …,
recall/history.parquet, downstream/downstream.parquet, beside them single.parquet and acceptance.parquet, and
record.json, which names what made them. Notebooks that gather take that folder for their one run. Numbers are float32;
no text of a fact is in it, facts are named by case id.
"""

import argparse
import json
import sys
from pathlib import Path

import pandas as pd

from editscale import tables
from editscale.parameters import checked_scale, read_grid
from editscale.provenance import sha256_file, write_json

# Folder of a run that a notebook finishes ↦ the tables it leaves there.
PARTS = {
    "": ("edits", "unedited", "drift"),
    "recall": ("history", "perplexity", "spectra"),
    "downstream": ("downstream", "generation"),
}
BESIDE = {"single": "single", "acceptance": "acceptance"}  # table ↦ its folder among those of the runs


def finished(scale, part):
    """The run folders of a scale's grid in which a part is finished, and the records of those that are not."""
    folders = [Path("runs") / scale / method / sequence for method, sequence in read_grid(f"params/{scale}/grid.yaml")]
    done = {folder: folder / part / "done.json" for folder in folders}
    return [f for f in folders if done[f].is_file()], [path for path in done.values() if not path.is_file()]


def record(scale, *, partly=False):
    """Write the tables of a scale and their record: the files written.

    Args:
        partly: take what is finished instead of asking for everything; the record says which run has which part.

    Raises FileNotFoundError that names what is missing.
    """
    found, out = {part: finished(scale, part) for part in PARTS}, Path("figures") / scale / "tables"
    beside = {name: Path("runs") / scale / folder / f"{name}.parquet" for name, folder in BESIDE.items()}
    missing = [path for _, absent in found.values() for path in absent]
    missing += [path for path in beside.values() if not path.is_file()]
    empty = [part for part, (folders, _) in found.items() if not folders]
    if empty or (missing and not partly):
        raise FileNotFoundError(
            f"no {missing[0]}, one of {len(missing)} results that are not there; run the graph of scale {scale} to its "
            "end, or record it --partly (runs, recall and downstream of one run at least)"
        )
    written, made = [], {}
    for part, names in PARTS.items():
        folders = found[part][0]
        for name in names:
            name = f"{part}/{name}".lstrip("/")
            written.append(_write(tables.gather(folders, name), out / f"{name}.parquet"))
        for folder in folders:
            made.setdefault(str(folder), {})[part or "edits"] = _made_by(folder / part)
    for name, path in beside.items():
        if path.is_file():
            written.append(_write(pd.read_parquet(path), out / f"{name}.parquet"))
    about = {"scale": scale, "files": {str(path.relative_to(out)): sha256_file(path) for path in written}}
    write_json(out / "record.json", about | {"runs": made})
    return [*written, out / "record.json"]


def _made_by(folder):
    """What a notebook recorded of a part, and, of a run itself, what its ledger was made under."""
    done = json.loads((folder / "done.json").read_text(encoding="utf-8"))
    made = {name: value for name, value in done.items() if name != "files"}
    head = folder / "ledger.json"
    return made | ({"fingerprint": json.loads(head.read_text())["fingerprint"]} if head.is_file() else {})


def _write(table, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    small = table.astype({name: "float32" for name in table.select_dtypes("float64")})
    small.to_parquet(path, index=False, compression="zstd")
    return path


def main(arguments):
    """Exit status of `python -m editscale record SCALE`."""
    parser = argparse.ArgumentParser(prog="editscale record", description=__doc__.splitlines()[0])
    parser.add_argument("scale", metavar="SCALE", help="a folder of params/ whose runs are in runs/")
    parser.add_argument("--partly", action="store_true", help="what is finished, instead of asking for everything")
    given = parser.parse_args(arguments)
    try:
        written = record(checked_scale(given.scale), partly=given.partly)
    except (ValueError, OSError) as error:
        print(f"editscale record: {error}", file=sys.stderr)
        return 2
    print(f"{len(written)} files in {written[-1].parent}, {sum(path.stat().st_size for path in written) / 1e6:.1f} MB")
    return 0
