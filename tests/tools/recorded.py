"""Result tables of runs with what made them: those in `runs/`, and those recorded in `figures/<scale>/tables`.

`runs/<scale>` has a folder for each run, in it a done.json for each finished part. A recorded folder is laid out like
one run's and holds the rows of all runs: edits.parquet, …, recall/history.parquet, downstream/downstream.parquet, and
record.json, which names each file's sha256 and what made each run's parts. Floats are float32, as they are recorded.
"""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from editscale.analysis import tables
from editscale.columns import RUN
from editscale.files import check_files, read_json, read_record, unsealed, vouched
from editscale.sequences.ledger import read_timing
from editscale.workflow.parameters import read_grid

# Folder of a run that a notebook finishes ↦ the tables it leaves there.
PARTS = {
    "": ("edits", "unedited", "drift"),
    "recall": ("history", "perplexity", "spectra", "held_out"),
    "downstream": ("downstream", "generation", "choices"),
}
# Tables that only some runs have: `straight` leaves out those that ask for a look after every edit.
OPTIONAL = ("drift", "recall/perplexity", "recall/spectra", "recall/held_out", "downstream/choices")
TIMING = "timing"  # seconds of each edit: of the part "", and of a run made before they were recorded there are none
# Table ↦ its folder among those of the runs. A scale has "overlap" only with values for the notebook that measures it.
BESIDE = {name: name for name in ("single", "acceptance", "overlap", "traits", "interference")}
# Tables of notebooks that may run several times at a scale, each in a folder of its own, and the columns that tell
# their parts apart: a part made anew takes the place of the recorded one, and the others stay. Of notebook 10 only what
# is in folders named so, of one layer: all layers of all facts are 8 MB.
PIECES = {"tested": "tested*", "interventions": "interventions*", "denominators": "denominators-*"}
BESIDE |= PIECES
PIECE = {name: ("fact_set", "start_token", "seed", "layer") for name in ("tested", "denominators")}
PIECE["interventions"] = (*RUN, "since", "edits")
GIVEN = ("traits", "interference", *PIECES)  # of these, what is recorded where it is there, and never asked for
RECORD = "record.json"


@dataclass(frozen=True)
class Results:
    """Tables of runs.

    Attributes:
        made: a run's folder (runs/<scale>/<method>/<sequence>) ↦ part ("edits", "recall" or "downstream") ↦ what made
            it: the content of its done.json but for the files, with the ledger's fingerprint for "edits".
        tables: name ("edits", "recall/history", …) ↦ the rows of all runs. Without rows of any run: no entry.
        beside: name of `BESIDE` ↦ table, those that there are.
    """

    made: dict
    tables: dict
    beside: dict

    def rows(self, name, key):
        """The rows of one run (method, order, reversed) in a table, numbered from 0; None if there are none."""
        if name not in self.tables:
            return None
        table, (method, order, reverse) = self.tables[name], key
        chosen = table[(table["method"] == method) & (table["order"] == order) & (table["reversed"] == reverse)]
        return None if chosen.empty else chosen.reset_index(drop=True)


def name_of(part, table):
    """A table's name, its path from the folder of a run or of recorded tables without the suffix."""
    return f"{part}/{table}".lstrip("/")


NAMES = (*(name_of(part, table) for part, names in PARTS.items() for table in names), TIMING)


def grid_of(scale):
    """The runs of a scale's grid in its order: folder ↦ (method, order, reversed)."""
    grid = read_grid(f"params/{scale}/grid.yaml")
    return {
        f"runs/{scale}/{method}/{sequence}": (method, run["order"], run["reverse"])
        for (method, sequence), run in grid.items()
    }


def beside_of(scale):
    """Those tables of BESIDE that a scale has, with their folders."""
    measured = Path(f"params/{scale}/09a_key_overlap.yaml").is_file()
    return {name: folder for name, folder in BESIDE.items() if name != "overlap" or measured}


def in_runs(scale):
    """The `Results` that are finished in runs/<scale>."""
    grid, made, found = grid_of(scale), {}, {}
    for part, names in PARTS.items():
        folders = [folder for folder in grid if (Path(folder) / part / "done.json").is_file()]
        for folder in folders:
            made.setdefault(folder, {})[part or "edits"] = _made_by(Path(folder) / part)
        for name in (name_of(part, table) for table in names if folders):
            table = tables.gather_later(folders, name) if name in OPTIONAL else tables.joined(folders, name)
            found |= {} if table is None else {name: as_recorded(table)}
    times = [tables.timing_table(_timing(folder), *grid[folder]) for folder in made]
    if any(len(table) for table in times):
        found[TIMING] = as_recorded(pd.concat([table for table in times if len(table)], ignore_index=True))
    beside = {}
    for name, folder in beside_of(scale).items():
        if paths := sorted(Path("runs", scale).glob(f"{folder}/{name}.parquet")):
            beside[name] = pd.concat([_as_it_is(path) for path in paths], ignore_index=True)
    return Results(made, found, beside)


def read(folder, scale):
    """The `Results` in a folder of recorded tables.

    Raises FileNotFoundError if there is no record.json; ValueError if it is of another scale, lists a table that is
    not one of a study, a run that the scale's grid does not list, or another sha256 than a file has.
    """
    folder = Path(folder)
    if not (folder / RECORD).is_file():
        raise FileNotFoundError(f"no {RECORD} in {folder}; give a folder that `editscale record` wrote")
    about = read_record(folder / RECORD, "restore it from a copy, or record the scale again")
    files, made = about["files"], about.get("runs", {})
    if about.get("scale") != scale:
        raise ValueError(f"{folder} holds tables of scale {about.get('scale')}, not of {scale}")
    grid = grid_of(scale)
    if unlisted := [run for run in made if run not in grid]:
        raise ValueError(
            f"{folder} holds {', '.join(unlisted)}, which params/{scale}/grid.yaml does not list; add a line for each, "
            "or record from tables without them"
        )
    known = {f"{name}.parquet": name for name in (*NAMES, *BESIDE)}
    if unknown := [name for name in files if name not in known]:
        raise ValueError(f"{folder}/{RECORD} lists {', '.join(unknown)}, no tables of a study; take a newer editscale")
    check_files(about, folder, RECORD, "restore both from one copy")
    found = {known[name]: _as_it_is(folder / name) for name in files}
    beside = {name: found.pop(name) for name in BESIDE if name in found}
    return Results(made, found, beside)


def as_recorded(table):
    """A table of runs with float32 for float64, and NaN of that type for a column of which no value is known."""
    table = tables.numeric(table)
    return table.astype({name: "float32" for name in table.select_dtypes("float64")})


def _made_by(folder):
    """What a notebook recorded of a part, and, of a run itself, what its ledger was made under."""
    done = read_record(folder / "done.json", "run that notebook again")
    made = {name: value for name, value in done.items() if name != "files"}
    head = folder / "ledger.json"
    if not head.is_file():
        return made
    contents = unsealed(read_json(head, "restore it from a copy"), head, "restore it from a copy")
    return made | {"fingerprint": contents["fingerprint"]}


def _timing(folder):
    """Rows of a run's timing.jsonl, which earlier versions did not list in done.json."""
    path, remedy = Path(folder) / "timing.jsonl", "run notebook 02a again with the same parameters"
    listed = read_record(path.with_name("done.json"), remedy)["files"]
    if path.name in {Path(name).name for name in listed}:
        vouched(path, remedy)
    return read_timing(folder)


def _as_it_is(path):
    return tables.read(path, "restore it from a copy", lambda table: table)
