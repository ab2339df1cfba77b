"""Measures that claims rest on, by hand: one value per forward order, and nothing where nothing was measured."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from editscale.analysis import intervals, measures


def rows(order=0, method="rome", backward=False, **columns):
    return pd.DataFrame({"method": method, "order": order, "reversed": backward, **columns})


def both(make):
    """Two forward orders, and a reversed run and another method's that must not count."""
    return pd.concat([make(order=0), make(order=1), make(order=0, backward=True), make(order=0, method="memit")])


def study(n=100, **tables):
    return SimpleNamespace(n=n, tail=intervals.TAIL, **tables)


def places(*collapses, half=np.inf):
    return pd.concat([rows(order=i, collapse=[float(at)], end=200, half=half) for i, at in enumerate(collapses)])


def test_scores_are_means_up_to_n_or_of_the_last_edits():
    def edits(**key):
        score = np.where(np.arange(200) < 50, 0.8, 0.4)
        return rows(**key, edits=range(1, 201), case_id=range(1, 201), neighborhood=score)

    made = study(edits=both(edits), unedited=both(edits).assign(neighborhood=0.9))
    assert measures.mean_score(made, "rome", "neighborhood").mean == pytest.approx(60)
    assert measures.mean_score(made, "rome", "neighborhood", last=20).mean == pytest.approx(40)
    found = measures.change_from_first(made, "rome", "neighborhood")
    assert found.mean == pytest.approx(-40) and found.n == 2
    assert measures.change_from_unedited(made, "rome", "neighborhood").mean == pytest.approx(-50)
    assert measures.change_from_first(made, "ft-c", "neighborhood").n == 0


def test_the_largest_fall_is_within_so_many_edits_and_from_the_highest_recall():
    def recall(**key):
        return rows(**key, edits=range(20, 201, 20), recall=[0.9, 0.7, 0.8, 0.3, 0.2, 0.2, 0.2, 0.2, 0.2, 0])

    made, early = study(recall=both(recall)), study(n=40, recall=both(recall))
    assert measures.largest_fall(made, "rome", within=20).mean == pytest.approx(50)
    assert measures.largest_fall(made, "rome", within=40).mean == pytest.approx(60)
    assert measures.largest_fall(early, "rome", within=20).mean == pytest.approx(20)


def test_a_share_of_orders_counts_each_once_and_those_without_any():
    stretches = rows(order=[0, 0, 1], label=["catastrophic"] * 3, start=[20, 60, 200])
    made = study(places=places(30, 500, np.inf, np.inf), stretches=stretches)
    assert measures.catastrophic(made, "rome").mean == 50
    assert measures.catastrophic(made, "rome", after=100).mean == 25
    assert measures.catastrophic(made, "ft-c").n == 0


def test_an_order_that_never_gets_there_counts_as_later_than_any():
    made = study(places=places(30, 500, np.inf, np.inf, np.inf))
    assert measures.collapse_place(made, "rome").mean == np.inf
    assert measures.half_place(made, "rome").mean == np.inf


def test_a_collapse_is_by_one_edit_if_its_last_edit_alone_is_disabling():
    damage = rows(order=[0, 0, 1, 2, 2], edits=[29, 30, 50, 7, 40], disabling=[False, True, False, True, False])
    made = study(places=places(30, 50, np.inf), damage=damage)
    assert measures.collapses_by_one(made, "rome").mean == 50  # of the two orders that collapse
    assert measures.with_disabling(made, "rome").mean == pytest.approx(100 * 2 / 3)
    jumps = rows(order=[0, 1, 2], edits=[30, 60, 150])
    jumped = study(places=places(30, 50, np.inf), jumps=jumps)
    assert measures.with_jump(jumped, "rome").mean == pytest.approx(100 / 3)  # not after a collapse, nor after n


def test_recall_of_two_methods_is_compared_over_the_course_or_at_one_place():
    def history(value, **key):
        return rows(**key, edits=[50, 50, 100, 100], edit=[1, 2, 1, 2], efficacy_accuracy=value)

    runs = [history([1, 1, 1, 0], order=i, method="memit") for i in (0, 1)]
    runs += [history([1, 0, 0, 0], order=i) for i in (0, 1)]
    made = study(history=pd.concat(runs))
    assert measures.kept_more(made, "memit", other="rome").mean == 50
    assert measures.kept_more(made, "memit", other="rome", at=60).mean == 50
    assert measures.kept_more(made, "memit", other="ft-c").n == 0


def test_the_distance_steps_by_its_ratio_at_the_edit_that_collapses_a_model():
    def drift(**key):
        return pd.concat([rows(**key, layer=k, edits=[29, 30, 31], distance=[1, k, 9]) for k in (3, 8)])

    made = study(places=places(30, np.inf), drift=both(drift))
    assert measures.step_of_distance(made, "rome").mean == 8 and measures.step_of_distance(made, "rome").n == 1


def test_growth_is_the_exponent_of_the_deepest_layer_to_a_place_or_to_the_collapse():
    def drift(**key):
        edits = np.arange(1, 201)
        late = np.where(edits <= 100, edits**0.5, 10 * (edits / 100) ** 2)
        return pd.concat([rows(**key, layer=k, edits=edits, distance=d) for k, d in ((3, edits), (7, late))])

    made = study(n=200, places=places(100, 100), drift=both(drift))
    assert measures.growth(made, "rome", last=100).mean == pytest.approx(0.5)
    assert measures.growth(made, "rome", collapse=True).mean == pytest.approx(0.5)
    assert measures.growth(made, "rome", first=100, last=200).mean == pytest.approx(2, abs=0.01)


def test_a_task_changes_from_the_unedited_model_to_the_last_checkpoint_before_the_collapse():
    def downstream(**key):
        return rows(**key, task="sst2", edits=[0, 50, 100, 150], f1=[0.9, 0.8, 0.5, 0.0], accuracy=0.5, n_examples=200)

    table = both(downstream)
    found = [
        measures.change_before_collapse(study(n=n, places=where, downstream=table), "rome", "sst2", at=at)
        for n, at, where in ((100, 60, places(500, 500)), (100, 500, places(500, 500)), (100, 500, places(60, 10)))
    ]
    assert [one.mean for one in found] == pytest.approx([-10, -40, -10])
    assert [one.n for one in found] == [2, 2, 1]  # of order 1 nothing was asked before its collapse
    made = study(downstream=table)
    assert measures.task_score(made, "rome", "sst2").mean == pytest.approx(50)
    assert measures.task_score(made, "rome", "rte").n == measures.unedited_accuracy(made, "rome", "rte").n == 0
    alone = measures.unedited_accuracy(made, "rome", "sst2")
    assert (alone.mean, alone.n) == (50, 200) and alone.low == pytest.approx(42.9, abs=0.1)


def test_one_order_gives_a_value_without_an_interval():
    found = measures.forgotten(study(paper=rows(edits=[100], forgotten_percent=[12.0])), "rome")
    assert found.mean == 12 and found.n == 1 and np.isnan(found.low)
    lost = measures.not_recalled(study(recall=rows(edits=[100], recall=[0.25])), "rome")
    assert lost.mean == 75
