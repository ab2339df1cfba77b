"""All tables of a study at once, and what forgetting looks like in them up to the edits that all runs have."""

from dataclasses import dataclass

import pandas as pd

from editscale.analysis import collapse, damage, disabling, forgetting, hazard, tables
from editscale.analysis.intervals import TAIL
from editscale.columns import RUN


@dataclass(frozen=True)
class Study:
    """The tables of all runs, whole, and what forgetting looks like up to the `n` edits that all runs have."""

    n: int
    edits: pd.DataFrame
    unedited: pd.DataFrame
    history: pd.DataFrame
    drift: pd.DataFrame
    downstream: pd.DataFrame
    perplexity: pd.DataFrame
    recall: pd.DataFrame  # forgetting.recall_curve, whole runs
    paper: pd.DataFrame  # forgetting.paper_curve, whole runs
    places: pd.DataFrame  # collapse.where and hazard.until_half, whole runs
    losses: pd.DataFrame  # hazard.losses up to n
    stretches: pd.DataFrame  # hazard.stretches up to n
    damage: pd.DataFrame  # damage.damage, edits on models that had not collapsed, up to n
    jumps: pd.DataFrame  # disabling.detect, whole runs
    tail: float = TAIL  # chance that intervals leave out at each end


def read(runs, *, n_edits=0):
    """A `Study` from folders of runs, or one folder with the rows of all runs.

    Args:
        n_edits: edits up to which runs are compared; 0: as many as all runs have.

    Raises ValueError if runs of one order edited different facts, or if no run has as many edits.
    """
    names = ("edits", "unedited", "recall/history", "drift", "downstream/downstream", "recall/perplexity")
    edits, unedited, history, drift, downstream, perplexity = (tables.gather(runs, name) for name in names)
    tables.check_same_facts(edits)
    n = n_edits or tables.shared_end(history, edits)
    if not (history["edits"] == n).any():
        raise ValueError(f"n_edits is {n}, and no run has a checkpoint there; choose one of the history's, or 0")
    recall, paper = forgetting.recall_curve(history, edits), forgetting.paper_curve(history, edits)
    places = collapse.where(perplexity).merge(hazard.until_half(recall), on=list(RUN))
    first = edits[edits["edits"] <= n]
    losses = hazard.losses(history[history["edits"] <= n], first)
    return Study(
        **{"n": n, "edits": edits, "unedited": unedited, "history": history, "drift": drift, "downstream": downstream},
        **{"perplexity": perplexity, "recall": recall, "paper": paper, "places": places, "losses": losses},
        stretches=hazard.stretches(losses),
        damage=damage.damage(first, perplexity, places),
        jumps=disabling.detect(drift),
    )
