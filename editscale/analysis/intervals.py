"""Bootstrap intervals over orders of facts, and paired comparisons of two methods on identical sequences.

One order is one draw of a sequence: what happens to its facts hangs together, so facts within it do not say how another
order would go. Intervals are percentiles of statistics of orders drawn anew with replacement (Efron and Tibshirani
1993, chapters 13 and 8). With few orders they are too narrow: of intervals called 95 %, about 50 % hold the mean of
normal values with two orders, 75 % with three, 84 % with five and 90 % with ten.
"""

from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd

_KEY = ("method", "reversed")


@dataclass(frozen=True)
class Interval:
    """A statistic with its interval, and the number n of orders (or facts) it was taken over."""

    mean: float
    low: float
    high: float
    n: int


def bootstrap(values, rng, *, statistic=np.mean, n_resamples=20_000, confidence=0.95):
    """`statistic` of values as an `Interval`: percentiles over values drawn with replacement.

    Args:
        values: one number per order, (n,), n ≥ 2.
        rng: numpy Generator.
        statistic: called as `statistic(array, axis=-1)`; numpy's mean, median, max, ….
        n_resamples: many, since the median of a few orders jumps from one of them to the next.

    Raises ValueError for fewer than two values or NaN.
    """
    values = np.asarray(values, dtype=float)
    if values.ndim != 1 or len(values) < 2:
        raise ValueError(f"a bootstrap needs two values or more in a row; shape is {values.shape}")
    if np.isnan(values).any():
        raise ValueError(f"{np.isnan(values).sum()} of {len(values)} values are NaN; drop or explain them first")
    draws = statistic(values[rng.integers(len(values), size=(n_resamples, len(values)))], axis=-1)
    low, high = _percentiles(draws, confidence)
    return Interval(float(statistic(values, axis=-1)), low, high, len(values))


def summary(values, rng, **options):
    """`bootstrap` of one number per order, or what there is: a single value without an interval, or none.

    Args:
        values: one number per order, (n,); NaN, where an order has nothing to say, is left out and not counted.
        options: see `bootstrap`.

    Returns an `Interval` with low and high NaN for n = 1, and mean NaN too for n = 0.
    """
    values = np.asarray(values, dtype=float)
    values = values[~np.isnan(values)]
    if len(values) > 1:
        return bootstrap(values, rng, **options)
    return Interval(float(values[0]) if len(values) else np.nan, np.nan, np.nan, len(values))


def by_group(rows, columns, rng, *, by=_KEY, **options):
    """`summary` of several columns in each group of runs: by, measure, mean, low, high, n; n counts orders.

    Args:
        rows: one row per group and order, with columns `by`, order and `columns`.
        options: see `bootstrap`.

    Raises ValueError for several rows of one order in a group.
    """
    if rows.duplicated([*by, "order"]).any():
        raise ValueError(f"several rows for one {', '.join(by)} and order; name the groups apart by `by`")
    found = [
        {**dict(zip(by, key, strict=True)), "measure": column, **asdict(summary(group[column], rng, **options))}
        for key, group in rows.groupby(list(by), sort=False)
        for column in columns
    ]
    return pd.DataFrame(found, columns=[*by, "measure", "mean", "low", "high", "n"])


def ratio(parts, wholes, rng, *, n_resamples=2000, confidence=0.95):
    """Σ parts / Σ wholes as an `Interval`, over orders drawn with replacement: the share of events of all orders.

    Args:
        parts, wholes: counts, or amounts, of each order, (n,). Draws of orders without any whole are left out.

    low and high are NaN for n < 2, mean too where all wholes are 0; n counts orders with a whole.
    """
    parts, wholes = (np.asarray(values, dtype=float) for values in (parts, wholes))
    n, total = len(wholes), wholes.sum()
    counted = int((wholes > 0).sum())
    if not total > 0:
        return Interval(np.nan, np.nan, np.nan, 0)
    if counted < 2:
        return Interval(float(parts.sum() / total), np.nan, np.nan, counted)
    drawn = rng.integers(n, size=(n_resamples, n))
    below = wholes[drawn].sum(axis=-1)
    low, high = _percentiles((parts[drawn].sum(axis=-1)[below > 0] / below[below > 0]), confidence)
    return Interval(float(parts.sum() / total), low, high, counted)


def in_words(interval, form="{:.0f}", unit=""):
    """An `Interval` as text: "62 % (55–70, 10 orders)", "62 % (one order)" or "not measured".

    Args:
        form: format of a number, or a function that writes one.
        unit: what follows the first number, such as " %".
    """
    write = form if callable(form) else form.format
    if np.isnan(interval.mean):
        return "not measured"
    inside = "one order" if interval.n == 1 else f"{between(interval, write)}, {interval.n} orders"
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
    names = [name for name in table.columns if name not in ("measure", "mean", "low", "high", "n")]
    words = [
        in_words(Interval(*row), form, unit)
        for row in table[["mean", "low", "high", "n"]].itertuples(index=False, name=None)
    ]
    return table.assign(words=words).set_index([*names, "measure"])["words"].unstack("measure", sort=False)


def extremes(table, measure, form=short, unit="", *, most="highest", least="lowest"):
    """ "lowest under rome (79 %) and highest under memit or ft-c (92 %)": where a measure of `by_group` ends.

    Of forward runs. "or": which of these it is their intervals leave open, as they overlap; the number is of the first
    named. Where even those of both ends overlap, that is said. "79 % under rome" for a single method, "79 % under every
    method" where all read the same, "not measured" for none; an infinite number is "never".
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
    low, high = forward["low"].to_numpy(), forward["high"].to_numpy()  # NaN, of a single order, overlaps nothing
    words = f"{least} under {{}} ({texts[0]}) and {most} under {{}} ({texts[-1]})"
    if low[-1] <= high[0]:
        return words.format(methods[0], methods[-1]) + ", but intervals overlap"
    first = [methods[0], *forward["method"][1:][low[1:] <= high[0]]]
    last = [methods[-1], *forward["method"][:-1][high[:-1] >= low[-1]]]
    return words.format(" or ".join(first), " or ".join(last))


def between(interval, write):
    """Both ends of an `Interval` as text: "55–70", or "-0.80 to -0.55" where one has a sign."""
    ends = write(interval.low), write(interval.high)
    return (" to " if any(end[0] in "+-" for end in ends) else "–").join(ends)


def band(table, column, rng, *, statistic=np.mean, n_resamples=2000, confidence=0.95):
    """Mean of `column` over orders (or another statistic), with its interval, at each number of edits.

    Args:
        table: rows of one method in one direction, with columns method, order, reversed, edits and `column`, one per
            order and number of edits.
        statistic: see `bootstrap`; it stands in the column `mean`.

    Returns:
        edits, mean, low, high, n (orders that have a value there). Runs that ended early are missing from the mean
        after their end. Where n is 1 there is no interval: low and high are NaN. Each number of edits has its own
        95 %; the band as a whole holds a whole curve less often.

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
    uniform = rng.random((n_resamples, len(orders)))  # the same draws at all edits, so that borders do not flicker
    rows = []
    for edits, group in table.dropna(subset=column).sort_values(["edits", "order"]).groupby("edits"):
        values = group[column].to_numpy(float)
        n = len(values)
        low, high = np.nan, np.nan
        if n > 1:
            low, high = _percentiles(statistic(values[(uniform[:, :n] * n).astype(int)], axis=-1), confidence)
        rows.append({"edits": edits, "mean": statistic(values, axis=-1), "low": low, "high": high, "n": n})
    return pd.DataFrame(rows, columns=["edits", "mean", "low", "high", "n"])


def paired_over_orders(first, second, column, rng, *, on=("edits", "case_id"), **options):
    """Mean of first − second in each order, averaged over the orders both have, as an `Interval`; n counts orders.

    Args:
        first, second: rows of one method in one direction each, with columns method, order, reversed, `on`, `column`.
        on: columns that name a row within an order; both tables must have the same ones. Edits scored right after
            themselves are named by their place and fact; a task's scores would be by ("edits", "task").
        options: see `bootstrap`.

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
    return bootstrap(means, rng, **options)


def paired_over_facts(first, second, column, rng, *, on=("edits", "case_id"), **options):
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
    of_facts = differences.groupby("case_id")["difference"].mean().dropna()  # hundreds: fewer resamples do
    if len(of_facts) < 2:
        raise ValueError(
            f"{len(of_facts)} of {differences['case_id'].nunique()} facts have a value of {column} under both methods, "
            "expected two or more; facts without a true answer have none: compare efficacy_accuracy"
        )
    return bootstrap(of_facts, rng, **{"n_resamples": 2000} | options)


def every_pair(table, column, rng, *, on=("edits", "case_id"), **options):
    """Each two methods on the same sequences: rows of first, second, over, mean, low, high and n of first − second.

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
                over, interval = "orders", paired_over_orders(first, second, column, rng, on=on, **options)
            else:
                pair = (rows[rows["order"].isin(shared)] if shared else rows for rows in (first, second))
                over, interval = "facts", paired_over_facts(*pair, column, rng, on=on, **options)
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


def _percentiles(draws, confidence):
    # A drawn value rather than one between two: collapsed runs have infinite perplexities.
    tails = ((1 - confidence) / 2, (1 + confidence) / 2)
    return tuple(np.quantile(draws, tails, method="inverted_cdf").tolist())


def _name(table):
    return table["method"].iloc[0] + (" reversed" if table["reversed"].iloc[0] else "")


def _orders(orders):
    return f"order{'s' * (len(orders) > 1)} {', '.join(map(str, sorted(orders)))}"
