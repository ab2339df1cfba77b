"""What a study took is added up from recorded seconds and from the times in which notebooks ran."""

import pandas as pd
import pytest
from tools import study_cost

from editscale.workflow.recorded import Results

GRID = """\
runs:
  - {method: rome, hparams: h.yaml, order: 0, reverse: false}
  - {method: rome, hparams: h.yaml, order: 1, reverse: false}
  - {method: memit, hparams: h.yaml, order: 0, reverse: false}
"""
ROME, SECOND, MEMIT = "runs/tiny/rome/order-0", "runs/tiny/rome/order-1", "runs/tiny/memit/order-0"


def part(first, last, device="cuda"):
    """A part that ran from one minute to another of an hour."""
    times = {"started": f"2026-01-01T10:{first:02d}:00+00:00", "finished": f"2026-01-01T10:{last:02d}:00+00:00"}
    return {"parameters": {"device": device}, "gpu": "a GPU" if device == "cuda" else None, **times}


def seconds(method, order, *values):
    key = {"method": method, "order": order, "reversed": False}
    return pd.DataFrame({**key, "edits": range(1, len(values) + 1), "seconds": values})


@pytest.fixture
def results(tmp_path, monkeypatch):
    """ROME on two orders, MEMIT on one, whose tasks were asked on a CPU and whose seconds were not recorded."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params/tiny").mkdir(parents=True)
    (tmp_path / "params/tiny/grid.yaml").write_text(GRID)
    made = {
        ROME: {"edits": part(0, 1), "recall": part(2, 5), "downstream": part(10, 14)},
        SECOND: {"edits": part(0, 1), "recall": part(3, 6)},
        MEMIT: {"edits": part(0, 1), "recall": part(20, 21), "downstream": part(30, 59, "cpu")},
    }
    timing = pd.concat([seconds("rome", 0, 30.0, 60.0), seconds("rome", 1, 30.0)], ignore_index=True)
    return Results(made, {"timing": timing}, {})


def test_intervals_that_overlap_or_touch_count_once():
    assert study_cost.union_length([]) == 0
    assert study_cost.union_length([(5, 6), (0, 3), (1, 2), (2, 4), (4, 5)]) == 6
    assert study_cost.union_length([(0, 1), (3, 4)]) == 2


def test_what_ran_on_several_gpus_at_once_counts_on_each(results):
    results.made[ROME]["recall"]["gpu_uuid"], results.made[SECOND]["recall"]["gpu_uuid"] = "one", "two"
    found = study_cost.costs(results, "tiny").set_index(["method", "part"])
    assert found.at[("rome", "recall"), "minutes"] == 3 + 3  # 4 on one GPU


def test_each_part_is_added_up_over_the_runs_made_on_a_gpu(results):
    found = study_cost.costs(results, "tiny").set_index(["method", "part"])
    assert found[["runs", "minutes"]].to_dict("index") == {
        ("rome", "editing"): {"runs": 2, "minutes": 2.0},
        ("rome", "recall"): {"runs": 2, "minutes": 4.0},
        ("rome", "tasks"): {"runs": 1, "minutes": 4.0},
        ("memit", "editing"): {"runs": 0, "minutes": 0.0},
        ("memit", "recall"): {"runs": 1, "minutes": 1.0},
        ("memit", "tasks"): {"runs": 0, "minutes": 0.0},
    }
    assert found.at[("rome", "editing"), "edits"] == 3


def test_the_table_says_of_how_many_runs_and_what_was_not_measured(results):
    text = study_cost.markdown(results, "tiny")
    assert "on one a GPU (" in text and text.count("\n") == 6
    assert "| rome | 2.0 min, 2 runs, 3 edits | 40.000 s | 4.0 min, 2 runs | 4.0 min, 1 run | 70 min |\n" in text
    assert (
        "| memit | not measured | not measured | 1.0 min, 1 run | not measured | 10 min without editing and tasks |"
        in text
    )


def test_a_study_of_a_cpu_is_refused(results):
    made = {ROME: {"edits": part(0, 1, "cpu")}}
    with pytest.raises(ValueError, match="name no part of a run that was made with device cuda"):
        study_cost.markdown(Results(made, {}, {}), "tiny")


def test_the_command_names_what_is_missing(results, capsys):
    assert study_cost.main(["tiny"]) == 2
    assert "no record.json in figures/tiny/tables" in capsys.readouterr().err
