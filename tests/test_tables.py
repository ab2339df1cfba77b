"""Runs of different length are compared where they may be, and at a number of edits that all have."""

import pandas as pd
import pytest
import synthetic

from editscale.analysis import tables


def edits(cases, method="rome", backward=False, status="edited"):
    rows = {"method": method, "order": 0, "reversed": backward, "edits": range(1, len(cases) + 1), "case_id": cases}
    return pd.DataFrame({**rows, "status": ["edited"] * (len(cases) - 1) + [status]})


def test_a_shorter_run_and_its_reverse_on_the_first_facts_are_accepted():
    tables.check_same_facts(pd.concat([edits([5, 3, 8, 1], "memit"), edits([5, 3]), edits([3, 5], backward=True)]))


def test_a_run_that_stopped_at_its_collapse_is_accepted_also_backwards():
    tables.check_same_facts(pd.concat([edits([5, 3, 8]), edits([8, 3], backward=True, status="non-finite")]))


@pytest.mark.parametrize(
    "other", [edits([5, 8], "memit"), edits([5, 3, 9], "memit"), edits([8, 3], backward=True), edits([1, 2], "r-rome")]
)
def test_a_run_on_other_facts_than_the_first_of_the_sequence_is_named(other):
    with pytest.raises(ValueError, match="of order 0 edited different facts .* on its order's first facts"):
        tables.check_same_facts(pd.concat([edits([5, 3, 8]), other]))


def measured(*places, method):
    return pd.DataFrame({"method": method, "order": 0, "reversed": False, "edits": places})


def test_the_shared_end_is_the_last_checkpoint_of_all_runs_but_collapsed_ones():
    runs = [edits(list(range(6)), "memit"), edits(list(range(4))), edits([0, 1], "r-rome", status="non-finite")]
    rows = [measured(2, 4, 6, method="memit"), measured(2, 4, method="rome"), measured(2, method="r-rome")]
    assert tables.shared_end(pd.concat(rows), pd.concat(runs)) == 4


def test_runs_without_a_shared_checkpoint_are_refused():
    runs = pd.concat([edits([1, 2, 3], "memit"), edits([1, 2, 3])])
    with pytest.raises(ValueError, match="no number of edits in common"):
        tables.shared_end(pd.concat([measured(1, 3, method="memit"), measured(2, method="rome")]), runs)


def test_the_overview_counts_orders_and_edits_of_each_direction():
    runs = [("rome", 0, False, 3), ("rome", 1, False, 5), ("rome", 0, True, 2)]
    rows = [{"method": m, "order": o, "reversed": r, "edits": e + 1} for m, o, r, n in runs for e in range(n)]
    found = tables.overview(pd.DataFrame(rows))
    assert found.loc["rome"].to_dict("index") == {
        False: {"orders": 2, "shortest": 3, "longest": 5},
        True: {"orders": 1, "shortest": 2, "longest": 2},
    }


def test_percentages_are_whole_and_empty_where_nothing_was_measured():
    shown = tables.percent(pd.DataFrame({20: [1.0, 0.126], 40: [0.5, float("nan")]}))
    assert shown.to_numpy().tolist() == [["100", "50"], ["13", ""]]


def test_an_edit_is_named_alike_in_the_tables_that_a_notebook_gathers(tmp_path):
    keys = {"method": "rome", "order": 0, "reversed": False}
    (tmp_path / "recall").mkdir()
    pd.DataFrame([{**keys, "edits": n, "case_id": 10 + n} for n in (1, 2)]).to_parquet(tmp_path / "edits.parquet")
    history = [{**keys, "edits": 2, "edit": n, "efficacy": float(n == 1)} for n in (1, 2)]
    pd.DataFrame(history).to_parquet(tmp_path / "recall/history.parquet")
    synthetic.vouch(tmp_path)
    both = tables.gather([tmp_path], "edits").merge(
        tables.gather([tmp_path], "recall/history"), on=[*tables.RUN, "edit"], suffixes=("", "_later")
    )
    assert both[["case_id", "efficacy", "edits_later"]].values.tolist() == [[11, 1.0, 2], [12, 0.0, 2]]


def test_a_table_that_was_measured_later_is_gathered_where_the_record_names_it(tmp_path):
    row = {"method": "rome", "order": 0, "reversed": False, "edits": 0, "task": "pairs", "phenomenon": "all"}
    for run in ("old", "new"):
        (tmp_path / run / "downstream").mkdir(parents=True)
        pd.DataFrame([row]).to_parquet(tmp_path / run / "downstream/downstream.parquet")
    path = tmp_path / "new/downstream/choices.parquet"
    pd.DataFrame([row]).to_parquet(path)
    for run in ("old", "new"):
        synthetic.vouch(tmp_path / run)
    old, new = tmp_path / "old", tmp_path / "new"
    assert tables.gather_later([old], "downstream/choices") is None
    assert len(tables.gather_later([old, new], "downstream/choices")) == 1
    path.unlink()  # named, and not there: no older run
    with pytest.raises(FileNotFoundError, match="no choices.parquet in .*run notebook 04a"):
        tables.gather_later([old, new], "downstream/choices")
    assert tables.gather_later([tmp_path / "none"], "downstream/choices") is None


def test_some_methods_are_gathered_and_one_without_a_run_is_named(tmp_path):
    rows = [{"method": name, "order": 0, "reversed": False, "edits": 1} for name in ("rome", "memit")]
    pd.DataFrame(rows).to_parquet(tmp_path / "edits.parquet")
    synthetic.vouch(tmp_path)
    assert tables.gather([tmp_path], "edits", ["memit"])["method"].tolist() == ["memit"]
    assert tables.gather_later([tmp_path], "edits", ["memit"])["method"].tolist() == ["memit"]
    assert tables.gather_later([tmp_path], "edits", ["ft-c"]) is None
    with pytest.raises(ValueError, match="no run of ft-c among those of rome, memit"):
        tables.gather([tmp_path], "edits", ["rome", "ft-c"])
