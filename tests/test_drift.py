"""Drift from low-rank factors equals the norm of the summed matrices."""

import numpy as np
import pytest
import torch

from editscale.editing.updates import Update
from editscale.metrics import drift
from editscale.sequences.ledger import Ledger


def factors(n, ranks, d_value=7, d_key=11):
    random = np.random.default_rng(0)
    return (
        [random.normal(size=(d_value, r)) for _, r in zip(range(n), ranks, strict=True)],
        [random.normal(size=(d_key, r)) for _, r in zip(range(n), ranks, strict=True)],
    )


def test_distance_is_the_norm_of_the_sum_of_all_updates_so_far():
    lefts, rights = factors(6, (1, 2, 0, 1, 3, 1))
    total, expected = np.zeros((7, 11)), []
    for left, right in zip(lefts, rights, strict=True):
        total += left @ right.T
        expected.append(np.linalg.norm(total))
    np.testing.assert_allclose(drift.distances(lefts, rights), expected, rtol=1e-12)


def test_undoing_an_update_brings_the_distance_back_to_zero():
    (left,), (right,) = factors(1, (1,))
    assert drift.distances([left, -left], [right, right])[-1] == pytest.approx(0, abs=1e-7)


def test_orthogonal_updates_drift_with_the_square_root_of_their_number():
    lefts = [np.eye(9)[:, [i]] for i in range(9)]
    np.testing.assert_allclose(drift.distances(lefts, lefts), np.sqrt(np.arange(1, 10)))
    np.testing.assert_allclose(drift.norms(lefts, lefts), np.ones(9))


def test_no_edits_have_no_distances():
    assert len(drift.distances([], [])) == 0


def recorded(folder, updates):
    """A ledger of updates of layer 2, one per edit; None for an edit that was not applied."""
    book = Ledger(folder, {}, {"2": {"shape": [7, 11], "norm": 4.0}})
    for update in updates:
        book.append({}, [update] if update else [], 0.0)
    return Ledger(folder)


def test_full_matrices_drift_as_the_same_changes_in_factors(tmp_path):
    pairs = [tuple(map(torch.from_numpy, pair)) for pair in zip(*factors(4, (2, 1, 3, 1)), strict=True)]
    low = recorded(tmp_path / "low", [Update(2, *pairs[0]), None, *(Update(2, *pair) for pair in pairs[1:])])
    full = [Update(2, left @ right.T, bias=torch.ones(7)) for left, right in pairs]
    full = recorded(tmp_path / "full", [full[0], None, *full[1:]])
    for one, two in zip(drift.of_ledger(low), drift.of_ledger(full), strict=True):
        assert one == pytest.approx(two, rel=1e-12, abs=1e-12)
    assert drift.of_ledger(full)[1]["update_norm"] == 0


def test_the_exponent_of_a_growth_is_that_of_its_law_whatever_its_factor():
    edits = np.array([1, 5, 20, 80])
    assert drift.exponent(edits, 3e-7 * edits**0.7) == pytest.approx(0.7)
    assert drift.exponent(edits, [0, 0, 0, 2.0]) != drift.exponent(edits, [0, 0, 0, 2.0])  # NaN: one positive distance
