"""Measures of claims by hand: one value per forward order, and nothing where nothing was measured."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from editscale.analysis import measures


def rows(order=0, method="rome", backward=False, **columns):
    return pd.DataFrame({"method": method, "order": order, "reversed": backward, **columns})


def both(make):
    """Two forward orders, and a reversed run and another method's that must not count."""
    return pd.concat([make(order=0), make(order=1), make(order=0, backward=True), make(order=0, method="memit")])


def measured(make, n=100, **tables):
    return make(SimpleNamespace(n=n, **tables), np.random.default_rng(0))


def test_scores_are_means_up_to_n_and_changes_are_last_less_first_edits():
    def edits(**key):
        return rows(**key, edits=range(1, 201), neighborhood=np.where(np.arange(200) < 50, 0.8, 0.4))

    found = measured(measures.mean_score("rome", "neighborhood"), edits=both(edits))
    assert found.mean == pytest.approx(60) and found.n == 2
    assert measured(measures.change("rome", "neighborhood"), edits=both(edits)).mean == pytest.approx(-40)
    assert measured(measures.change("ft-c", "neighborhood"), edits=both(edits)).n == 0


def test_the_largest_fall_is_within_so_many_edits_and_from_the_highest_recall():
    def recall(**key):
        return rows(**key, edits=range(20, 201, 20), recall=[0.9, 0.7, 0.8, 0.3, 0.2, 0.2, 0.2, 0.2, 0.2, 0])

    table = both(recall)
    assert measured(measures.largest_fall("rome", 20), recall=table).mean == pytest.approx(50)
    assert measured(measures.largest_fall("rome", 40), recall=table).mean == pytest.approx(60)
    assert measured(measures.largest_fall("rome", 20), n=40, recall=table).mean == pytest.approx(20)
    assert measured(measures.largest_fall("rome", 180, beyond=True), recall=table).mean == pytest.approx(90)
    assert measured(measures.largest_fall("rome", 20, beyond=True), n=200, recall=table).n == 0


def test_jumps_are_counted_per_order_while_half_of_the_facts_last():
    points = both(lambda **key: rows(**key, found="bend", inflection=[50], low=40, high=60))
    lasting = both(lambda **key: rows(**key, edits=[50, 100], recall=[0.9, 0.6]))
    broken = both(lambda **key: rows(**key, edits=[20, 50, 100], recall=[0.9, 0.4, 0.1]))
    jumps = rows(edits=[10, 60, 150])
    found = measured(measures.disabling_edits("rome"), points=points, jumps=jumps, recall=lasting)
    assert found.mean == 1 and found.n == 2  # orders without any included
    assert measured(measures.disabling_edits("rome"), points=points, jumps=jumps, recall=broken).mean == 0.5
    assert measured(measures.disabling_edits("ft-c"), points=points, jumps=jumps, recall=lasting).n == 0


def test_the_distance_steps_by_its_ratio_around_the_steepest_fall():
    def drift(**key):
        return pd.concat([rows(**key, layer=k, edits=[20, 40, 60], distance=[1, 1, k]) for k in (3, 8)])

    collapses = rows(order=[0, 1, 1], steepest_start=[40, 20, 0], steepest_stop=[60, 40, 20])
    found = measured(measures.step_of_distance("rome"), drift=both(drift), collapses=collapses)
    assert found.mean == pytest.approx((8 + 1) / 2)
    assert measured(measures.step_of_distance("rome"), drift=both(drift), collapses=collapses[:0]).n == 0


def test_growth_is_the_exponent_of_the_deepest_layer():
    def drift(**key):
        edits = np.arange(1, 201)
        return pd.concat(
            [rows(**key, layer=k, edits=edits, distance=edits**power) for k, power in ((3, 1.0), (7, 0.5))]
        )

    assert measured(measures.growth("rome"), drift=both(drift)).mean == pytest.approx(0.5)


def test_a_task_changes_from_the_unedited_model_to_the_last_checkpoint_asked_for():
    def downstream(**key):
        return rows(**key, task="sst2", edits=[0, 50, 100, 150], f1=[0.9, 0.8, 0.5, 0.0])

    table = both(downstream)
    none, early = rows(start=[])[:0], rows(order=[0, 1, 1], start=[60, 60, 10])
    changes = [
        measured(measures.change_before_collapse("rome", "sst2", at), downstream=table, collapses=collapses)
        for at, collapses in ((60, none), (500, none), (500, early))
    ]
    assert [found.mean for found in changes] == pytest.approx([-10, -40, -10])
    assert [found.n for found in changes] == [2, 2, 1]  # of order 1 nothing was asked before its first collapse
    assert measured(measures.task_score("rome", "sst2", None), downstream=table).mean == pytest.approx(50)
    assert measured(measures.task_score("rome", "rte", None), downstream=table).n == 0


def test_one_order_gives_a_value_without_an_interval():
    found = measured(measures.forgotten("rome"), paper=rows(edits=[100], forgotten_percent=[12.0]))
    assert found.mean == 12 and found.n == 1 and np.isnan(found.low)
