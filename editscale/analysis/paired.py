"""The same facts in another way: a sequence and its reverse, and two methods on identical sequences."""

from dataclasses import asdict

import numpy as np
import pandas as pd

from editscale.analysis import intervals
from editscale.analysis.rows import rows_of
from editscale.columns import RUN


def reversals(edits, history, jumps):
    """Each reversed run beside the forward run of its order: one row per pair.

    Args:
        edits, history: tables of runs in both directions, uncut.
        jumps: see `disabling.detect`.

    Returns:
        method, order, edits (as many in both: the facts are the same); recall_forward, recall_reversed: share of all
        these facts recalled then, 0–1; difference: forward − reversed; along_forward, along_reversed, along_difference:
        the same of the mean over checkpoints of the share of the facts so far; disabling_forward, disabling_reversed:
        flagged edits of each; shared: facts flagged in both; same_first: whether the first flagged of each is one fact
        (NaN where either has none).

    A reversed run whose facts are not the forward run's first ones, or without a checkpoint at its end in both, is
    left out: there is nothing to compare.
    """
    rows = []
    runs = {key: run.sort_values("edits") for key, run in edits.groupby(list(RUN))}
    for (method, order, backward), run in runs.items():
        forward = runs.get((method, order, False))
        if not backward or forward is None:
            continue
        n = int(run["edits"].max())
        if set(run["case_id"]) != set(forward.loc[forward["edits"] <= n, "case_id"]):
            continue
        recalls, along, flagged = [], [], []
        for other, side in ((False, forward), (True, run)):
            key = {"method": method, "order": order, "reversed": other}
            asked, found = rows_of(history, **key), rows_of(jumps, **key)
            shares = asked[asked["edits"] <= n].groupby("edits")["efficacy_accuracy"].mean()
            recalls.append(shares.get(n, np.nan))
            along.append(shares.mean())
            places = np.sort(found.loc[found["edits"] <= n, "edits"])
            flagged.append(side.set_index("edits")["case_id"].loc[places].tolist())
        if np.isnan(recalls).any():
            continue
        first = float(flagged[0][0] == flagged[1][0]) if all(flagged) else np.nan
        rows.append(
            {
                **{"method": method, "order": order, "edits": n},
                **{"recall_forward": recalls[0], "recall_reversed": recalls[1], "difference": recalls[0] - recalls[1]},
                **{"along_forward": along[0], "along_reversed": along[1], "along_difference": along[0] - along[1]},
                **{"disabling_forward": len(flagged[0]), "disabling_reversed": len(flagged[1])},
                **{"shared": len(set(flagged[0]) & set(flagged[1])), "same_first": first},
            }
        )
    names = ["method", "order", "edits", "recall_forward", "recall_reversed", "difference", "along_forward"]
    names += ["along_reversed", "along_difference", "disabling_forward", "disabling_reversed", "shared", "same_first"]
    return pd.DataFrame(rows, columns=names)


def at_end(edits, history, drift, n):
    """One row per forward run: what it has kept after n edits; runs without a checkpoint at n are left out.

    Returns:
        method, order, reversed, edits (n); recall: of all n facts; efficacy, neighborhood: means over the n edits, each
        right after its own; drift: relative drift of the most moved layer. All 0–1 but the last.
    """
    first = edits[(edits["edits"] <= n) & ~edits["reversed"]]
    scores = first.groupby(list(RUN), sort=False)[["efficacy", "neighborhood"]].mean()
    here = history[(history["edits"] == n) & ~history["reversed"]]
    recall = here.groupby(list(RUN), sort=False)["efficacy_accuracy"].mean().rename("recall")
    moved = drift[drift["edits"] == n].groupby(list(RUN))["relative_drift"].max().rename("drift")
    return scores.join([recall, moved], how="inner").reset_index().assign(edits=n)


def method_pairs(ends, columns):
    """Each two methods on the orders both have, paired: rows of first, second, measure and an `Interval` of orders.

    Args:
        ends: see `at_end`, after `tables.check_same_facts`: runs of one order edited the same facts.
        columns: of `ends`; the difference is first − second.

    Returns first, second, measure, and the columns `intervals.PARTS`. No rows without a shared order.
    """
    methods, rows = list(ends["method"].unique()), []
    for i, first in enumerate(methods):
        for second in methods[i + 1 :]:
            left, right = (ends[ends["method"] == name].set_index("order") for name in (first, second))
            shared = left.index.intersection(right.index)
            for column in columns if len(shared) else ():
                found = intervals.summary(left.loc[shared, column] - right.loc[shared, column])
                rows.append({"first": first, "second": second, "measure": column, **asdict(found)})
    return pd.DataFrame(rows, columns=["first", "second", "measure", *intervals.PARTS])
