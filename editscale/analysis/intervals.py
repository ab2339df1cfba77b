"""Intervals over orders of facts, and paired comparisons of two methods on identical sequences.

One order is one draw of a sequence: what happens to its facts hangs together, so facts within it do not say how another
order would go. All intervals are 95 % ones, without resampling:

- of a mean, Student's t over orders;
- of a median, the order statistics that hold it with at least 95 % whatever the distribution (six orders or more);
- of a share of orders, the exact binomial one (Clopper and Pearson 1934);
- of a rate over all orders, t of the ratio estimator (Cochran 1977, §2.11), not below 0; where no order has an event
  there is no width, and words say that all are the same.

Of three orders or fewer there is no interval: the values themselves are given.
"""

from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd
from scipy import special

FEW = 3  # orders that are shown one by one
TAIL = 0.025
PARTS = ("mean", "low", "high", "n", "values")  # of an `Interval`, as columns of a table
_KEY = ("method", "reversed")


@dataclass(frozen=True)
class Interval:
    """A statistic with its interval, and the number n of orders (or facts) it was taken over.

    Without an interval, low and high are NaN, and `values` are the single values, of two or more.
    """

    mean: float
    low: float
    high: float
    n: int
    values: tuple = ()


def summary(values, *, statistic=np.mean, tail=TAIL):
    """Mean or median of one number per order as an `Interval`.

    Args:
        values: (n,); NaN, where an order has nothing to say, is left out and not counted. Infinite ones (an order that
            never gets there) have a median; a mean of them has no interval.
        statistic: numpy's mean or median.
        tail: chance that is left out at each end.
    """
    values = np.asarray(values, dtype=float)
    if values.ndim != 1:
        raise ValueError(f"an interval is of values in a row, one per order; shape is {values.shape}")
    values = values[~np.isnan(values)]
    middle = float(statistic(values)) if len(values) else np.nan
    low, high = _ends(values, statistic, tail)
    single = tuple(values.tolist()) if np.isnan(low) and len(values) > 1 else ()
    return Interval(middle, low, high, len(values), single)


def _ends(values, statistic, tail):
    """Both ends of the interval of `summary`, NaN where there is none."""
    n = len(values)
    if n > FEW and statistic is np.median:
        outside = int(np.searchsorted(special.bdtr(np.arange(n), n, 0.5), tail, side="right"))  # P(X ≤ k − 1) ≤ tail
        return tuple(np.sort(values)[[outside - 1, n - outside]].tolist()) if outside else (np.nan, np.nan)
    if n <= FEW or not np.isfinite(values).all():
        return np.nan, np.nan
    half = special.stdtrit(n - 1, 1 - tail) * values.std(ddof=1) / np.sqrt(n)
    return float(values.mean() - half), float(values.mean() + half)


def by_group(rows, columns, *, by=_KEY, statistic=np.mean):
    """`summary` of several columns in each group of runs: by, measure, mean, low, high, n, values; n counts orders.

    Args:
        rows: one row per group and order, with columns `by`, order and `columns`.
        statistic: see `summary`.

    Raises ValueError for several rows of one order in a group.
    """
    if rows.duplicated([*by, "order"]).any():
        raise ValueError(f"several rows for one {', '.join(by)} and order; name the groups apart by `by`")
    found = [
        {**dict(zip(by, key, strict=True)), "measure": column, **asdict(summary(group[column], statistic=statistic))}
        for key, group in rows.groupby(list(by), sort=False)
        for column in columns
    ]
    return pd.DataFrame(found, columns=[*by, "measure", *PARTS])


def ratio(parts, wholes, *, tail=TAIL):
    """Σ parts / Σ wholes over orders as an `Interval`: the share of the events of all orders.

    Args:
        parts, wholes: counts, or amounts, of each order, (n,). Orders without any whole do not count.
    """
    parts, wholes = (np.asarray(values, dtype=float) for values in (parts, wholes))
    parts, wholes = parts[wholes > 0], wholes[wholes > 0]
    n = len(wholes)
    if not n:
        return Interval(np.nan, np.nan, np.nan, 0)
    mean = float(parts.sum() / wholes.sum())
    if n <= FEW:
        return Interval(mean, np.nan, np.nan, n, tuple((parts / wholes).tolist()) if n > 1 else ())
    if (wholes == 1).all() and np.isin(parts, (0, 1)).all():
        return share(round(mean * n), n, tail=tail)
    error = np.sqrt(n / (n - 1) * ((parts - mean * wholes) ** 2).sum()) / wholes.sum()
    half = float(special.stdtrit(n - 1, 1 - tail) * error)
    return Interval(mean, max(mean - half, 0.0), mean + half, n)


def share(hits, n, *, of=None, tail=TAIL):
    """hits / n as an `Interval`, the exact binomial one (Clopper and Pearson 1934); n > 0.

    Args:
        of: how many there are in all, where the n were drawn of them without replacement: the interval then holds the
            shares of these that the draw does not refute, by the hypergeometric distribution; of all of them, one.
    """
    if of is not None:
        among, drawn = np.arange(hits, of - n + hits + 1), np.arange(n + 1)[:, None]  # hits of all, and of those drawn
        chances = np.exp(_ways(among, drawn) + _ways(of - among, n - drawn) - _ways(of, n))
        left = among[(chances[: hits + 1].sum(axis=0) > tail) & (chances[hits:].sum(axis=0) > tail)] / of
        return Interval(hits / n, float(left[0]), float(left[-1]), n)
    low = special.betaincinv(hits, n - hits + 1, tail) if hits else 0.0
    high = special.betaincinv(hits + 1, n - hits, 1 - tail) if hits < n else 1.0
    return Interval(hits / n, float(low), float(high), n)


def _ways(n, k):
    """log of how many ways there are to draw k of n, −inf where k > n."""
    return special.gammaln(n + 1) - special.gammaln(k + 1) - special.gammaln(n - k + 1)


def read(path):
    """A table with the columns `PARTS` from the CSV that it was written to."""
    numbers = {"values": lambda text: tuple(float(x) for x in text.strip("()").split(",") if x.strip())}
    return pd.read_csv(path, converters=numbers)


def in_words(interval, form="{:.0f}", unit="", over="orders"):
    """An `Interval` as text: "62 % (55–70, 10 orders)", "62 % (3 orders: 55, 61, 70)", "62 % (one order)", "62 % (the
    same in 10 orders)" or "not measured".

    Args:
        form: format of a number, or a function that writes one.
        unit: what follows the first number, such as " %".
        over: what n counts.
    """
    write = form if callable(form) else form.format
    if np.isnan(interval.mean):
        return "not measured"
    if interval.n == 1:
        inside = f"one {over.removesuffix('s')}"
    elif interval.low == interval.high or len(set(interval.values)) == 1:
        inside = f"the same in {interval.n} {over}"
    elif len(interval.values):
        inside = f"{interval.n} {over}: {', '.join(map(write, sorted(interval.values)))}"
    elif np.isnan(interval.low):
        inside = f"{interval.n} {over}"
    else:
        inside = f"{between(interval, write)}, {interval.n} {over}"
    return f"{write(interval.mean)}{unit} ({inside})"


def short(value):
    """A number with about three digits: "1000", "12.3", "0.45", "0.012"."""
    digits = next((n for n, least in enumerate((100, 10, 0.1)) if abs(value) >= least), 3 if value else 0)
    return f"{value:z.{digits}f}"


def worded(table, form=short, unit=""):
    """A table of intervals (`by_group`) for reading: a column per measure, its cells as `in_words` writes them.

    The column `reversed` becomes `direction`, forward or reversed.
    """
    if "reversed" in table:
        directions = table["reversed"].map({False: "forward", True: "reversed"})
        table = table.assign(reversed=directions).rename(columns={"reversed": "direction"})
    names = [name for name in table.columns if name not in ("measure", *PARTS)]
    words = [in_words(Interval(*row), form, unit) for row in table[list(PARTS)].itertuples(index=False, name=None)]
    return table.assign(words=words).set_index([*names, "measure"])["words"].unstack("measure", sort=False)


def extremes(table, measure, form=short, unit="", *, most="highest", least="lowest"):
    """ "lowest under rome (79 %) and highest under memit or ft-c (92 %)": where a measure of `by_group` ends.

    Of forward runs. "or": which of these it is their intervals leave open, as they overlap; the number is of the first
    named, and where there are more than three, "or others". Where even those of both ends overlap, that is said. "79 %
    under rome" for a single method, "79 % under every method" where all read the same, "not measured" for none; an
    infinite number is "never".
    """
    write = form if callable(form) else form.format
    forward = table[(table["measure"] == measure) & ~table["reversed"]].dropna(subset="mean").sort_values("mean")
    texts = ["never" if np.isinf(mean) else f"{write(mean)}{unit}" for mean in forward["mean"]]
    if not texts:
        return "not measured"
    methods = forward["method"].tolist()
    if len(methods) == 1:
        return f"{texts[0]} under {methods[0]}"
    if len(set(texts)) == 1:
        return f"{texts[0]} under every method"
    low, high = (forward[end].to_numpy(copy=True) for end in ("low", "high"))  # NaN, of one order, overlaps nothing
    for i, values in enumerate(forward["values"]):
        if len(values):
            low[i], high[i] = min(values), max(values)
    words = f"{least} under {{}} ({texts[0]}) and {most} under {{}} ({texts[-1]})"
    if low[-1] <= high[0]:
        return words.format(methods[0], methods[-1]) + ", but intervals overlap"
    first = [methods[0], *forward["method"][1:][low[1:] <= high[0]]]
    last = [methods[-1], *forward["method"][:-1][high[:-1] >= low[-1]]]
    few = [of if len(of) <= 3 else [of[0], "others"] for of in (first, last)]
    return words.format(*(" or ".join(of) for of in few))


def between(interval, write):
    """Both ends of an `Interval` as text: "55–70", or "-0.80 to -0.55" where one has a sign."""
    ends = write(interval.low), write(interval.high)
    return (" to " if any(end[0] in "+-" for end in ends) else "–").join(ends)


def band(table, column, *, statistic=np.mean):
    """Mean of `column` over orders (or median), with its interval, at each number of edits.

    Args:
        table: rows of one method in one direction, with columns method, order, reversed, edits and `column`, one per
            order and number of edits.
        statistic: see `summary`; it stands in the column `mean`.

    Returns:
        edits, mean, low, high, n (orders that have a value there). Runs that ended early are missing from the mean
        after their end. Where there are few orders there is no interval: low and high are NaN. Each number of edits has
        its own 95 %; the band as a whole holds a whole curve less often.

    Raises ValueError if the table holds several methods or directions, several rows per order and number of edits, or
    fewer than two orders.
    """
    _require_one(table, column, "edits")
    if table.duplicated(["order", "edits"]).any():
        raise ValueError(
            f"{_name(table)}: several rows for one order and number of edits; average over facts, or take one task or "
            "layer, first"
        )
    orders = table["order"].unique()
    if len(orders) < 2:
        raise ValueError(
            f"no second order for a band: {_name(table)} has {_orders(orders)} only; draw its line instead"
        )
    rows = [
        {"edits": edits, **asdict(summary(values, statistic=statistic))}
        for edits, values in table.dropna(subset=column).groupby("edits")[column]
    ]
    return pd.DataFrame(rows, columns=["edits", "mean", "low", "high", "n"])


def paired_over_orders(first, second, column, *, on=("edits", "case_id")):
    """Mean of first − second in each order, averaged over the orders both have, as an `Interval`; n counts orders.

    Args:
        first, second: rows of one method in one direction each, with columns method, order, reversed, `on`, `column`.
        on: columns that name a row within an order; both tables must have the same ones. Edits scored right after
            themselves are named by their place and fact; a task's scores would be by ("edits", "task").

    Facts without a value (no true answer) are left out. Raises ValueError if the methods did not go through the same
    facts, or share fewer than two orders with values.
    """
    differences = _differences(first, second, column, on)
    means = differences.groupby("order")["difference"].mean().dropna()
    if len(means) < 2:
        raise ValueError(
            f"no second order for a paired test: {_name(first)} and {_name(second)} share {_orders(means.index)} only; "
            "run both on another order, or compare the facts of this one with paired_over_facts"
        )
    return summary(means)


def paired_over_facts(first, second, column, *, on=("edits", "case_id")):
    """Mean of first − second over the facts of one identical sequence, as an `Interval`; n counts facts.

    It says how sure the difference is for this sequence, not for another order. Arguments as `paired_over_orders`, with
    one order in each table and case_id in `on`; several rows of a fact, as at several checkpoints, are averaged first.

    Facts without a value (no true answer) are left out. Raises ValueError if the sequences differ, if there are several
    orders, or fewer than two facts with a value.
    """
    if "case_id" not in on:
        raise ValueError(f"rows named by {', '.join(on)} are not facts; give `on` with case_id, or use orders")
    differences = _differences(first, second, column, on)
    if differences["order"].nunique() > 1:
        raise ValueError(
            f"the facts of several orders ({_orders(differences['order'].unique())}); give one, or compare over orders"
        )
    of_facts = differences.groupby("case_id")["difference"].mean().dropna()
    if len(of_facts) < 2:
        raise ValueError(
            f"{len(of_facts)} of {differences['case_id'].nunique()} facts have a value of {column} under both methods, "
            "expected two or more; facts without a true answer have none: compare efficacy_accuracy"
        )
    return summary(of_facts)


def every_pair(table, column, *, on=("edits", "case_id")):
    """Each two methods on the same sequences: rows of first, second, over and the `Interval` of first − second.

    Over orders where both have two or more of the same, else over the facts of the one they share; `over` says which.

    Args:
        table: rows of several methods in one direction; methods are taken in the order they come.

    Raises ValueError as `paired_over_orders` and `paired_over_facts` do, and if the table holds a single method.
    """
    runs = [rows for _, rows in table.groupby("method", sort=False)]
    if len(runs) < 2:
        raise ValueError(
            f"no second method to compare with {', '.join(table['method'].unique())}; give runs of another"
        )
    found = []
    for i, first in enumerate(runs):
        for second in runs[i + 1 :]:
            shared = sorted(set(first["order"]) & set(second["order"]))
            if len(shared) > 1:
                over, interval = "orders", paired_over_orders(first, second, column, on=on)
            else:
                pair = (rows[rows["order"].isin(shared)] if shared else rows for rows in (first, second))
                over, interval = "facts", paired_over_facts(*pair, column, on=on)
            names = {"first": first["method"].iloc[0], "second": second["method"].iloc[0], "over": over}
            found.append({**names, **asdict(interval)})
    return pd.DataFrame(found)


def _differences(first, second, column, on):
    """order, `on` and difference = first − second, for each row of the orders that both tables have."""
    keys = ["order", *on]
    for table in (first, second):
        _require_one(table, column, *on)
        if table.duplicated(keys).any():
            raise ValueError(f"{_name(table)}: several rows for one {', '.join(keys)}; name them apart by `on`")
    shared = np.intersect1d(first["order"], second["order"])
    if not len(shared):
        raise ValueError(
            f"{_name(first)} has {_orders(first['order'].unique())} and {_name(second)} "
            f"{_orders(second['order'].unique())}; a paired test needs the same sequences"
        )
    left, right = (table.loc[table["order"].isin(shared), [*keys, column]] for table in (first, second))
    both = left.merge(right, on=keys, how="outer", suffixes=("_first", "_second"), indicator=True)
    if len(odd := both[both["_merge"] != "both"]):
        where = ", ".join(f"{name} {value}" for name, value in zip(keys, odd[keys].iloc[0], strict=True))
        has = first if odd["_merge"].iloc[0] == "left_only" else second
        raise ValueError(
            f"{_name(first)} and {_name(second)} are not on identical sequences: {len(odd)} of {len(both)} rows are "
            f"in one only, first {where} of {_name(has)}; give runs of the same facts, cut to the same edits"
        )
    return both[keys].assign(difference=both[f"{column}_first"] - both[f"{column}_second"])


def _require_one(table, *columns):
    """Raise ValueError unless the table has the columns and is of one method in one direction."""
    if missing := [name for name in (*_KEY, "order", *columns) if name not in table]:
        raise ValueError(f"the table lacks {', '.join(missing)}; it has {', '.join(map(str, table.columns))}")
    runs = table[list(_KEY)].drop_duplicates()
    if len(runs) != 1:
        raise ValueError(
            f"the table is of {len(runs)} methods or directions, not one; intervals are over orders of one"
        )


def _name(table):
    return table["method"].iloc[0] + (" reversed" if table["reversed"].iloc[0] else "")


def _orders(orders):
    return f"order{'s' * (len(orders) > 1)} {', '.join(map(str, sorted(orders)))}"
