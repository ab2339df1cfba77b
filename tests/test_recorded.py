"""The notebooks that gather runs read one folder with the rows of all runs: several orders, methods and lengths."""

import json
import os
import shutil
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import pytest
import synthetic
from IPython.display import display

from editscale.workflow.parameters import collect_parameters, read_notebook

ROOT = Path(__file__).parents[1]
DRAWN = {
    "02b_editing_proficiency": ["fig1_editing_proficiency"],
    "03b_forgetting_analysis": ["fig2a_recall", "fig2_facts_forgotten"],
    "04b_downstream_performance": ["fig3_downstream"],
    "05_drift_analysis": ["fig4_weight_drift", "fig4b_drift_and_loss", "fig4c_spectra"],
    "07_findings": ["fig7_findings"],
}


WITH_BANDS = {
    "fig1_editing_proficiency",
    "fig2a_recall",
    "fig2_facts_forgotten",
    "fig3_downstream",
    "fig4_weight_drift",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("scale")
    synthetic.write(path / "tables", n_orders=3, n_edits=200, longer=300, n_few=2, n_singular=6)
    return path


def execute(notebook, parameters):
    """Run the cells of a notebook here, in the repository root: no kernel to wait for."""
    names, before = {"display": display}, os.getcwd()  # a kernel has it
    try:
        os.chdir(ROOT)
        with plt.rc_context(), pd.option_context("display.max_colwidth", 50):
            for cell in read_notebook(notebook).cells:
                if cell.cell_type == "code":
                    exec(compile(cell.source, f"{notebook.name}, cell {cell.id}", "exec"), names)
                if "parameters" in cell.metadata.get("tags", []):
                    names |= parameters
    finally:
        os.chdir(before)
        plt.close("all")


@pytest.mark.parametrize("name", DRAWN)
def test_figures_of_many_runs_say_what_holds_over_orders(folder, name):
    notebook, figures = ROOT / f"notebooks/{name}.ipynb", folder / "figures"
    given = {"runs": json.dumps([str(folder / "tables")]), "figures_folder": str(figures), "out": str(folder / name)}
    values = ROOT / f"params/smollm2/{name}.yaml"
    execute(notebook, collect_parameters(notebook, [values], [list(pair) for pair in given.items()]))
    for figure in DRAWN[name]:
        about = json.loads((figures / f"{figure}.json").read_text())
        assert ("3 orders" in about["caption"]) == (figure in WITH_BANDS) and "order 0" not in about["caption"]
        assert about["caption"].startswith(about["found"]) and len(about["caption"]) < 600
        assert len(pd.read_csv(figures / f"{figure}.csv")) > 0


@pytest.mark.parametrize("every", (1, 7))
def test_forgetting_of_one_short_run_is_drawn_and_has_no_catastrophe(folder, tmp_path, every):
    """Seven edits, asked after each of them or at their end only: no interval, or one, and no collapse."""
    shutil.copytree(folder / "tables", tmp_path / "tables")
    for path in (tmp_path / "tables").rglob("*.parquet"):
        table = pd.read_parquet(path)
        one = table[(table["method"] == "r-rome") & (table["order"] == 0) & (table["edits"] <= 7)]
        one.to_parquet(path, index=False)
    edits = pd.read_parquet(tmp_path / "tables/edits.parquet")
    asked = [edits[edits["edits"] <= n].assign(edit=edits["edits"], edits=n) for n in range(every, 8, every)]
    names = ["method", "order", "reversed", "edits", "edit", "case_id", "efficacy_accuracy"]
    pd.concat(asked)[names].to_parquet(tmp_path / "tables/recall/history.parquet", index=False)
    synthetic.vouch(tmp_path / "tables")
    notebook = ROOT / "notebooks/03b_forgetting_analysis.ipynb"
    given = {
        "runs": json.dumps([str(tmp_path / "tables")]),
        "figures_folder": str(tmp_path),
        "out": str(tmp_path / "out"),
    }
    execute(notebook, collect_parameters(notebook, [], [list(pair) for pair in given.items()]))
    about = json.loads((tmp_path / "fig2_facts_forgotten.json").read_text())
    assert (
        about["found"].startswith("No order of any method") and "Orders around the collapse: none" in about["caption"]
    )
    panels = pd.read_csv(tmp_path / "fig2_facts_forgotten.csv").groupby("panel").size().to_dict()
    assert panels == {"orders": 7 // every, "paper": 7} | ({"hazard": 1} if every == 1 else {})


def with_likelihoods(folder):
    """Add to tables what is measured by likelihood: choices that most orders lose, and an area of one of the tasks."""
    path = folder / "downstream/downstream.parquet"
    downstream = pd.read_parquet(path)
    area = downstream["f1"].where(downstream["task"] == "sst2", 0.5)
    valid = {"valid_accuracy": downstream["accuracy"], "valid_accuracy_se": 0.03, "invalid_se": 0.0}
    downstream.assign(auroc=area, auroc_se=0.03, **valid).to_parquet(path, index=False)
    rows = downstream[downstream["task"] == "sst2"][["method", "order", "reversed", "edits", "n_examples", "accuracy"]]
    told = {"accuracy_se": 0.03, "chance": 0.5, "invalid": 0.0, "margin": 1.0, "margin_se": 0.1}
    both = [rows.assign(task="minimal_pairs", phenomenon=name, **told) for name in ("all", "agreement")]
    pd.concat(both, ignore_index=True).to_parquet(folder / "downstream/choices.parquet", index=False)
    synthetic.vouch(folder)


def test_a_task_of_ones_own_is_drawn_beside_the_others_without_a_change_of_code(folder, tmp_path):
    """With three labels and 700 examples: another n, another chance, and no claim about it; nor about likelihoods."""
    shutil.copytree(folder / "tables", tmp_path / "tables")
    with_likelihoods(tmp_path / "tables")
    path = tmp_path / "tables/downstream/downstream.parquet"
    tasks = pd.read_parquet(path)
    own = tasks[tasks["task"] == "sst2"].assign(task="origins", n_examples=700, f1_chance=1 / 3, f1_constant=1 / 6)
    pd.concat([tasks, own], ignore_index=True).to_parquet(path, index=False)
    synthetic.vouch(tmp_path / "tables")
    for name in ("04b_downstream_performance", "07_findings"):
        notebook, values = ROOT / f"notebooks/{name}.ipynb", ROOT / f"params/smollm2/{name}.yaml"
        given = {
            "runs": json.dumps([str(tmp_path / "tables")]),
            "figures_folder": str(tmp_path),
            "out": str(tmp_path / name),
        }
        execute(notebook, collect_parameters(notebook, [values], [list(pair) for pair in given.items()]))
    assert "origins (700 examples)" in (tmp_path / "fig3_downstream.svg").read_text()
    drawn = set(pd.read_csv(tmp_path / "fig3_downstream.csv")["task"].dropna())
    assert drawn == {"sst2", "rte", "origins", "minimal_pairs"}  # those with a signal
    claims = [pd.read_csv(path / "07_findings/claims.csv") for path in (tmp_path, folder)]
    pd.testing.assert_frame_equal(*claims)
    lasts = pd.read_csv(tmp_path / "07_findings/tasks.csv").set_index("task")["signal"]
    assert lasts["origins"].all() and not lasts["mrpc"].any()


def test_what_is_measured_by_likelihood_is_drawn_where_there_is_some_and_changes_nothing_else(folder, tmp_path):
    shutil.copytree(folder / "tables", tmp_path / "tables")
    with_likelihoods(tmp_path / "tables")
    name, given = "04b_downstream_performance", {"runs": json.dumps([str(tmp_path / "tables")])}
    given |= {"figures_folder": str(tmp_path), "out": str(tmp_path / name)}
    notebook, values = ROOT / f"notebooks/{name}.ipynb", ROOT / f"params/smollm2/{name}.yaml"
    execute(notebook, collect_parameters(notebook, [values], [list(pair) for pair in given.items()]))
    drawn, before = (pd.read_csv(path / "fig3_downstream.csv") for path in (tmp_path, folder / "figures"))
    told = drawn[drawn["score"].notna()]
    assert told.groupby("task", sort=False)["score"].first().to_dict() == {"sst2": "area", "minimal_pairs": "right"}
    assert told["share"].between(0, 100).all() and told["share"].max() > 50
    pd.testing.assert_frame_equal(drawn[drawn["score"].isna()][before.columns].reset_index(drop=True), before)
    svg = (tmp_path / "fig3_downstream.svg").read_text()
    assert "minimal_pairs, by likelihood" in svg and "rte, by likelihood" not in svg  # rte's area is chance
    assert "by likelihood" not in (folder / "figures/fig3_downstream.svg").read_text()
    assert set(pd.read_csv(tmp_path / "04b_downstream_performance/by_likelihood.csv")["task"]) >= {"minimal_pairs"}
    assert pd.read_csv(folder / "04b_downstream_performance/by_likelihood.csv").empty


def test_the_claims_lie_beside_the_figure_of_the_findings(folder):
    claims = pd.read_csv(folder / "figures/fig7_findings.claims.csv")
    assert claims.equals(pd.read_csv(folder / "07_findings/claims.csv")) and len(claims) > 10


def test_what_could_prevent_forgetting_is_drawn_with_steps_where_there_are_any(folder, tmp_path):
    shutil.copytree(folder / "tables", tmp_path / "tables")
    for path in (tmp_path / "tables").rglob("*.parquet"):  # a second method: MEMIT with ten facts in a step
        table = pd.read_parquet(path)
        tens = table[(table["method"] == "memit") & ~table["reversed"]].assign(method="memit-10")
        pd.concat([table, tens], ignore_index=True).to_parquet(path, index=False)
    overlap = {"layer": 3, "case_id": 1, "own": 1.0, "interference": 0.1, "largest": 0.2, "leading": 0.5}
    met = [
        {"method": name, "edits": t, "overlap": 0.1 * t, **overlap}
        for name in ("memit", "rome", "r-rome")
        for t in (2, 3)
    ]
    path = tmp_path / "tables/overlap.parquet"
    pd.DataFrame(met).to_parquet(path, index=False)
    synthetic.vouch(tmp_path / "tables")
    notebook, values = ROOT / "notebooks/09b_mitigations.ipynb", ROOT / "params/mitigations/09b_mitigations.yaml"
    given = {
        "runs": json.dumps([str(tmp_path / "tables")]),
        "overlap": str(path),
        "figures_folder": str(tmp_path),
        "out": str(tmp_path / "out"),
        "bases": "{r-rome: rome}",
        "at_once": json.dumps([str(tmp_path / "tables")]),  # as if all facts were edited in one step
        "one_by_one": "[rome]",
        "further": "{}",
    }
    execute(notebook, collect_parameters(notebook, [values], [list(pair) for pair in given.items()]))
    for name in ("fig8_mitigations", "fig8b_overlap", "fig8c_steps", "fig8d_in_one_step"):
        about = json.loads((tmp_path / f"{name}.json").read_text())
        assert about["caption"].startswith(about["found"])
    assert "fter 200 edits" in json.loads((tmp_path / "fig8_mitigations.json").read_text())["caption"]
    drawn = pd.read_csv(tmp_path / "fig8_mitigations.csv")
    assert set(drawn["panel"]) == {"recall", "learned", "perplexity", "neighborhood"}
    steps = pd.read_csv(tmp_path / "fig8c_steps.csv")
    assert set(steps["facts_per_step"]) == {1, 10} and set(steps["method"]) == {"memit"}
    against = pd.read_csv(tmp_path / "out/against.csv").groupby(["method", "base"])["difference"].max()
    assert against["memit-10", "memit"] == 0 and ("r-rome", "rome") in against.index
