"""What the README and the gallery say holds in the committed figures and tables; no number there is typed unchecked."""

import json
import re
import tomllib
from pathlib import Path

import pandas as pd
import pytest
from tools import costs, gallery, recorded

from editscale.analysis import collapse, damage, disabling, forecast, going_first, tables
from editscale.analysis.rows import rows_of
from editscale.files import sha256_file
from editscale.workflow.parameters import notebook_parameters, read_grid, read_parameters

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("scale", gallery.SCALES)
def test_the_pages_of_figures_are_those_of_the_committed_figures(scale):
    folder = ROOT / "figures"
    assert gallery.place(folder, scale).read_text() == gallery.page(folder, scale)


@pytest.mark.parametrize("scale", gallery.SCALES)
def test_every_committed_figure_is_in_the_gallery_and_in_five_forms(scale):
    names = {path.name.split(".")[0] for path in (ROOT / "figures" / scale).iterdir() if path.suffix not in ("", ".md")}
    least = {"mitigations": 5, "interventions": 1}.get(scale, 8)
    assert names == set(gallery.drawn(ROOT / "figures", scale)) and len(names) >= least
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
    """The recorded tables by name."""
    names = "edits", "drift", "recall/perplexity", "single"
    return {name: pd.read_parquet(ROOT / f"figures/smollm2/tables/{name}.parquet") for name in names}


def test_the_denominators_of_the_recorded_study_are_those_before_the_first_edit(recorded_study):
    """As the README says: a fact has one denominator, wherever it comes in a sequence, also backwards."""
    edits = recorded_study["edits"]
    of_facts = edits[edits["method"] == "rome"].groupby("case_id")["denominator"].agg(["min", "max", "size"])
    assert (of_facts["size"] > 1).sum() > 1000 and (of_facts["min"] == of_facts["max"]).all()


def said(words):
    """The one number that stands in the README where `words` have {}."""
    (found,) = re.findall(re.escape(words).replace(r"\{\}", "([0-9,]+)").replace(r"\ ", r"\s+"), README)
    return int(found.replace(",", ""))


def test_the_readme_shows_recall_of_three_methods_and_says_what_was_found():
    figure = json.loads((ROOT / "figures/smollm2/fig2a_recall.json").read_text())
    drawn = pd.read_csv(ROOT / "figures/smollm2/fig2a_recall.csv")
    assert "](figures/smollm2/fig2a_recall.png)" in README and README.count("![") == 1
    assert f"*{figure['found']}*" in " ".join(README.split())
    assert set(drawn["method"]) == {"rome", "r-rome", "memit"}


@pytest.fixture(scope="module")
def damaged(recorded_study):
    """Edits of forward runs on models that had not collapsed, and where each run collapses."""
    forward = {name: table[~table["reversed"]] for name, table in recorded_study.items() if "reversed" in table}
    places = collapse.where(forward["recall/perplexity"])
    return damage.damage(forward["edits"], forward["recall/perplexity"], places), places


def test_what_the_readme_says_of_collapses_holds_in_the_recorded_tables(damaged):
    done, places = damaged
    medians = places.groupby("method")["collapse"].median()
    assert round(medians["rome"]) == said("unedited model's after {} edits, the median of ten")
    assert round(medians["memit"]) == said("**MEMIT collapses as well**, after {} edits")
    hurt = done[done["disabling"]]
    last = hurt[hurt["method"] == "rome"].merge(
        places, left_on=[*tables.RUN, "edits"], right_on=[*tables.RUN, "collapse"]
    )
    assert len(last) == said("In {} of 10 orders the last edit alone")
    rome = done[done["method"] == "rome"]
    assert len(rome) == said("of all {} edits up to there") and rome["disabling"].sum() == said("up to there, {} do")
    assert not {"r-rome", "memit"} & set(hurt["method"])


def test_what_the_readme_says_of_the_forecast_holds_in_the_recorded_tables(recorded_study, damaged):
    forward = recorded_study["edits"][~recorded_study["edits"]["reversed"]]
    agrees = forecast.agreement(forecast.moments(forward, damaged[1])).set_index("method")
    exact, orders = agrees.loc["rome", ["exact", "orders"]]
    assert (exact, orders) == (said("collapses in {} of 10 orders, those"), said("collapses in 7 of {} orders, those"))
    assert forecast.LOW == 0.1 and "first fact with one below 0.1" in " ".join(README.split())
    done, places = damaged
    rated = forecast.predictors(done, forward, recorded_study["drift"])
    elsewhere = forecast.agreement(forecast.moments_elsewhere(rated, forward, places)).set_index("method")
    assert elsewhere["exact"]["rome"] == exact and "in as many with thresholds set on the other orders" in " ".join(
        README.split()
    )
    learned = forecast.learned_by_denominator(forward, damaged[1]).query("method == 'r-rome' and high <= 0.5")
    share = (learned["learned"] * learned["n"]).sum() / learned["n"].sum()
    assert round(100 * share) == said("hardly learns such facts**: {} %")


def test_what_the_readme_says_of_mitigations_holds_in_the_recorded_figure():
    kept = pd.read_csv(ROOT / "figures/mitigations/fig8_mitigations.kept.csv")
    means = 100 * kept.groupby("method")["recall_all"].mean()
    assert set(kept["edits"]) == {said("After {} edits in two orders MEMIT")} and set(kept["order"]) == {0, 1}
    words = {
        "memit": "MEMIT recalls {} % of",
        "memit-seq-as-memit": "previous keys {} %, with",
        "emmet": "EMMET recalls {} %",
    }
    words |= {"memit-seq": "settings chosen for them {} %", "alphaedit": "AlphaEdit {} %"}
    words |= {"memit-once": "in one step, {} %", "ultraedit": "UltraEdit {} %"}
    assert {name: round(means[name]) for name in words} == {name: said(text) for name, text in words.items()}
    more = {round(means[f"memit-{name}"] - means["memit"]) for name in ("rect", "prune", "nas")}
    assert {min(more), max(more)} == {said("anchors add {} to 4 points"), said("anchors add 3 to {} points")}


def test_what_the_readme_says_of_fine_tuning_holds_in_the_recorded_figures():
    over_orders = pd.read_csv(ROOT / "figures/smollm2/fig7_findings.over_orders.csv")
    before = over_orders.query("measure == 'before' and reversed == False").set_index("method")["mean"]
    assert round(100 * before["ft-c"]) == said("Fine-tuning loses {} % of the facts")


def test_what_is_forgotten_next_shows_in_margins_and_in_keys():
    runs = [ROOT / "figures/smollm2/tables"]
    names = "recall/history", "edits", "recall/perplexity", "unedited", "drift"
    history, edits, perplexity, unedited, drift = (
        rows_of(tables.gather(runs, name), method="r-rome") for name in names
    )
    every = notebook_parameters(ROOT / "notebooks/03b_forgetting_analysis.ipynb")["every"].default
    risk = going_first.at_risk(history, edits, collapse.where(perplexity), every)
    risk = going_first.with_covariates(risk[~risk["reversed"]], edits, unedited=unedited, drift=drift)
    risk = going_first.with_interference(risk, going_first.beside(runs, "interference"))
    of_orders = going_first.auroc(risk, ["margin", "interference"])
    signs = of_orders[["margin", "interference"]].mean()
    assert round(100 * (1 - signs["margin"])) == said("in a fact's margin (AUROC 0.{})")
    assert round(100 * signs["interference"]) == said("what new edits do at its key (0.{}; ")
    assert of_orders["interference"].notna().sum() == said("at its key (0.62; {} orders)")


def test_fine_tuning_moves_the_weights_least(recorded_study):
    drift = recorded_study["drift"]
    end = drift[drift["edits"] == 1000]  # of each run the layer that moved most
    moved = end.groupby([*tables.RUN])["relative_drift"].max().groupby("method").agg(["min", "max"])
    assert moved["max"]["ft-c"] < moved["min"].drop("ft-c").min()


def test_what_disabled_a_run_of_rome_does_so_alone_with_any_sampled_contexts_but_not_bare(recorded_study):
    edits, perplexity = recorded_study["edits"], recorded_study["recall/perplexity"]
    done = damage.damage(edits, perplexity, collapse.where(perplexity))
    stays = disabling.persistence(damage.alone(recorded_study["single"]), done[done["method"] == "rome"])
    shares = stays.groupby("contexts")["share"].agg(["min", "max"]).to_numpy().tolist()
    assert stays["facts"].min() >= 3
    assert dict(zip(sorted(stays["contexts"].unique()), shares, strict=True)) == {
        "bare": [0, 0],
        **dict.fromkeys(("run", "seed", "words"), [1, 1]),
    }


def test_runs_made_twice_made_the_same_edits():
    again = pd.read_csv(ROOT / "figures/smollm2/tables/reruns.csv")
    assert len(again) == 12 and again["within"].all() and again["same_gpu"].all() and (again["edits"] == 1000).all()
    exact = "norm_difference_1000", "efficacy_difference", "recall_difference"
    assert (again[[*exact]] == 0).all(axis=None) and (again["same_efficacy"] == 1).all()
    assert "of twelve on the same kind of GPU all edits, scores and recall" in " ".join(
        (ROOT / "notebooks/README.md").read_text().split()
    )


def test_the_laptop_study_is_as_large_as_the_readme_says():
    assert {(run["order"], "n_edits" in run) for run in read_grid(ROOT / "params/laptop/grid.yaml").values()} == {
        (0, False)
    }
    given = read_parameters(ROOT / "params/laptop/02a_sequential_editing.yaml")
    n_edits, contexts = given["n_edits"], given["n_short_prefixes"] + given["n_long_prefixes"]
    assert n_edits == said("`laptop`.** {} edits of one order") == said("a study of {} edits of SmolLM2-135M")
    assert contexts == said("ROME with {} sampled contexts")
    published = notebook_parameters(ROOT / "notebooks/02a_sequential_editing.ipynb")
    contexts = published["n_short_prefixes"].default + published["n_long_prefixes"].default
    assert contexts == said("sampled contexts instead of {}")


def test_the_readme_asks_for_the_python_that_the_package_needs():
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert f"Python {needed.removeprefix('>=')}, make and git" in README


def test_the_model_of_the_paper_is_as_many_times_as_large_as_the_readme_says():
    parameters = 6_050_882_784  # of GPT-J, counted in test_bench
    assert said("about {} times as large as SmolLM2-135M") == round(parameters / 135e6)


def test_the_minutes_of_the_recorded_study_are_computed_from_its_tables(monkeypatch):
    monkeypatch.chdir(ROOT)
    taken = costs.minutes(recorded.read("figures/smollm2/tables", "smollm2"), "smollm2")["minutes"].sum()
    assert said("(notebooks/README.md#recording-a-scale) | {} |") == round(taken)


def test_the_disabling_edit_of_the_small_experiments_comes_with_its_fact():
    """As the README says: one fact, far apart in an order and its reverse."""
    recorded_ones = ROOT / "figures/twenty-counterfact/tables"
    edits, drift = (pd.read_parquet(recorded_ones / f"{name}.parquet") for name in ("edits", "drift"))
    found = disabling.detect(drift).merge(edits, on=[*tables.RUN, "edits"])
    forward, backward = found.sort_values("reversed").to_dict("records")
    assert (forward["reversed"], backward["reversed"]) == (False, True)
    assert forward["case_id"] == backward["case_id"] and forward["order"] == backward["order"]
    assert forward["edits"] + backward["edits"] == 21 and forward["edits"] > backward["edits"] + 5


def test_a_scale_without_figures_is_named():
    with pytest.raises(FileNotFoundError, match="no figure in .*nano; run make figures SCALE=nano"):
        gallery.page(ROOT / "figures", "nano")
