"""All tables of a study at once, and what forgetting looks like in them up to the edits that all runs have."""

from dataclasses import dataclass

import pandas as pd

from editscale.analysis import collapse, disabling, forgetting, inflection, tables


@dataclass(frozen=True)
class Study:
    """The tables of all runs, whole, and what forgetting looks like up to the `n` edits that all runs have."""

    n: int
    edits: pd.DataFrame
    unedited: pd.DataFrame
    history: pd.DataFrame
    drift: pd.DataFrame
    downstream: pd.DataFrame
    recall: pd.DataFrame  # forgetting.recall_curve, whole runs
    paper: pd.DataFrame  # forgetting.paper_curve, whole runs
    points: pd.DataFrame  # inflection.inflections up to n
    regions: pd.DataFrame  # inflection.regions up to n
    jumps: pd.DataFrame  # disabling.detect, whole runs
    collapses: pd.DataFrame  # collapse.collapses up to n


def read(runs, rng, *, n_edits=0, drop=0.2, steeper=3.0, jump=disabling.JUMP, n_resamples=1000):
    """A `Study` from folders of runs, or one folder with the rows of all runs.

    Args:
        n_edits: edits up to which runs are compared; 0: as many as all runs have.
        drop, steeper: see `inflection.regions`.
        jump: see `disabling.detect`.
        n_resamples: of facts, for inflections.

    Raises ValueError if runs of one order edited different facts, or if no run has as many edits.
    """
    names = ("edits", "unedited", "recall/history", "drift", "downstream/downstream")
    edits, unedited, history, drift, downstream = (tables.gather(runs, name) for name in names)
    tables.check_same_facts(edits)
    n = n_edits or tables.shared_end(history, edits)
    if not (history["edits"] == n).any():
        raise ValueError(f"n_edits is {n}, and no run has a checkpoint there; choose one of the history's, or 0")
    recall = forgetting.recall_curve(history, edits)
    cut = {name: table[table["edits"] <= n] for name, table in (("h", history), ("e", edits), ("r", recall))}
    points = inflection.inflections(cut["h"], cut["e"], rng, n_resamples=n_resamples)
    regions = inflection.regions(cut["r"], points, drop=drop, steeper=steeper)
    jumps = disabling.detect(drift, jump=jump)
    found = collapse.collapses(regions, cut["r"], jumps)
    paper = forgetting.paper_curve(history, edits)
    return Study(n, edits, unedited, history, drift, downstream, recall, paper, points, regions, jumps, found)
