"""The README and the gallery show the committed figures and quote their computed captions and numbers word for word."""

import json
import re
from pathlib import Path

import pandas as pd
import pytest
from tools import costs, full_cost, study_cost

from editscale.analysis import disabling, tables
from editscale.files import sha256_file
from editscale.workflow import gallery, recorded
from editscale.workflow.parameters import read_parameters

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_the_readme_quotes_the_captions_of_its_figures():
    quotes = [line.removeprefix("> ") for line in README.splitlines() if line.startswith("> ")]
    names = "fig2_facts_forgotten", "fig5c_denominators"
    assert quotes == [json.loads((ROOT / f"figures/smollm2/{name}.json").read_text())["caption"] for name in names]


def test_the_readmes_claims_are_computed_from_the_committed_figures():
    assert len(gallery.claims_table(ROOT / "figures", "smollm2").splitlines()) > 10
    assert gallery.claims_table(ROOT / "figures", "smollm2").strip() in README


def test_what_holds_over_orders_is_computed_from_the_recorded_tables():
    assert gallery.methods_table(ROOT / "figures", "smollm2").count("10 orders") > 10
    assert gallery.methods_table(ROOT / "figures", "smollm2").strip() in README


def test_the_gallery_is_that_of_the_committed_figures():
    assert (ROOT / "figures/README.md").read_text() == gallery.gallery(ROOT / "figures")


@pytest.mark.parametrize("page", ("README.md", "figures/README.md"))
def test_every_linked_file_exists(page):
    links = re.findall(r"\]\((?!http)([^)#]+)\)", (ROOT / page).read_text())
    assert len(links) > 10 and all((ROOT / page).parent.joinpath(link).exists() for link in links), links


@pytest.mark.parametrize("scale", gallery.SCALES)
def test_every_committed_figure_is_in_the_gallery_and_in_five_forms(scale):
    names = {path.name.split(".")[0] for path in (ROOT / "figures" / scale).iterdir() if path.is_file()}
    assert names == set(gallery.drawn(ROOT / "figures", scale)) and len(names) >= 8
    for name in names:
        for kind in ("svg", "pdf", "png", "csv", "json"):
            assert (ROOT / f"figures/{scale}/{name}.{kind}").is_file()


def test_the_recorded_tables_are_those_of_their_record_and_hold_no_texts():
    tables = ROOT / "figures/smollm2/tables"
    record = json.loads((tables / "record.json").read_text())
    found = {str(path.relative_to(tables)) for path in tables.rglob("*.parquet")}
    assert set(record["files"]) == found and "recall/history.parquet" in found
    assert all(sha256_file(tables / name) == sha256 for name, sha256 in record["files"].items())
    for name in found:
        texts = set(pd.read_parquet(tables / name).select_dtypes(exclude=["number", "bool"]))
        assert texts <= {"method", "relation_id", "status", "task", "contexts", "model", "part", "metric"}


@pytest.fixture(scope="module")
def recorded_study():
    """The recorded tables by name: edits, drift, recall/history, downstream/downstream, single."""
    names = "edits", "drift", "recall/history", "downstream/downstream", "single"
    return {name: pd.read_parquet(ROOT / f"figures/smollm2/tables/{name}.parquet") for name in names}


def test_the_denominators_of_the_recorded_study_are_those_before_the_first_edit(recorded_study):
    """As the README says: a fact has one denominator, wherever it comes in a sequence, also backwards."""
    edits = recorded_study["edits"]
    of_facts = edits[edits["method"] == "rome"].groupby("case_id")["denominator"].agg(["min", "max", "size"])
    assert (of_facts["size"] > 1).sum() > 1000 and (of_facts["min"] == of_facts["max"]).all()
    known = disabling.foreseen(disabling.detect(recorded_study["drift"]), edits)
    warned = known["warned"] * known["edits"]
    assert (known["caught"] == 1).all() and (known["flagged"] < warned / 2).all()  # most warnings are of ordinary edits


def test_what_the_readme_says_of_the_methods_holds_in_the_recorded_tables(recorded_study):
    edits, drift, history, tasks, _ = recorded_study.values()
    flagged = disabling.detect(drift).groupby("method").size()
    assert set(flagged.index) == {"rome", "memit"} < set(edits["method"])  # not r-rome, ft-c, rome-multi
    at = history[~history["reversed"] & (history["edits"] == 1000)].groupby("method")["efficacy_accuracy"].mean()
    assert at.idxmax() == "r-rome" and at["r-rome"] < 0.5 and at["memit"] < 0.02
    end = drift[drift["edits"] == 1000]  # of each run the layer that moved most
    moved = end.groupby([*tables.RUN])["relative_drift"].max().groupby("method").agg(["min", "max"])
    assert moved["max"]["ft-c"] < moved["min"].drop("ft-c").min()
    last = tasks[(tasks["edits"] == 1000) & tasks["method"].isin(["ft-c", "r-rome"])]
    assert last["invalid"].lt(0.5).all() and len(last) == 2 * 10 * 4  # shares of the answers


def test_the_largest_flagged_edits_disable_alone_behind_any_words_but_not_bare(recorded_study):
    stays = disabling.against_ordinary(recorded_study["single"])
    rome = stays[(stays["method"] == "rome") & stays["flagged"]]
    first = rome[(rome["contexts"] == "run") & (rome["times_ordinary"] > disabling.JUMP)]["case_id"]
    of_rome = rome[rome["case_id"].isin(first)].groupby(["contexts", "seed"], dropna=False)["times_ordinary"]
    kept = {name: (rows > disabling.JUMP).mean() for (name, _), rows in of_rome}
    assert len(first) > 30 and kept == {"run": 1, "seed": 1, "words": 1, "bare": 0}


def test_runs_made_twice_made_the_same_edits():
    again = pd.read_csv(ROOT / "figures/smollm2/tables/reruns.csv")
    assert len(again) == 12 and again["within"].all() and again["same_gpu"].all() and (again["edits"] == 1000).all()
    exact = "norm_difference_1000", "efficacy_difference", "recall_difference"
    assert (again[[*exact]] == 0).all(axis=None) and (again["same_efficacy"] == 1).all()
    assert "Twelve of the recorded runs were made twice" in README


def test_the_committed_figures_hold_the_laptop_sequence_for_three_methods_and_a_reverse():
    plotted = pd.read_csv(ROOT / "figures/laptop/fig4_weight_drift.csv")
    runs = plotted.groupby(["method", "order", "reversed"])["edits"].max()
    assert set(runs.index) == {("rome", 0, False), ("rome", 0, True), ("r-rome", 0, False), ("memit", 0, False)}
    given = read_parameters(ROOT / "params/laptop/02a_sequential_editing.yaml")
    n_edits, contexts = given["n_edits"], given["n_short_prefixes"] + given["n_long_prefixes"]
    assert (runs == n_edits).all()
    assert f"`laptop`: {n_edits} edits of one order, ROME variants with {contexts} sampled contexts" in README
    assert f"a study of {n_edits} edits" in README


def test_the_disabling_edit_of_the_small_experiments_comes_with_its_fact():
    """As the README says: one fact, far apart in an order and its reverse."""
    tables = ROOT / "figures/twenty-counterfact/tables"
    edits, drift = (pd.read_parquet(tables / f"{name}.parquet") for name in ("edits", "drift"))
    found = disabling.effects(disabling.detect(drift), edits)
    forward, backward = found.sort_values("reversed").to_dict("records")
    assert (forward["reversed"], backward["reversed"]) == (False, True)
    assert forward["case_id"] == backward["case_id"] and forward["order"] == backward["order"]
    assert forward["edits"] + backward["edits"] == 21 and forward["edits"] > backward["edits"] + 5


def test_the_papers_curve_and_recall_of_the_committed_figure_agree_where_nothing_was_forgotten_before():
    """At the first checkpoint both readings ask the same facts once: forgotten and recalled make 100 %."""
    plotted = pd.read_csv(ROOT / "figures/laptop/fig2_facts_forgotten.csv")
    recall, paper = (plotted[plotted["panel"] == panel] for panel in ("recall", "paper"))
    first = recall[recall["edits"] == recall["edits"].min()]
    both = first.merge(paper, on=["method", "order", "reversed", "edits"])
    assert len(both) == 4
    assert both["recall_x"].add(both["forgotten_percent_y"]).sub(100).abs().max() < 1e-9


def test_a_scale_without_figures_is_named():
    with pytest.raises(
        FileNotFoundError, match="no figure fig1_editing_proficiency in .*nano; run make figures SCALE=nano"
    ):
        gallery.gallery(ROOT / "figures", ["nano"])


def test_the_costs_in_the_readme_are_those_of_the_committed_tables():
    assert costs.section(costs.read(ROOT / "figures/cost")) in (ROOT / "README.md").read_text()


def test_what_the_recorded_study_took_is_computed_from_its_tables(monkeypatch):
    monkeypatch.chdir(ROOT)
    results = recorded.read("figures/smollm2/tables", "smollm2")
    assert study_cost.markdown(results, "smollm2") in README


def test_what_full_studies_cost_is_computed_from_the_recorded_dry_runs():
    recorded_runs = list((ROOT / "figures/cost").glob("full-*.json"))
    assert ("no dry run is" in README) == (not recorded_runs)
    assert full_cost.table(ROOT / "figures/cost") in README
    for path in recorded_runs:
        assert path.with_suffix(".md").read_text() == full_cost.page(json.loads(path.read_text()))


def test_the_pages_of_costs_are_those_of_their_tables():
    tables = costs.read(ROOT / "figures/cost")
    assert {rows[0]["device"] for rows in tables.values()} >= {"NVIDIA H100 80GB HBM3"} and len(tables) == 2
    for name, rows in tables.items():
        assert (ROOT / f"figures/cost/{name}.md").read_text() == costs.page(rows)
        assert all(tuple(row) == costs.FIELDS and row["device"] == rows[0]["device"] for row in rows)
        ratios = [row for row in rows if row["ratio"] is not None]
        assert all(abs(row["ratio"] * row["fast_s"] / row["plain_s"] - 1) < 1e-2 for row in ratios) and ratios
