"""Regressions of loss on drift give back the slopes that were put in, within runs and between them."""

import numpy as np
import pandas as pd
import pytest

from editscale.analysis import drift_loss


def run(order, drift, lost):
    edits = 20 * np.arange(1, len(drift) + 1)
    return pd.DataFrame(
        {"method": "rome", "order": order, "reversed": False, "edits": edits, "lost": lost, "drift": drift}
    )


def test_the_most_moved_layer_stands_for_a_run():
    layers = [pd.DataFrame({**_key(), "layer": k, "edits": [20, 40], "relative_drift": d}) for k, d in
              ((3, [0.1, 0.3]), (4, [0.2, 0.2]))]  # fmt: skip
    recall = pd.DataFrame({**_key(), "edits": [20, 40, 60], "recall": [1.0, 0.8, 0.7]})
    at = drift_loss.along(recall, pd.concat(layers))
    assert at["drift"].tolist() == [0.2, 0.3] and at["lost"].round(6).tolist() == [0, 0.2]


def _key():
    return {"method": "memit", "order": 0, "reversed": False}


def test_a_loss_that_follows_drift_is_explained_by_it_beyond_the_edits():
    drift = np.array([0.1, 0.15, 0.9, 0.95, 1.0, 1.02])  # a step
    (row,) = drift_loss.within(run(0, drift, 0.4 * drift)).itertuples()
    assert row.per_step == pytest.approx(0.04) and row.r2_drift == pytest.approx(1) and row.rank == pytest.approx(1)
    assert row.r2_edits < 0.9 and row.added == pytest.approx(1 - row.r2_edits)


def test_a_loss_that_follows_the_edits_gains_nothing_from_drift():
    drift = np.array([0.1, 0.3, 0.35, 0.6, 0.61, 0.9])
    (row,) = drift_loss.within(run(0, drift, 0.1 * np.arange(6))).itertuples()
    assert row.r2_edits == pytest.approx(1) and row.added == pytest.approx(0, abs=1e-9)


def test_a_run_that_loses_nothing_has_no_slope():
    (row,) = drift_loss.within(run(0, np.arange(5.0), np.zeros(5))).itertuples()
    assert np.isnan(row.per_step) and row.checkpoints == 5


def test_between_orders_the_common_course_does_not_count():
    """Loss and drift both grow with the edits in all orders, but orders that drift further do not lose more."""
    rng = np.random.default_rng(0)
    steps, shifts = np.arange(1, 9), rng.normal(size=8)
    same = [run(i, 0.1 * steps + 0.05 * shift, 0.05 * steps) for i, shift in enumerate(shifts)]
    more = [run(i, 0.1 * steps + 0.05 * shift, 0.05 * steps + 0.03 * shift) for i, shift in enumerate(shifts)]
    nothing, planted = (drift_loss.between(pd.concat(runs), rng) for runs in (same, more))
    assert nothing.mean == pytest.approx(0, abs=1e-9) and nothing.n == 8
    assert planted.mean == pytest.approx(0.1 * 0.03 / 0.05) and planted.low == pytest.approx(planted.high)


def test_two_orders_are_too_few_between_runs():
    found = drift_loss.between(pd.concat([run(i, np.arange(4.0), np.arange(4.0)) for i in range(2)]), None)
    assert found.n == 2 and np.isnan(found.mean)


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
