"""Collapses of a run: where forgetting speeds up, how gradual and catastrophic stretches differ, and which collapses
hold a disabling edit.

A collapse is a catastrophic stretch of `inflection.regions`: neighboring checkpoints between which recall falls by
more than `drop` each, or everything after a bend at which forgetting gets `steeper` times as fast. It is opened by a
disabling edit if `disabling.detect` flags one between the two checkpoints of its steepest fall.
"""

import numpy as np
import pandas as pd

from editscale.analysis.rows import groups, require, rows_of
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
    """
    last = table.merge(places[[*RUN, "collapse"]], on=list(RUN), how="left")["collapse"].to_numpy()
    return table[table["edits"].to_numpy() <= last]


def places(points, recall):
    """Where each run starts to lose its facts: one row per run of `points`.

    Args:
        points: see `inflection.inflections`.
        recall: see `forgetting.recall_curve`, of the same runs.

    Returns:
        method, order, reversed, found, inflection (NaN where none was found), low, high; half: edits at the first
        checkpoint with recall below one half, infinite where there is none; end: the last checkpoint.
    """
    below = recall[recall["recall"] < 0.5].groupby(list(RUN))["edits"].min().rename("half")
    ends = recall.groupby(list(RUN))["edits"].max().rename("end")
    kept = points[[*RUN, "found", "inflection", "low", "high"]]
    table = kept.merge(ends.reset_index(), on=RUN).merge(below.reset_index(), on=RUN, how="left")
    return table.fillna({"half": np.inf})


def stretches(regions):
    """How much recall each kind of stretch of a run loses: one row per run and label it has.

    Returns:
        method, order, reversed, label; edits: in such stretches; lost: recall lost in them, −1–1 (negative where it
        rises: new facts are kept); per_100: lost per 100 edits; share: of the loss in gradual and catastrophic
        stretches, 0–1, NaN for "after".
    """
    require(regions, (*RUN, "label", "start", "stop", "recall_start", "recall_stop"), "regions")
    table = regions.assign(
        edits=regions["stop"] - regions["start"], lost=regions["recall_start"] - regions["recall_stop"]
    )
    table = table.groupby([*RUN, "label"], as_index=False, sort=False)[["edits", "lost"]].sum()
    kept = table["label"].isin(["gradual", "catastrophic"])
    whole = table["lost"].where(kept).groupby([table[name] for name in RUN]).transform("sum")
    share = (table["lost"] / whole).where(kept & (whole > 0))
    return table.assign(per_100=100 * table["lost"] / table["edits"], share=share)


def collapses(regions, recall, jumps):
    """The collapses of all runs: one row each.

    Args:
        regions: see `inflection.regions`.
        recall: see `forgetting.recall_curve`.
        jumps: see `disabling.detect`.

    Returns:
        method, order, reversed, start, stop; lost: recall lost from start to stop; steepest_start, steepest_stop: the
        checkpoints of the steepest fall in it; steepest_lost; disabling: flagged edits between these two; in_all:
        flagged edits in the whole collapse; lost_with: recall lost between checkpoints with a flagged edit, of `lost`.
        Falls count, rises do not.
    """
    rows = []
    for key, group in groups(rows_of(regions, label="catastrophic")):
        table = falls(rows_of(recall, **key), rows_of(jumps, **key))
        for region in group.itertuples():
            inside = table[(table["start"] >= region.start) & (table["stop"] <= region.stop)]
            steepest = inside.loc[inside["lost"].idxmax()]
            rows.append(
                {
                    **key,
                    "start": region.start,
                    "stop": region.stop,
                    "lost": region.recall_start - region.recall_stop,
                    "steepest_start": int(steepest["start"]),
                    "steepest_stop": int(steepest["stop"]),
                    "steepest_lost": steepest["lost"],
                    "disabling": int(steepest["disabling"]),
                    "in_all": int(inside["disabling"].sum()),
                    "lost_with": inside["lost"].clip(lower=0)[inside["disabling"] > 0].sum(),
                }
            )
    columns = [*RUN, "start", "stop", "lost", "steepest_start", "steepest_stop", "steepest_lost", "disabling", "in_all"]
    return pd.DataFrame(rows, columns=[*columns, "lost_with"])


def falls(recall, jumps):
    """Between each two checkpoints of one run: start, stop (start < edit ≤ stop), lost (recall), disabling edits.

    Recall starts at 1 with no edits, as in `inflection.regions`.
    """
    curve = recall.dropna(subset="recall").sort_values("edits")
    stop, value = curve["edits"].to_numpy(), np.concatenate([[1.0], curve["recall"]])
    start = np.concatenate([[0], stop])[:-1].astype(int)
    edits = np.sort(jumps["edits"].to_numpy())
    count = np.searchsorted(edits, stop, side="right") - np.searchsorted(edits, start, side="right")
    return pd.DataFrame({"start": start, "stop": stop, "lost": value[:-1] - value[1:], "disabling": count})


def by_order(found, runs):
    """Collapses and other events counted per run, runs without any included: one row per run of `runs`.

    Args:
        found: see `collapses`.
        runs: a table with columns method, order, reversed that holds every run.

    Returns:
        method, order, reversed, collapses, opened (with a disabling edit at the steepest fall), single (with exactly
        one there), lost, lost_with (sums over the run's collapses).
    """
    table = found.assign(collapses=1, opened=found["disabling"] > 0, single=found["disabling"] == 1)
    names = ["collapses", "opened", "single", "lost", "lost_with"]
    sums = table.groupby(list(RUN))[names].sum().reset_index()
    every = runs[list(RUN)].drop_duplicates()
    return every.merge(sums, on=RUN, how="left").fillna(dict.fromkeys(names, 0))


def first_of_each(found):
    """The first collapse of each run: later ones happen to a model that is broken already."""
    return found.sort_values("start").drop_duplicates(list(RUN))


def gradual_intervals(regions, recall, jumps):
    """Of checkpoint intervals in gradual stretches, how many hold a flagged edit: one row per run.

    Returns method, order, reversed, intervals, flagged. The share of collapses with one is to be read against this.
    """
    rows = []
    for key, group in groups(recall):
        table = falls(group, rows_of(jumps, **key))
        gradual = rows_of(regions, label="gradual", **key)
        inside = [((gradual["start"] <= start) & (start < gradual["stop"])).any() for start in table["start"]]
        quiet = table[np.array(inside, dtype=bool)]
        rows.append({**key, "intervals": len(quiet), "flagged": int((quiet["disabling"] > 0).sum())})
    return pd.DataFrame(rows, columns=[*RUN, "intervals", "flagged"])
