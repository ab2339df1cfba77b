"""The rule that foretells disabling edits, tried on facts drawn by chance: who is drawn, and how often it is right.

|k·u| of all facts is known before any edit (`sequences.denominators`). Facts are drawn within bins of it, each is
edited alone on the unedited model (`sequences.single`), and `damage.DISABLING` says what disables. Draws within a bin
are at random, so a bin's share is that of all its facts, with an exact (hypergeometric) interval.
"""

import numpy as np
import pandas as pd

from editscale.analysis import tables
from editscale.analysis.damage import DISABLING
from editscale.analysis.forecast import BINS, LOW
from editscale.analysis.intervals import share
from editscale.analysis.rows import left_out, require, were_learned
from editscale.columns import SOUND

DRAWING = ("fact_set", "start_token", "seed", "layer")  # what tells one drawing of facts from another


def bin_of(denominators, bins=BINS):
    """The place in `bins` of each |k·u|, (n,) ints: i where bins[i] ≤ |k·u| < bins[i + 1]."""
    return np.searchsorted(bins, np.abs(denominators), side="right") - 1


def drawn(measured, layer, per_bin, rng, bins=BINS):
    """Facts of a layer drawn at random without replacement, as many of each bin, in ascending order of |k·u|.

    Args:
        measured: columns case_id, layer, denominator (`denominators.measure`).
        per_bin: facts of each bin; all of a bin that holds fewer.

    Returns: case_id, layer, foretold (k·u), bin_facts (how many facts its bin holds at that layer).

    Raises ValueError for a layer that was not measured, for k·u that is not finite, or per_bin below 1.
    """
    require(measured, ("case_id", "layer", "denominator"), "denominators")
    own = measured[measured["layer"] == layer]
    if own.empty or per_bin < 1:
        known = ", ".join(map(str, sorted(measured["layer"].unique())))
        raise ValueError(f"layer {layer}, {per_bin} facts of each bin: expected a layer of {known}, and 1 fact or more")
    if bad := own.loc[~np.isfinite(own["denominator"]), "case_id"].tolist():
        raise ValueError(f"k·u of case {bad[0]} at layer {layer} is not finite; run notebook 10 again on a sound model")
    place = bin_of(own["denominator"], bins)
    own = own.rename(columns={"denominator": "foretold"})[["case_id", "layer", "foretold"]]
    own = own.assign(bin_facts=np.bincount(place, minlength=len(bins))[place])
    taken = np.concatenate([rng.permutation(np.flatnonzero(place == i))[:per_bin] for i in range(len(bins) - 1)])
    return own.iloc[taken].sort_values("foretold", key=np.abs, kind="stable", ignore_index=True)


def judged(single):
    """What edits alone did: columns learned (bool), damage (rise of log perplexity, nats) and disabling beside theirs.

    Args:
        single: columns status, efficacy_accuracy, perplexity, perplexity_unedited (`single.single_edits`, `unedited`).

    An edit that is not finite, or after which perplexity is not, has infinite damage. Facts left out are no edits.
    """
    require(single, ("status", "efficacy_accuracy", "perplexity", "perplexity_unedited"), "single edits")
    rows = single[~left_out(single)]
    sound = rows["status"].isin(SOUND) & np.isfinite(rows["perplexity"])
    damage = np.log(rows["perplexity"].where(sound, np.inf)) - np.log(rows["perplexity_unedited"])
    return rows.assign(learned=were_learned(rows), damage=damage, disabling=damage > DISABLING)


def by_bin(tested, by=("layer",), bins=BINS):
    """How many edits of each bin disable: one row per layer and bin with an edit.

    Args:
        tested: columns of `by`, foretold, bin_facts, disabling, learned, damage: edits of facts that were `drawn`.
        by: what tells one drawing from another.

    Returns: by, low, high (of |k·u|), facts (all of the bin), tested, disabling and learned (counts of them), share,
    least, most (of the disabling among all facts of the bin, 0–1, exact 95 % interval) and damage (median, nats).
    """
    rows = []
    for key, own in tested.assign(place=bin_of(tested["foretold"], bins)).groupby([*by, "place"]):
        found = share(int(own["disabling"].sum()), len(own), of=int(own["bin_facts"].iloc[0]))
        named = {**dict(zip(by, key, strict=False)), "low": bins[key[-1]], "high": bins[key[-1] + 1]}
        counted = {"facts": int(own["bin_facts"].iloc[0]), "tested": len(own)}
        counted |= {name: int(own[name].sum()) for name in ("disabling", "learned")}
        shares = {"share": found.mean, "least": found.low, "most": found.high, "damage": own["damage"].median()}
        rows.append({**named, **counted, **shares})
    return pd.DataFrame(rows)


def compared(bins):
    """Bins of `by_bin` by DRAWING in two groups: the layer drawn from under most conditions, and the other layers under
    that condition which has most, where there are any. Title ↦ (name of the drawing ↦ its rows)."""
    conditions = list(DRAWING[:-1])
    drawings = bins[list(DRAWING)].drop_duplicates()
    layer = drawings["layer"].mode().iloc[0]
    most = drawings.groupby(conditions)["layer"].size().idxmax()
    at_layer = {condition_words(*key): of for key, of in bins[bins["layer"] == layer].groupby(conditions)}
    of_most = bins[(bins[conditions] == list(most)).all(axis=1) & (bins["layer"] != layer)]
    layers = {f"layer {key}": of for key, of in of_most.groupby("layer")}
    return {f"layer {layer}": at_layer} | ({condition_words(*most): layers} if layers else {})


def condition_words(fact_set, start_token, seed):
    """What a drawing is called: its facts, and what came before them."""
    facts = "AtlasFacts" if fact_set == "atlas" else "CounterFact" if fact_set.startswith("counterfact") else fact_set
    return f"{facts}, {'start token' if start_token else f'contexts of seed {seed}'}"


def read(paths):
    """The tables of notebook 11, one below the other. Raises as `tables.read`."""
    remedy = "run notebook 11, or give the path of its table"
    return pd.concat([tables.read(path, remedy, _measured) for path in paths], ignore_index=True)


def _measured(table):
    if missing := [name for name in (*DRAWING, "case_id", "foretold", "bin_facts", "damage") if name not in table]:
        raise ValueError(f"it lacks the columns {', '.join(missing)}")
    return table


def of_ends(bins):
    """Shares of the edits that disable, 0–1, in the lowest and in the highest bin that holds any: of all drawings
    together, each bin's edits being drawn at random. How many were drawn of one bin does not weigh on another."""
    ends = bins[bins["low"] == bins["low"].min()], bins[bins["low"] == bins["low"].max()]
    return [of["disabling"].sum() / of["tested"].sum() for of in ends]


def rule(bins, by=("layer",), threshold=LOW):
    """How right it is to warn of facts with |k·u| below a threshold: one row per layer of `by_bin`.

    Args:
        threshold: a border of its bins.

    Returns: by, warned (share of all facts, 0–1), precision (share of those warned of that disable) and recall
    (share of the disabling ones that are warned of), 0–1: estimates that count each bin as many times as it has facts;
    NaN where none was edited or none disables.
    """
    rows = []
    for key, own in bins.groupby(list(by)):
        warned, disabling = own["high"] <= threshold, own["facts"] * own["share"]
        parts = {"precision": (disabling[warned].sum(), own.loc[warned, "facts"].sum())}
        parts["recall"] = disabling[warned].sum(), disabling.sum()
        shares = {name: part / whole if whole else np.nan for name, (part, whole) in parts.items()}
        known = own.loc[warned, "facts"].sum() / own["facts"].sum()
        rows.append({**dict(zip(by, key, strict=True)), "warned": known, **shares})
    return pd.DataFrame(rows, columns=[*by, "warned", "precision", "recall"])
