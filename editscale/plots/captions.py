"""What captions say of runs: each run by itself where a method has one order, what holds over orders where it has
several."""

import numpy as np

from editscale.analysis import intervals
from editscale.plots import figures


def each(rows, column, form="{:.0f}", *, unit="", statistic=np.mean):
    """ "rome, order 0 92 %" for each run, or "rome, 10 orders 62 % (55–70)" for several orders: a list of texts.

    Args:
        rows: one row per run, with columns method, order, reversed and `column`. Methods and directions are named in
            the order they come; an order whose value is NaN does not count among several.
        form: format of a number, or a function that writes one.
        unit: what stands behind the number.
        statistic: over orders, with its 95 % interval (`intervals.bootstrap`).
    """
    rng, texts = np.random.default_rng(0), []
    write = form if callable(form) else form.format
    for (method, backward), group in rows.groupby(["method", "reversed"], sort=False):
        if group["order"].nunique() == 1:
            texts += [f"{figures.label_of(row)} {write(getattr(row, column))}{unit}" for row in group.itertuples()]
            continue
        found = intervals.summary(group[column], rng, statistic=statistic)
        if found.n > 1:
            name = figures.orders_label(method, found.n, backward)
            texts.append(f"{name} {write(found.mean)}{unit} ({intervals.between(found, write)})")
    return texts


MOST_TOLD = 5  # events of one run that a caption names one by one


def counted(rows, every, *, tell, sum_up):
    """Events of runs: `tell(row)` of each for single orders, in how many of several orders and `sum_up(events)`.

    A single order with more than MOST_TOLD events is summed up too.

    Args:
        rows: events, with columns method, order, reversed; may be empty.
        every: a table with all runs, which says how many orders a method has.

    Returns a list of texts, such as "rome, order 0 after 30 edits" or "rome, 9 of 10 orders, median after 480 edits".
    """
    texts = []
    for (method, backward), runs in every.groupby(["method", "reversed"], sort=False):
        events = rows[(rows["method"] == method) & (rows["reversed"] == backward)]
        n, hit = runs["order"].nunique(), events["order"].nunique()
        if n == 1 and len(events) > MOST_TOLD:
            texts.append(f"{figures.label_of(events.iloc[0])}, {sum_up(events)}")
        elif n == 1:
            texts += [f"{figures.label_of(row)} {tell(row)}" for row in events.itertuples()]
        else:
            label = figures.orders_label(method, n, backward).replace(f"{n} orders", f"{hit or 'none'} of {n} orders")
            texts.append(label + (f", {sum_up(events)}" if hit else ""))
    return texts


def span(values, form="{:.0f}"):
    """ "300–620": the smallest and the largest value."""
    return f"{form.format(min(values))}–{form.format(max(values))}"
