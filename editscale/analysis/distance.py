"""Is it how far edits moved the weights that loses facts, or where to? What changes as large as theirs lose.

Notebook 05c added to a model, in place of what edits changed, the same scaled and random changes of its size
(`sequences.interventions`). Were distance the cause, as the paper has it (arXiv:2401.07453), all of a size would lose
as much.
"""

import numpy as np
import pandas as pd

from editscale.analysis import tables
from editscale.analysis.rows import require
from editscale.columns import RUN

# What a change is called ↦ what figures call it, from what the edits did to what is least like it.
CHANGES = {"edits": "the edits", "permuted": "their values\nexchanged", "spectrum": "random, same\nspectrum",
           "gaussian": "random, even\nspectrum"}  # fmt: skip
LEAST = 20  # facts that a change can lose, for a share of them to be given
_NEEDED = (*RUN, "since", "edits", "change", "seed", "scale", "recall_before", "n_before", "held_out_nll")


def read(paths):
    """The tables of notebook 05c, one below the other. Raises as `tables.read`, and for one made without a held-out
    text."""
    remedy = "run notebook 05c with a held_out text, or give the path of its table"

    def checked(table):
        require(table, _NEEDED, "interventions")
        return table

    return pd.concat([tables.read(path, remedy, checked) for path in paths], ignore_index=True)


def losses(measured):
    """What each change loses, medians over seeds: one row per run, stretch (since, edits), change and scale.

    Args:
        measured: see `read`.

    Returns method, order, reversed, since, edits, change, scale, n_before, lost (share of the n_before facts recalled
    before the change that are not recalled after it, 0–1; NaN of fewer than LEAST) and rise (of the mean negative
    log-likelihood of the held-out text over that before the change, nats per token).
    """
    stretch = [*RUN, "since", "edits"]
    nothing = measured[measured["scale"] == 0].groupby(stretch)["held_out_nll"].first().rename("before")
    found = measured[measured["scale"] != 0].merge(nothing.reset_index(), on=stretch)
    found = found.assign(rise=found["held_out_nll"] - found["before"], lost=1 - found["recall_before"])
    found["lost"] = found["lost"].where(found["n_before"] >= LEAST)
    by = [*stretch, "change", "scale", "n_before"]
    return found.groupby(by, sort=False)[["lost", "rise"]].median().reset_index()


def as_large(losses):
    """Of `losses` at scale 1, to the last `edits`: those from the latest `since`, which say what is lost of what the
    model had learned, and those from 0, which say what becomes of a text."""
    whole = losses[(losses["scale"] == 1) & (losses["edits"] == losses["edits"].max())]
    return whole[whole["since"] == whole["since"].max()], whole[whole["since"] == 0]


def beside_edits(rows, column, change="spectrum"):
    """Of each method what its edits lose and what another change as large does, means over orders: a table with the
    columns edits and the change's name, without methods of which either is not known."""
    means = rows.groupby(["method", "change"])[column].mean().unstack()
    return means.reindex(columns=["edits", change]).replace([np.inf, -np.inf], np.nan).dropna()
