"""Measurements of costs are merged, added up, and drawn as the pages of figures/cost."""

import json
from pathlib import Path

import pandas as pd
import pytest
from tools import costs
from tools.recorded import Results

ROOT = Path(__file__).parents[1]
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
    assert costs.union_length([]) == 0
    assert costs.union_length([(5, 6), (0, 3), (1, 2), (2, 4), (4, 5)]) == 6
    assert costs.union_length([(0, 1), (3, 4)]) == 2


def test_what_ran_on_several_gpus_at_once_counts_on_each(results):
    results.made[ROME]["recall"]["gpu_uuid"], results.made[SECOND]["recall"]["gpu_uuid"] = "one", "two"
    found = costs.minutes(results, "tiny").set_index(["method", "part"])
    assert found.at[("rome", "recall"), "minutes"] == 3 + 3  # 4 on one GPU


def test_each_part_is_added_up_over_the_runs_made_on_a_gpu(results):
    found = costs.minutes(results, "tiny").set_index(["method", "part"])
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
    rome, memit = costs.recorded_rows(results, "tiny")
    assert rome == {
        "method": "rome",
        "editing": "2.0 min, 2 runs",
        "edits": "3",
        "one edit": "40.000 s",
        "recall": "4.0 min, 2 runs",
        "tasks": "4.0 min, 1 run",
        "10 orders": "70 min",
    }
    assert memit["recall"] == "1.0 min, 1 run"
    assert {name for name, cell in memit.items() if cell == "not measured"} == set(rome) - {"method", "recall"}


def test_a_study_of_a_cpu_is_refused(results):
    made = {ROME: {"edits": part(0, 1, "cpu")}}
    with pytest.raises(ValueError, match="name no part of a run that was made with device cuda"):
        costs.recorded_rows(Results(made, {}, {}), "tiny")


def a_row(**given):
    return costs.row(**{"part": "ROME edit", "shape": "tiny", "device": "A 1", "precision": "float32", **given})


def test_a_new_row_replaces_the_one_with_its_key_and_others_stay():
    old = [a_row(fast_s=1.0), a_row(precision="tf32", fast_s=2.0), a_row(shape="other", fast_s=3.0)]
    new = [a_row(precision="tf32", fast_s=9.0), a_row(orders=5, fast_s=4.0), a_row(part="GLUE", fast_s=5.0)]
    assert costs.merged(old, new) == [old[0], new[0], old[2], *new[1:]]
    assert costs.merged(old, []) == old


def test_a_row_takes_no_other_fields_and_keeps_four_digits():
    with pytest.raises(ValueError, match="no field seconds in a row of costs"):
        costs.row(part="ROME edit", seconds=1.0)
    assert costs.row(fast_s=0.123456, orders=3) == {**dict.fromkeys(costs.FIELDS), "fast_s": 0.1235, "orders": 3}


def test_a_table_is_written_merged_and_read_again(tmp_path):
    of = {"device": "NVIDIA H100 80GB HBM3"}
    path = costs.write(tmp_path / "cost", [a_row(plain_s=2.0, fast_s=0.5, ratio=4.0, **of)])
    assert path.name == "nvidia-h100-80gb-hbm3.json"
    costs.write(tmp_path / "cost", [a_row(part="MEMIT edit", fast_s=1.25, **of)])
    (rows,) = costs.read(tmp_path / "cost").values()
    assert [(row["part"], row["fast_s"]) for row in rows] == [("ROME edit", 0.5), ("MEMIT edit", 1.25)]
    assert json.loads(path.read_text()) == rows


def cells(page):
    """Rows of a page's tables: the words between the bars."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line[:1] == "|"]


def test_a_row_is_a_line_of_text_and_a_row_of_its_devices_page():
    row = a_row(plain_s=2.0, fast_s=0.5, ratio=4.0)
    assert costs.line(row) == (
        "part ROME edit, model tiny, device A 1, precision float32, orders 1, plain path, s 2, here, s 0.5, ratio 4"
    )
    page = costs.device_page([row, a_row(part="MEMIT edit", fast_s=1234.5)])
    assert page.startswith("# What it costs on A 1\n")
    assert ["ROME edit", "tiny", "float32", "1", "2", "0.5", "4", "", "", "", ""] in cells(page)
    assert ["MEMIT edit", "tiny", "float32", "1", "", "1,234", "", "", "", "", ""] in cells(page)


def test_the_first_page_shows_both_paths_and_growth_of_the_chosen_models(results):
    shape = costs.SHOWN[0]
    rows = [
        a_row(plain_s=47.0, fast_s=9.4, ratio=5.0, shape=shape),
        a_row(precision="tf32", plain_s=3.0, fast_s=1.5, ratio=2.0, shape=shape),
        a_row(shape="other", plain_s=7.0, fast_s=3.5, ratio=2.0),
        a_row(part="ROME edit after 10 edits, 5 steps", fast_s=2.0, shape=shape),
        a_row(part="ROME edit after 1000 edits, 5 steps", fast_s=2.1, shape=shape),
        a_row(part="ROME edit, prompt of 10 tokens", fast_s=4.0, shape=shape),
        a_row(part="ROME edit, prompt of 160 tokens", fast_s=5.0, shape=shape),
        a_row(part="ROME edits, 1 order", plain_s=47.0, fast_s=9.0, ratio=5.2, shape=shape),
        a_row(part="ROME edits, 10 orders", orders=10, plain_s=47.0, fast_s=4.5, ratio=10.4, shape=shape),
    ]
    section = costs._beside_plain("a-1", rows, shape)
    assert section.startswith(f"### {shape} on A 1\n") and "[A 1](a-1.md)" in section
    assert cells(section)[2:] == [["ROME edit", "47 s", "9.4 s", "5 ×", "1.5 s"]]  # growth is told in sentences
    assert "The 1,000th ROME edit takes 1.05 times as long as the 10th." in section
    assert "With a prompt of 160 tokens it takes 1.25 times as long as with 10." in section
    assert "In a batch of 10 orders an edit takes 0.50 times as long as alone." in section
    assert costs._beside_plain("a-1", rows, costs.SHOWN[1]) == ""


def test_the_committed_pages_are_what_the_code_draws_from_the_committed_measurements(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    for path in costs.FOLDER.glob("*.json"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    drawn = {path.name: path.read_text() for path in costs.write_pages(tmp_path)}
    assert drawn == {path.name: path.read_text() for path in costs.FOLDER.glob("*.md")}
    assert {"README.md", "nvidia-h100-80gb-hbm3.md", "full-gpt-j.md", "full-gpt2-xl.md"} < set(drawn)
    assert "older than\n[tensor_cores.py]" in drawn["README.md"] and "10 orders" in drawn["README.md"]


def test_the_committed_measurements_are_whole():
    tables = costs.read(ROOT / "figures/cost")
    assert {"NVIDIA H100 80GB HBM3", "NVIDIA H200"} < {rows[0]["device"] for rows in tables.values()}
    for rows in tables.values():
        assert all(tuple(row) == costs.FIELDS and row["device"] == rows[0]["device"] for row in rows)
        ratios = [row for row in rows if row["ratio"] is not None]
        assert all(abs(row["ratio"] * row["fast_s"] / row["plain_s"] - 1) < 1e-2 for row in ratios) and ratios
