"""A planted jump is found at the edit where it was planted, and nowhere else; a single edit leaves no trace."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from test_rome import moment
from test_sequence import CONTEXTS, FACTS, PARAMS

from editscale.analysis import disabling
from editscale.editing import editors, rome, updates
from editscale.metrics import generation, scoring
from editscale.sequences.single import single_edits, unedited

TEXTS = ["The river runs through the town.", "Lund is in Sweden."]
RUNS = (("rome", 0, False), ("rome", 0, True), ("memit", 1, False))


def run_rows(run, **columns):
    return pd.DataFrame(dict(zip(("method", "order", "reversed"), run, strict=True)) | columns)


def drift_table(planted=(), n_edits=60, layers=(3, 4), runs=RUNS):
    """Norms within a factor 2 of a layer's own size; `planted` are (run, layer, edit, times that size)."""
    random, tables = np.random.default_rng(0), []
    for i, run in enumerate(runs):
        for layer in layers:
            norms = 10.0**layer * random.uniform(0.7, 1.4, n_edits)
            for of_run, of_layer, edit, times in planted:
                if (of_run, of_layer) == (i, layer):
                    norms[edit - 1] = 10.0**layer * times
            tables.append(run_rows(run, layer=layer, edits=range(1, n_edits + 1), update_norm=norms))
    return pd.concat(tables, ignore_index=True)


def found(drift, **options):
    table = disabling.detect(drift, **options)
    return [(*row,) for row in table[["method", "order", "reversed", "edits", "layer"]].itertuples(index=False)]


def test_updates_of_ordinary_size_are_no_jumps():
    assert found(drift_table()) == []


def test_a_planted_jump_is_found_where_it_was_planted():
    drift = drift_table([(0, 4, 23, 20.0), (1, 3, 41, 12.0), (2, 3, 8, 9.0)])
    expected = [("memit", 1, False, 8, 3), ("rome", 0, False, 23, 4), ("rome", 0, True, 41, 3)]
    assert found(drift) == expected
    assert found(drift.sample(frac=1, random_state=0)) == expected
    assert found(drift, jump=15) == [expected[1]]


def test_a_jump_is_measured_against_the_median_of_earlier_updates_only():
    norms = [2.0, 1.0, 3.0, 100.0, 12.0, 1000.0]
    drift = run_rows(RUNS[0], layer=0, edits=range(1, 7), update_norm=norms)
    jumps = disabling.detect(drift, jump=3, least_earlier=2)
    # medians: of (2, 1, 3) 2; of (2, 1, 3, 100) 2.5; of (2, 1, 3, 100, 12) 3
    assert jumps["edits"].tolist() == [4, 5, 6]
    assert jumps["times_median"].tolist() == pytest.approx([100 / 2, 12 / 2.5, 1000 / 3])
    shorter = disabling.detect(drift[drift["edits"] <= 5], jump=3, least_earlier=2)
    pd.testing.assert_frame_equal(shorter, jumps[jumps["edits"] <= 5])


def test_exactly_the_threshold_is_no_jump():
    drift = run_rows(RUNS[0], layer=0, edits=range(1, 5), update_norm=[2.0, 2.0, 2.0, 10.0])
    assert found(drift, jump=5, least_earlier=3) == []
    assert len(found(drift, jump=4.99, least_earlier=3)) == 1


def test_an_edit_with_too_few_before_it_is_not_judged():
    early = drift_table([(0, 3, 5, 50.0)])
    assert found(early, least_earlier=5) == [] and len(found(early, least_earlier=4)) == 1


def test_edits_that_were_not_applied_are_neither_jumps_nor_earlier_edits():
    norms = [0.0, 1.0, 0.0, 0.0, 0.0, 4.0, 0.0, 30.0]
    drift = run_rows(RUNS[0], layer=0, edits=range(1, 9), update_norm=norms)
    jumps = disabling.detect(drift, jump=3, least_earlier=2)
    assert jumps["edits"].tolist() == [8] and jumps["times_median"].tolist() == [30 / 2.5]


def test_layers_that_jump_together_are_one_row_with_the_largest_ratio():
    steady = {"edits": range(1, 8), "update_norm": [1.0] * 6}
    layers = [
        run_rows(RUNS[2], **(steady | {"update_norm": [1.0] * 6 + [last]}), layer=layer)
        for layer, last in ((5, 9.0), (3, 8.0), (4, 9.0))
    ]
    jumps = disabling.detect(pd.concat(layers))
    assert jumps[["edits", "layer", "times_median"]].to_numpy().tolist() == [[7, 4, 9.0]]  # of equals the lowest


def test_detect_names_what_a_table_lacks_or_holds_twice():
    drift = drift_table()
    with pytest.raises(ValueError, match="the table of drift lacks update_norm; it has method, order"):
        disabling.detect(drift.drop(columns="update_norm"))
    with pytest.raises(ValueError, match="several rows for one run, layer and edit"):
        disabling.detect(pd.concat([drift, drift]))
    with pytest.raises(ValueError, match="expected jump > 1"):
        disabling.detect(drift, jump=1)


def single(lm, method, fact=FACTS[0]):
    factors = {layer: torch.linalg.cholesky(moment(lm.d_key)) for layer in (0, 1)}
    editing = editors.begun(lm, editors.Editing(method, PARAMS[method], CONTEXTS[method], factors))
    return single_edits(lm, [fact], editing, TEXTS)


@pytest.mark.parametrize("method", PARAMS)
def test_a_single_edit_is_measured_on_the_edited_model_and_leaves_the_weights_bit_identical(method):
    lm = tiny.tiny_model("gpt2")
    before = {name: tensor.clone() for name, tensor in lm.model.state_dict().items()}
    rows = single(lm, method)
    assert all(torch.equal(tensor, before[name]) for name, tensor in lm.model.state_dict().items())
    assert rows == single(lm, method)

    factors = {layer: torch.linalg.cholesky(moment(lm.d_key)) for layer in (0, 1)}
    editing = editors.begun(lm, editors.Editing(method, PARAMS[method], CONTEXTS[method], factors))
    (edit,) = editors.edit_each(editing, lm, FACTS[:1])
    assert [row["layer"] for row in rows] == editors.layers_of(PARAMS[method])
    original = updates.saved_weights(lm, editors.layers_of(PARAMS[method]))
    updates.apply(lm, edit.updates)
    scores = scoring.fact_scores(scoring.score_facts(lm, FACTS[:1])[0])
    for row, update in zip(rows, edit.updates, strict=True):
        moved = (lm.weight(row["layer"]) - original[row["layer"]]).norm().item()
        assert row["update_norm"] == pytest.approx(update.norm()) == pytest.approx(moved, rel=1e-4)
        assert row["normalised_l2"] == pytest.approx(moved / (32 * 48), rel=1e-4)
        assert row["relative_drift"] == pytest.approx(moved / original[row["layer"]].norm().item(), rel=1e-4)
        assert (row["efficacy"], row["efficacy_accuracy"]) == (scores["efficacy"], scores["efficacy_accuracy"])
        assert row["perplexity"] == generation.perplexity(lm, TEXTS)
        assert row["word_entropy"] == generation.word_entropy(generation.teacher_forced_texts(lm, FACTS[0]))
        assert (row["denominator"] is None) == (method not in ("rome", "rome-prune"))
    after = rows[0]["perplexity"]
    updates.restore(lm, original)
    assert after != generation.perplexity(lm, TEXTS)


def fake_edit(monkeypatch, value):
    """ROME's edit with its factors filled with a value."""
    of = rome.METHODS["rome"]

    def edit(*arguments):
        done = of.edit(*arguments)
        for update in done[0].updates:
            update.left.fill_(value)
        return done

    monkeypatch.setitem(rome.METHODS, "rome", replace(of, edit=edit))


def test_a_non_finite_edit_is_not_applied_and_has_no_scores(monkeypatch):
    fake_edit(monkeypatch, math.nan)
    lm = tiny.tiny_model("gpt2")
    before = lm.weight(1).clone()
    (row,) = single(lm, "rome")
    assert row["status"] == "non-finite" and torch.equal(lm.weight(1), before)
    names = ("update_norm", "normalised_l2", "relative_drift", "efficacy", "word_entropy", "perplexity")
    assert all(math.isnan(row[name]) for name in names)


def test_an_edit_that_breaks_the_model_has_a_row(monkeypatch):
    fake_edit(monkeypatch, 1e38)  # finite factors, whose product overflows
    lm = tiny.tiny_model("gpt2")
    before = lm.weight(1).clone()
    (row,) = single(lm, "rome")
    assert row["status"] == "edited" and row["update_norm"] > 1e38
    assert (row["efficacy"], row["word_entropy"], row["perplexity"]) == (0, 0, math.inf)
    assert torch.equal(lm.weight(1), before)


def test_the_weights_are_put_back_after_an_error(monkeypatch):
    lm = tiny.tiny_model("gpt2")
    before = lm.weight(1).clone()
    factors = {1: torch.linalg.cholesky(moment(lm.d_key))}
    with pytest.raises(ValueError, match="none of the 0 texts"):
        single_edits(lm, FACTS[:1], editors.Editing("rome", PARAMS["rome"], CONTEXTS["rome"], factors), [])
    assert torch.equal(lm.weight(1), before)


def of_runs(denominators=True):
    """(done, edits): twelve facts, 1 to 12, with |k·u| from 0.01 to 10 by their number, edited in two runs. Facts 9, 3
    and 7 disabled, 3 in both runs."""
    sizes = np.logspace(-2, 1, 12) * np.tile([1, -1], 6)
    edits = pd.concat([run_rows(run, case_id=range(1, 13), denominator=sizes) for run in RUNS[:2]], ignore_index=True)
    done = edits[["method", "case_id"]].assign(damage=0.01)
    done.loc[[2, 14, 8, 18], "damage"] = [0.2, 0.9, 0.5, 0.3]  # facts 3 and 3, 9, 7
    done["disabling"] = done["damage"] > 0.1
    return done, edits if denominators else edits.drop(columns="denominator")


def test_facts_are_chosen_by_damage_then_by_small_denominators_then_evenly_over_the_rest():
    kinds = disabling.chosen(*of_runs(), 2, 3, 4)
    assert kinds[kinds == disabling.DAMAGING].index.tolist() == [3, 9]
    assert kinds[kinds == disabling.LOW].index.tolist() == [1, 2, 4]
    # 5, 6, 8, 10, 11 and 12 are left: 7 disabled too. Places between 5 and 12: an eighth, three, five and seven.
    assert kinds[kinds == disabling.ORDINARY].index.tolist() == [6, 8, 10, 11]
    whole = disabling.chosen(*of_runs(), 99, 99, 99)
    assert whole.value_counts().to_dict() == {disabling.DAMAGING: 3, disabling.LOW: 9}


def test_without_denominators_ordinary_facts_are_spaced_over_their_order():
    kinds = disabling.chosen(*of_runs(denominators=False), 1, 5, 3)
    assert kinds.to_dict() == {3: disabling.DAMAGING, **dict.fromkeys((2, 6, 10), disabling.ORDINARY)}
    done, edits = of_runs()
    assert disabling.chosen(done.assign(disabling=False), edits, 5, 0, 0).empty
    with pytest.raises(ValueError, match="-1, 0 and 0 facts to edit alone; expected 0 or more"):
        disabling.chosen(done, edits, -1, 0, 0)


def test_of_the_facts_that_disabled_a_run_of_a_method_it_is_counted_how_many_do_alone():
    done, _ = of_runs()
    rows = [("rome", "run", 3, 0.9), ("rome", "run", 9, 0.05), ("rome", "run", 1, 0.9), ("rome", "bare", 3, 0.0)]
    rows += [("rome", "bare", 9, np.inf), ("memit", "run", 3, 0.9)]  # no run of MEMIT was disabled
    alone = pd.DataFrame(rows, columns=["method", "contexts", "case_id", "damage"]).assign(seed=np.nan)
    alone["disabling"] = alone["damage"] > 0.1
    table = disabling.persistence(alone, done)
    assert table[["contexts", "facts", "staying", "share"]].to_numpy().tolist() == [
        ["run", 2, 1, 0.5],
        ["bare", 2, 1, 0.5],
    ]
    assert disabling.persistence(alone, done.assign(disabling=False)).empty


def test_the_unedited_model_is_measured_on_the_facts_as_edited_ones_are():
    lm = tiny.tiny_model("gpt2")
    found = unedited(lm, FACTS[:2], TEXTS)
    assert list(found) == [fact.case_id for fact in FACTS[:2]]
    assert found[FACTS[1].case_id] == {
        "word_entropy_unedited": generation.word_entropy(generation.teacher_forced_texts(lm, FACTS[1])),
        "perplexity_unedited": generation.perplexity(lm, TEXTS),
    }


def test_a_missing_table_of_single_edits_says_what_writes_it(tmp_path):
    with pytest.raises(FileNotFoundError, match="no single.parquet in .*; run notebook 05a"):
        disabling.read_single(tmp_path / "single.parquet")
