"""A sequence beside its reverse, and methods beside one another on the same sequences, by hand."""

import numpy as np
import pandas as pd
import pytest

from editscale.analysis import paired


def run(cases, recalled, *, method="rome", order=0, backward=False, drift=1.0):
    """edits, history (one checkpoint at the end) and drift of a run."""
    n = len(cases)
    key = {"method": method, "order": order, "reversed": backward}
    places = {"edits": range(1, n + 1), "case_id": cases}
    edits = pd.DataFrame({**key, **places, "efficacy": 1.0, "neighborhood": 0.5})
    history = pd.DataFrame(
        {**key, "edits": n, "edit": range(1, n + 1), "case_id": cases, "efficacy_accuracy": recalled}
    )
    moved = pd.DataFrame({**key, "layer": 5, "edits": range(1, n + 1), "relative_drift": drift})
    return edits, history, moved


def stack(*runs):
    return (pd.concat(tables, ignore_index=True) for tables in zip(*runs, strict=True))


def jumps(*rows):
    names = ["method", "order", "reversed", "edits"]
    return pd.DataFrame([dict(zip(names, row, strict=True)) for row in rows], columns=names)


def test_a_sequence_and_its_reverse_are_compared_on_the_same_facts():
    edits, history, _ = stack(run([7, 8, 9, 6], [1, 1, 1, 0]), run([6, 9, 8, 7], [0, 1, 0, 0], backward=True))
    (row,) = paired.reversals(edits, history, jumps(("rome", 0, False, 2), ("rome", 0, True, 3))).itertuples()
    assert (row.recall_forward, row.recall_reversed, row.difference, row.edits) == (0.75, 0.25, 0.5, 4)
    assert row.shared == 1 and row.same_first == 1  # case 8 is second and third


def test_recall_along_is_the_mean_over_checkpoints_of_both_directions():
    edits, history, _ = stack(run([7, 8], [1, 0]), run([8, 7], [0, 0], backward=True))
    first = history[history["edit"] == 1].assign(edits=1, efficacy_accuracy=1.0)  # a checkpoint after the first edit
    later = history.assign(edits=3, efficacy_accuracy=1.0)  # of a longer run: not looked at
    (row,) = paired.reversals(edits, pd.concat([history, first, later]), jumps()).itertuples()
    assert (row.along_forward, row.along_reversed, row.along_difference) == (0.75, 0.5, 0.25)
    assert (row.recall_forward, row.recall_reversed) == (0.5, 0)


def test_other_disabling_facts_in_the_reverse_are_told_apart():
    edits, history, _ = stack(run([7, 8, 9], [1, 1, 1]), run([9, 8, 7], [0, 0, 0], backward=True))
    (row,) = paired.reversals(edits, history, jumps(("rome", 0, False, 2), ("rome", 0, True, 1))).itertuples()
    assert row.shared == 0 and row.same_first == 0
    (row,) = paired.reversals(edits, history, jumps(("rome", 0, False, 2))).itertuples()
    assert np.isnan(row.same_first) and (row.disabling_forward, row.disabling_reversed) == (1, 0)


def test_a_reverse_of_other_facts_or_without_a_forward_run_is_left_out():
    edits, history, _ = stack(
        run([7, 8, 9], [1, 1, 1]), run([9, 8], [0, 0], backward=True), run([1, 2], [1, 1], order=1, backward=True)
    )
    assert paired.reversals(edits, history, jumps()).empty


def test_methods_are_paired_by_order_and_a_lone_order_has_no_interval():
    runs = [run([1, 2], [1, 1], order=i) for i in range(5)]
    runs += [run([1, 2], [1, 0], method="memit", order=i, drift=0.25) for i in range(4)]
    runs += [run([1, 2], [0, 0], method="r-rome", order=1)]
    ends = paired.at_end(*stack(*runs), 2)
    table = paired.method_pairs(ends, ["recall", "drift"]).set_index(["first", "second", "measure"])
    assert table.loc[("rome", "memit", "recall"), ["mean", "low", "high", "n"]].tolist() == [0.5, 0.5, 0.5, 4]
    assert table.loc[("rome", "memit", "drift"), "mean"] == pytest.approx(0.75)
    assert table.loc[("rome", "r-rome", "recall"), "n"] == 1 and np.isnan(table["low"]["rome", "r-rome", "recall"])


def test_runs_without_a_checkpoint_at_the_end_are_left_out():
    ends = paired.at_end(*stack(run([1, 2, 3], [1, 1, 1]), run([1, 2], [1, 1], method="memit")), 3)
    assert ends["method"].tolist() == ["rome"]
