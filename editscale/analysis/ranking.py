"""How well a score ranks events above other edits: the area under the ROC curve, and its interval over orders."""

import numpy as np

from editscale.analysis.intervals import FEW, Interval


def auroc(scores, events):
    """The chance that an event has a higher score than another edit (area under the ROC curve); ties count half.

    Args:
        scores: (n,), without NaN.
        events: (n,), bool.

    NaN where all are events, or none is. Raises ValueError for scores that are NaN.
    """
    won, pairs = _pairs([scores], [events])
    return float(won[0, 0] / pairs[0, 0]) if pairs[0, 0] else np.nan


def over_orders(scores, events, orders, rng, *, n_resamples=2000, confidence=0.95):
    """`auroc` of all orders pooled as an `Interval`; n counts orders with an event.

    The interval is of orders drawn anew with replacement; where FEW or fewer have an event, low and high are NaN. A
    draw's value is exact: drawn mᵢ times each, orders give mᵀWm / mᵀPm, where Wᵢⱼ counts the pairs of an event of order
    i and another edit of order j that the event wins, Pᵢⱼ all of them.
    """
    scores, events, orders = (np.asarray(values) for values in (scores, events, orders))
    parts = [orders == order for order in np.unique(orders)]
    won, pairs = _pairs([scores[part] for part in parts], [events[part] for part in parts])
    n, n_with = len(parts), sum(bool(events[part].any()) for part in parts)
    if not pairs.sum():
        return Interval(np.nan, np.nan, np.nan, n_with)
    mean = float(won.sum() / pairs.sum())
    if n_with <= FEW:
        return Interval(mean, np.nan, np.nan, n_with)
    times = rng.multinomial(n, np.full(n, 1 / n), size=n_resamples)
    above, below = (np.einsum("di,ij,dj->d", times, counted, times) for counted in (won, pairs))
    tails = ((1 - confidence) / 2, (1 + confidence) / 2)
    low, high = np.quantile(above[below > 0] / below[below > 0], tails, method="inverted_cdf")
    return Interval(mean, float(low), float(high), n_with)


def _pairs(scores, events):
    """Pairs of an event of group i and another edit of group j: (won by the event, ties half; all), both (n, n)."""
    won, pairs = np.zeros((len(scores),) * 2), np.zeros((len(scores),) * 2)
    scores = [np.asarray(of, dtype=float) for of in scores]
    events = [np.asarray(of, dtype=bool) for of in events]
    if any(np.isnan(of).any() for of in scores):
        raise ValueError("scores are NaN; drop edits without one before they are ranked")
    others = [np.sort(of[~hit]) for of, hit in zip(scores, events, strict=True)]
    for i, (of, hit) in enumerate(zip(scores, events, strict=True)):
        for j, other in enumerate(others):
            below, upto = (np.searchsorted(other, of[hit], side=side) for side in ("left", "right"))
            won[i, j], pairs[i, j] = (below + upto).sum() / 2, hit.sum() * len(other)
    return won, pairs
