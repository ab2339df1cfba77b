"""Where a run collapses: one place for all figures and methods.

A model has collapsed when the perplexity of a held-out text is above twice the unedited model's. It is measured after
every edit (notebook 03a), and needs no fit and no facts. What happens to a collapsed model says nothing of the edits
that are made on it: everything "before the collapse" ends here.

Two texts are held out. Six sentences are short enough to be asked after every edit: they are the alarm, and decide the
edit (`where`). A text of 20,000 tokens or more is a measure of the language, asked at checkpoints wherever there is
time for it: whether it agrees with the alarm is a table of its own (`confirmed`), and moves no place.
"""

import numpy as np
import pandas as pd

from editscale.analysis.rows import groups, require
from editscale.columns import RUN

TIMES = 2.0  # times the unedited model's perplexity: above it a model has collapsed


def where(perplexity, *, times=TIMES):
    """Where each run collapses: at the first edit after which perplexity is above `times` the unedited model's.

    Args:
        perplexity: columns method, order, reversed, edits, perplexity of one held-out text, measured after every edit
            and on the unedited model (edits 0).
        times: above 1.

    Returns:
        method, order, reversed, collapse: that number of edits, infinite for a run that never gets there; end: the last
        edit. A perplexity that is not finite is above every bound.

    Raises ValueError if columns are missing, or a run was not measured on the unedited model.
    """
    require(perplexity, (*RUN, "edits", "perplexity"), "recall/perplexity")
    rows = []
    for run, own in groups(perplexity):
        of = own.set_index("edits")["perplexity"].sort_index()
        if 0 not in of.index:
            raise ValueError(f"{run} has no perplexity of the unedited model (edits 0); measure it with notebook 03a")
        above = of.index[~(of <= times * of[0])]
        rows.append({**run, "collapse": above.min() if len(above) else np.inf, "end": of.index.max()})
    return pd.DataFrame(rows, columns=[*RUN, "collapse", "end"])


def confirmed(held_out, places, *, times=TIMES):
    """Whether the long held-out text agrees with the alarm of the short one.

    Args:
        held_out: columns method, order, reversed, edits, held_out_nll at checkpoints and on the unedited model (edits
            0).
        places: see `where`; runs that only it has are left out.
        times: as there.

    Returns:
        method, order, reversed, collapse, as in `places`; before and after: the last checkpoint before the collapse and
        the first at or after it; ratio_before and ratio_after: perplexity there over the unedited model's; agrees: 1 if
        it is above `times` after the collapse and not before, else 0. A run without a collapse has no checkpoint after
        it, and agrees if its last is not above; where a collapse comes after the last checkpoint, agrees is NaN.

    Raises ValueError if columns are missing, if a run was not measured on the unedited model, or has no place.
    """
    require(held_out, (*RUN, "edits", "held_out_nll"), "recall/held_out")
    rows, known = [], places.set_index(list(RUN))["collapse"]
    for run, own in groups(held_out):
        of = own.set_index("edits")["held_out_nll"].sort_index()
        if 0 not in of.index or (key := tuple(run.values())) not in known.index:
            lacking = "loss on the held-out text of the unedited model (edits 0)" if 0 not in of.index else "perplexity"
            raise ValueError(f"{run} has no {lacking}; measure it with notebook 03a")
        collapse, ratio = known[key], np.exp(of - of[0])
        before, after = ratio[ratio.index < collapse], ratio[ratio.index >= collapse]
        first = (after.index[0], after.iloc[0]) if len(after) else (np.nan, np.nan)
        agrees = before.iloc[-1] <= times and (collapse == np.inf or first[1] > times)
        row = {"collapse": collapse, "before": before.index[-1], "ratio_before": before.iloc[-1], "after": first[0]}
        unknown = np.isfinite(collapse) and not len(after)
        rows.append({**run, **row, "ratio_after": first[1], "agrees": np.nan if unknown else float(agrees)})
    return pd.DataFrame(rows)


def on_sound_models(table, places):
    """The rows of a table (method, order, reversed, edits) whose edit was made on a model that had not collapsed.

    Args:
        places: see `where`. The edit that makes its model collapse is made on a sound one.

    Raises ValueError for a run that `places` does not have.
    """
    last = table.merge(places[[*RUN, "collapse"]], on=list(RUN), how="left")["collapse"].to_numpy()
    if (unknown := np.isnan(last)).any():
        run = table[unknown].iloc[0][list(RUN)].to_dict()
        raise ValueError(f"no place of collapse for {run}; measure its perplexity with notebook 03a")
    return table[table["edits"].to_numpy() <= last]
