"""The inflection point of forgetting, and the gradual and catastrophic stretches of a run.

In arXiv:2401.07453 facts are forgotten slowly up to an inflection point and nearly all at once after it. Here a
change-point method places that point, says how far it may be off, and may find that there is none. Tables are those of
`forgetting`.
"""

import numpy as np
import pandas as pd

from editscale.analysis.forgetting import label_of, runs_of
from editscale.analysis.rows import groups, require
from editscale.columns import RUN

CURVES = ("recall", "paper")  # losses that `inflections` reads: not recalled now, or forgotten once
MIN_CHECKPOINTS = 5  # one more than the fit of a break has numbers to choose


def inflections(history, edits, rng, *, curve="recall", n_resamples=1000, level=0.05, confidence=0.95):
    """Where forgetting speeds up, by segmented least squares with one break: one row per run.

    The loss L(N), the share of learned facts not recalled at checkpoint N, is fitted by a line plus one break after
    checkpoint τ: a bend c·max(0, N − τ), with two checkpoints or more up to τ and after it, or a jump c·[N > τ]; c > 0
    (the loss grows faster, or all at once). Shape and τ have the least squared error, checkpoints weighted by their
    learned facts. The break is compared with a smooth course, a parabola, by the difference D of squared errors.

    Checkpoints of a run ask the same facts, so their errors are not independent, and BIC or an F table would see a
    break in most runs that have none. The distribution of D without a break is therefore taken from facts drawn
    anew: the parabola plus the deviation of each redrawn curve from the observed one. p is the share of these with a D
    at least the observed one. Facts get exponential weights (Rubin 1981) rather than counts, so that no checkpoint
    loses all of its facts.

    Args:
        rng: numpy Generator of the resamples.
        curve: "recall", or "paper" for facts once found forgotten.
        level: largest p at which an inflection is claimed.

    Returns:
        method, order, reversed, curve; found: "bend", "jump", "none", or "too few checkpoints" (under five with a
        learned fact); p_value; inflection: τ, the last checkpoint before forgetting speeds up, in edits; low, high:
        interval of the place. Each redrawn curve puts its break between two checkpoints: those around τ for a bend,
        τ and the next for a jump; low and high are percentiles of these ends. slope_before, slope_after: loss per
        edit of the fit, step: its jump. NaN where there is no inflection. n_facts (learned), n_checkpoints.

    In simulated runs of 50–300 facts and 5–50 checkpoints, an inflection is found in 1–9 % of those without one. Jumps
    of 0.2 are found in 71–84 % with 50 facts and 97 % or more from 100 on; bends after which recall falls from 0.94
    to 0.3, in about 30 % with 50 facts, 65 % with 100 and 90 % or more with 300: "none" from few facts says little.
    """
    if curve not in CURVES:
        raise ValueError(f"curve is {curve!r}; expected one of {', '.join(CURVES)}")
    rows = []
    for run in runs_of(history, edits):
        scored, hit = run.scored(), run.recalled == 1
        if curve == "paper":
            first = run.first_forgotten()[:, None]
            hit = (first < 0) | (np.arange(len(run.checkpoints)) < first)
        used = scored.any(axis=0)
        x, scored, lost = run.checkpoints[used].astype(float), scored[:, used], (scored & ~hit)[:, used]
        row = {**run.key, "curve": curve, "found": "too few checkpoints"}
        row |= {
            name: np.nan for name in ("p_value", "inflection", "low", "high", "slope_before", "slope_after", "step")
        }
        row |= {"n_facts": int(run.learned.sum()), "n_checkpoints": len(x)}
        if len(x) >= MIN_CHECKPOINTS:
            draws = np.vstack([np.ones(len(scored)), rng.exponential(size=(n_resamples, len(scored)))])
            losses = (draws @ lost / (draws @ scored)).T  # (checkpoints, 1 + resamples), the observed one first
            row |= _break(x, losses, scored.sum(axis=0), level, confidence)
        rows.append(row)
    return pd.DataFrame(rows)


def _break(x, losses, weights, level, confidence):
    """The row of `inflections` that the losses, (checkpoints, 1 + resamples) with the observed one first, speak for."""
    scale = np.sqrt(weights / weights.mean())[:, None]
    line, square = np.column_stack([np.ones_like(x), x]), (x**2)[:, None]
    places = [("bend", j) for j in range(1, len(x) - 2)] + [("jump", j) for j in range(len(x) - 1)]
    columns = np.column_stack([np.maximum(0, x - x[j]) if s == "bend" else x > x[j] for s, j in places])

    # What a column takes off the squared error of the line is the square of its score: a projection on its part
    # that the line leaves over. The score's sign is that of the column's coefficient.
    basis = np.linalg.qr(line * scale)[0]

    def scores(extra, y):
        rest = extra * scale - basis @ (basis.T @ (extra * scale))
        return (rest / np.linalg.norm(rest, axis=0)).T @ (y * scale)

    def gain(y):
        worse = np.maximum(scores(columns, y), 0)
        return worse.max(axis=0) ** 2 - scores(square, y)[0] ** 2, worse.argmax(axis=0)

    def coefficients(columns, y):
        return np.linalg.lstsq(columns * scale, y * scale, rcond=None)[0]

    observed, redrawn = losses[:, :1], losses[:, 1:]
    (d,), (best,) = gain(observed)
    parabola = np.hstack([line, square])
    null, _ = gain(parabola @ coefficients(parabola, observed) + redrawn - observed)
    p = (1 + (null >= d - 1e-12).sum()) / (1 + len(null))
    if p > level or d <= 1e-12:  # rounding of an exact fit is no gain
        return {"found": "none", "p_value": p}
    ends = [(x[j - 1] if shape == "bend" else x[j], x[j + 1]) for shape, j in (places[i] for i in gain(redrawn)[1])]
    tails = (1 - confidence) / 2, (1 + confidence) / 2
    low, high = (np.quantile(e, q, method="inverted_cdf") for e, q in zip(zip(*ends, strict=True), tails, strict=True))
    shape, j = places[best]
    _, slope, change = coefficients(np.hstack([line, columns[:, [best]]]), observed)[:, 0]
    bend, step = (change, 0.0) if shape == "bend" else (0.0, change)
    place = {"inflection": x[j], "low": low, "high": high}
    return {"found": shape, "p_value": p, **place, "slope_before": slope, "slope_after": slope + bend, "step": step}


def regions(curve, points, *, drop=0.2, steeper=3.0, min_learned=5):
    """Gradual and catastrophic stretches of each run: labeled intervals of edits, in order and without gaps.

    An interval between neighboring checkpoints is catastrophic if recall falls by more than `drop` in it, or if it
    lies after a bend from which on recall is lost at least `steeper` times as fast as before. Other intervals are
    gradual before the first catastrophic one and "after" following it. Neighbors with one label are joined.

    Args:
        curve: see `forgetting.recall_curve`. Recall starts at 1 with no edits: learned facts are recalled at first.
        points: see `inflections`, of the same runs.
        drop: fall of recall, 0–1.
        min_learned: checkpoints with fewer learned facts are passed over: one fact is too much of their recall.

    Returns:
        method, order, reversed, label, start, stop: edits start < N ≤ stop; recall_start, recall_stop.
    """
    require(curve, (*RUN, "edits", "learned", "recall"), "recall curve")
    require(points, (*RUN, "found", "inflection", "slope_before", "slope_after"), "inflections")
    breaks = {tuple(row[name] for name in RUN): row for row in points.to_dict("records")}
    columns = [*RUN, "label", "start", "stop", "recall_start", "recall_stop"]
    rows = []
    for key, group in groups(curve):
        if tuple(key.values()) not in breaks:
            raise ValueError(f"no row for {label_of(key)} in inflections; compute them from the same history")
        found, label, x, recall = breaks[tuple(key.values())], "gradual", 0, 1.0
        bend = found["found"] == "bend" and found["slope_after"] >= steeper * max(found["slope_before"], 0)
        kept = group[group["learned"] >= min_learned].sort_values("edits")
        for stop, now in zip(kept["edits"], kept["recall"], strict=True):
            if recall - now > drop or (bend and x >= found["inflection"]):
                label = "catastrophic"
            elif label == "catastrophic":
                label = "after"
            if rows and rows[-1]["label"] == label and {name: rows[-1][name] for name in RUN} == key:
                rows[-1] |= {"stop": stop, "recall_stop": now}
            else:
                bounds = {"start": x, "stop": stop, "recall_start": recall, "recall_stop": now}
                rows.append({**key, "label": label, **bounds})
            x, recall = stop, now
    # Where too little was learned there is no row, and still arithmetic on columns.
    return pd.DataFrame(rows, columns=columns).astype({"recall_start": float, "recall_stop": float})
