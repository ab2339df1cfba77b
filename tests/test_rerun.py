"""Runs made again are held against the recorded ones: facts, first updates, means and recall."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tools import recorded, rerun

from editscale.files import sha256_file
from editscale.workflow import cli

GRID = """\
runs:
  - {method: memit, hparams: h.yaml, order: 0, reverse: false}
  - {method: memit, hparams: h.yaml, order: 1, reverse: true}
"""
N, LAYERS = 40, (3, 4)


def study(*, n=N, started="2026-01-01", gpu="a GPU", order=0, cases=None, wrong=(), lost=(), every=20, grown=0.0):
    """One recorded run: `wrong` edits did not take, `lost` facts are not recalled, norms grew from edit 21 on."""
    key = {"method": "memit", "order": order, "reversed": order == 1}
    place = np.arange(1, n + 1)
    cases = list(cases or range(100, 100 + n))
    edits = pd.DataFrame({**key, "edits": place, "case_id": cases, "efficacy_accuracy": 1.0 - np.isin(place, wrong)})
    norms = np.where(place > 20, 1 + grown, 1.0)
    drift = pd.concat([pd.DataFrame({**key, "layer": at, "edits": place, "update_norm": norms * at}) for at in LAYERS])
    asked = [(m, i) for m in range(every, n + 1, every) for i in range(1, m + 1)]
    history = pd.DataFrame({**key, "edits": [m for m, _ in asked], "edit": [i for _, i in asked]})
    history["case_id"] = [cases[i - 1] for i in history["edit"]]
    history["efficacy_accuracy"] = 1.0 - history["edit"].isin(lost)
    run = f"runs/tiny/memit/order-{order}{'-reversed' if order == 1 else ''}"
    made = {run: {"edits": {"started": started, "finished": started, "gpu": gpu}, "recall": {}}}
    return recorded.Results(made, {"edits": edits, "drift": drift, "recall/history": history}, {})


@pytest.fixture(autouse=True)
def grid(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params/tiny").mkdir(parents=True)
    (tmp_path / "params/tiny/grid.yaml").write_text(GRID)


def compared(again, known=None, **options):
    (row,) = rerun.compare(again, known or study(), "tiny", **options).to_dict("records")
    return row


def test_an_equal_run_is_within_tolerance():
    row = compared(study(started="2026-01-02", order=1), study(order=1))
    assert (row["method"], row["order"], row["reversed"], row["edits"]) == ("memit", 1, True, N)
    assert row["within"] and row["same_gpu"] and np.isnan(row["first_other_fact"])
    assert row["norm_difference"] == row["norm_difference_1"] == row["norm_difference_10"] == 0
    assert np.isnan(row["norm_difference_100"]) and row["same_efficacy"] == 1 and row["efficacy_difference"] == 0
    assert row["checkpoint"] == N and row["recall_difference"] == 0


def test_other_facts_are_found_where_they_begin():
    cases = [*range(100, 130), *range(500, 510)]
    row = compared(study(started="2026-01-02", cases=cases))
    assert row["first_other_fact"] == 31 and not row["within"]
    assert compared(study(started="2026-01-02", cases=cases), upto=30)["within"]


def test_updates_may_differ_late_but_not_at_the_beginning():
    late = compared(study(started="2026-01-02", grown=0.5))
    assert late["within"] and late["norm_difference"] == 0
    again = study(started="2026-01-02")
    again.tables["drift"]["update_norm"] *= 1.06
    early = compared(again)
    assert not early["within"] and early["norm_difference"] == pytest.approx(0.06)
    assert early["norm_difference_10"] == pytest.approx(0.06)


def test_an_update_that_only_one_of_the_runs_applied_differs_without_bound():
    again, known = study(started="2026-01-02"), study()
    for results, edits in ((again, (5, 6)), (known, (6,))):
        drift = results.tables["drift"]
        drift.loc[drift["edits"].isin(edits), "update_norm"] = np.nan
    row = compared(again, known)
    assert row["norm_difference_1"] == 0 and row["norm_difference_10"] == np.inf and row["within"]


def test_mean_efficacy_may_differ_by_five_points():
    row = compared(study(started="2026-01-02", wrong=(3, 9)))
    assert row["within"] and row["same_efficacy"] == 0.95 and row["efficacy_difference"] == pytest.approx(-5)
    assert not compared(study(started="2026-01-02", wrong=(3, 9, 10)))["within"]
    assert compared(study(started="2026-01-02", wrong=(3, 9)), study(wrong=(4, 8)))["efficacy_difference"] == 0


def test_recall_is_compared_at_the_last_checkpoint_that_both_have():
    row = compared(study(started="2026-01-02", n=30, lost=(1, 2)))
    assert row["edits"] == 30 and row["checkpoint"] == 20
    assert row["recall_difference"] == pytest.approx(-10) and row["within"]
    assert not compared(study(started="2026-01-02", lost=range(1, 6)))["within"]


def test_recall_that_was_not_measured_is_said_and_not_held_against_a_run():
    again = study(started="2026-01-02")
    del again.tables["recall/history"]
    table = rerun.compare(again, study(), "tiny")
    assert table["within"].all() and np.isnan(table["recall_difference"].item())
    assert "recall not measured" in "\n".join(rerun.shown(table))
    assert np.isnan(compared(study(started="2026-01-02"), upto=19)["checkpoint"])


def test_the_recorded_run_itself_is_no_rerun():
    with pytest.raises(ValueError, match="no run of scale tiny was made again"):
        rerun.compare(study(), study(), "tiny")
    with pytest.raises(ValueError, match="no run of scale tiny was made again"):
        rerun.compare(study(started="2026-01-02", order=1), study(), "tiny")


def write(results, folder):
    """Recorded tables as `editscale record` lays them out."""
    files = {}
    for name, table in results.tables.items():
        path = Path(folder) / f"{name}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        table.to_parquet(path)
        files[f"{name}.parquet"] = sha256_file(path)
    about = {"scale": "tiny", "files": files, "runs": results.made}
    (Path(folder) / "record.json").write_text(json.dumps(about))


def test_the_command_says_what_differs_and_whether_it_is_within_tolerance(capsys):
    write(study(), "figures/tiny/tables")
    write(study(started="2026-01-02", gpu="another", wrong=(3,)), "again")
    assert cli.main(["rerun", "tiny", "--rerun", "again", "--write"]) == 0
    assert capsys.readouterr().out == (
        "memit order 0, 40 edits: within tolerance, on another GPU\n"
        "    ‖ΔW‖ differs by 0 % (median of the first 20), at most 0 % in 1, 0 % in 10\n"
        "    efficacy right after each edit: 97.5 % of edits the same, mean -2.5 points; "
        "recall +0.0 points at 40 edits\n"
    )
    table = pd.read_csv("figures/tiny/tables/reruns.csv")
    assert table["within"].item() and table["efficacy_difference"].item() == -2.5
    write(study(started="2026-01-02", cases=range(7, 7 + N)), "again")
    assert cli.main(["rerun", "tiny", "--rerun", "again", "--upto", "10"]) == 1
    assert "10 edits: NOT within tolerance; other facts from edit 1\n" in capsys.readouterr().out


def test_the_command_names_what_is_missing(capsys):
    assert cli.main(["rerun", "tiny"]) == 2 and "no record.json in figures/tiny/tables" in capsys.readouterr().err
    write(study(), "figures/tiny/tables")
    assert cli.main(["rerun", "tiny"]) == 2 and "no run of scale tiny was made again" in capsys.readouterr().err
    assert cli.main(["rerun", "tiny", "--upto", "-1"]) == 2 and "--upto is -1" in capsys.readouterr().err
