"""Kaplan–Meier survival of edited facts by the age of their edit, and its median. Takes `forgetting.fact_table`."""

from statistics import NormalDist

import numpy as np
import pandas as pd

from editscale.analysis.rows import groups, require
from editscale.columns import RUN


def kaplan_meier(facts, by=RUN, *, confidence=0.95):
    """Kaplan–Meier estimate of the share of learned facts never yet found forgotten, by age of the edit.

    S(t) = Π (1 − d/n) over ages up to t at which d of the n facts still followed are found forgotten. The event is the
    first checkpoint that does not recall the fact: forgetting happened somewhere since the checkpoint before, so ages
    are late by up to one interval. Facts never found forgotten are censored at the last checkpoint.

    Args:
        facts: see `forgetting.fact_table`; only `by`, forgotten and age (NaN: not followed) are used.
        by: columns that name a curve; ("method",) pools the facts of all orders.

    Returns:
        `by`, age, at_risk (n), forgotten (d), censored, survival, low, high; ages 0 and all observed ones. low and
        high: Greenwood's variance on the scale log(−log S); NaN where that is undefined, at S = 1 and S = 0.

    The interval takes facts to be independent, and the estimate takes risk to depend on age alone. A disabling edit
    breaks both: it hits all facts at once. Read intervals over orders beside it.

    Source: Kaplan and Meier 1958; Kalbfleisch and Prentice 2002, section 1.4.
    """
    require(facts, (*by, "forgotten", "age"), "facts")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    rows = []
    for key, group in groups(facts[facts["age"].notna()], by):
        age, event = group["age"].to_numpy(float), group["forgotten"].to_numpy(bool)
        ages = np.union1d([0.0], age)
        at_risk = len(age) - np.searchsorted(np.sort(age), ages, side="left")
        deaths, left = (np.array([(kind & (age == t)).sum() for t in ages]) for kind in (event, ~event))
        share = np.cumprod(1 - deaths / at_risk)
        inner = (share > 0) & (deaths.cumsum() > 0)
        greenwood = np.cumsum(deaths / np.where(inner, at_risk * (at_risk - deaths), np.inf))
        log_s = np.log(np.where(inner, share, 0.5))
        width = z * np.sqrt(greenwood) / np.abs(log_s)
        columns = {
            "age": ages,
            "at_risk": at_risk,
            "forgotten": deaths,
            "censored": left,
            "survival": share,
            "low": np.where(inner, np.exp(log_s * np.exp(width)), np.nan),
            "high": np.where(inner, np.exp(log_s * np.exp(-width)), np.nan),
        }
        rows.append(pd.DataFrame({**key, **columns}))
    if not rows:
        raise ValueError("no learned fact was followed to a checkpoint, so there is no survival to estimate")
    return pd.concat(rows, ignore_index=True)


def median(curve, by=RUN):
    """Age by which half of the facts are forgotten: `by`, median, low, high, facts, forgotten of each curve.

    Args:
        curve: see `kaplan_meier`.

    The smallest age with S ≤ ½; low and high are where the interval's borders reach ½ (Brookmeyer and Crowley 1982).
    NaN: not reached within the run.
    """

    def reached(group, column):
        below = group["age"][group[column] <= 0.5 + 1e-12]  # a product of fractions may miss ½ in its last bit
        return below.min() if len(below) else np.nan

    rows = []
    for key, group in groups(curve, by):
        ages = {"median": reached(group, "survival"), "low": reached(group, "low"), "high": reached(group, "high")}
        rows.append({**key, **ages, "facts": group["at_risk"].iloc[0], "forgotten": group["forgotten"].sum()})
    return pd.DataFrame(rows)
