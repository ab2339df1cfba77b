"""Captions name each run where a method has one order, and what holds over orders where it has several."""

import pandas as pd

from editscale.plots import captions


def runs(method, values, backward=False):
    return pd.DataFrame({"method": method, "order": range(len(values)), "reversed": backward, "recall": values})


def test_single_orders_are_named_and_several_become_an_interval():
    rows = pd.concat([runs("rome", [0.2, 0.4, 0.6]), runs("rome", [0.5], True), runs("memit", [0.8])])
    texts = captions.each(rows, "recall", lambda share: f"{100 * share:.0f}", unit=" %")
    assert texts[0].startswith("rome, 3 orders 40 % (2") and texts[0].endswith("0)")
    assert texts[1:] == ["rome, order 0 reversed 50 %", "memit, order 0 80 %"]


def test_orders_without_a_value_do_not_count():
    assert captions.each(runs("rome", [0.5, 0.5, None]), "recall", "{:.1f}") == ["rome, 2 orders 0.5 (0.5–0.5)"]
    assert captions.each(runs("rome", [0.5, None]), "recall") == []


def test_intervals_with_signs_are_written_with_a_word_between():
    (text,) = captions.each(runs("rome", [-0.5, -0.5]), "recall", "{:.1f}")
    assert text == "rome, 2 orders -0.5 (-0.5 to -0.5)"


def test_events_are_told_one_by_one_or_counted_over_orders():
    every = pd.concat([runs("rome", [1, 1, 1]), runs("memit", [1]), runs("r-rome", [1, 1])])
    events = pd.concat([runs("rome", [3, 5]), runs("memit", [7])])
    texts = captions.counted(
        events, every, tell=lambda row: f"at {row.recall}", sum_up=lambda rows: captions.span(rows["recall"])
    )
    assert texts == ["rome, 2 of 3 orders, 3–5", "memit, order 0 at 7", "r-rome, none of 2 orders"]


def test_many_events_of_one_order_are_summed_up():
    events = pd.DataFrame({"method": "rome", "order": 0, "reversed": True, "edits": range(captions.MOST_TOLD + 1)})
    words = {"tell": lambda row: f"at {row.edits}", "sum_up": lambda rows: f"{len(rows)} events"}
    told = captions.counted(events, events, **words)
    assert told == [f"rome, order 0 reversed, {captions.MOST_TOLD + 1} events"]
    few = events.iloc[:2]
    told = captions.counted(few, events, **words)
    assert told == ["rome, order 0 reversed at 0", "rome, order 0 reversed at 1"]
