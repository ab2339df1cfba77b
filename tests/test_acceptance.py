"""Acceptance measurements: the arithmetic by hand, and on the tiny model what its parts are made of."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from editscale import columns
from editscale.columns import harmonic_score
from editscale.data import facts, glue
from editscale.editing import corpora, editors, moments, updates
from editscale.metrics import downstream, scoring
from editscale.models import loading
from editscale.sequences import acceptance

ROOT = Path(__file__).parents[1]
METHODS = {name: f"params/{name}/tiny-gpt2.yaml" for name in ("rome", "memit", "ft-c")}


def test_scores_are_means_in_percent_with_half_widths_over_facts():
    scored = [
        {name: 0.5 for name in scoring.COLUMNS} | {"efficacy": es, "paraphrase": 1.0} for es in (1.0, 0.0, 0.0, 1.0)
    ]
    rows = {row["metric"]: row for row in acceptance.score_rows(scored, part="unedited")}
    assert rows["ES"] == {
        "part": "unedited", "metric": "ES", "value": 50.0, "half_width": pytest.approx(1.96 * 50 / 2), "n": 4
    }  # fmt: skip
    assert (rows["PS"]["value"], rows["PS"]["half_width"], rows["NM"]["value"]) == (100, 0, 50)
    assert rows["S"]["value"] == pytest.approx(3 / (1 / 50 + 1 / 100 + 1 / 50))
    assert set(rows) == {"S"} | {letter + kind for letter in "EPN" for kind in ("S", "M", "Acc")}


def test_facts_without_prompts_of_a_kind_do_not_count_for_it():
    scored = [dict.fromkeys(scoring.COLUMNS, 1.0), dict.fromkeys(scoring.COLUMNS, 1.0) | {"neighborhood": math.nan}]
    rows = {row["metric"]: row for row in acceptance.score_rows(scored)}
    assert (rows["NS"]["value"], rows["NS"]["n"], rows["ES"]["n"]) == (100, 1, 2)


def test_half_width_of_the_harmonic_mean_is_its_first_order_propagation():
    scores, half_widths, step = [80.0, 60.0, 40.0], [1.0, 2.0, 0.5], 1e-5
    slopes = []
    for i in range(3):
        moved = [score + step * (i == j) for j, score in enumerate(scores)]
        slopes.append((harmonic_score(*moved) - harmonic_score(*scores)) / step)
    expected = math.hypot(*(slope * half for slope, half in zip(slopes, half_widths, strict=True)))
    assert columns.harmonic_half_width(scores, half_widths) == pytest.approx(expected, rel=1e-5)
    assert columns.harmonic_half_width([0.0, 60.0, 40.0], half_widths) == 0


@pytest.mark.parametrize("power", [0.5, 1.0, 0.4])
def test_growth_finds_the_power_and_the_factor_of_a_planted_law(power):
    found = acceptance.growth(2e-7 * np.arange(1, 501) ** power)
    assert found["exponent"] == pytest.approx(power)
    assert found["coefficient"] == pytest.approx(2e-7 * 500 ** (power - 0.5))


def test_growth_looks_at_the_last_decade_only_and_has_no_exponent_of_one_edit():
    distances = np.concatenate([np.full(9, 7.0), np.sqrt(np.arange(10, 101))])
    assert acceptance.growth(distances)["exponent"] == pytest.approx(0.5)
    assert math.isnan(acceptance.growth([1e-7])["exponent"]) and acceptance.growth([1e-7])["coefficient"] == 1e-7


def test_the_sequence_on_counterfact_is_that_of_the_published_logs():
    cases = acceptance.sequence_facts(range(21_919), 10)
    assert [cases[edit - 1] for edit in (1, 2, 5, 10)] == [8766, 16053, 15843, 16614]


# On the tiny model


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """The tiny model, its facts, second moments in a file, and a small task."""
    lm = loading.load(ROOT / "tests/golden/tiny_gpt2")
    documents = corpora.sampled_documents(lm, 64, 64, torch.Generator().manual_seed(0), progress=False)
    path = tmp_path_factory.mktemp("acceptance") / "second_moments.safetensors"
    moments.save(moments.collect(lm, documents, [0, 1, 2], progress=False), path)
    task = glue.open_task("reviews", n_examples=6, shots=0)
    return lm, facts.load(ROOT / "params/smoke/invented_facts.json"), path, task


@pytest.fixture(scope="module")
def measured(tiny):
    """A table of the tiny model, and its weights before."""
    lm, known, path, task = tiny
    before = {name: weight.clone() for name, weight in lm.model.state_dict().items()}
    editing = acceptance.prepare(lm, METHODS, path, n_short=2, n_long=1)
    table = acceptance.measure(lm, known, editing, n_facts=6, n_edits=3, at=[1, 3], task=task)
    return table, before, editing


def rows_of(table, **wanted):
    return table[np.logical_and.reduce([table[name] == value for name, value in wanted.items()])]


def test_a_table_has_every_column_described_and_each_measurement_once(measured):
    table, *_ = measured
    assert list(table) == list(columns.ACCEPTANCE) and not table.duplicated(columns.ACCEPTANCE_KEY).any()
    assert set(table["model"]) == {"tiny_gpt2"} and table["value"].notna().sum() == len(table)
    assert table.groupby("part").size().to_dict() == {
        "unedited": 10, "single edits": 30, "sequence": 2 * 3, "growth": 2 * 3, "task": 2 * 3
    }  # fmt: skip


def test_the_model_is_left_as_it_was(tiny, measured):
    after = tiny[0].model.state_dict()
    assert all(torch.equal(weight, after[name]) for name, weight in measured[1].items())


def test_unedited_scores_are_those_of_the_first_facts(tiny, measured):
    lm, known, *_ = tiny
    scores = pd.DataFrame([scoring.fact_scores(scores) for scores in scoring.score_facts(lm, known[:6])])
    shown = rows_of(measured[0], part="unedited").set_index("metric")["value"]
    assert shown["NS"] == pytest.approx(100 * scores["neighborhood"].mean())
    assert shown["PM"] == pytest.approx(100 * scores["paraphrase_magnitude"].mean())


def test_single_edits_are_each_made_on_the_unedited_model(tiny, measured):
    lm, known, *_ = tiny
    editing, scored = measured[2]["rome"], []
    for fact in known[:3]:
        original = updates.saved_weights(lm, editing.layers)
        (edit,) = editors.edit_each(editing, lm, [fact])
        updates.apply(lm, edit.updates)
        scored.append(scoring.fact_scores(scoring.score_facts(lm, [fact])[0]))
        updates.restore(lm, original)
    shown = rows_of(measured[0], part="single edits", method="rome").set_index("metric")["value"]
    for metric, column in acceptance.SCORES.items():
        assert shown[metric] == pytest.approx(100 * np.mean([row[column] for row in scored]), abs=0.2), metric


def test_a_sequence_moves_the_weights_first_by_its_first_update_and_is_asked_the_task(tiny, measured):
    lm, known, _, task = tiny
    table, _, editing = measured
    followed = acceptance.sequence_facts(known, 3)
    (first,) = editors.edit_each(editing["memit"], lm, followed[:1])
    for update in first.updates:
        row = rows_of(table, metric="distance", edits=1, layer=update.layer).iloc[0]
        assert row["value"] == pytest.approx(update.norm() / lm.weight(update.layer).numel(), rel=1e-4)
        assert row["case_id"] == followed[0].case_id
    assert rows_of(table, metric="distance", edits=3)["case_id"].tolist() == [followed[2].case_id] * 3
    correct = rows_of(table, metric="reviews correct").set_index("edits")["value"]
    assert list(correct.index) == [0, 1, 3]
    assert correct[0] == round(6 * downstream.TaskPrompts(lm, task).row()["accuracy"])


def test_an_edit_that_is_not_finite_is_not_applied_and_scores_nothing(tiny, measured, monkeypatch):
    lm, known, *_ = tiny
    monkeypatch.setattr(updates.Update, "is_finite", lambda _: False)
    rows = acceptance.single_rows(lm, known[:2], measured[2]["rome"])
    assert {row["value"] for row in rows} == {0}
    distances = acceptance.sequence_rows(lm, known[:2], measured[2]["memit"], [2], None, 512)
    assert {row["value"] for row in distances if row["metric"] == "distance"} == {0}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_facts": 1000}, "expected 1 ≤ n_edits ≤ n_facts ≤ 29"),
        ({"n_edits": 7}, "n_facts 6 and n_edits 7"),
        ({"n_edits": 0}, "n_edits 0"),
        ({"at": [3, 1]}, r"measured at \[3, 1\]; expected ascending"),
        ({"at": [0]}, "expected ascending numbers from 1 to 29"),
        ({"at": [30]}, "expected ascending numbers from 1 to 29"),
        ({"sequence": "r-rome", "at": [1]}, "'r-rome', which is not among the methods rome, memit, ft-c"),
    ],
)
def test_numbers_that_do_not_fit_are_named_before_anything_is_measured(tiny, measured, change, message, monkeypatch):
    lm, known, *_ = tiny
    monkeypatch.setattr(acceptance, "unedited_rows", None)
    with pytest.raises(ValueError, match=message):
        acceptance.measure(lm, known, measured[2], **{"n_facts": 6, "n_edits": 3, **change})
