"""Panels of figure 7 show the numbers they are given, whatever number of orders there is."""

import numpy as np
import pandas as pd

from editscale.plots import finding_panels


def runs(method, n, backward=False, **columns):
    return pd.DataFrame({"method": method, "order": range(n), "reversed": backward, **columns})


def test_each_method_has_a_row_of_its_inflections_and_their_count(ax):
    some = runs("rome", 3, inflection=[100, 300, np.nan], half=[200, np.inf, np.inf], end=1000)
    back = runs("rome", 1, True, inflection=500, half=500, end=1000)
    plotted = finding_panels.inflection(ax, pd.concat([some, back, some.assign(method="memit")]))
    assert [text.get_text() for text in ax.get_yticklabels()] == ["rome", "memit"]
    assert [text.get_text() for text in ax.texts] == ["2/3", "2/3"]
    assert ax.collections[0].get_offsets()[:2, 0].tolist() == [100, 300]
    assert len(plotted) == 6 and 500 not in plotted["inflection"].tolist()


def test_loss_is_drawn_against_drift_with_one_legend_entry_per_method(ax):
    at = pd.concat([runs("rome", 2, edits=20 * i, drift=0.1 * i, lost=0.2 * i) for i in (1, 2)])
    finding_panels.drift_loss(ax, at, log=True)
    assert ax.lines[0].get_ydata().tolist() == [20, 40] and ax.get_xscale() == "log"
    assert ax.get_legend_handles_labels()[1] == ["rome"]


def test_a_task_that_most_orders_keep_has_an_open_marker_at_the_end(ax):
    columns = {"signal": True, "end": 1000}
    kept = runs("memit", 3, task="sst2", half=[400, np.inf, np.inf], **columns)
    lost = runs("rome", 3, task="sst2", half=[400, 500, 600], **columns)
    none = runs("rome", 3, task="mrpc", half=np.nan, signal=False, end=1000)
    plotted = finding_panels.tasks(ax, pd.concat([lost, kept, none])).set_index("method")
    assert plotted["half"].to_dict() == {"rome": 500, "memit": np.inf}
    markers = {line.get_xdata()[0]: line.get_markerfacecolor() for line in ax.lines if len(line.get_xdata()) == 1}
    assert markers[1000] == "white" != markers[500]
    assert [text.get_text() for text in ax.get_yticklabels()] == ["sst2"]
    assert ax.get_xlabel().endswith("no signal to begin with: mrpc")


def test_reversed_runs_are_lines_from_forward_and_their_lack_is_said(ax):
    pairs = pd.DataFrame({"method": "rome", "order": [0, 1], "along_forward": [0.6, 0.5], "along_reversed": [0.2, 0.4]})
    finding_panels.reversal(ax, pairs)
    assert [line.get_ydata().tolist() for line in ax.lines] == [[60, 20], [50, 40]]
    finding_panels.reversal(ax, pairs[:0])
    assert ax.texts[0].get_text() == "no reversed runs"
