"""Record the result tables of a scale that needs a GPU, so that its figures are drawn anywhere.

    python -m editscale record SCALE [--finished]

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

OF_RUNS = (
    "edits", "unedited", "drift", "recall/history", "recall/perplexity", "recall/spectra", "downstream/downstream",
    "downstream/generation",
)  # fmt: skip
BESIDE = {"single": "single", "acceptance": "acceptance"}  # table ↦ its folder among those of the runs


def folders(scale, *, finished=False):
    """The run folders of a scale's grid. Raises FileNotFoundError that names one with a notebook missing.

    Args:
        finished: leave such runs out instead.
    """
    found, missing = [], []
    for method, sequence in read_grid(f"params/{scale}/grid.yaml"):
        folder = Path("runs") / scale / method / sequence
        parts = [folder / part / "done.json" for part in ("", "recall", "downstream")]
        absent = [path for path in parts if not path.is_file()]
        missing += absent[:1]
        if not absent:
            found.append(folder)
    if (missing and not finished) or not found:
        raise FileNotFoundError(
            f"no {missing[0]}, of {len(missing)} runs that are not finished; run the graph of scale {scale} to its "
            "end, or record only --finished runs"
        )
    return found


def record(scale, *, finished=False):
    """Write the tables of a scale and their record: the files written."""
    runs, out = folders(scale, finished=finished), Path("figures") / scale / "tables"
    written = []
    for name in OF_RUNS:
        written.append(_write(tables.gather(runs, name), out / f"{name}.parquet"))
    for name, folder in BESIDE.items():
        path = Path("runs") / scale / folder / f"{name}.parquet"
        if path.is_file():
            written.append(_write(pd.read_parquet(path), out / f"{name}.parquet"))
        elif not finished:
            raise FileNotFoundError(f"no {path}; run the graph of scale {scale} to its end, or record --finished runs")
    about = {"scale": scale, "files": {str(path.relative_to(out)): sha256_file(path) for path in written}}
    write_json(out / "record.json", about | {"runs": {str(run): _made_by(run) for run in runs}})
    return [*written, out / "record.json"]


def _made_by(run):
    """What notebook 02 recorded of a run, and what its ledger was made under."""
    done = json.loads((run / "done.json").read_text(encoding="utf-8"))
    head = json.loads((run / "ledger.json").read_text(encoding="utf-8"))
    return {**{name: value for name, value in done.items() if name != "files"}, "fingerprint": head["fingerprint"]}


def _write(table, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    small = table.astype({name: "float32" for name in table.select_dtypes("float64")})
    small.to_parquet(path, index=False, compression="zstd")
    return path


def main(arguments):
    """Exit status of `python -m editscale record SCALE`."""
    parser = argparse.ArgumentParser(prog="editscale record", description=__doc__.splitlines()[0])
    parser.add_argument("scale", metavar="SCALE", help="a folder of params/ whose runs are in runs/")
    parser.add_argument("--finished", action="store_true", help="only runs that are finished")
    given = parser.parse_args(arguments)
    try:
        written = record(checked_scale(given.scale), finished=given.finished)
    except (ValueError, OSError) as error:
        print(f"editscale record: {error}", file=sys.stderr)
        return 2
    print(f"{len(written)} files in {written[-1].parent}, {sum(path.stat().st_size for path in written) / 1e6:.1f} MB")
    return 0
