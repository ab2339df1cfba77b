"""Record the result tables of a scale that needs a GPU, so that its figures are drawn anywhere.

    python -m editscale record SCALE [--partly] [--from FOLDER …]

`figures/<scale>/tables` is laid out like one run's folder and holds the rows of all runs (`recorded`), beside them
single.parquet, acceptance.parquet and, where the scale measures it, overlap.parquet, and where they were made
traits.parquet and interference.parquet (`editscale traits`), and tables of notebooks 05c, 10 and 11; and record.json,
which names what made them. Notebooks that gather take that folder for their one run. Numbers are float32; no text of a
fact is in it, facts are named by case id.

A scale may be run a slice at a time and on several machines: tables are merged from runs/<scale>, from what is recorded
already, and from the folders given with --from, copies of such a folder. Of each run and part that one is taken which
finished last; of equal ones that in runs/, then the recorded one. Recall and tasks go with the edits they were measured
on: where a run's edits were made anew and are others, what was measured on the old ones is left out, with a warning.
"""

import warnings
from pathlib import Path

import click
import pandas as pd

from editscale.files import sealed, sha256_file, write_json
from editscale.workflow.parameters import checked_scale
from tools import light, recorded
from tools.recorded import BESIDE, OPTIONAL, PARTS, PIECE, RECORD, TIMING, name_of


def record(scale, *, partly=False, others=()):
    """Write the tables of a scale and their record: the files written.

    Args:
        partly: take what is finished instead of asking for everything; the record says which run has which part.
        others: further folders of recorded tables.

    Raises FileNotFoundError that names what is missing, ValueError for recorded tables that cannot be taken
    (`recorded.read`). Nothing is written then.
    """
    out = Path("figures") / checked_scale(scale) / "tables"
    before = [recorded.read(out, scale)] if (out / RECORD).is_file() else []
    whole = merged([recorded.in_runs(scale), *before, *(recorded.read(folder, scale) for folder in others)], scale)
    missing = [
        f"{run}/{name_of(part, 'done.json')}"
        for part in PARTS
        for run in recorded.grid_of(scale)
        if (part or "edits") not in whole.made.get(run, {})
    ]
    beside = recorded.beside_of(scale)
    asked = {name: folder for name, folder in beside.items() if name not in (*whole.beside, *recorded.GIVEN)}
    missing += [f"runs/{scale}/{folder}/{name}.parquet" for name, folder in asked.items()]
    if not whole.made or (missing and not partly):
        raise FileNotFoundError(
            f"no {missing[0]}, one of {len(missing)} results that are not there; run the graph of scale {scale} to its "
            "end, or record it --partly (one run at least)"
        )
    written = [_write(table, out / f"{name}.parquet") for name, table in {**whole.tables, **whole.beside}.items()]
    for path in set(out.rglob("*.parquet")) - set(written):
        path.unlink()
    about = {"scale": scale, "files": {path.relative_to(out).as_posix(): sha256_file(path) for path in written}}
    write_json(out / RECORD, sealed(about | {"runs": whole.made}))
    return [*written, out / RECORD]


def merged(sources, scale):
    """One `Results` of several, runs in the order of the scale's grid; the module's first lines say what is taken."""
    made, pieces = {}, {}
    for run, key in recorded.grid_of(scale).items():
        of_edits = _last(sources, run, "edits")
        if of_edits is None:
            continue
        same = [source for source in sources if _same_edits(source, of_edits, key)]
        for part, names in PARTS.items():
            part_name = part or "edits"
            if (source := _last(same, run, part_name)) is None:
                if any(part_name in source.made.get(run, {}) for source in sources):
                    warnings.warn(f"{part} of {run} was measured on other edits and is left out", stacklevel=2)
                continue
            made.setdefault(run, {})[part_name] = source.made[run][part_name]
            for name in (name_of(part, table) for table in names):
                if (rows := source.rows(name, key)) is not None or name not in OPTIONAL:
                    pieces.setdefault(name, []).append(rows)
        times = [source.rows(TIMING, key) for source in (of_edits, *same)]
        pieces.setdefault(TIMING, []).extend([rows for rows in times if rows is not None][:1])
    tables = {
        name: recorded.as_recorded(pd.concat(pieces[name], ignore_index=True))
        for name in recorded.NAMES
        if pieces.get(name)
    }
    beside = {}
    for source in [*sources[1:], sources[0]]:  # what is made anew in place of what is recorded
        beside |= {name: _pieced(beside.get(name), table, PIECE.get(name)) for name, table in source.beside.items()}
    return recorded.Results(made, tables, {name: beside[name] for name in BESIDE if name in beside})


def _pieced(before, new, piece):
    """A table with those rows of the one before whose piece, values of these columns, it has not; None: all of it."""
    if before is None or piece is None:
        return new
    made = new[list(piece)].drop_duplicates().assign(made=True)
    kept = before.merge(made, on=list(piece), how="left")["made"].isna().to_numpy()
    return pd.concat([before[kept], new], ignore_index=True)


def _last(sources, run, part):
    """The source in which a part of a run finished last, the first of several; None if no source has it."""
    having = [source for source in sources if part in source.made.get(run, {})]
    return max(having, key=lambda source: source.made[run][part].get("finished", ""), default=None)


def _same_edits(source, other, key):
    """Whether two sources hold the same edits of a run, in the columns that both have."""
    one, two = source.rows("edits", key), other.rows("edits", key)
    if one is None or len(one) != len(two):
        return False
    return all(((one[name] == two[name]) | (one[name].isna() & two[name].isna())).all() for name in one if name in two)


def _write(table, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    small = table.astype({name: "float32" for name in table.select_dtypes("float64")})
    small.to_parquet(path, index=False, compression="zstd")
    return path


@click.command()
@click.argument("scale")
@click.option("--partly", is_flag=True, help="Record what is finished, instead of asking for everything.")
@click.option("--from", "others", metavar="FOLDER", multiple=True, help="Recorded tables to merge with.")
@click.option("--notebooks", is_flag=True, help="Leave the tables as they are, and write the light copies alone.")
def main(scale, partly, others, notebooks):
    """Record the result tables of a scale that needs a GPU, and light copies of its executed notebooks.

    SCALE is a folder of params/ whose runs are in runs/.
    """
    written = [] if notebooks else record(scale, partly=partly, others=others)
    if notebooks or light.executed(scale):
        written += light.write(scale)
    print(f"{len(written)} files in figures/{scale}, {sum(path.stat().st_size for path in written) / 1e6:.1f} MB")
