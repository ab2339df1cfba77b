"""Drift of the weights beside what is lost: where it stands when a model collapses, and how scores decay with it.

Drift is the relative drift ‖W − W₀‖ / ‖W₀‖ of the layer that has moved most. It grows with every edit, and so does
what is lost: within a run the two rank alike whatever causes what. Whether drift decides is therefore asked at the
collapse: a threshold of drift would be the same in all orders and methods.
"""

import numpy as np
import pandas as pd

from editscale.analysis.rows import groups, require
from editscale.columns import RUN

STEP = 0.1  # of relative drift: the unit of slopes


def at_collapse(drift, places):
    """Drift of each run that collapses after the edit that made it: method, order, reversed, edits, drift.

    Args:
        drift: columns method, order, reversed, layer, edits, relative_drift.
        places: see `collapse.where`.
    """
    require(drift, (*RUN, "layer", "edits", "relative_drift"), "drift")
    moved = drift.groupby([*RUN, "edits"])["relative_drift"].max().rename("drift").reset_index()
    found = places[np.isfinite(places["collapse"])].rename(columns={"collapse": "edits"})
    return found[[*RUN, "edits"]].merge(moved, on=[*RUN, "edits"])


def decay(edits, unedited, drift, windows):
    """How the scores of each edit right after it change over the first edits of a run, and over all: one row each.

    Args:
        edits, unedited: tables of the same runs; drift: as for `at_collapse`.
        windows: numbers of first edits; a run shorter than one has no row for it.

    Returns:
        method, order, reversed, window; drift: at its end; for efficacy and neighborhood: {name}: mean change from the
        unedited model's score of the same fact, −1–1; {name}_per_100: slope of that change per 100 edits;
        {name}_per_step: per 0.1 of relative drift. Slopes are NaN where drift never changes. Facts without a true
        object, which have no such score, are left out; all three are NaN where no other is there.
    """
    key, names = [*RUN, "edits"], ("efficacy", "neighborhood")
    moved = drift.groupby(key)["relative_drift"].max().rename("drift").reset_index()
    both = edits[[*key, *names]].merge(unedited[[*key, *names]], on=key, suffixes=("", "_before"))
    both = both.merge(moved, on=key, how="left")
    rows = []
    for run, group in groups(both):
        group = group.sort_values("edits")
        group = group.assign(drift=group["drift"].bfill()).dropna(subset="drift")  # scored after the whole step
        for window in windows:
            first = group[group["edits"] <= window]
            if len(first) < window:
                continue
            row = {**run, "window": window, "drift": first["drift"].iloc[-1]}
            for name in names:
                scored = first.dropna(subset=[name, f"{name}_before"])
                change = (scored[name] - scored[f"{name}_before"]).to_numpy(float)
                row[name] = change.mean() if len(change) else np.nan
                for unit, x in (("per_100", scored["edits"] / 100), ("per_step", scored["drift"] / STEP)):
                    moves = len(change) > 1 and np.ptp(x) > 0
                    row[f"{name}_{unit}"] = fit_slope(change, x.to_numpy(float)) if moves else np.nan
            rows.append(row)
    return pd.DataFrame(rows)


def fit_slope(y, x):
    """Least-squares slope of y on x."""
    return ((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum()
