"""The forest of claims shows the numbers it is given, each on the scale of its row."""

import numpy as np
import pandas as pd

from editscale.plots import finding_panels


def claim(verdict="agrees", mean=80.0, low=70.0, high=90.0, least=50.0, most=100.0, values=()):
    row = {"claim": "so it is", "method": "rome", "measured": "share", "ours": "80 % (70–90, 10 orders)"}
    row |= {"mean": mean, "low": low, "high": high, "orders": 10, "least": least, "most": most, "values": values}
    return pd.DataFrame([row | {"verdict": verdict}])


def test_every_comparable_claim_has_a_row_with_its_range_and_interval(ax):
    claims = pd.concat([claim(), claim("not comparable"), claim("disagrees", 10.0, 5.0, 20.0)])
    plotted = finding_panels.forest(ax, claims)
    assert plotted["verdict"].tolist() == ["agrees", "disagrees"]
    (bar, _), (line, dot, *_) = ax.patches, ax.lines
    start, end = bar.get_x(), bar.get_x() + bar.get_width()
    assert start < line.get_xdata()[0] < dot.get_xdata()[0] < line.get_xdata()[1] < end
    outside = ax.lines[3].get_xdata()[0]
    assert outside < ax.patches[1].get_x() and ax.lines[3].get_color() == finding_panels.LOOKS["disagrees"]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["so it is\nrome: share"] * 2


def test_without_a_comparable_claim_the_panel_says_so(ax):
    finding_panels.forest(ax, claim("not comparable"))
    assert [text.get_text() for text in ax.texts] == ["no claim can be compared"]


def test_single_values_are_dots_and_open_ranges_reach_the_border(ax):
    few = claim("undecided", -3.0, np.nan, np.nan, -np.inf, -2.0, (-4.0, -2.0))
    finding_panels.forest(ax, few)
    assert len(ax.collections[0].get_offsets()) == 2 and ax.patches[0].get_x() == 0
    assert [text.get_text() for text in ax.texts][0] == "-2"
