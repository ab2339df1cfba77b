"""The graph of notebooks: which jobs a grid makes, what each is given, and what a change runs again.

The notebooks here are stand-ins of three cells with the study's names and parameters, so that the graph and
not the editing is tested."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from test_run import write_notebook

from editscale.workflow.parameters import batches, edits_together, read_grid

REPOSITORY = Path(__file__).parents[1]
GRID = """\
runs:  # one job a line
  - {method: rome, hparams: params/rome/tiny.yaml, order: 0, reverse: false}
  - {method: rome, hparams: params/rome/tiny.yaml, order: 0, reverse: true}
"""
EDITING = """\
n_edits: int = 1  # facts edited one after another
method: str = "rome"  # which editor
hparams: str = ""  # its hyper-parameters
order: int = 1  # which order of facts
reverse: bool = False  # the other way round
fact_set: str = ""  # a file of facts
out: str = "runs"  # folder for results"""
GATHERING = """\
runs: list = []  # folders of runs
figures_folder: str = "figures"  # folder for figures
out: str = "runs"  # folder for results"""
ALONE = """\
runs: list = []  # folders of runs
out: str = "runs"  # folder for results"""
ALONG = """\
run: str = ""  # folder of a run
out: str = "runs"  # folder for results"""
ALONGS = ("03a_recall_history", "04a_glue_eval")
GATHERS = {
    "02b_editing_proficiency": "fig1_editing_proficiency",
    "03b_forgetting_analysis": "fig2_facts_forgotten",
    "04b_downstream_performance": "fig3_downstream",
    "05_drift_analysis": "fig4_weight_drift",
    "05b_disabling_edits": "fig5_disabling_edits",
    "07_findings": "fig7_findings",
}
BESIDE = """\
single: str = ""  # a table of another notebook
"""
JUDGING = """\
table: str = ""  # a table of another notebook
figures_folder: str = "figures"  # folder for figures
out: str = "runs"  # folder for results"""
MEASURING = """\
methods: dict = {}  # with hyper-parameters
out: str = "runs"  # folder for results"""
WRITE = """\
import json
from pathlib import Path
from editscale.workflow.provenance import finish, made_with
Path(out, "given.json").write_text(json.dumps({"n_edits": n_edits, "hparams": hparams, "reverse": reverse}))
finish(out, [f"{out}/given.json"], made_with({}, ""))"""
LOOK = """\
import json
from pathlib import Path
from editscale.workflow.provenance import finish, made_with
from editscale.models import decoding
given = json.loads(Path(run, "given.json").read_text())
Path(out, "looked.json").write_text(json.dumps(given))
finish(out, [f"{out}/looked.json"], made_with({}, ""))"""
SINGLE = """\
import json
from pathlib import Path
from editscale.workflow.provenance import finish, made_with
Path(out, "single.parquet").write_text(json.dumps(runs))
finish(out, [f"{out}/single.parquet"], made_with({}, ""))"""
GATHER = """\
import json
from pathlib import Path
from editscale.workflow.provenance import finish, made_with
seen = [json.loads(Path(run, "given.json").read_text()) for run in runs]
Path(out, "seen.json").write_text(json.dumps(seen))
Path(figures_folder).mkdir(parents=True, exist_ok=True)
Path(figures_folder, FIGURE).write_text("<svg/>")
finish(out, [f"{out}/seen.json", f"{figures_folder}/{FIGURE}"], made_with({}, ""))"""

MEASURE = """\
from pathlib import Path
from editscale.workflow.provenance import finish, made_with
Path(out, "acceptance.parquet").write_text("measured")
finish(out, [f"{out}/acceptance.parquet"], made_with({}, ""))"""
JUDGE = """\
from pathlib import Path
from editscale.workflow.provenance import finish, made_with
from editscale.analysis import targets
path = Path(figures_folder, "fig6_acceptance.svg")
path.parent.mkdir(parents=True, exist_ok=True)
path.write_text(f"<svg>{Path(table).read_text()}</svg>")
finish(out, [path], made_with({}, ""))"""


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A repository of the Snakefile, the modules it needs and stand-in notebooks, run at one scale: tiny."""
    root = tmp_path_factory.mktemp("study")
    for name in ("pyproject.toml", "notebooks/Snakefile"):
        (root / name).parent.mkdir(exist_ok=True)
        shutil.copy(REPOSITORY / name, root / name)
    shutil.copytree(REPOSITORY / "editscale", root / "editscale", ignore=shutil.ignore_patterns("__pycache__"))
    stats = 'out: str = "runs"  # folder for results', 'n_edits = hparams = reverse = ""\n' + WRITE
    write_notebook(root / "notebooks/01_covariance_stats.ipynb", *stats)
    write_notebook(root / "notebooks/02a_sequential_editing.ipynb", EDITING, WRITE)
    for name in ALONGS:
        write_notebook(root / f"notebooks/{name}.ipynb", ALONG, LOOK)
    for name, figure in GATHERS.items():
        parameters = BESIDE + GATHERING if name == "05b_disabling_edits" else GATHERING
        write_notebook(root / f"notebooks/{name}.ipynb", parameters, f'FIGURE = "{figure}.svg"', GATHER)
    write_notebook(root / "notebooks/05a_single_edits.ipynb", ALONE, SINGLE)
    write_notebook(root / "notebooks/06a_acceptance_measures.ipynb", MEASURING, MEASURE)
    write_notebook(root / "notebooks/06b_acceptance.ipynb", JUDGING, JUDGE)
    values = dict.fromkeys(["01_covariance_stats", "05a_single_edits", "06b_acceptance", *ALONGS, *GATHERS], "")
    values["06a_acceptance_measures"] = "methods: {rome: params/rome/tiny.yaml}\n"
    values["02a_sequential_editing"] = "n_edits: 3\nfact_set: params/facts.json\n"
    (root / "params").mkdir()
    (root / "params/facts.json").write_text("[]\n")
    for name, text in {**values, "grid": GRID}.items():
        path = root / f"params/tiny/{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (root / "params/rome").mkdir()
    (root / "params/rome/tiny.yaml").write_text("layer: 1\n")
    finished = snakemake(root, "--cores", "2", "-p")
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return root


def snakemake(root, *arguments, scale="tiny"):
    command = [sys.executable, "-m", "snakemake", "-s", "notebooks/Snakefile", "--config", f"scale={scale}"]
    return subprocess.run([*command, *arguments], cwd=root, capture_output=True, text=True)


def jobs(root, *arguments, scale="tiny"):
    """Rules that a dry run would execute, by number of jobs."""
    answer = snakemake(root, "-n", "--quiet", "rules", *arguments, scale=scale)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    counts = [line.split() for line in answer.stdout.splitlines()]
    rules = {words[0]: int(words[1]) for words in counts if len(words) == 2 and words[1].isdigit()}
    return {name: n for name, n in rules.items() if name not in ("all", "total")}


def test_every_run_of_the_grid_gets_its_parameters_and_leaves_its_results(study):
    given = {"n_edits": 3, "hparams": "params/rome/tiny.yaml", "reverse": False}
    for sequence, reverse in {"order-0": False, "order-0-reversed": True}.items():
        folder = f"runs/tiny/rome/{sequence}"
        assert json.loads((study / folder / "given.json").read_text()) == {**given, "reverse": reverse}
        record = json.loads((study / folder / "done.json").read_text())
        assert list(record["files"]) == [f"{folder}/given.json"]
        assert (study / f"runs/tiny/notebooks/02a_sequential_editing/rome-{sequence}.ipynb").is_file()


def test_notebooks_along_a_run_see_it_and_write_into_its_folder(study):
    for sequence, reverse in {"order-0": False, "order-0-reversed": True}.items():
        for folder, name in {"recall": ALONGS[0], "downstream": ALONGS[1]}.items():
            looked = study / f"runs/tiny/rome/{sequence}/{folder}/looked.json"
            assert json.loads(looked.read_text())["reverse"] == reverse
            assert (study / f"runs/tiny/notebooks/{name}/rome-{sequence}.ipynb").is_file()


def test_gathering_notebooks_see_all_runs_in_the_order_of_the_grid(study):
    for name in ("proficiency", "forgetting", "performance", "drift", "disabling", "findings"):
        seen = json.loads((study / f"runs/tiny/{name}/seen.json").read_text())
        assert [run["reverse"] for run in seen] == [False, True]
    figures = sorted(path.name for path in (study / "figures/tiny").iterdir())
    assert figures == sorted(f"{figure}.svg" for figure in [*GATHERS.values(), "fig6_acceptance"])


def test_the_single_edits_are_made_once_for_all_runs_and_given_to_the_notebook_that_draws_them(study):
    made = json.loads((study / "runs/tiny/single/single.parquet").read_text())
    assert made == ["runs/tiny/rome/order-0", "runs/tiny/rome/order-0-reversed"]
    executed = nbformat.read(study / "runs/tiny/notebooks/05b_disabling_edits.ipynb", 4)
    assert executed.metadata["papermill"]["parameters"]["single"] == "runs/tiny/single/single.parquet"


def test_what_is_published_is_measured_without_runs_and_judged_from_the_table(study):
    assert (study / "figures/tiny/fig6_acceptance.svg").read_text() == "<svg>measured</svg>"
    executed = nbformat.read(study / "runs/tiny/notebooks/06b_acceptance.ipynb", 4)
    assert executed.metadata["papermill"]["parameters"]["table"] == "runs/tiny/acceptance/acceptance.parquet"


def test_nothing_runs_again_until_something_that_matters_changes(study):
    def change(name, text="CHANGED = 1"):
        with (study / name).open("a") as file:
            file.write(f"\n{text}\n")

    gathered = {name.split("_", 1)[1]: 1 for name in GATHERS}
    looked = {"recall_history": 2, "glue_eval": 2}
    every_edit = {"sequential_editing": 2, **looked, **gathered, "single_edits": 1}
    (study / "editscale/editing/rome.py").touch()
    change("editscale/editing/rome.py", "# words")
    change("editscale/kernels/tensor_cores.py", '"""Words."""\n# and more of them')
    change("editscale/editing/memit.py")  # no run of the grid edits with it
    assert jobs(study) == {}
    (study / "figures/tiny/fig4_weight_drift.svg").unlink()
    assert jobs(study) == {"drift_analysis": 1}
    change("editscale/data/acceptance.yaml", "# a data file is read whole")
    assert jobs(study) == {"drift_analysis": 1, "acceptance": 1}
    change("editscale/models/decoding.py")  # the notebooks along a run import it, those that edit do not
    later = {name: n for name, n in gathered.items() if name != "editing_proficiency"}
    assert jobs(study) == {**looked, **later, "acceptance": 1}
    change("params/facts.json")
    assert jobs(study) == {**every_edit, "acceptance": 1}


def test_a_method_is_run_again_when_its_own_module_or_its_hyper_parameters_change(study):
    def answers(name, text):
        """Jobs that edit, and notebook 01, after a change that is taken back."""
        path = study / name
        before = path.read_text()
        try:
            path.write_text(f"{before}\n{text}\n")
            return {rule: n for rule, n in jobs(study).items() if rule in edits}
        finally:
            path.write_text(before)

    edits = ("covariance_stats", "sequential_editing", "acceptance_measures")
    executed = snakemake(study, "--cores", "2")
    assert executed.returncode == 0, executed.stdout + executed.stderr
    assert jobs(study) == {}
    assert answers("editscale/editing/rome.py", "CHANGED = 1") == {"sequential_editing": 2, "acceptance_measures": 1}
    assert answers("editscale/editing/memit.py", "CHANGED = 2") == {}
    assert answers("params/rome/tiny.yaml", "# changed") == {"sequential_editing": 2, "acceptance_measures": 1}


def test_the_papers_scale_is_every_method_on_ten_orders_looked_at_twice_and_gathered_once():
    """Of the repository's own notebooks; nothing runs, and no model or data need be there."""
    found = jobs(REPOSITORY, "--forceall", scale="gpt2-xl")
    per_run = {"sequential_editing", "recall_history", "glue_eval"}
    assert {name: n for name, n in found.items() if name in per_run} == dict.fromkeys(per_run, 4 * 10)
    once = {path.stem.split("_", 1)[1] for path in (REPOSITORY / "notebooks").glob("*.ipynb")} - per_run
    assert {name: n for name, n in found.items() if name not in per_run} == dict.fromkeys(once, 1)


def test_an_unknown_scale_is_named(study):
    answer = snakemake(study, "-n", scale="nano")
    assert answer.returncode != 0
    assert "scale nano: no parameters file params/nano/grid.yaml" in answer.stdout + answer.stderr


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GRID + GRID.splitlines()[1], "grid.yaml lists rome order-0 twice"),
        ("runs: [{method: rome}]", "a run has method .str., hparams .str., order .int., reverse .bool., not"),
        (GRID.replace("order: 0", "order: '0'"), "order .int."),
        ("runs: [rome]", "not rome"),
        ("runs: []", "grid.yaml lists no run"),
        ("jobs: []", "grid.yaml lists no run"),
    ],
)
def test_a_wrong_grid_is_refused_with_file_and_reason(tmp_path, text, message):
    (tmp_path / "grid.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_grid(tmp_path / "grid.yaml")


def test_runs_of_a_grid_go_by_method_and_sequence(tmp_path):
    (tmp_path / "grid.yaml").write_text(GRID)
    assert list(read_grid(tmp_path / "grid.yaml")) == [("rome", "order-0"), ("rome", "order-0-reversed")]


def test_runs_of_one_method_are_a_batch_unless_they_name_another(tmp_path):
    path = tmp_path / "grid.yaml"
    path.write_text("together: true\n" + GRID.replace("reverse: true", "reverse: true, batch: backwards"))
    assert edits_together(path) and batches(read_grid(path)) == {
        "rome": [("rome", "order-0")],
        "backwards": [("rome", "order-0-reversed")],
    }
    path.write_text(GRID)
    assert not edits_together(path)
    assert batches(read_grid(path)) == {"rome": [("rome", "order-0"), ("rome", "order-0-reversed")]}
    path.write_text("together: 2\n" + GRID)
    with pytest.raises(ValueError, match="together must be true or false, not 2"):
        edits_together(path)
    for batch, message in ((3, "a run has method"), ("../up", "'../up' is no name of a batch")):
        path.write_text(GRID.replace("reverse: true", f"reverse: true, batch: {batch}"))
        with pytest.raises(ValueError, match=message):
            read_grid(path)


def test_where_the_grid_says_so_batches_are_edited_before_the_runs(study):
    path = study / "params/tiny/grid.yaml"
    path.write_text("together: true\n" + GRID.replace("reverse: true", "reverse: true, n_edits: 9, batch: last"))
    try:
        assert jobs(study, "--forceall")["edit_together"] == 2
        answer = snakemake(study, "-n", "-p", "--forceall")
        assert "-m editscale together tiny rome\n" in answer.stdout
        assert "-p n_edits 9 -p together '[rome/order-0-reversed]'" in answer.stdout
    finally:
        path.write_text(GRID)


def test_of_a_recorded_scale_only_the_gathering_notebooks_run_on_its_tables(study):
    tables = study / "figures/tiny/tables"
    tables.mkdir()
    try:
        (tables / "record.json").write_text("{}")
        once = {path.split("_", 1)[1]: 1 for path in GATHERS if path != "05b_disabling_edits"}
        assert jobs(study, "--forceall") == once  # no table of single edits, and none of notebook 06a
        (tables / "single.parquet").touch()
        (tables / "acceptance.parquet").touch()
        assert jobs(study, "--forceall") == once | {"disabling_edits": 1, "acceptance": 1}
        printed = snakemake(study, "-n", "-p", "--forceall").stdout
        assert printed.count("-p runs '[figures/tiny/tables]'") == len(GATHERS)
        assert "-p single figures/tiny/tables/single.parquet" in printed
        assert "-p table figures/tiny/tables/acceptance.parquet" in printed
        anew = ["--forceall", "--config", "scale=tiny", "anew=1"]
        assert jobs(study, *anew)["sequential_editing"] == 2
    finally:
        shutil.rmtree(tables)
