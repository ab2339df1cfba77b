"""Drift at the collapse, and the decay of scores, by hand."""

import numpy as np
import pandas as pd
import pytest

from editscale.analysis import drift_loss


def test_drift_at_the_collapse_is_that_of_the_most_moved_layer_after_the_edit_that_made_it():
    key = {"method": "memit", "order": 0, "reversed": False}
    layers = [
        pd.DataFrame({**key, "layer": layer, "edits": [20, 40], "relative_drift": drift})
        for layer, drift in ((3, [0.1, 0.3]), (4, [0.2, 0.2]))
    ]
    places = pd.DataFrame([{**key, "collapse": 20.0}, {**key, "order": 1, "collapse": np.inf}])
    found = drift_loss.at_collapse(pd.concat(layers), places)
    assert found[["order", "edits", "drift"]].to_numpy().tolist() == [[0, 20, 0.2]]


def test_decay_is_the_change_from_the_same_facts_unedited_score():
    edits = np.arange(1, 41)
    key = {"method": "rome", "order": 0, "reversed": False, "edits": edits}
    after = pd.DataFrame({**key, "efficacy": 1.0, "neighborhood": 0.9 - 0.01 * edits})
    before = pd.DataFrame({**key, "efficacy": 0.0, "neighborhood": 0.9})
    drift = pd.DataFrame({**key, "layer": 5, "relative_drift": 0.02 * edits})
    table = drift_loss.decay(after, before, drift, (10, 40, 50)).set_index("window")
    assert table.index.tolist() == [10, 40]
    assert table["efficacy"].tolist() == [1, 1] and table["neighborhood"][10] == pytest.approx(-0.055)
    np.testing.assert_allclose(table["neighborhood_per_100"], -1)
    np.testing.assert_allclose(table["neighborhood_per_step"], -0.05)
    np.testing.assert_allclose(table["efficacy_per_100"], 0, atol=1e-12)
    assert table["drift"].tolist() == pytest.approx([0.2, 0.8])


def test_facts_without_a_score_are_left_out_of_the_decay():
    edits = np.arange(1, 41)
    key = {"method": "rome", "order": 0, "reversed": False, "edits": edits}
    after = pd.DataFrame({**key, "efficacy": np.nan, "neighborhood": np.where(edits % 2, 0.9 - 0.01 * edits, np.nan)})
    before = pd.DataFrame({**key, "efficacy": np.nan, "neighborhood": 0.9})
    drift = pd.DataFrame({**key, "layer": 5, "relative_drift": 0.02 * edits})
    row = drift_loss.decay(after, before, drift, (40,)).iloc[0]
    assert row["neighborhood_per_100"] == pytest.approx(-1) and row["neighborhood"] == pytest.approx(-0.2)
    assert np.isnan(row["efficacy"]) and np.isnan(row["efficacy_per_100"])
