"""Drift from low-rank factors equals the norm of the summed matrices."""

import numpy as np
import pytest

from editscale import drift


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
