"""What the panels of figure 2 draw: single orders with their collapse, hazards, recall around the collapse."""

import math

import numpy as np
import pandas as pd

from editscale.plots import forgetting_panels

KEY = {"method": "rome", "order": 0, "reversed": False}


def curve(values, every=20, **run):
    return pd.DataFrame({**KEY, **run, "edits": every * np.arange(1, len(values) + 1), "recall": values})


def collapse(*places):
    return pd.DataFrame([KEY | {"order": i, "collapse": place} for i, place in enumerate(places)])


def test_an_order_is_a_thin_line_bold_where_catastrophic_with_a_tick_at_its_collapse(ax):
    recall = pd.concat([curve([1.0, 0.8, 0.2, 0.1]), curve([1.0, 0.9, 0.9, 0.9], order=1)])
    stretches = pd.DataFrame([KEY | {"start": 40, "stop": 60, "label": "catastrophic"},
                              KEY | {"start": 60, "stop": 80, "label": "gradual"}])  # fmt: skip
    drawn = forgetting_panels.single_orders(ax, recall, collapse(50, math.inf), stretches)
    first, bold, tick, second = ax.lines
    assert first.get_ydata().tolist() == [100, 80, 20, 10] and len(second.get_ydata()) == 4
    assert bold.get_xdata().tolist() == [40, 60] and bold.get_linewidth() > 2 * first.get_linewidth()
    assert (tick.get_xdata(), tick.get_ydata()) == (50, 50)  # on the line, between 80 and 20
    assert drawn["recall"].tolist() == [100, 80, 20, 10, 100, 90, 90, 90]


def test_reversed_runs_are_left_to_the_tables(ax):
    recall = pd.concat([curve([1.0, 0.8]), curve([1.0, 0.8], reversed=True)])
    places = pd.concat([collapse(30), collapse(30).assign(reversed=True)])
    none = pd.DataFrame(columns=[*KEY, "start", "stop", "label"])
    assert len(forgetting_panels.single_orders(ax, recall, places, none)) == 2


def test_hazards_join_the_intervals_within_a_hundred_edits(ax):
    start = 20 * np.arange(1, 10)
    table = pd.DataFrame({**KEY, "start": start, "stop": start + 20, "at_risk": 100, "lost": [10] * 4 + [30] * 5})
    drawn = forgetting_panels.hazards(ax, table)
    assert drawn["edits"].tolist() == [100, 200] and drawn["hazard"].tolist() == [10, 30]


def test_without_an_interval_the_hazards_are_an_empty_panel(ax):
    empty = pd.DataFrame(columns=[*KEY, "start", "stop", "at_risk", "lost"]).astype({"start": int, "reversed": bool})
    assert forgetting_panels.hazards(ax, empty).empty


def test_recall_around_the_collapse_is_of_runs_asked_before_and_after_it():
    """Orders collapse at 127, too early, too late, and never."""
    values = np.linspace(1, 0, 15)
    recall = pd.concat([curve(values, order=i) for i in range(4)])
    found = forgetting_panels.around(recall, collapse(127, 3, 299, math.inf))
    assert found["order"].unique().tolist() == [0] and found["edits"].tolist() == list(range(-100, 101, 20))
    at = found.set_index("edits")["recall"]
    assert at[0] == values[5] and at[-100] == values[0]  # checkpoints 120 and 20


def test_checkpoints_denser_than_the_step_are_averaged():
    recall = curve([0.5] * 9 + [1.0] + [0.0] * 30, every=1)
    found = forgetting_panels.around(recall, collapse(20), reach=10, step=10)
    assert found["edits"].tolist() == [-10, 0, 10]
    np.testing.assert_allclose(found["recall"], [(5 * 0.5 + 1.0) / 10, 0, 0])  # edits 5 to 14, 15 to 24, 25 to 34


def test_without_a_collapse_the_panel_says_so(ax):
    empty = forgetting_panels.around(curve([1.0, 0.9]), collapse(math.inf))
    assert forgetting_panels.collapses(ax, empty).empty
    assert "no collapse" in ax.texts[0].get_text()


def test_signs_stand_in_the_order_of_their_labels_and_methods_beside_each_other(ax):
    found = pd.DataFrame([("memit", "b", 0.6, 0.5, 0.7), ("rome", "b", 0.4, 0.3, 0.5),
                          ("rome", "a", 0.5, np.nan, np.nan), ("memit", "a", np.nan, np.nan, np.nan)],
                         columns=["method", "measure", "mean", "low", "high"]).assign(n=3)  # fmt: skip
    drawn = forgetting_panels.signs(ax, found, {"a": "first", "c": "never measured", "b": "second"})
    assert [label.get_text() for label in ax.get_yticklabels()] == ["first", "second"] and len(drawn) == 3
    places = {line.get_label(): dict(zip(line.get_xdata(), line.get_ydata(), strict=True)) for line in ax.lines[:2]}
    assert places == {"memit": {0.6: 1.3}, "rome": {0.4: 0.7, 0.5: -0.3}}
    low, high = ax.get_ylim()
    assert low > high  # the first above
