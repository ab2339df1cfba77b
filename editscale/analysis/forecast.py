"""Disabling edits, known before they happen: how well numbers of the unedited model forecast what an edit will do.

ROME divides its update by k·u, of which arXiv:2403.07175 and arXiv:2406.11263 say why it may be near 0: k is the key of
the bare prompt, u comes from the mean key over contexts. Both are keys at the edited layer, which no edit there
changes. So the denominators of all facts are known before the first edit, and with them, if small ones disable, which
edits will, and when a sequence collapses. An order is one draw: intervals are over orders, and a threshold that was
found on an order is tried on the others.
"""

import numpy as np
import pandas as pd

from editscale.analysis import collapse
from editscale.analysis.ranking import auroc, over_orders
from editscale.analysis.rows import groups, left_out, require, rows_of, were_learned
from editscale.columns import RUN

LOW = 0.1  # |k·u| below this warns; found on the forward orders of the recorded study, not before them
BINS = (0.0, 0.1, 0.5, 1.0, 2.0, np.inf)  # of |k·u|

# Predictor ↦ (its column, sign so that more of it should mean more damage, when it is known).
PREDICTORS = {
    "small |k·u|": ("denominator", -1, "before the first edit"),
    "late place in the order": ("edits", 1, "before the first edit"),
    "small ‖m₀‖": ("init_norm", -1, "with the edits before it made"),
    "large ‖δ‖": ("delta_norm", 1, "when the edit is computed"),
    "large ‖ΔW‖": ("update_norm", 1, "when the edit is computed"),
}


def predictors(damage, edits, drift):
    """The rows of `damage.damage` that have a denominator, with what could forecast them.

    Args:
        edits: columns method, order, reversed, edits, and init_norm (‖m₀‖) and delta_norm (‖δ‖) where there are.
        drift: columns method, order, reversed, layer, edits, update_norm (‖ΔW‖; of several layers the largest counts).

    Returns: its columns, denominator as its absolute value, init_norm, delta_norm and update_norm.
    """
    key = [*RUN, "edits"]
    require(drift, (*key, "update_norm"), "drift")
    sizes = drift.groupby(key, as_index=False)["update_norm"].max()
    known = damage.dropna(subset="denominator").assign(denominator=lambda rows: rows["denominator"].abs())
    own = edits.reindex(columns=[*key, "init_norm", "delta_norm"])
    return known.merge(own, on=key, how="left").merge(sizes, on=key, how="left")


def aurocs(table, thresholds, rng):
    """How well each predictor ranks edits by damage, one row per method, direction, predictor and threshold.

    Args:
        table: see `predictors`.
        thresholds: an edit is an event if its damage is above; those that no edit, or every one, passes are left out.

    Returns:
        method, reversed, predictor, known (when), threshold, events, edits, mean, low, high, n (`ranking.over_orders`)
        and least, the lowest `auroc` within one order. A predictor that was not recorded is left out.
    """
    rows = []
    for key, own in groups(table, ("method", "reversed")):
        for predictor, (column, sign, known) in PREDICTORS.items():
            rated = own.dropna(subset=column)
            for threshold in thresholds:
                events = rated["damage"] > threshold
                if 0 < events.sum() < len(rated):
                    found = over_orders(sign * rated[column], events, rated["order"], rng)
                    each = [auroc(sign * of[column], of["damage"] > threshold) for _, of in rated.groupby("order")]
                    named = {**key, "predictor": predictor, "known": known, "threshold": threshold}
                    counted = {"events": int(events.sum()), "edits": len(rated)}
                    rows.append({**named, **counted, **vars(found), "least": np.nanmin(each)})
    names = ["method", "reversed", "predictor", "known", "threshold", "events", "edits", "mean", "low", "high", "n"]
    return pd.DataFrame(rows, columns=[*names, "least"])


def rule(table, thresholds=(LOW,), column="denominator"):
    """How right it is to warn of a disabling edit where `column` is below a threshold: one row per rule.

    Args:
        table: columns method, order, reversed, disabling and `column`; see `predictors`.
        thresholds: fixed ones.

    Returns:
        method, reversed, rule (in words), edits, tp, fp, fn (disabling edits warned of, other edits warned of,
        disabling edits without a warning), precision, recall; NaN where there is nothing to share out. The last rule
        of each method and direction sets an order's threshold on its other orders (`chosen_elsewhere`); it is missing
        where fewer than two orders have a disabling edit.
    """
    rows = []
    for key, own in groups(table, ("method", "reversed")):
        value, event = own[column].to_numpy(float), own["disabling"].to_numpy(bool)
        warned = {f"below {threshold:g}": value < threshold for threshold in thresholds}
        if own.loc[event, "order"].nunique() > 1:
            elsewhere = own["order"].map(chosen_elsewhere(own, column).set_index("order")["threshold"])
            warned["set on the other orders"] = value < elsewhere.to_numpy()
        for words, hit in warned.items():
            tp, fp, fn = (int(n.sum()) for n in (hit & event, hit & ~event, ~hit & event))
            counted = {"rule": words, "edits": len(own), "tp": tp, "fp": fp, "fn": fn}
            shares = {"precision": _share(tp, tp + fp), "recall": _share(tp, tp + fn)}
            rows.append({**key, **counted, **shares})
    names = ["method", "reversed", "rule", "edits", "tp", "fp", "fn", "precision", "recall"]
    return pd.DataFrame(rows, columns=names)


def chosen_elsewhere(table, column="denominator", event="disabling"):
    """For each order the threshold with the largest F1 = 2 tp / (2 tp + fp + fn) on all others: order, threshold.

    Args:
        table: see `rule`, of one method in one direction.
        event: column that says what should be warned of.

    Thresholds lie halfway, on a log scale, between the last value warned of and the next. Of equals the smallest; 0,
    which never warns, where the others have no disabling edit.
    """
    rows = []
    for order in table["order"].unique():
        others = table[table["order"] != order].sort_values(column)
        value, hit = others[column].to_numpy(float), others[event].to_numpy(bool)
        tp, n = hit.cumsum(), np.arange(1, len(hit) + 1)
        last = np.append(value[1:] > value[:-1], True)  # of its value: equal ones are warned of together
        f1 = np.where(last, 2 * tp / (n + hit.sum()), 0)
        best = int(f1.argmax())
        after = value[best + 1] if best + 1 < len(value) else np.inf
        between = np.sqrt(value[best] * after) if value[best] > 0 else after / 2
        rows.append({"order": order, "threshold": between if hit.any() else 0.0})
    return pd.DataFrame(rows, columns=["order", "threshold"])


def moments(edits, places, threshold=LOW):
    """When each run collapses, as forecast on the unedited model and as observed: one row per run with denominators.

    Args:
        edits: columns method, order, reversed, edits, denominator.
        places: see `collapse.where`.

    Returns:
        method, order, reversed; forecast: the first edit with |k·u| < threshold, infinite where no fact has; observed:
        the collapse, infinite for a run that ends before (censored); end: its last edit.
    """
    known = _with_denominator(edits[~left_out(edits)])
    first = known[known["denominator"].abs() < threshold].groupby(list(RUN))["edits"].min().rename("forecast")
    runs = known[list(RUN)].drop_duplicates().merge(first.reset_index(), on=list(RUN), how="left")
    table = runs.fillna({"forecast": np.inf}).merge(places.rename(columns={"collapse": "observed"}), on=list(RUN))
    return table[[*RUN, "forecast", "observed", "end"]]


def moments_elsewhere(table, edits, places):
    """`moments` with the threshold of each order set on its other orders, where it tells the edits of collapse best.

    Args:
        table: see `predictors`.

    Returns: its columns and threshold; no rows for methods of which fewer than two orders of a direction collapse.
    """
    ends = table.merge(places[[*RUN, "collapse"]], on=list(RUN))
    ends["collapses"] = ends["edits"] == ends["collapse"]
    parts = [moments(edits.iloc[:0], places).assign(threshold=0.0)]
    for key, own in groups(ends, ("method", "reversed")):
        if own["collapses"].sum() > 1:
            for row in chosen_elsewhere(own, event="collapses").itertuples():
                found = moments(rows_of(edits, **key, order=row.order), places, row.threshold)
                parts.append(found.assign(threshold=row.threshold))
    return pd.concat(parts[1:] or parts, ignore_index=True)


def agreement(moments, by=("method", "reversed")):
    """How forecast and observed moments agree, by method and direction.

    Returns: by, orders, forecast and collapsed (orders that have such a moment), exact (both at the same edit), near
    (within a tenth of the observed), and rho: Spearman's rank correlation, infinite moments last; NaN for fewer than
    three orders or without spread.
    """
    rows = []
    for key, own in groups(moments, by):
        has = np.isfinite(own[["forecast", "observed"]])
        both = own[has.all(axis=1)]
        off = (both["forecast"] - both["observed"]).abs()
        spread = len(own) >= 3 and (own[["forecast", "observed"]].nunique() > 1).all()
        rho = own["forecast"].rank().corr(own["observed"].rank()) if spread else np.nan
        hits = {"exact": int((off == 0).sum()), "near": int((off <= 0.1 * both["observed"]).sum())}
        counted = {"orders": len(own), "forecast": int(has["forecast"].sum()), "collapsed": int(has["observed"].sum())}
        rows.append({**key, **counted, **hits, "rho": rho})
    return pd.DataFrame(rows, columns=[*by, "orders", "forecast", "collapsed", "exact", "near", "rho"])


def waiting(edits, places, threshold=LOW):
    """How long a sequence waits for a fact below the threshold, by method: from the share of such facts, and observed.

    Args:
        edits: columns method, order, reversed, edits, case_id, denominator.
        places: see `collapse.where`.

    Returns:
        method, facts (different ones), below (of them with |k·u| < threshold), expected: facts / below, the mean wait
        if facts come in random order; observed: the mean collapse of forward runs, infinite if one has none; n: runs.
    """
    rows = []
    for (method,), known in _with_denominator(edits).groupby(["method"], sort=False):
        of_facts = known.drop_duplicates("case_id")["denominator"].abs()
        below = int((of_facts < threshold).sum())
        observed = rows_of(places, method=method, reversed=False)["collapse"]
        expected = len(of_facts) / below if below else np.inf
        counted = {"method": method, "facts": len(of_facts), "below": below, "expected": expected}
        rows.append({**counted, "observed": observed.mean(), "n": len(observed)})
    return pd.DataFrame(rows, columns=["method", "facts", "below", "expected", "observed", "n"])


def learned_by_denominator(edits, places, of="rome", bins=BINS):
    """How many facts each method learns on sound models, by the |k·u| that the method `of` has for the same fact.

    Args:
        edits: columns method, order, reversed, edits, case_id, efficacy_accuracy, and denominator for `of`.
        places: see `collapse.where`.
        bins: borders; each bin holds its lower one.

    Returns: method, low, high, learned (share of the facts, 0–1), n. Facts that `of` did not edit are left out; where
    it edited none, all are in one bin from 0 to infinity.
    """
    require(edits, (*RUN, "edits", "case_id", "efficacy_accuracy"), "edits")
    of_facts = _with_denominator(rows_of(edits, method=of)).groupby("case_id")["denominator"].first().abs()
    sound = collapse.on_sound_models(edits, places)
    bins, known = (bins, sound["case_id"].map(of_facts)) if len(of_facts) else ((0.0, np.inf), 0.0)
    rated = sound.assign(learned=were_learned(sound), known=known).dropna(subset="known")
    place = np.searchsorted(bins, rated["known"], side="right") - 1
    table = rated.assign(low=np.array(bins)[place], high=np.append(bins, np.nan)[place + 1])
    found = table.groupby(["method", "low", "high"], as_index=False)["learned"].agg(learned="mean", n="size")
    return found[["method", "low", "high", "learned", "n"]]


def _with_denominator(edits):
    """The edits that have one; none where the table has no such column, as that of MEMIT alone has not."""
    known = edits if "denominator" in edits else edits.assign(denominator=np.nan)
    return known.dropna(subset="denominator")


def _share(part, whole):
    return part / whole if whole else np.nan
