"""Figure 6 shows what was measured and, where something was published, where it should have been."""

import numpy as np
import pandas as pd
import pytest

from editscale import columns
from editscale.analysis import targets
from editscale.plots import acceptance_panels


@pytest.fixture
def verdicts():
    """GPT-2 XL as published, but for an ES of ROME that is 7 too low."""
    wanted = targets.published("gpt2-xl")
    table = wanted.assign(model="gpt2-xl", value=wanted["target"], half_width=0.5, n=100)
    table.loc[(table["method"] == "rome") & (table["metric"] == "ES"), "value"] -= 7
    return targets.judge(table[list(columns.ACCEPTANCE)], wanted)


def points(ax, label):
    """Heights of the points drawn under a label."""
    (container,) = [container for container in ax.containers if container.get_label() == label]
    return container.lines[0].get_ydata().tolist()


def test_scores_are_drawn_beside_the_published_ones(ax, verdicts):
    drawn = acceptance_panels.scores_panel(ax, verdicts)
    assert [label.get_text() for label in ax.get_xticklabels()] == ["S", "ES", "PS", "NS"]
    assert points(ax, "unedited") == points(ax, "published") == [30.5, 22.2, 24.7, 78.1]
    assert points(ax, "rome") == [89.2, 93.0, 96.4, 75.4]
    rome = drawn[(drawn["method"] == "rome") & (drawn["metric"] == "ES")].iloc[0]
    assert (rome["value"], rome["target"]) == (93.0, 100.0)
    assert set(drawn["method"]) == {"none", "rome", "r-rome", "ft-c"}


def test_distances_are_drawn_by_layer_with_crosses_where_they_were_published(ax, verdicts):
    drawn = acceptance_panels.distance_panel(ax, verdicts)
    lines = {line.get_label(): line for line in ax.lines}
    assert lines["layer 17"].get_xdata().tolist() == [1, 2, 5, 10, 50, 100, 300, 500]
    assert lines["layer 17"].get_ydata()[0] == 1.49e-7 and lines["layer 14"].get_ydata()[-1] == 2.07e-7
    crosses = [line.get_ydata() for line in ax.lines if line.get_marker() == "x"]
    assert len(crosses) == 5 and crosses[-1].tolist() == lines["layer 17"].get_ydata().tolist()
    np.testing.assert_allclose(lines["√n"].get_ydata()[3], 1.49e-7 * np.sqrt(10))
    assert len(drawn) == 5 * 4 + 2 * 4


def test_without_targets_there_are_no_marks_and_without_a_sequence_the_panel_says_so(ax, verdicts):
    none = targets.judge(verdicts[list(columns.ACCEPTANCE)], targets.published(""))
    none = none[none["part"] != "sequence"]
    acceptance_panels.scores_panel(ax, none)
    assert "published" not in [container.get_label() for container in ax.containers]
    assert acceptance_panels.distance_panel(ax, none).empty
    assert [text.get_text() for text in ax.texts] == ["no sequence measured"]


def test_layers_with_published_distances_only_are_crosses_without_a_line(ax, verdicts):
    measured = verdicts[verdicts["layer"].isin([-1, 13])][list(columns.ACCEPTANCE)]
    acceptance_panels.distance_panel(ax, targets.judge(measured, targets.published("gpt2-xl")))
    lines = {line.get_label(): line.get_ydata() for line in ax.lines}
    assert lines["√n"][0] == lines["layer 13"][0] == 4.95e-8
    assert np.isnan(np.asarray(lines["layer 17"], dtype=float)).all()


def test_the_plotted_numbers_of_both_panels_go_into_one_table(ax, verdicts):
    drawn = pd.concat([acceptance_panels.scores_panel(ax, verdicts), acceptance_panels.distance_panel(ax, verdicts)])
    assert drawn["layer"].isna().sum() == (drawn["metric"] != "distance").sum() == 4 * 4
