"""How the drift of the weights goes with what is lost: regressions within runs and between them.

Drift is the relative drift ‖W − W₀‖ / ‖W₀‖ of the layer that has moved most. Within a run both drift and loss grow with
the number of edits; whether an order that has moved further has also lost more after as many edits is asked between
runs.
"""

import numpy as np
import pandas as pd

from editscale.analysis.intervals import Interval
from editscale.analysis.rows import groups, require
from editscale.columns import RUN

STEP = 0.1  # of relative drift: the unit of slopes
MIN_PLACES = 4  # checkpoints that a regression needs: two predictors and a constant, and one more


def along(recall, drift):
    """Recall lost and drift at each checkpoint: method, order, reversed, edits, lost (1 − recall, 0–1), drift.

    Args:
        recall: see `forgetting.recall_curve`.
        drift: columns method, order, reversed, layer, edits, relative_drift.
    """
    require(drift, (*RUN, "layer", "edits", "relative_drift"), "drift")
    moved = drift.groupby([*RUN, "edits"])["relative_drift"].max().rename("drift").reset_index()
    table = recall.assign(lost=1 - recall["recall"])[[*RUN, "edits", "lost"]].dropna()
    return table.merge(moved, on=[*RUN, "edits"])


def within(at):
    """Least squares of the recall lost at the checkpoints of each run: one row per run.

    Args:
        at: see `along`.

    Returns:
        method, order, reversed; per_step: recall lost per 0.1 of relative drift, from drift alone; r2_drift,
        r2_edits: share of variance explained by drift, or by the number of edits, alone; added: what drift explains
        beyond the number of edits (R² of both less r2_edits); rank: Spearman correlation of drift and loss;
        checkpoints. NaN where loss or drift never changes, or with fewer than four checkpoints.
    """
    rows = []
    for key, group in groups(at):
        drift, edits, lost = (group[name].to_numpy(float) for name in ("drift", "edits", "lost"))
        row = dict.fromkeys(("per_step", "r2_drift", "r2_edits", "added", "rank"), np.nan)
        if len(lost) >= MIN_PLACES and np.ptp(lost) > 0 and np.ptp(drift) > 0:
            slopes, r2 = fit(lost, drift)
            r2_edits, r2_both = (fit(lost, *columns)[1] for columns in ([edits], [edits, drift]))
            row = {"per_step": STEP * slopes[0], "r2_drift": r2, "r2_edits": r2_edits, "added": r2_both - r2_edits}
            row["rank"] = group["drift"].rank().corr(group["lost"].rank())
        rows.append({**key, **row, "checkpoints": len(lost)})
    return pd.DataFrame(rows)


def fit(y, *columns):
    """Slopes of least squares of y, (n,), on columns, (n,) each, with a constant; and R²."""
    x = np.column_stack([np.ones_like(y), *columns])
    coefficients = np.linalg.lstsq(x, y, rcond=None)[0]
    error = ((y - x @ coefficients) ** 2).sum()
    return coefficients[1:], 1 - error / ((y - y.mean()) ** 2).sum()


def between(at, rng, *, n_resamples=2000, confidence=0.95):
    """Whether orders that have moved further have lost more after as many edits: an `Interval` per step of drift.

    The slope of loss on drift, each less its mean over orders at the same checkpoint; orders are drawn anew.

    Args:
        at: see `along`; rows of one method in one direction. Checkpoints that an order lacks are left out.

    Returns recall lost per 0.1 of relative drift; NaN with n for fewer than three orders or without any spread.
    """
    tables = [at.pivot(index="edits", columns="order", values=name).dropna() for name in ("drift", "lost")]
    drift, lost = (table.to_numpy().T for table in tables)
    n = len(drift)
    if n < 3 or not drift.shape[1]:
        return Interval(np.nan, np.nan, np.nan, n)

    def slope(drawn):  # (resamples, orders) of places
        d, y = (values[drawn] - values[drawn].mean(axis=1, keepdims=True) for values in (drift, lost))
        square = (d * d).sum(axis=(1, 2))
        return np.divide((d * y).sum(axis=(1, 2)), square, out=np.full(len(square), np.nan), where=square > 1e-18)

    value = slope(np.arange(n)[None])[0]
    blocks = [rng.integers(n, size=(min(200, n_resamples - i), n)) for i in range(0, n_resamples, 200)]
    draws = np.concatenate([slope(block) for block in blocks])
    draws = draws[~np.isnan(draws)]
    if np.isnan(value) or not len(draws):
        return Interval(np.nan, np.nan, np.nan, n)
    low, high = np.quantile(draws, ((1 - confidence) / 2, (1 + confidence) / 2))
    return Interval(STEP * value, STEP * low, STEP * high, n)


def decay(edits, unedited, drift, windows):
    """How the scores of each edit right after it change over the first edits of a run, and over all: one row each.

    Args:
        edits, unedited: tables of the same runs; drift: as for `along`.
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
