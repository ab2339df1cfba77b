"""Forgetting as a hazard: the share of the facts still recalled that the next 20 edits lose, and where it changes.

One definition: a stretch of a run is *catastrophic* where at least half of the facts still recalled are lost within 20
edits, and at least 20 are recalled at its start; every other stretch is *gradual*. A hazard h over another number of
edits is converted to 20 by 1 − (1 − h)^(20 / number).

A hazard asks only of facts that can still be lost: unlike recall, it is neither diluted by new facts nor flat where few
are left. Facts of one interval are lost together, so counts scatter φ times as much as binomial ones (`dispersion`),
and log likelihoods are divided by φ (McCullagh and Nelder 1989, section 4.5).
"""

import numpy as np
import pandas as pd

from editscale.analysis.forgetting import runs_of
from editscale.analysis.rows import groups, require
from editscale.columns import RUN

PER = 20  # edits that a hazard is given for
CATASTROPHIC = 0.5  # share lost within PER edits
LEAST = 20  # facts at risk at the start of a catastrophic stretch, and of intervals that show φ
SCATTER = 2.0  # φ of `stretches`: recorded runs of methods other than ROME have a median of 1.5, 27 of 34 at most 2
_HAZARDS = np.linspace(0, 1, 1001)  # a fitted hazard is one of these
_COLUMNS = (*RUN, "start", "stop", "at_risk", "lost")


def losses(history, edits, every=PER):
    """How many of the facts recalled at one checkpoint the next one misses: one row per run and interval.

    Args:
        history, edits: see `forgetting`.
        every: edits between checkpoints; of those there are, the nearest to 0, `every`, 2 `every`, … are taken.

    Returns:
        method, order, reversed, start, stop (edits); at_risk: learned facts recalled at start; lost: of these, not
        recalled at stop; hazard = lost / at_risk over the interval, NaN without a fact at risk. A run with a single
        checkpoint has no row.

    A fact learned within an interval is at risk from the first of these checkpoints that recalls it; one lost before
    that is not counted. A fact that comes back is at risk again.
    """
    tables = []
    for run in runs_of(history, edits):
        at, known = looks(run, every)
        at_risk, lost = known[:, :-1].sum(axis=0), (known[:, :-1] & ~known[:, 1:]).sum(axis=0)
        columns = {"start": at[:-1], "stop": at[1:], "at_risk": at_risk, "lost": lost}
        tables.append(pd.DataFrame({**run.key, **columns}))
    table = pd.concat(tables, ignore_index=True)
    return table.assign(hazard=table["lost"] / table["at_risk"].where(table["at_risk"] > 0))


def looks(run, every=PER):
    """The checkpoints of a run nearest to 0, `every`, 2 `every`, … edits, and which learned facts each recalls.

    Args:
        run: see `forgetting.RunRecall`.

    Returns edits, ascending, and (facts, checkpoints) of bool.
    """
    if every < 1:
        raise ValueError(f"every is {every}; expected one edit or more between checkpoints")
    aims = np.arange(0, run.checkpoints[-1] + every, every)
    places = np.unique(np.abs(run.checkpoints[:, None] - aims).argmin(axis=0))
    return run.checkpoints[places], run.scored()[:, places] & (run.recalled[:, places] == 1)


def constant(losses, by=RUN):
    """The one hazard, per 20 edits to 0.001, that fits best: `by`, hazard of each group with facts at risk."""
    require(losses, (*by, *_COLUMNS), "losses")
    rows = [
        {**key, "hazard": _HAZARDS[_log_likelihood(own).sum(axis=0).argmax()]}
        for key, own in groups(losses[losses["at_risk"] > 0], by)
    ]
    return pd.DataFrame(rows, columns=[*by, "hazard"])


def over_edits(losses, width=100):
    """The hazard of each run over edits, of the intervals that start within `width` edits together.

    Returns method, order, reversed, edits (the last edit of these intervals in any run), hazard per 20 edits.
    """
    require(losses, _COLUMNS, "losses")
    block = losses["start"] // width
    return constant(losses.assign(edits=losses["stop"].groupby(block).transform("max")), (*RUN, "edits"))


def before(losses, places):
    """The hazard of each run up to its collapse, or else its end: method, order, reversed, hazard per 20 edits.

    Args:
        losses: see `losses`.
        places: see `collapse.where`, of the same runs. NaN for a run without facts at risk in an interval up to there.
    """
    require(losses, _COLUMNS, "losses")
    table = losses.merge(places[[*RUN, "collapse"]], on=list(RUN), how="left")
    if table["collapse"].isna().any():
        raise ValueError("a run of losses has no place of collapse; give collapse.where of the same runs")
    sound = constant(table[table["stop"] <= table["collapse"]])
    return places[list(RUN)].merge(sound, on=list(RUN), how="left")


def until_half(recall):
    """Edits at the first checkpoint that recalls less than half of the learned facts, infinite for a run without one.

    Args:
        recall: see `forgetting.recall_curve`.

    Returns method, order, reversed, half: one row per run.
    """
    rows = []
    for run, own in groups(recall):
        below = own.loc[own["recall"] < 0.5, "edits"]
        rows.append({**run, "half": float(below.min()) if len(below) else np.inf})
    return pd.DataFrame(rows, columns=[*RUN, "half"])


def stretches(losses, *, catastrophic=CATASTROPHIC, least=LEAST, scatter=SCATTER):
    """The stretches of each run within which the hazard is constant, and whether each is gradual or catastrophic.

    The breaks, any number of them, minimize −2 log L / φ + (number of breaks) · (2 log m + 4) over all ways to cut the
    m intervals with facts at risk (dynamic programming, exact); L is binomial. The penalty: where there is no break,
    one at a given place gains more than that with probability P(χ²₁ > 2 log m + 4) < 0.14 / m / √(π (log m + 2)), so
    one at any of m − 1 places with less than 5 %. φ is one number for all runs, or the bursts of a run would hide it.

    In simulated runs of a constant hazard, with the facts at risk of recorded ones, fewer than 1 % had a break at a
    true φ up to 1.5, 0–4 % at 2, 5–17 % at 3; if φ were left out, 14–26 % at 1.7.

    Args:
        losses: see `losses`.
        catastrophic, least: hazard per 20 edits and facts at risk from which on a stretch is catastrophic.
        scatter: φ.

    Returns:
        method, order, reversed, start, stop; hazard: per 20 edits, to 0.001; at_risk: facts at its start; lost: facts
        lost in it, again where they had come back; label. Intervals without a fact at risk say nothing: they may lie
        in or between stretches.
    """
    rows = []
    for run, own in _runs(losses):
        n, lost = own["at_risk"].to_numpy(), own["lost"].to_numpy()
        sums = np.vstack([np.zeros(len(_HAZARDS)), _log_likelihood(own).cumsum(axis=0)])
        for i, j in _cuts(sums / scatter, 2 * np.log(len(n)) + 4):
            hazard = _HAZARDS[(sums[j] - sums[i]).argmax()]
            bounds = {"start": own["start"].iloc[i], "stop": own["stop"].iloc[j - 1]}
            label = "catastrophic" if hazard >= catastrophic and n[i] >= least else "gradual"
            rows.append({**run, **bounds, "hazard": hazard, "at_risk": n[i], "lost": lost[i:j].sum(), "label": label})
    return pd.DataFrame(rows, columns=[*RUN, "start", "stop", "hazard", "at_risk", "lost", "label"])


def with_catastrophe(stretches, runs, *, thresholds=(0.4, CATASTROPHIC, 0.6), least=LEAST):
    """How many orders of each method have a catastrophic stretch, at several thresholds of its hazard.

    Args:
        stretches: see `stretches`.
        runs: a table with columns method, order, reversed that holds every run.

    Returns:
        method, reversed, orders; "at 0.4", …: how many of them; verdict: "none", "some orders", "most orders" (more
        than half), or "undecided" where these differ between thresholds.
    """
    require(stretches, (*RUN, "hazard", "at_risk"), "stretches")
    rows = []
    for key, own in groups(runs[list(RUN)].drop_duplicates(), ("method", "reversed")):
        large = own.merge(stretches[stretches["at_risk"] >= least], on=list(RUN))
        counts = [large.loc[large["hazard"] >= threshold, "order"].nunique() for threshold in thresholds]
        kinds = {"none" if not k else "most orders" if 2 * k > len(own) else "some orders" for k in counts}
        of_each = {f"at {threshold:g}": k for threshold, k in zip(thresholds, counts, strict=True)}
        rows.append({**key, "orders": len(own), **of_each, "verdict": kinds.pop() if len(kinds) == 1 else "undecided"})
    return pd.DataFrame(rows)


def in_words(verdicts, catastrophic=CATASTROPHIC):
    """What `with_catastrophe` finds of forward runs, in one sentence with two numbers; many methods are not named."""
    forward = verdicts[~verdicts["reversed"]]
    lost = f"{100 * catastrophic:.0f} % of the recalled facts within {PER} edits"
    if (forward["verdict"] == "none").all():
        return f"No order of any method has a stretch that loses {lost}."
    parts = []
    words = {"most orders": "in most orders of", "some orders": "in some orders of"}
    words |= {"undecided": "depending on the threshold under", "none": "never under"}
    for verdict, said in words.items():
        names = forward.loc[forward["verdict"] == verdict, "method"].tolist()
        named = " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))
        named = "several methods" if len(forward) > 6 and len(names) > 1 else named  # a finding is short
        parts += [f"{said} {named}"] if names else []
    return f"Some stretch loses {lost}: {'; '.join(parts)}."


def speedups(losses, rng, *, n_draws=10_000, level=0.05):
    """Whether the hazard of each run rises: a test against one constant hazard, corrected over all runs of the table.

    The statistic is the largest 2 log likelihood ratio of one break after which the hazard is higher, over the run's φ
    (`dispersion`: one sudden loss counts as scatter). Its distribution without a rise comes from draws of the whole
    run: each interval loses a beta-binomial number of its facts at risk, of the run's one hazard and φ.

    Returns:
        method, order, reversed; place: edits at the best break; low, high: hazards per interval before and after it
        (NaN without a rise); p_value: share of draws with a statistic at least as large; p_holm; rises: p_holm ≤
        `level`. A run with one interval has p = 1.

    The smallest p is 1 / (n_draws + 1): Holm asks for more than (number of runs) / level draws.
    """
    rows = []
    for run, own in _runs(losses):
        n, lost = own["at_risk"].to_numpy(), own["lost"].to_numpy()
        row = {**run, "place": np.nan, "low": np.nan, "high": np.nan, "p_value": 1.0}
        (observed,), (i,) = _rise(n, lost[None])
        if observed > 0:
            length, constant = _length(own), _HAZARDS[_log_likelihood(own).sum(axis=0).argmax()]
            drawn, _ = _rise(n, _draws(n, 1 - (1 - constant) ** length, dispersion(n, lost), rng, n_draws))
            row |= {"place": own["stop"].iloc[i], "low": lost[: i + 1].sum() / n[: i + 1].sum()}
            row |= {"high": lost[i + 1 :].sum() / n[i + 1 :].sum()}
            row["p_value"] = (1 + (drawn >= observed - 1e-9).sum()) / (1 + n_draws)
        rows.append(row)
    table = pd.DataFrame(rows, columns=[*RUN, "place", "low", "high", "p_value"])
    table["p_holm"] = holm(table["p_value"])
    return table.assign(rises=table["p_holm"] <= level)


def holm(p):
    """p values corrected for their number: wrongly small ones among them all stay below the level (Holm 1979)."""
    p = np.asarray(p, dtype=float)
    if len(wrong := p[~((p >= 0) & (p <= 1))]):
        raise ValueError(f"{wrong[0]} is among the p values; expected numbers from 0 to 1")
    rank, corrected = np.argsort(p, kind="stable"), np.empty_like(p)
    corrected[rank] = np.minimum(1, np.maximum.accumulate((len(p) - np.arange(len(p))) * p[rank]))
    return corrected


def dispersion(at_risk, lost, least=LEAST):
    """φ, at least 1: the mean square of differences between neighboring hazards, in binomial standard errors.

    Args:
        at_risk, lost: (m,) and (…, m). Neighbors with fewer than `least` facts at risk are left out; if all are, φ = 1.
    """
    used = (at_risk[:-1] >= least) & (at_risk[1:] >= least)
    if not used.any():
        return np.ones(lost.shape[:-1])
    n, after, x, y = at_risk[:-1][used], at_risk[1:][used], lost[..., :-1][..., used], lost[..., 1:][..., used]
    pooled = (x + y) / (n + after)
    variance = pooled * (1 - pooled) * (1 / n + 1 / after)
    squares = (x / n - y / after) ** 2 / np.where(variance > 0, variance, 1)  # without variance there is no difference
    return np.maximum(1, squares.mean(axis=-1))


def _runs(losses):
    """Each run and its intervals with facts at risk, in order."""
    require(losses, _COLUMNS, "losses")
    for run, own in groups(losses[losses["at_risk"] > 0]):
        yield run, own.sort_values("start")


def _length(own):
    return ((own["stop"] - own["start"]) / PER).to_numpy()


def _log_likelihood(own):
    """Binomial log likelihood of each interval, (intervals, hazards): of each of _HAZARDS per 20 edits."""
    length, n, lost = (x[:, None] for x in (_length(own), own["at_risk"].to_numpy(), own["lost"].to_numpy()))
    with np.errstate(divide="ignore"):
        kept = length * np.log1p(-_HAZARDS)  # log share of facts kept over the interval
        gone = np.log(-np.expm1(kept))
    return lost * np.maximum(gone, -1e6) + (n - lost) * np.maximum(kept, -1e6)  # finite: none of a kind gives 0


def _cuts(sums, penalty):
    """Places (i, j) of the stretches with the least −2 log L + penalty per break; sums: (intervals + 1, hazards)."""
    cost, last = np.array([-penalty]), [0]
    for j in range(1, len(sums)):
        costs = cost - 2 * (sums[j] - sums[:j]).max(axis=1) + penalty
        last.append(int(costs.argmin()))
        cost = np.append(cost, costs.min())
    cuts, j = [], len(sums) - 1
    while j:
        cuts.append((last[j], j))
        j = last[j]
    return cuts[::-1]


def _draws(at_risk, hazard, phi, rng, n_draws):
    """Lost facts of each interval, (draws, intervals): binomial, or beta-binomial with φ times the variance."""
    shape = (n_draws, len(at_risk))
    if phi > 1:
        together = np.clip((phi - 1) / np.maximum(at_risk - 1, 1), 1e-9, 0.5)  # correlation of facts; of few, up to ½
        a, b = (np.maximum(share * (1 / together - 1), 1e-9) for share in (hazard, 1 - hazard))
        hazard = rng.beta(a, b, size=shape)
    return rng.binomial(at_risk, hazard, size=shape)


def _rise(at_risk, lost):
    """Largest 2 log likelihood ratio of a break after which the hazard is higher, over φ, and the place of the last
    interval before it; lost: (runs, intervals)."""
    if len(at_risk) < 2:
        return np.zeros(len(lost)), np.zeros(len(lost), dtype=int)
    count = np.arange(at_risk.sum() + 1)
    times_log = count * np.log(np.maximum(count, 1))

    def log_likelihood(n, x):
        return times_log[x] + times_log[n - x] - times_log[n]

    n, x = at_risk.cumsum(), lost.cumsum(axis=1)
    first, second = (n[:-1], x[:, :-1]), (n[-1] - n[:-1], x[:, -1:] - x[:, :-1])
    ratio = 2 * (log_likelihood(*first) + log_likelihood(*second) - log_likelihood(n[-1], x[:, -1:]))
    ratio = np.where(second[1] * first[0] > first[1] * second[0], ratio, 0)
    return ratio.max(axis=1) / dispersion(at_risk, lost), ratio.argmax(axis=1)
