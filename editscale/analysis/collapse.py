"""Where a run collapses: one place for all figures and methods.

A model has collapsed when the perplexity of a held-out text is above twice the unedited model's. It is measured after
every edit (notebook 03a), and needs no fit and no facts. What happens to a collapsed model says nothing of the edits
that are made on it: everything "before the collapse" ends here.
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
