"""The notebooks run through the strict runner at the smallest scale, and what they write and plot is right."""

import json
import random
import re
import shutil
import textwrap
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
from bs4 import BeautifulSoup
from test_ledger import cut
from tools import flips, gallery

from editscale.analysis import tables
from editscale.columns import COLUMNS, KINDS
from editscale.data import task_files
from editscale.files import sha256_file
from editscale.metrics import downstream
from editscale.sequences.ledger import Ledger
from editscale.workflow import provenance
from editscale.workflow.execute import RunFailed, run_notebook
from editscale.workflow.parameters import collect_parameters, notebook_parameters

ROOT = Path(__file__).parents[1]
SMOKE = ROOT / "params" / "smoke"
GATHERING = (
    "02b_editing_proficiency",
    "03b_forgetting_analysis",
    "04b_downstream_performance",
    "05_drift_analysis",
    "07_findings",
)


def run(folder, name, tag="", **given):
    """Execute a notebook with its smoke parameters and `given` ones; return its results folder."""
    notebook, out = ROOT / "notebooks" / f"{name}.ipynb", folder / (tag or name)
    pairs = [[key, json.dumps(value) if not isinstance(value, str) else value] for key, value in given.items()]
    parameters = collect_parameters(notebook, [SMOKE / f"{name}.yaml"], [*pairs, ["out", str(out)]])
    run_notebook(notebook, folder / f"{tag or name}.ipynb", parameters)
    return out


@pytest.fixture(scope="module")
def study(tmp_path_factory, forked_kernels):
    """All notebooks on seven facts: three runs with 02a, 03a and 04a each, then the notebooks that gather them."""
    folder = tmp_path_factory.mktemp("study")
    moments = run(folder, "01_covariance_stats", n_documents=64) / "second_moments.safetensors"
    common = {"n_edits": 7, "moments": str(moments)}
    rome = run(folder, "02a_sequential_editing", "rome", **common)
    back = run(folder, "02a_sequential_editing", "rome-reversed", reverse=True, **common)
    memit = run(
        folder, "02a_sequential_editing", "memit", method="memit", hparams="params/memit/tiny-gpt2.yaml", **common
    )
    for name in (rome, back, memit):
        run(folder, "03a_recall_history", f"{name.name}/recall", run=str(name), every=1)
        run(folder, "04a_glue_eval", f"{name.name}/downstream", run=str(name))
    runs = {"runs": [str(rome), str(back), str(memit)], "figures_folder": str(folder / "figures")}
    changes = [str(run(folder, "05c_interventions", run=str(rome), since=[0, 2]) / "interventions.parquet")]
    for name in GATHERING:
        run(folder, name, **runs, **({"interventions": changes} if name == "05_drift_analysis" else {}))
    known = run(folder, "10_denominators", moments=str(moments))
    tested = run(folder, "11_forecast_tested", denominators=str(known), layers=[1], per_bin=2)
    beside = {"tested": [str(tested / "tested.parquet")], "divisors": [str(known / "denominators.parquet")]}
    single = run(folder, "05a_single_edits", runs=runs["runs"])
    run(folder, "05b_disabling_edits", single=str(single / "single.parquet"), **runs, **beside)
    measured = run(folder, "06a_acceptance_measures", n_edits=2, moments=str(moments)) / "acceptance.parquet"
    run(folder, "06b_acceptance", table=str(measured), figures_folder=runs["figures_folder"])
    met = run(folder, "09a_key_overlap", n_edits=7, moments=str(moments)) / "overlap.parquet"
    longer = {"longer": {str(memit): []}, "longer_overlap": {str(met): {"memit": "a memit"}}}
    run(folder, "09b_mitigations", overlap=str(met), **longer, **runs)
    for name in ("00_first_edit", "08_extend"):
        run(folder, name, moments=str(moments))
    judged = {"table": str(measured), "targets": "gpt2-xl"}
    run(folder, "06b_acceptance", "judged", figures_folder=str(folder / "judged-figures"), **judged)
    return folder


# No run has several facts in a step, and no method four orders.
NOT_DRAWN = ("fig8c_steps", "fig8d_in_one_step", "fig2b_going_first")


def test_every_notebook_leaves_figures_in_three_formats_with_data_and_origin(study):
    for stem in (
        *(f"figures/{name}" for name in gallery.FIGURES if name not in NOT_DRAWN),
        "01_covariance_stats/fig_spectrum",
        "05c_interventions/interventions",
        "09a_key_overlap/overlap",
        "10_denominators/denominators",
        "11_forecast_tested/tested",
        "rome/run",
    ):
        for kind in ("svg", "pdf", "png", "csv", "json"):
            assert (study / f"{stem}.{kind}").stat().st_size > 0, f"{stem}.{kind}"
        origin = json.loads((study / f"{stem}.json").read_text())
        assert origin["caption"] and origin["code_sha256"] and origin["packages"]["torch"]


def test_every_caption_begins_with_one_short_finding_and_holds_no_nan(study):
    origins = [json.loads(path.read_text()) for path in study.rglob("*.json") if path.with_suffix(".svg").is_file()]
    assert len(origins) >= len(gallery.FIGURES) + 5  # those of notebook 01, of three runs, and of the judged table
    for origin in origins:
        provenance.check_found(origin["found"])
        assert origin["caption"].startswith(origin["found"])
        assert not re.search(r"\bnan\b", origin["caption"], re.I), origin["figure"]


def outputs_of(path, cell_id):
    """What a cell of an executed notebook shows, as text: HTML and Markdown where there are some."""
    (cell,) = (cell for cell in nbformat.read(path, as_version=4).cells if cell.id == cell_id)
    shown = [output.data for output in cell.outputs if "data" in output]
    return [data.get("text/html") or data.get("text/markdown") or data["text/plain"] for data in shown]


def table_of(html):
    """A table shown by a notebook, its cells as text."""
    found = BeautifulSoup(html, "html.parser")
    rows = {row.th.text: [cell.text for cell in row.find_all("td")] for row in found.tbody.find_all("tr")}
    columns = [cell.text for cell in found.thead.tr.find_all("th")][1:]
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns)


@pytest.mark.parametrize("name", ["rome", "memit"])
def test_one_edit_is_shown_before_the_sequence_and_is_its_first(study, name):
    """The demonstration is the edit that the run then begins with: same losses, same size of the update."""
    parts, effect = map(table_of, outputs_of(study / f"{name}.ipynb", "one-edit"))
    first = pd.read_parquet(study / name / "edits.parquet").iloc[0]
    drift = pd.read_parquet(study / name / "drift.parquet").query("edits == 1").set_index("layer")
    assert list(effect.index) == ["before the edit", "after the edit"]
    for layer, row in drift.iterrows():
        assert float(parts.loc["norm of ΔW", f"layer {layer}"]) == pytest.approx(row["update_norm"], rel=1e-3)
    last = parts[f"layer {drift.index.max()}"]
    assert float(last["loss at the last forward"]) == pytest.approx(first["loss_last"], rel=1e-3)
    assert last["forwards"] == str(first["steps"])


def test_a_first_edit_takes_and_leaves_the_model_as_it_was(study):
    (row,) = pd.read_csv(study / "00_first_edit/first_edit.csv").to_dict("records")
    assert row["p(new) after"] > 0.5 > row["p(new) before"] and row["status"] == "edited"
    assert row["writes before"].split() == ["violin."] and row["writes after"].split() == ["flute."]
    assert "writes as it did before" in outputs_of(study / "00_first_edit.ipynb", "takeaway")[-1]
    asked = table_of(outputs_of(study / "00_first_edit.ipynb", "asked")[-1])
    assert (asked["before"] == asked["after the block"]).all()


def test_a_method_of_a_notebook_has_a_ledger_of_its_own_and_a_family_scores_as_the_model_does(study):
    books = {name: Ledger(study / "08_extend" / name) for name in ("rome", "rome-clip")}
    assert [book.fingerprint["method"] for book in books.values()] == list(books)
    assert len({book.fingerprint["code_sha256"] for book in books.values()}) == 2
    margins = pd.read_csv(study / "08_extend/margins.csv")
    assert margins["method"].unique().tolist() == list(books) and margins["margin"].notna().all()
    drift = {name: tables.drift_table(book, name, 0, False)["update_norm"] for name, book in books.items()}
    most = books["rome"].weights["2"]["norm"] + drift["rome-clip"].shift(fill_value=0).cumsum()
    assert (drift["rome-clip"] <= 2 * most * (1 + 1e-6)).all() and drift["rome"].max() > drift["rome-clip"].max()
    (check,) = (cell for cell in nbformat.read(study / "08_extend.ipynb", 4).cells if cell.id == "family-check")
    said = "".join(output.get("text", "") for output in check.outputs)
    ours, plain = re.search(r": ([\d.]+), run plainly ([\d.]+)", said).groups()
    assert float(ours) == pytest.approx(float(plain), abs=2e-6)


def test_takeaways_are_prose_that_renders(study):
    alone = ("01_covariance_stats", "05a_single_edits", "06a_acceptance_measures", "06b_acceptance")
    alone += ("05c_interventions", "09a_key_overlap", "09b_mitigations", "10_denominators", "11_forecast_tested")
    for name in ("00_first_edit", *alone, "08_extend", "rome", "rome/recall", "rome/downstream"):
        prose = outputs_of(study / f"{name}.ipynb", "takeaway")[-1]
        assert prose.endswith(".") and not re.search(r"\bnan\b", prose, re.I), name


def test_edits_are_made_in_the_order_and_its_reverse(study):
    forwards, backwards = (
        pd.read_parquet(study / run / "edits.parquet")["case_id"].tolist() for run in ("rome", "rome-reversed")
    )
    assert forwards == backwards[::-1] and len(set(forwards)) == 7


def test_edits_take_on_the_tiny_model_that_did_not_know_them(study):
    runs = [study / name for name in ("rome", "memit")]
    before = tables.summary(tables.gather(runs, "unedited"))
    after = tables.summary(tables.gather(runs, "edits"))
    assert (before["ES"] == 0).all() and (before["NS"] == 100).all()
    assert (after["ES"] >= 70).all() and (after["NS"] < 100).all()


def test_drift_starts_at_the_first_update_and_is_bounded_by_their_sum(study):
    for name in ("rome", "memit"):
        drift = pd.read_parquet(study / name / "drift.parquet")
        for _, rows in drift.groupby("layer"):
            rows = rows.sort_values("edits")
            assert rows["distance"].iloc[0] == pytest.approx(rows["update_norm"].iloc[0])
            assert (rows["distance"] <= rows["update_norm"].cumsum() * (1 + 1e-9)).all()


def test_forward_and_reversed_runs_share_their_first_models_but_not_their_weights(study):
    """Both begin at the unedited model, so the last fact of one is scored alike by the other before any edit."""
    forwards, backwards = (pd.read_parquet(study / name / "unedited.parquet") for name in ("rome", "rome-reversed"))
    kinds = list(KINDS)
    np.testing.assert_array_equal(forwards[kinds].to_numpy(), backwards[kinds].to_numpy()[::-1])
    ends = [pd.read_parquet(study / name / "drift.parquet")["distance"].iloc[-1] for name in ("rome", "rome-reversed")]
    assert ends[0] != ends[1]


def test_figure_1_plots_the_scores_of_the_tables(study):
    plotted = pd.read_csv(study / "figures" / "fig1_editing_proficiency.csv")
    edits = pd.read_parquet(study / "memit" / "edits.parquet")
    shown = plotted[(plotted["method"] == "memit") & (plotted["metric"] == "neighborhood")]
    before = pd.read_parquet(study / "memit" / "unedited.parquet")
    change = edits.set_index("edits")["neighborhood"] - before.set_index("edits")["neighborhood"]
    assert shown["bucket_mean"].iloc[0] == pytest.approx(100 * change.loc[:5].mean())
    assert set(plotted["metric"]) == {"efficacy", "paraphrase", "neighborhood"}


def test_figure_4_plots_every_edited_layer(study):
    plotted = pd.read_csv(study / "figures" / "fig4_weight_drift.csv")
    layers = plotted.groupby(["method", "reversed"])["layer"].unique().map(sorted).to_dict()
    assert layers == {("rome", False): [2], ("rome", True): [2], ("memit", False): [0, 1, 2]}


def test_a_fact_asked_right_after_its_edit_is_recalled_as_its_edit_was_scored(study):
    for name in ("rome", "rome-reversed", "memit"):
        history = pd.read_parquet(study / name / "recall" / "history.parquet")
        edits = pd.read_parquet(study / name / "edits.parquet")
        assert len(history) == 7 * 8 / 2
        just_edited = history[history["edit"] == history["edits"]]
        for column in ("case_id", "efficacy", "efficacy_accuracy"):
            assert just_edited[column].tolist() == edits[column].tolist()


def test_what_the_model_writes_stands_beside_recall_where_it_was_measured(study):
    runs = [study / name for name in ("rome", "rome-reversed", "memit")]
    history = tables.gather(runs, "recall/history")
    last = history[history["edits"] == 7]
    assert (last["written_exact"] <= last["written_begins"]).all() and last["written_begins"].mean() > 0.3
    (shown,) = outputs_of(study / "03b_forgetting_analysis.ipynb", "written")
    rows = BeautifulSoup(shown, "html.parser").tbody.find_all("tr")
    cells = [[cell.text for cell in row.find_all("td")] for row in rows]
    names = ["efficacy", "efficacy_accuracy", "written_exact", "written_begins"]
    expected = last.groupby(["method", "reversed"], sort=False)[names].mean()
    assert cells == [[f"{100 * share:.0f}" for share in row] for row in expected.to_numpy()]


def test_a_held_out_text_is_asked_at_checkpoints_and_compared_with_the_alarm(study):
    runs = [study / name for name in ("rome", "rome-reversed", "memit")]
    asked = tables.gather(runs, "recall/held_out")
    assert asked.groupby(list(tables.RUN))["edits"].apply(list).tolist() == [list(range(8))] * 3
    before = asked[asked["edits"] == 0]
    assert before["held_out_nll"].nunique() == 1 and (before["held_out_rise_se"] == 0).all()
    done = json.loads((study / "rome/recall/done.json").read_text())
    assert done["files"]["LICENSE"] == sha256_file(ROOT / "LICENSE")
    confirmed = pd.read_csv(study / "03b_forgetting_analysis/confirmed.csv")
    assert (
        confirmed["collapse"].tolist() == pd.read_csv(study / "03b_forgetting_analysis/runs.csv")["collapse"].tolist()
    )
    assert table_of(outputs_of(study / "rome/recall.ipynb", "held-out")[-1]).shape == (8, 5)


def test_all_runs_begin_at_one_unedited_model(study):
    runs = [study / name for name in ("rome", "rome-reversed", "memit")]
    for name, column in (("recall/perplexity", "perplexity"), ("downstream/downstream", "accuracy")):
        rows = tables.gather(runs, name)
        before = rows[rows["edits"] == 0]
        assert len(before) == 3 and before[column].nunique() == 1
        assert (rows.groupby(list(tables.RUN))["edits"].max() > 0).all()
    spectra = tables.gather(runs, "recall/spectra")
    assert (
        spectra[(spectra["edits"] == 0) & (spectra["layer"] == 2) & (spectra["index"] == 0)]["singular_value"].nunique()
        == 1
    )


def test_figure_2_plots_the_papers_curve_and_the_recall_of_the_tables(study):
    plotted = pd.read_csv(study / "figures" / "fig2_facts_forgotten.csv")
    paper = plotted[(plotted["panel"] == "paper") & (plotted["method"] == "memit")]
    assert paper["edits"].tolist() == list(range(1, 8)) and paper["forgotten_percent"].between(0, 100).all()
    history = pd.read_parquet(study / "rome" / "recall" / "history.parquet")
    edits = pd.read_parquet(study / "rome" / "edits.parquet")
    learned = edits.loc[edits["efficacy_accuracy"] == 1, "edits"]
    last = history[(history["edits"] == 7) & history["edit"].isin(learned)]["efficacy_accuracy"]
    orders = plotted[plotted["panel"] == "orders"]
    assert orders["method"].eq("rome").all() and not orders["reversed"].any()
    assert orders.loc[orders["edits"] == 7, "recall"].item() == pytest.approx(100 * last.mean())


def test_figure_5_shows_the_damage_of_each_edit_and_the_moments_of_each_order(study):
    plotted = pd.read_csv(study / "figures" / "fig5_disabling_edits.csv").set_index("panel")
    shown = plotted.loc["damage"].set_index("edits")
    along = pd.read_parquet(study / "rome/recall/perplexity.parquet").set_index("edits")["perplexity"]
    assert set(shown["method"]) == {"rome"}  # forward runs of the method that has denominators
    rise = (along / along.shift()).loc[shown.index]
    assert shown["times"].to_numpy() == pytest.approx(rise.to_numpy())
    edits = pd.read_parquet(study / "rome/edits.parquet").set_index("edits").loc[shown.index]
    assert shown["denominator"].to_numpy() == pytest.approx(edits["denominator"].abs().to_numpy())
    assert set(plotted.loc["moments", "reversed"]) == {False, True}
    assert set(plotted.loc["counts", "method"]) == {"rome", "memit"}


def test_figure_5c_shows_what_is_learned_of_the_facts_that_rome_has_a_denominator_for(study):
    plotted = pd.read_csv(study / "figures" / "fig5c_denominators.csv")
    assert set(plotted["method"]) == {"rome", "memit"} and plotted["learned"].between(0, 100).all()
    sound = pd.read_csv(study / "05b_disabling_edits" / "counts.csv").query("not reversed").set_index("method")
    assert plotted.groupby("method")["n"].sum().to_dict() == sound["edits"].to_dict()


def test_overlap_is_measured_of_the_facts_of_the_runs_without_any_edit(study):
    measured = pd.read_parquet(study / "09a_key_overlap/overlap.parquet")
    facts = pd.read_parquet(study / "rome/edits.parquet")["case_id"].tolist()
    assert measured.groupby("method")["case_id"].apply(list).to_dict() == dict.fromkeys(
        ("memit", "memit-seq", "rome", "rome-multi"), facts
    )
    assert measured.loc[measured["method"] == "rome", "own"].to_numpy() == pytest.approx(1, abs=1e-5)
    shares = pd.read_parquet(study / "09a_key_overlap/shares.parquet")
    assert shares[shares["directions"] == 7]["share"].to_numpy() == pytest.approx(1)


def test_denominators_of_the_edited_layer_are_those_that_the_run_recorded_in_either_direction(study):
    """Whatever was edited before: no edit of a layer changes the keys there."""
    measured = pd.read_parquet(study / "10_denominators/denominators.parquet")
    assert sorted(measured["layer"].unique()) == [0, 1, 2] and measured["case_id"].nunique() == 29
    (layer,) = pd.read_parquet(study / "rome/drift.parquet")["layer"].unique()
    known = measured[measured["layer"] == layer].set_index("case_id")["denominator"]
    for name in ("rome", "rome-reversed"):
        recorded = pd.read_parquet(study / name / "edits.parquet").set_index("case_id")["denominator"]
        assert known[recorded.index].to_numpy() == pytest.approx(recorded.to_numpy(), rel=1e-4)


def test_facts_drawn_by_their_denominator_are_edited_alone_with_what_was_foretold(study):
    tested = pd.read_parquet(study / "11_forecast_tested/tested.parquet")
    measured = pd.read_parquet(study / "10_denominators/denominators.parquet").query("layer == 1")
    assert set(tested["layer"]) == {1} and tested["case_id"].is_unique and set(tested.columns) <= set(COLUMNS)
    assert tested["denominator"].to_numpy() == pytest.approx(tested["foretold"].to_numpy(), rel=1e-4)
    foretold = measured.set_index("case_id")["denominator"]
    assert tested["foretold"].tolist() == foretold[tested["case_id"]].tolist()
    borders = [0, 0.1, 0.5, 1, 2, np.inf]
    bins = pd.cut(foretold.abs(), borders, right=False)
    counts = bins.value_counts()
    assert tested["bin_facts"].tolist() == [counts[place] for place in bins[tested["case_id"]]]
    drawn = bins[tested["case_id"]].value_counts()
    assert drawn.to_dict() == counts.clip(upper=2).to_dict() and len(tested) == drawn.sum() > 2
    rise = np.log(tested["perplexity"] / tested["perplexity_unedited"])
    assert tested["damage"].to_numpy() == pytest.approx(rise.to_numpy())
    unedited = pd.read_parquet(study / "rome/recall/perplexity.parquet").query("edits == 0")["perplexity"].item()
    assert tested["perplexity_unedited"].to_numpy() == pytest.approx(unedited, rel=1e-6)


def test_the_edits_own_change_whole_is_the_run_and_none_of_it_is_the_model_before(study):
    table = pd.read_parquet(study / "05c_interventions/interventions.parquet")
    own = table[table["change"] == "edits"].set_index(["since", "edits", "scale"])
    history = pd.read_parquet(study / "rome/recall/history.parquet")
    recall = history.groupby("edits")["efficacy_accuracy"].mean()
    along = pd.read_parquet(study / "rome/recall/perplexity.parquet").set_index("edits")["perplexity"]
    for since, edits in ((0, 7), (2, 7)):
        assert own.loc[(since, edits, 1.0), "recall"] == recall[edits]
        assert own.loc[(since, edits, 1.0), "perplexity"] == pytest.approx(along[edits], rel=1e-6)
        assert own.loc[(since, edits, 0.0), "perplexity"] == pytest.approx(along[since], rel=1e-6)
    unedited = pd.read_parquet(study / "rome/unedited.parquet")["efficacy_accuracy"]
    assert own.loc[(0, 7, 0.0), "recall"] == unedited.mean() and set(table.columns) <= set(COLUMNS)
    known = history[(history["edits"] == 2) & (history["efficacy_accuracy"] == 1)]["edit"]
    kept = history[(history["edits"] == 7) & history["edit"].isin(known)]["efficacy_accuracy"]
    assert own.loc[(2, 7, 1.0), "n_before"] == len(known) > 0
    assert own.loc[(2, 7, 1.0), "recall_before"] == kept.mean()


def test_figure_8_plots_recall_of_all_facts_and_what_it_costs(study):
    plotted = pd.read_csv(study / "figures" / "fig8_mitigations.csv")
    history = pd.read_parquet(study / "memit" / "recall" / "history.parquet")
    shown = plotted[(plotted["panel"] == "recall") & (plotted["method"] == "memit")]["recall_all"].item()
    assert shown == pytest.approx(100 * history.loc[history["edits"] == 7, "efficacy_accuracy"].mean())
    assert set(plotted["panel"]) == {"recall", "learned", "perplexity", "neighborhood"}
    both = pd.read_csv(study / "figures" / "fig8b_overlap.csv")
    assert set(both.loc[both["panel"] == "recall", "method"]) == {"rome", "memit"}


def test_single_edits_are_made_with_the_contexts_of_the_run_and_with_others(study):
    single = pd.read_parquet(study / "05a_single_edits" / "single.parquet")
    kinds = single.groupby("method")["contexts"].unique().map(list).to_dict()
    # MEMIT's contexts begin with words of its own.
    assert kinds == {"rome": ["run", "seed", "words", "bare"], "memit": ["run", "seed", "bare"]}
    rome = single[single["method"] == "rome"].pivot(index="case_id", columns="contexts", values="update_norm")
    assert (rome["run"] != rome["seed"]).all() and (rome["run"] != rome["bare"]).all()
    assert single["seed"].isna().equals(single["contexts"] == "bare")
    assert single["perplexity_unedited"].nunique() == 1 and set(single.columns) <= set(COLUMNS)
    plotted = pd.read_csv(study / "figures" / "fig5b_single_edits.csv")
    memit = single[(single["method"] == "memit") & (single["contexts"] == "run")]
    assert len(plotted) == len(single) - len(single[single["method"] == "memit"]) * 2 // 3  # once for all layers
    shown = plotted[(plotted["method"] == "memit") & (plotted["contexts"] == "run")]
    assert set(shown["case_id"]) == set(memit["case_id"])
    of_rome = single[(single["method"] == "rome") & (single["contexts"] == "run")].set_index("case_id")["denominator"]
    assert shown["x"].to_numpy() == pytest.approx(of_rome.abs()[shown["case_id"]].to_numpy())


def test_acceptance_measures_the_unedited_model_as_the_runs_scored_it(study):
    table = pd.read_parquet(study / "06a_acceptance_measures" / "acceptance.parquet")
    unedited = table[table["part"] == "unedited"].set_index("metric")["value"]
    assert unedited["ES"] == 0 and unedited["NS"] == 100  # as notebook 02a found before its edits
    assert set(table["method"]) == {"none", "rome", "memit", "ft-c"}
    assert table.loc[table["part"] == "single edits", "n"].max() == 2
    plotted = pd.read_csv(study / "figures" / "fig6_acceptance.csv")
    shown = plotted[(plotted["method"] == "rome") & (plotted["metric"] == "ES")]["value"].item()
    assert shown == table[(table["method"] == "rome") & (table["metric"] == "ES")]["value"].item()


def test_a_table_is_judged_by_published_numbers(study):
    """The tiny model is not GPT-2 XL: what it was asked fails, what it was not asked is named."""
    verdicts = pd.read_csv(study / "judged" / "verdicts.csv")
    reasons = verdicts.dropna(subset=["target"]).set_index(["part", "method", "metric", "layer", "edits"])
    assert reasons.loc[("unedited", "none", "NS", -1, 0), "verdict"] == "fail"
    assert reasons.loc[("unedited", "none", "NS", -1, 0), "reason"].startswith("+21.9 of ±0.8")
    assert reasons.loc[("sequence", "memit", "distance", 17, 1), "reason"] == "not measured"
    found = json.loads((study / "judged-figures" / "fig6_acceptance.json").read_text())["found"]
    passed = (reasons["verdict"] == "pass").sum()
    assert found == f"{passed} of {len(reasons)} published numbers were reproduced."
    failed, prose = outputs_of(study / "judged.ipynb", "takeaway")
    assert f"{passed} of {len(reasons)} published numbers reproduced" in prose and prose.endswith("not measured.")
    assert len(table_of(failed)) == len(reasons) - passed


def test_the_task_of_the_page_on_tasks_is_asked_along_a_run_and_named_by_its_file(study):
    """With three labels, as `task_files` shows it, beside choices of one's own; done.json says what files held."""
    run_folder = study / "own"
    shutil.copytree(study / "memit", run_folder)
    example = re.search(r"^    # params/mine/origins.yaml.*?(?=^\S)", task_files.__doc__, re.M | re.S)[0]
    (path := study / "origins.yaml").write_text(textwrap.dedent(example), encoding="utf-8")
    item = {"context": "The harp of Ada Example is in the city of", "continuations": ["Lund", "Danish"], "right": 0}
    (pairs := study / "cities.jsonl").write_text(json.dumps(item))
    given = {"run": str(run_folder), "tasks": ["reviews", str(path)], "choices": ["minimal_pairs", str(pairs)]}
    out = run(study, "04a_glue_eval", "own/downstream", **given)
    table = pd.read_parquet(out / "downstream.parquet").set_index("task")
    assert (table.loc["origins", "n_examples"] == 2).all() and table.loc["reviews", "f1_chance"].isna().all()
    to_beat = downstream.references([2, 0], 3)
    assert (table.loc["origins", "f1_chance"] == to_beat["chance"]["f1"]).all()
    files = json.loads((out / "done.json").read_text())["files"]
    assert files[path.resolve().as_posix()] == sha256_file(path)
    choices = pd.read_parquet(out / "choices.parquet")
    assert choices.groupby("task", sort=False)["phenomenon"].nunique().to_dict() == {"minimal_pairs": 10, "cities": 1}
    assert (choices["accuracy_se"] >= 0).all() and files[pairs.resolve().as_posix()] == sha256_file(pairs)
    assert table["auroc"].loc["reviews"].between(0, 1).all() and table["auroc"].loc["origins"].isna().all()
    run(
        study,
        "04b_downstream_performance",
        "own-04b",
        runs=[str(run_folder)],
        figures_folder=str(study / "own-figures"),
    )
    assert "origins" in (study / "own-04b.ipynb").read_text()  # in the table: two examples give no signal to draw
    assert (study / "own-figures/fig3_downstream.svg").is_file()
    measured = run(
        study,
        "06a_acceptance_measures",
        "own-06a",
        n_edits=2,
        task=str(path),
        moments=str(study / "01_covariance_stats/second_moments.safetensors"),
    )
    assert "origins correct" in pd.read_parquet(measured / "acceptance.parquet")["metric"].tolist()


def test_an_unknown_task_fails_with_one_clear_error(study):
    with pytest.raises(RunFailed, match="bad.ipynb") as failure:
        run(study, "04a_glue_eval", "bad", run=str(study / "rome"), tasks=["sst3"])
    assert "unknown task 'sst3'" in str(failure.value)


def test_executed_notebooks_show_one_named_progress_bar_per_loop(study):
    notebook = nbformat.read(study / "rome.ipynb", as_version=4)
    (edit,) = (cell for cell in notebook.cells if cell.id == "edit")
    streams = [output for output in edit.outputs if output.output_type == "stream" and output.name == "stderr"]
    assert len(streams) == 1 and "edit with rome: 100%" in streams[0].text


def test_a_run_that_was_stopped_goes_on_to_the_same_ledger_tables_and_figures(study):
    parts = [path for path in (study / "rome").iterdir() if path.is_file()]
    names = {path.name for path in parts} - {"done.json", "timing.jsonl", ".lock"}
    whole = {name: (study / "rome" / name).read_bytes() for name in names}
    assert {"edits.log", "edits.jsonl", "edits.parquet", "drift.parquet", "run.svg", "run.png"} <= names
    cut(study / "rome", 4)
    run(
        study,
        "02a_sequential_editing",
        "rome",
        n_edits=7,
        moments=str(study / "01_covariance_stats" / "second_moments.safetensors"),
    )
    assert {name: (study / "rome" / name).read_bytes() for name in names} == whole


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"method": "room"}, "unknown method 'room'"),
        ({"order": 12}, "order 12"),
        ({"model": "no/such model"}, "no/such model"),
        ({"moments": "none.safetensors"}, "no second moments for tiny_gpt2 at none.safetensors"),
        ({"device": "cuda:9"}, "cuda"),
    ],
)
def test_bad_parameters_fail_with_one_clear_error_and_keep_the_notebook(study, given, message):
    with pytest.raises(RunFailed, match="bad.ipynb") as failure:
        run(study, "02a_sequential_editing", "bad", **{"n_edits": 2, **given})
    assert message in str(failure.value)
    assert (study / "bad.ipynb").exists() and not (study / "bad" / "edits.jsonl").exists()


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_that_is_run_by_hand_writes_over_no_results_of_a_scale(path):
    """Run All in an editor, or papermill without parameters, takes the defaults."""
    defaults = {name: parameter.default for name, parameter in notebook_parameters(path).items()}
    written = [defaults[name] for name in ("out", "figures_folder") if name in defaults]
    assert written and all(folder.startswith("runs/by-hand/") for folder in written)
    assert not (ROOT / "params/by-hand").exists()  # no scale has that name


def test_a_flipped_bit_in_what_is_read_of_a_run_or_a_figure_is_named_or_has_no_effect(study):
    rng, measured = random.Random(0), study / "06a_acceptance_measures"
    figures = [
        path for folder in ("rome", "figures") for path in (study / folder).glob("*.*") if flips.is_of_figure(path)
    ]
    of_run = [path for path in sorted((study / "rome").rglob("[!.]*.*")) if path not in figures]
    of_run = [path for path in of_run if path.suffix != ".ipynb"]
    moments = study / "01_covariance_stats/second_moments.safetensors"
    counts, failures = flips.flipped([*of_run, moments], lambda _: flips.read_run(study / "rome"), rng, n=2)
    assert failures == [] and len(of_run) == 20 and counts["named"].sum() > 25
    beside = [*figures, *study.rglob("*.ipynb"), *(study / "05a_single_edits").glob("*.*"), *measured.glob("*.*")]
    counts, failures = flips.flipped(beside, flips.read_beside, rng, n=1)
    assert failures == [] and len(beside) > 70 and counts["named"].sum() > len(beside) / 2
