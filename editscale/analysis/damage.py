"""Disabling edits, by what they do: the rise of log perplexity by one edit on a model that has not collapsed.

The paper (arXiv:2401.07453) and arXiv:2403.07175 know a disabling edit by its large update. Size is a cause, though: a
large update may do no harm, and after a collapse most are large. Here an edit is judged by the perplexity of one
held-out text right before and right after it, as arXiv:2402.09656 judges single edits, and only up to the collapse of
its run (`collapse.where`). One rule for all methods, also for those whose updates are bounded.
"""

import numpy as np
import pandas as pd

from editscale.analysis import collapse
from editscale.analysis.rows import groups, left_out, require, rows_of, were_learned
from editscale.columns import RUN, SOUND

DISABLING = 0.1  # rise of log perplexity by one edit: perplexity times 1.105
SEVERE = 0.69  # about log 2 = 0.693: perplexity doubles


def damage(edits, perplexity, places):
    """What each edit made on a sound model did to perplexity: one row per edit.

    Args:
        edits: columns method, order, reversed, edits, case_id, efficacy_accuracy, and denominator and status if there
            (`tables.gather`).
        perplexity: columns method, order, reversed, edits, perplexity, with a row for the unedited model (edits 0).
        places: see `collapse.where`.

    Returns:
        method, order, reversed, edits, case_id; denominator (k·u; NaN for methods without); learned (bool); damage:
        log perplexity after the edit less that before it, in nats; disabling: damage > DISABLING; severe: > SEVERE.

    An edit whose update is not finite, or after which perplexity is not, has infinite damage. Facts that were left out
    are no edits. Where a step has several facts, perplexity is measured after the last of them: that row has the rise
    of the whole step, and the others are missing.

    Raises ValueError if columns are missing, or for runs without measured perplexity.
    """
    require(edits, (*RUN, "edits", "case_id", "efficacy_accuracy"), "edits")
    require(perplexity, (*RUN, "edits", "perplexity"), "recall/perplexity")
    along = perplexity.sort_values([*RUN, "edits"], kind="stable")
    values = along["perplexity"].where(np.isfinite(along["perplexity"]), np.inf)
    before = values.groupby([along[name] for name in RUN]).shift()
    # After a collapse both may be infinite; those edits are not judged.
    rise = np.log(values) - np.log(before.where(np.isfinite(before)))
    found = along[[*RUN, "edits"]].assign(damage=rise)
    table = collapse.on_sound_models(edits[~left_out(edits)], places).merge(found, on=[*RUN, "edits"])
    applied = table["status"].isin(SOUND) if "status" in table else np.ones(len(table), dtype=bool)
    table = table.assign(damage=table["damage"].where(applied, np.inf), learned=were_learned(table))
    table = table.assign(disabling=table["damage"] > DISABLING, severe=table["damage"] > SEVERE)
    names = [*RUN, "edits", "case_id", "denominator", "learned", "damage", "disabling", "severe"]
    return table.reindex(columns=names)


def with_recall(table, edits, history):
    """The rows of `damage` with recall_before and recall_after, 0–1, and recall_lost, their difference.

    Args:
        edits: columns method, order, reversed, edits, efficacy_accuracy.
        history: columns method, order, reversed, edits (the checkpoint), edit, efficacy_accuracy.

    Recall is taken at the last checkpoint before the edit and at the first that includes it, both over the facts edited
    up to the earlier one and learned then. So edits between the same two checkpoints share their numbers; before the
    first checkpoint and after the last they are NaN.
    """
    require(history, (*RUN, "edits", "edit", "efficacy_accuracy"), "recall/history")
    parts, histories = [], dict(list(history.groupby(list(RUN))))
    for run, own in groups(table):
        of, asked = rows_of(edits, **run), histories.get(tuple(run.values()), history.iloc[:0])
        asked = asked[asked["edit"].isin(of.loc[were_learned(of), "edits"])]
        stops = np.sort(asked["edits"].unique())
        before, after = np.full(len(stops) + 1, np.nan), np.full(len(stops) + 1, np.nan)
        at = {stop: rows.set_index("edit")["efficacy_accuracy"] for stop, rows in asked.groupby("edits")}
        for i in range(1, len(stops)):
            known = at[stops[i - 1]]
            before[i], after[i] = known.mean(), at[stops[i]].reindex(known.index).mean()
        place = np.searchsorted(stops, own["edits"])  # stops[place - 1] < edit ≤ stops[place]
        parts.append(own.assign(recall_before=before[place], recall_after=after[place]))
    joined = pd.concat(parts) if parts else table.assign(recall_before=np.nan, recall_after=np.nan)
    return joined.assign(recall_lost=joined["recall_before"] - joined["recall_after"]).loc[table.index]


def counts(table, by=RUN):
    """How many edits of each run, or by other columns, are disabling.

    Returns: by, edits (on sound models), disabling, severe, disabling_share, severe_share (0–1), opposite (edits with
    damage below −DISABLING: where they are as many, perplexity goes up and down) and largest (damage, nats).
    """
    require(table, (*by, "damage", "disabling", "severe"), "damage")
    found = table.groupby(list(by), sort=False).agg(
        edits=("damage", "size"),
        disabling=("disabling", "sum"),
        severe=("severe", "sum"),
        disabling_share=("disabling", "mean"),
        severe_share=("severe", "mean"),
        opposite=("damage", lambda of: (of < -DISABLING).sum()),
        largest=("damage", "max"),
    )
    return found.reset_index()


def alone(single, of="rome"):
    """What edits do alone on the unedited model: one row per method, contexts, seed and fact.

    Args:
        single: columns method, contexts, seed, case_id, status, denominator, efficacy_accuracy, perplexity,
            perplexity_unedited (notebook 05a); several rows for several layers.
        of: the method whose |k·u|, with the contexts of its run, stands beside each edit of the same fact.

    Returns: these columns, and known (that |k·u|; NaN where `of` did not edit the fact), learned, damage, disabling,
    severe, as `damage`.
    """
    names = ["method", "contexts", "seed", "case_id"]
    require(single, (*names, "status", "denominator", "efficacy_accuracy", "perplexity_unedited"), "single edits")
    rows = single[~left_out(single)].drop_duplicates(names, ignore_index=True)
    of_facts = rows_of(rows, method=of, contexts="run").set_index("case_id")["denominator"].abs()
    sound = rows["status"].isin(SOUND) & np.isfinite(rows["perplexity"])
    rise = np.log(rows["perplexity"].where(sound, np.inf)) - np.log(rows["perplexity_unedited"])
    known = {"known": rows["case_id"].map(of_facts), "learned": were_learned(rows), "damage": rise}
    return rows.assign(**known, disabling=rise > DISABLING, severe=rise > SEVERE)


def by_contexts(rows, low):
    """The edits of `alone` by method and contexts, those of facts with `known` below `low` against the others.

    Returns:
        method, contexts, seed; low, others: facts of each kind; disabling_low, disabling_others, learned_low,
        learned_others: shares of them, 0–1; times_low: the median of perplexity over the unedited model's; rho:
        Spearman's rank correlation of 1/known and damage.
    """
    found = []
    for key, own in rows.dropna(subset="known").groupby(["method", "contexts", "seed"], sort=False, dropna=False):
        kinds = {"low": own[own["known"] < low], "others": own[own["known"] >= low]}
        shares = {f"{name}_{kind}": of[name].mean() for name in ("disabling", "learned") for kind, of in kinds.items()}
        times = np.exp(kinds["low"]["damage"].median())
        rho = (-own["known"]).rank().corr(own["damage"].rank()) if len(own) > 2 else np.nan
        named = dict(zip(("method", "contexts", "seed"), key, strict=True))
        found.append(
            {**named, **{kind: len(of) for kind, of in kinds.items()}, **shares, "times_low": times, "rho": rho}
        )
    names = ["method", "contexts", "seed", "low", "others", "disabling_low", "disabling_others", "learned_low"]
    return pd.DataFrame(found, columns=[*names, "learned_others", "times_low", "rho"])
