"""What a study costs is seconds of one, as a dry run left them, times how many its parameters ask for."""

import json
from pathlib import Path

import pytest
from tools import costs, full_cost

from editscale.files import sealed, sha256_file, write_json, write_whole
from editscale.workflow import cli

ROOT = Path(__file__).parents[1]
METHODS = ("rome", "r-rome", "memit", "ft-c")
TIMES = {
    "01_covariance_stats": [
        {"part": "sampled text", "n": 100, "seconds": 3.0},
        {"part": "second moments", "n": 10, "seconds": 5.0},
        {"part": "second moments", "n": 10, "seconds": 0.001},
        {"part": "spectrum", "n": 1, "seconds": 2.0},
    ],
    "03a_recall_history": [
        *({"part": "perplexity", "n": 1, "seconds": seconds} for seconds in (9.0, 9.0, 0.01, 0.01)),
        {"part": "spectra", "n": 2, "seconds": 4.0},
        {"part": "recall", "n": 3, "seconds": 9.0},
        {"part": "recall", "n": 6, "seconds": 0.06},
    ],
    "04a_glue_eval": [
        {"part": "tasks", "n": 200, "seconds": 90.0},
        {"part": "texts", "n": 24, "seconds": 24.0},
        {"part": "tasks", "n": 200, "seconds": 1.0},
        {"part": "texts", "n": 24, "seconds": 2.4},
        {"part": "choices", "n": 10, "seconds": 0.225},
    ],
}
EDITS = [{"edit": i, "seconds": seconds} for i, seconds in enumerate((9.0, 8.0, 0.5, 0.7, 0.5), 1)]


def leave(folder, times, *, start=0, gpu="NVIDIA H100", peak=10.0):
    """What a notebook that ran for two minutes leaves: its done.json, its times."""
    folder.mkdir(parents=True, exist_ok=True)
    ends = [f"2026-01-01T10:{minute:02d}:00+00:00" for minute in (start, start + 2)]
    done = {"gpu": gpu, "cpu": "a CPU", "gpu_peak_gb": peak, "started": ends[0], "finished": ends[1]}
    if times:
        path = write_whole(folder / "timing.jsonl", "".join(json.dumps(row) + "\n" for row in times).encode())
        done["files"] = {path.as_posix(): sha256_file(path)}
    write_json(folder / "done.json", sealed(done))


@pytest.fixture
def dry(tmp_path, monkeypatch):
    """The folder of a dry run of GPT-2 XL with planted times; the working directory is above it."""
    monkeypatch.chdir(tmp_path)
    for name in ("notebooks", "params"):
        (tmp_path / name).symlink_to(ROOT / name)
    folder = Path("runs/dry-xl")
    leave(folder / "moments", TIMES["01_covariance_stats"])
    leave(folder / "single", [], start=20)
    leave(folder / "acceptance", [], start=21, peak=30.0)
    for method in METHODS:
        run = folder / method / "order-0"
        leave(run, EDITS, start=3)
        leave(run / "recall", TIMES["03a_recall_history"], start=6)
        leave(run / "downstream", TIMES["04a_glue_eval"], start=9)
    return folder


def parts(one):
    return {(row["group"], row["part"]): row for row in one["parts"]}


def test_each_part_is_the_seconds_of_one_times_those_of_the_study(dry):
    one = full_cost.cost("dry-xl", "gpt2-xl")
    found = {key: (row["seconds"], row["count"]) for key, row in parts(one).items()}
    expected = {
        ("second moments", "second moments"): (1e-4, 100_000 * 1024),
        ("second moments", "eigenvalues"): (2.0, 5),
        **{("editing", f"edits, {method}"): (0.5, 10 * 1000) for method in METHODS},
        ("editing", "scores of the unedited model"): (None, 40 * 1000),
        # Checkpoints at 20, 40, … 1,000 edits ask 20 + 40 + … + 1,000 facts.
        ("recall", "earlier facts"): (0.01, 40 * 20 * 50 * 51 // 2),
        ("recall", "perplexity"): (0.01, 40 * 1001),
        ("recall", "singular values"): (2.0, 40 * 51 * 2),
        ("tasks", "tasks"): (0.005, 40 * 51 * 4 * 200),
        ("tasks", "choices"): (0.0225, 40 * 51 * 216),
        ("tasks", "texts"): (0.1, 40 * 51 * 100),
        # 40 facts with contexts of the run, another seed, other words and none; 500 alone; MEMIT's sequence of 500.
        **{("edits alone", f"edits, {method}"): (0.5, 660) for method in METHODS},
        ("edits alone", "edits, memit"): (0.5, 1160),
        ("edits alone", "scores of the unedited model"): (None, 7500),
        ("edits alone", "task sst2"): (0.005, 9 * 872),
        ("notebooks", "02a_sequential_editing"): (120 - 18.7, 40),
        ("notebooks", "03a_recall_history"): (120 - 31.08, 40),
        ("notebooks", "04a_glue_eval"): (120 - 117.625, 40),
        ("notebooks", "01_covariance_stats"): (120 - 10.0, 1),
        ("notebooks", "05a_single_edits"): (120.0, 1),
        ("notebooks", "06a_acceptance_measures"): (120.0, 1),
    }
    assert found == {
        key: (seconds and pytest.approx(seconds, rel=1e-3), count) for key, (seconds, count) in expected.items()
    }
    for row in one["parts"]:
        assert row["hours"] == (row["seconds"] and pytest.approx(row["seconds"] * row["count"] / 3600, rel=1e-3))


def test_what_a_bench_measured_of_the_shape_on_that_gpu_stands_before_the_dry_run(dry, tmp_path):
    of = {"device": "NVIDIA H100", "precision": "float32"}
    rows = [
        costs.row(part="history checkpoint, 200 facts, again", shape="gpt2-xl", fast_s=0.4, **of),
        costs.row(part="record evaluation, 32 records", shape="gpt2-xl", fast_s=0.64, **of),
        costs.row(part="record evaluation, 32 records", shape="gpt-j", fast_s=9.0, **of),
        costs.row(part="record evaluation", shape="gpt2-xl", fast_s=7.0, **of),
    ]
    costs.write("figures/cost", rows)
    found = parts(full_cost.cost("dry-xl", "gpt2-xl"))
    for key, seconds in {("recall", "earlier facts"): 0.002, ("editing", "scores of the unedited model"): 0.02}.items():
        assert (found[key]["seconds"], found[key]["source"]) == (seconds, "bench")


def test_the_page_says_what_the_file_holds(dry):
    one = full_cost.cost("dry-xl", "gpt2-xl")
    assert json.loads(full_cost.write("dry-xl", "gpt2-xl").read_text()) == one
    # All runs of one stage started together; the first notebook started at 10:00, the last ended at 10:23.
    assert (one["minutes"], one["side_by_side"]) == (23.0, 4)
    page = [[cell.strip() for cell in line.split("|")[1:-1]] for line in costs.study_page(one).splitlines()]
    assert ["second moments", "second moments", "token", "100 µs", "dry run", "102,400,000", "2.84"] in page
    row = costs._study_row("full-gpt2-xl", one)
    assert (row["study"], row["GPU"]) == ("[gpt2-xl](full-gpt2-xl.md)", "NVIDIA H100")
    assert row["dry run"] == "23.0 min, up to 4 notebooks at once"
    assert (row["most memory"], row["second moments"]) == ("30 GB (06)", "2.85")
    assert float(row["all"]) == pytest.approx(sum(part["hours"] or 0 for part in one["parts"]), rel=0.01)
    assert costs.read("figures/cost") == {}, "no table of a device"


def test_a_dry_run_that_is_not_complete_or_of_two_machines_is_refused(dry, capsys):
    leave(dry / "single", [], gpu=None, peak=None)
    with pytest.raises(ValueError, match="was made on NVIDIA H100 and a CPU; run it again"):
        full_cost.write("dry-xl", "gpt2-xl")
    (dry / "single/done.json").unlink()
    missing = "no runs/dry-xl/single/done.json; run the graph of scale dry-xl to its end"
    assert cli.main(["full-cost", "dry-xl", "--of", "gpt2-xl"]) == 2
    assert f"editscale full-cost: {missing}\n" == capsys.readouterr().err
