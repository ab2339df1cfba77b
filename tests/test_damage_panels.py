"""Figures 5, 5b and 5c show what they are said to: what is disabling stands out, what is unknown is named."""

import numpy as np
import pandas as pd
import pytest

from editscale.plots import damage_panels

KEY = {"method": "rome", "order": 0, "reversed": False}


def rated(damage, known, **key):
    damage = np.array(damage, dtype=float)
    table = {"edits": range(1, len(damage) + 1), "case_id": range(len(damage)), "denominator": known, "learned": True}
    return pd.DataFrame({**KEY, **key, **table, "damage": damage, "disabling": damage > 0.1, "severe": damage > 0.69})


def test_disabling_edits_are_large_points_and_infinite_ones_are_at_the_top(ax):
    drawn = damage_panels.edits(ax, rated([0, 0.3, np.inf, -0.05], [2, 0.05, 0.01, 3]))
    quiet, loud, beyond, legend = ax.collections
    assert quiet.get_offsets().tolist() == [[2, 1], [3, pytest.approx(np.exp(-0.05))]]
    assert loud.get_offsets().tolist() == [[0.05, pytest.approx(np.exp(0.3))]]
    assert beyond.get_offsets().tolist() == [[0.01, ax.get_ylim()[1]]]
    assert loud.get_sizes()[0] > quiet.get_sizes()[0] and not len(legend.get_offsets())
    assert sorted(drawn["times"]) == pytest.approx([np.exp(-0.05), 1, np.exp(0.3), np.inf])


def test_of_many_quiet_edits_every_kth_is_drawn_but_all_with_small_denominators(ax):
    known = np.where(np.arange(3000) % 7 == 0, 0.5, 5.0)
    drawn = damage_panels.edits(ax, rated(np.where(np.arange(3000) == 1234, 1, 0), known))
    assert drawn["disabling"].sum() == 1 and (drawn["denominator"] < 1).sum() == (known < 1).sum()
    assert (drawn["denominator"] == 5).sum() < 200


def test_a_study_without_denominators_has_empty_panels_with_axes(ax):
    assert damage_panels.edits(ax, rated([], [])).empty
    ax.clear()
    moments = pd.DataFrame(columns=["method", "order", "reversed", "forecast", "observed", "end"])
    assert damage_panels.moments(ax, moments).empty


def test_moments_are_points_about_the_diagonal_and_what_has_none_is_apart(ax):
    key = {"method": ["rome", "rome", "r-rome"], "order": [0, 1, 0], "reversed": [False, True, False]}
    table = pd.DataFrame({**key, "forecast": [30, 40, np.inf], "observed": [30, np.inf, 90], "end": 100})
    damage_panels.moments(ax, table)
    diagonal, *points, _, _ = ax.lines
    assert [*diagonal.get_xdata()] == [*diagonal.get_ydata()] == [1, 100]
    none = 400
    drawn = {line.get_label(): [*line.get_xdata(), *line.get_ydata()] for line in points}
    assert drawn == {"r-rome": [none, 90], "rome": [30, 30], "rome reversed": [40, none]}
    assert [text.get_text() for text in ax.get_xticklabels()] == ["1", "10", "100", "none"]
    assert ax.get_xticks()[-1] == none


def test_single_edits_stand_at_their_own_denominator_and_are_open_where_nothing_was_learned(ax):
    rows = pd.DataFrame({
        "method": ["rome", "rome", "memit"], "contexts": ["run", "bare", "run"], "seed": [0, np.nan, 0], "case_id": 7,
        "denominator": [-0.02, 0.6, np.nan], "known": 0.02, "damage": [2.0, 0, 0], "learned": [False, True, False],
        "disabling": [True, False, False],
    })  # fmt: skip
    drawn = damage_panels.alone(ax, rows, "rome")
    assert drawn["x"].tolist() == [0.02, 0.6] and drawn["times"].tolist() == pytest.approx([np.exp(2), 1])
    shown = [(len(part.get_facecolors()), point) for part in ax.collections for point in part.get_offsets().tolist()]
    assert shown == [(0, [0.02, pytest.approx(np.exp(2))]), (1, [0.6, 1])]
    ax.clear()
    assert damage_panels.alone(ax, rows, "memit")["x"].tolist() == [0.02]
    assert "ROME" in ax.get_xlabel()


def test_what_is_learned_is_a_line_per_method_with_small_bins_open(ax):
    bins = {"low": [0, 0.1, 2], "high": [0.1, 0.5, np.inf]}
    table = pd.DataFrame({"method": "memit", **bins, "learned": [0, 0.5, 1], "n": [3, 20, 50]})
    damage_panels.learned(ax, table)
    line, few = ax.lines
    assert line.get_ydata().tolist() == [0, 50, 100] and few.get_ydata().tolist() == [0]
    assert [text.get_text() for text in ax.get_xticklabels()] == ["< 0.1", "0.1–0.5", "≥ 2"]


def test_thresholds_are_those_of_the_analysis(ax):
    ax.set(xscale="log", yscale="log", xlim=(0.01, 10), ylim=(0.8, 10))
    damage_panels.thresholds(ax, named=True)
    disabling, severe, low = ax.lines
    assert disabling.get_ydata()[0] == pytest.approx(1.105, abs=1e-3)
    assert severe.get_ydata()[0] == pytest.approx(2, abs=0.01) and low.get_xdata()[0] == 0.1
    assert [text.get_text() for text in ax.texts] == ["disabling", "severe"]


def test_all_small_ones_are_drawn_and_of_the_others_some(ax):
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"denominator": rng.normal(size=5000) * 5, "sink_cosine": rng.uniform(size=5000)})
    table["subject_place"] = rng.integers(0, 5, 5000)
    drawn = damage_panels.sinks(ax, table, most=100)
    small = table["denominator"].abs() < 0.1
    assert set(table.index[small]) <= set(drawn.index) and small.sum() < len(drawn) <= small.sum() + 100
    assert (drawn["denominator"] >= 0).all() and ax.get_yscale() == "log"
    assert len(damage_panels.sinks(ax, table[small])) == small.sum()
