"""Result tables of runs: tidy, one row per measurement, every column named here. No torch.

A run is one method on one order of facts, forwards or reversed. Its folder holds `edits.parquet`, `unedited.parquet`
and `drift.parquet`, written from its ledger by notebook 02a; `recall/` and `downstream/` in it hold what notebooks 03a
and 04a measured along the run. The other notebooks read only these.
"""

import io
from pathlib import Path

import pandas as pd

from editscale.columns import COLUMNS, KINDS, PORTABILITY, RUN, SOUND, harmonic_score, method_label
from editscale.files import read_record, vouched
from editscale.metrics import drift

NOTEBOOKS = {".": "02a", "recall": "03a", "downstream": "04a"}  # what writes each folder of a run
_HIDDEN = ("edit", "fact_sha256", "factors_sha256")  # the ledger's own bookkeeping


def of_run(rows, key):
    """Measurements along a run as a table: the run's key (method, order, reversed) before each row's own columns."""
    return numeric(pd.DataFrame([{**key, **row} for row in rows]))


def edits_table(ledger, method, order, reverse):
    """One row per edit: what was edited, how the optimization went, scores right after the edit."""
    rows = [
        {
            "method": method_label(method),
            "order": order,
            "reversed": reverse,
            "edits": row["edit"],
            **{k: v for k, v in row.items() if k not in _HIDDEN},
        }
        for row in ledger.rows
    ]
    return numeric(pd.DataFrame(rows))


def unedited_table(ledger, method, order, reverse):
    """One row per fact of the sequence: its scores on the unedited model, in the order of the edits."""
    rows = [
        {
            "method": method_label(method),
            "order": order,
            "reversed": reverse,
            "edits": i,
            **{k: v for k, v in row.items() if k not in _HIDDEN},
        }
        for i, row in enumerate(ledger.unedited(), start=1)
    ]
    return numeric(pd.DataFrame(rows))


def drift_table(ledger, method, order, reverse):
    """One row per edit, or step of several, and edited layer: norms of `drift.of_ledger`."""
    return of_run(drift.of_ledger(ledger), {"method": method_label(method), "order": order, "reversed": reverse})


def timing_table(rows, method, order, reverse):
    """One row per edit with its seconds, from what `ledger.read_timing` gives; edits without a time have none."""
    rows = [{"edits": row["edit"], "seconds": row["seconds"]} for row in rows]
    return of_run(rows, {"method": method_label(method), "order": order, "reversed": reverse})


def numeric(table):
    """null scores, which JSON rows use for NaN, as NaN; unknown columns are an error, so that none goes undescribed."""
    unknown = [name for name in table if name not in COLUMNS]
    if unknown:
        raise ValueError(f"columns {', '.join(unknown)} are not described in data/columns.yaml")
    text = ("method", "relation_id", "status", "reversed", "task", "phenomenon", "stands_for", "flagged", "contexts")
    text += ("fact_set", "start_token")
    return table.assign(**{name: pd.to_numeric(table[name]) for name in table if name not in text})


def summary(table, by=RUN):
    """ES, PS, NS and S of each run in percent: means over the facts that have them, and their harmonic mean.

    Where facts have no true object, EAcc too, which needs none; with portability prompts, their accuracy.
    """
    runs = table.groupby(list(by), sort=False)
    means = 100 * runs[list(KINDS)].mean()
    means["S"] = [harmonic_score(*row) for row in means.itertuples(index=False)]
    more = {"EAcc": "efficacy_accuracy"} if table["efficacy"].isna().any() else {}
    more |= {PORTABILITY: accuracy} if (accuracy := f"{PORTABILITY}_accuracy") in table else {}
    for name, column in more.items():
        means[name] = 100 * runs[column].mean()
    return means.rename(columns={"efficacy": "ES", "paraphrase": "PS", "neighborhood": "NS"})


def overview(edits):
    """How many orders there are of each method in each direction, and how many edits they have."""
    runs = edits.groupby(list(RUN), sort=False)["edits"].max().reset_index()
    return runs.groupby(["method", "reversed"], sort=False)["edits"].agg(orders="size", shortest="min", longest="max")


def percent(shares):
    """A table of shares as whole percentages for reading, empty where there is none."""
    return shares.map(lambda share: "" if pd.isna(share) else f"{100 * share:.0f}")


def gather(folders, name, methods=()):
    """The table `name` of several runs, as `joined` gives it, with the column `edit` where a row is of one edit's fact.

    So `edit`, a fact's place among the edits of its run, joins it to what "recall/history" says of it later. Of some
    `methods` only, where they are named; raises ValueError that names one without a run.
    """
    table = joined(folders, name)
    if absent := [method for method in methods if method not in set(table["method"])]:
        known = ", ".join(dict.fromkeys(table["method"]))
        raise ValueError(f"no run of {', '.join(absent)} among those of {known}; name some of these, or none for all")
    table = table[table["method"].isin(methods)].reset_index(drop=True) if methods else table
    return table.assign(edit=table["edits"]) if name in ("edits", "unedited") else table


def gather_later(folders, name, methods=()):
    """`gather` of those runs whose record names the table, None if none does: one that was not measured at first."""
    having = [folder for folder in folders if _names(Path(folder) / f"{name}.parquet")]
    table = gather(having, name) if having else None
    if table is None or not methods:
        return table
    own = table[table["method"].isin(methods)].reset_index(drop=True)
    return None if own.empty else own


def _names(path):
    """Whether the record of a folder of a run, or of recorded tables, names the table; without a record, whether it is
    there."""
    for place in (path.parent / "done.json", path.parent.parent / "record.json"):
        if place.is_file():
            return path.name in {Path(name).name for name in read_record(place, "restore it from a copy")["files"]}
    return path.is_file()


def joined(folders, name):
    """The table `name` of several runs, one below the other: "edits", "recall/history", "downstream/generation", ….

    Raises FileNotFoundError that names the run that is missing, ValueError if there are no folders, or as `read` does.
    """
    if not folders:
        raise ValueError("no runs given; parameter 'runs' lists the folders that notebook 02a wrote")
    tables = []
    for folder in folders:
        path = Path(folder) / f"{name}.parquet"
        tables.append(read(path, f"run notebook {NOTEBOOKS[str(Path(name).parent)]} with out={path.parent} first"))
    gathered = pd.concat(tables, ignore_index=True)
    return gathered.astype({name: "float64" for name in gathered.select_dtypes("float32")})  # recorded ones


def read(path, remedy, checked=numeric):
    """A table that a notebook wrote, as its done.json or record.json names it (`files.vouched`).

    Args:
        checked: table ↦ table, raises ValueError for one that is not of the kind.

    Raises FileNotFoundError without file or record, ValueError for another file, or one that holds no such table; both
    name it and end in `remedy`.
    """
    from pyarrow import ArrowException

    content = vouched(path, remedy)
    try:
        return checked(pd.read_parquet(io.BytesIO(content)))
    except (ArrowException, OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} holds no table of results ({' '.join(str(error).split())}); {remedy}") from error


def check_same_facts(edits):
    """Raise ValueError unless the runs of each order go through one sequence of facts, so that they may be compared.

    A run may be shorter than another: its facts are then the first of the same sequence. Reversed, it edits them last
    to first. A run that stopped at its collapse edited the first of its facts.
    """
    for order, rows in edits.groupby("order"):
        runs = {key: run.sort_values("edits") for key, run in rows.groupby(list(RUN))}
        longest = max(runs, key=lambda key: (len(runs[key]), not key[RUN.index("reversed")]))
        sequence = runs[longest]["case_id"].tolist()[:: -1 if longest[RUN.index("reversed")] else 1]
        for key, run in runs.items():
            cases, collapsed = frozenset(run["case_id"]), run["status"].iloc[-1] not in SOUND
            if cases != frozenset(sequence[: len(run)]) and not (collapsed and cases < frozenset(sequence)):
                raise ValueError(
                    f"runs {longest} and {key} of order {order} edited different facts ({len(sequence)} and "
                    f"{len(cases)}, {len(cases & frozenset(sequence))} in common); give runs on one fact set, the "
                    "shorter ones on its order's first facts"
                )


def shared_end(table, edits):
    """The last number of edits at which all runs have rows in the table, those aside that ended in a collapse.

    Args:
        table: measurements along runs, with columns method, order, reversed, edits.
        edits: the edits table of the same runs; it says which ended with a non-finite edit.

    Raises ValueError if there is no such number.
    """
    last = edits.sort_values("edits").groupby(list(RUN))["status"].last()
    whole = set(last.index[last.isin(SOUND)]) or set(last.index)
    places = [set(run["edits"]) for key, run in table.groupby(list(RUN)) if key in whole]
    if not places or not (shared := set.intersection(*places)):
        raise ValueError("the runs have no number of edits in common at which all were measured; use one schedule")
    return int(max(shared))
