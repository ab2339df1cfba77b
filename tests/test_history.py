"""Looking along a recorded run: the replayed model has the run's bits, and earlier facts get the scores they had."""

import json
from pathlib import Path

import pytest
import tiny
import torch
from test_sequence import FACTS, PARAMS

from editscale.data import glue
from editscale.data.orders import open_set
from editscale.editing import editors, modules
from editscale.metrics import downstream, generation, scoring, written
from editscale.models import hidden_states, loading
from editscale.sequences import past_runs, sequence
from editscale.sequences.ledger import Ledger

INVENTED = Path(__file__).parents[1] / "params/smoke/invented_facts.json"


@pytest.fixture(params=PARAMS)
def edited(request, tmp_path, sequence_of):
    """The model right after a run, and the run reopened on an unedited model."""
    lm, book = sequence_of(request.param, tmp_path)
    parameters = {"method": request.param, "order": 0, "reverse": False}
    return lm, past_runs.PastRun(tmp_path, parameters, tiny.tiny_model("gpt2"), FACTS, book)


def test_the_model_at_each_place_is_that_of_the_run(edited):
    lm, run = edited
    layers = run.layers
    assert layers == list(PARAMS[run.key["method"]].layers)
    unedited = [run.lm.weight(layer).clone() for layer in layers]
    seen = []
    for edits in past_runs.replayed(run, [0, 2, 5]):
        expected = tiny.tiny_model("gpt2")
        editing = editors.of_record(expected, run.key["method"], run.ledger.fingerprint["params"])
        sequence.replay(expected, run.ledger, upto=edits)
        with editors.looked_at([editing], expected, [sequence.state_after(expected, editing, run.ledger, edits)]):
            assert all(torch.equal(run.lm.weight(layer), expected.weight(layer)) for layer in layers)
        seen.append(edits)
    assert seen == [0, 2, 5]
    assert all(torch.equal(expected.weight(layer), lm.weight(layer)) for layer in layers)
    assert all(torch.equal(run.lm.weight(layer), w) for layer, w in zip(layers, unedited, strict=True))


def test_recall_right_after_an_edit_is_its_efficacy(edited):
    _, run = edited
    for edits in past_runs.replayed(run, [1, 3, 5]):
        rows = past_runs.recall_rows(run, edits)
        assert [row["edit"] for row in rows] == list(range(1, edits + 1))
        recorded = run.ledger.rows[edits - 1]
        for name in ("efficacy", "efficacy_accuracy"):
            assert rows[-1][name] == recorded[name]
        assert rows[-1]["efficacy_magnitude"] == pytest.approx(recorded["efficacy_magnitude"], abs=1e-6)


def test_earlier_facts_are_scored_on_the_model_of_the_checkpoint(edited):
    lm, run = edited
    for _ in past_runs.replayed(run, [5]):
        rows = past_runs.recall_rows(run, 5)
    for row, fact in zip(rows, FACTS, strict=True):
        (score,) = scoring.score_prompts(lm, [(fact.rewrite_prompt, fact.target_new, fact.target_true)])
        assert row["case_id"] == fact.case_id and row["efficacy"] == float(score.nll_new < score.nll_true)


def test_kept_states_leave_recall_as_it_is_at_every_checkpoint(edited):
    _, run = edited
    kept = hidden_states.StateCache(run.lm, min(run.layers), 10**6)
    for edits in past_runs.replayed(run, [1, 3, 5]):
        rows = past_runs.recall_rows(run, edits, kept=kept, batch_tokens=20)
        assert rows == [pytest.approx(row, abs=1e-5) for row in past_runs.recall_rows(run, edits)]
    assert bool(kept.held) == bool(min(run.layers))


def test_what_the_model_writes_is_asked_of_the_same_facts_and_changes_no_other_number(edited):
    lm, run = edited
    for _ in past_runs.replayed(run, [5]):
        plain, rows = past_runs.recall_rows(run, 5), past_runs.recall_rows(run, 5, n_written=12, batch_tokens=20)
    free = written.answers(lm, [(fact.rewrite_prompt, fact.target_new) for fact in FACTS], 12)
    for row, before, answer in zip(rows, plain, free, strict=True):
        expected = {"written_exact": float(answer.exact), "written_begins": float(answer.begins)}
        assert row == pytest.approx(before | expected, abs=1e-5)


def test_squared_singular_values_sum_to_the_squared_norm(edited):
    _, run = edited
    for edits in past_runs.replayed(run, [0, 5]):
        rows = past_runs.spectrum_rows(run, edits)
        for layer in {row["layer"] for row in rows}:
            values = [row["singular_value"] for row in rows if row["layer"] == layer]
            assert values == sorted(values, reverse=True)
            norm = run.lm.weight(layer).double().norm().item()
            assert sum(v**2 for v in values) ** 0.5 == pytest.approx(norm, rel=1e-12)


@pytest.mark.parametrize("shape", [(20, 50), (50, 20), (30, 30)])
def test_singular_values_are_those_of_the_decomposition(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0)) + 40  # one large value among small ones
    torch.testing.assert_close(
        past_runs.singular_values(matrix), torch.linalg.svdvals(matrix.double()), rtol=1e-8, atol=0
    )


def test_a_broken_model_is_scored_to_the_end_and_marked(edited):
    """Finite weights whose activations overflow: answers are invalid, recall is lost, perplexity is infinite."""
    _, run = edited
    run.lm.weight(run.layers[0]).fill_(1e38)
    rows = past_runs.recall_rows(run, 5, n_written=12)
    for name in ("efficacy", "efficacy_accuracy", "written_exact", "written_begins"):
        assert [row[name] for row in rows] == [0] * 5
    scores = downstream.TaskPrompts(run.lm, glue.open_task("reviews", n_examples=4, shots=0)).row()
    assert scores["invalid"] == 1 and scores["accuracy"] == 0
    assert generation.perplexity(run.lm, generation.fixed_texts()[:1]) == float("inf")
    generation.generate(run.lm, ["The river"], 6, torch.Generator().manual_seed(0))
    assert all(row["singular_value"] >= 0 for row in past_runs.spectrum_rows(run, 5))


def test_checkpoints_are_multiples_within_the_run():
    assert past_runs.checkpoints(50, 20) == [20, 40]
    for every in (0, 51):
        with pytest.raises(ValueError, match=f"every {every} edits does not fit a run of 50"):
            past_runs.checkpoints(50, every)


@pytest.mark.parametrize("places", ([], [2, 1], [1, 1], [-1], [1, 6]))
def test_places_beyond_the_edits_or_out_of_order_are_refused(edited, places):
    with pytest.raises(ValueError, match="must ascend within 0 … 5"):
        next(past_runs.replayed(edited[1], places))


def test_a_run_that_has_not_finished_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"no finished run in {tmp_path}; run notebook 02a"):
        past_runs.reopen(tmp_path)
    (tmp_path / "ledger.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match="has a ledger, but no done.json .* edits only what the ledger lacks"):
        past_runs.reopen(tmp_path)


def test_runs_of_one_model_that_are_reopened_together_share_it(monkeypatch):
    loaded = []
    monkeypatch.setattr(loading, "load", lambda name, **_: loaded.append(name) or len(loaded))
    monkeypatch.setattr(past_runs, "reopen", lambda path, *, load, **_: load(path.split("/")[0], revision=""))
    found = past_runs.reopen_all({"rome": "a/rome", "memit": "a/memit", "ft-c": "b/ft-c"})
    assert found == {"rome": 1, "memit": 1, "ft-c": 2} and loaded == ["a", "b"]


def finished(folder, method, order, reverse):
    """A folder with the record of a finished run."""
    path = folder / f"{method}-{order}-{reverse}"
    path.mkdir()
    parameters = {"method": method, "order": order, "reverse": reverse, "model": "a", "revision": "", "tf32": False}
    parameters |= {"dtype": "float32", "fact_set": "atlas", "n_edits": 4}
    (path / "done.json").write_text(json.dumps({"parameters": parameters}))
    return str(path)


def test_the_forward_run_of_each_method_on_its_lowest_order_is_found(tmp_path):
    named = [("rome", 2, False), ("rome", 0, True), ("memit", 1, False), ("rome", 1, False), ("r-rome", 0, True)]
    folders = [finished(tmp_path, *run) for run in named]
    assert past_runs.forward_runs(folders) == {"rome": folders[3], "memit": folders[2]}
    assert past_runs.forward_runs(folders, ["memit"]) == {"memit": folders[2]}
    for methods in (["r-rome"], ["rome", "room"]):
        with pytest.raises(ValueError, match=f"no forward run of {methods[-1]} among .*; runs are of rome, memit"):
            past_runs.forward_runs(folders, methods)
    with pytest.raises(ValueError, match="no forward run of any method"):
        past_runs.forward_runs(folders[1:2])


def test_runs_of_one_method_with_labels_are_several_and_earlier_records_have_none(tmp_path):
    folders = [finished(tmp_path, "memit", order, False) for order in (0, 1, 2)]
    for folder, label in zip(folders[1:], ("memit-1000", "memit-4000"), strict=True):
        path = Path(folder, "done.json")
        record = json.loads(path.read_text())
        record["parameters"]["label"] = label
        path.write_text(json.dumps(record))
    assert past_runs.forward_runs(folders) == dict(zip(("memit", "memit-1000", "memit-4000"), folders, strict=True))
    assert past_runs.forward_runs(folders, ["memit-4000"]) == {"memit-4000": folders[2]}
    keys = [past_runs.PastRun(f, past_runs.record_of(f)["parameters"], None, [], None).key for f in folders]
    assert [key["method"] for key in keys] == ["memit", "memit-1000", "memit-4000"]
    path.write_text(json.dumps({"parameters": record["parameters"] | {"label": 4000}}))
    with pytest.raises(ValueError, match="parameter label is 4000, not a str"):
        past_runs.record_of(folders[2])


def test_a_label_is_no_other_method_of_the_package():
    assert modules.called("memit") == "memit" and modules.called("mine:half_rome") == "half-rome"
    assert modules.called("memit", "lambda-1000") == "lambda-1000" and modules.called("memit", "memit") == "memit"
    for label, message in (("rome", "rome is another method of editscale than memit"), ("λ", "'λ' is no label")):
        with pytest.raises(ValueError, match=message):
            modules.called("memit", label)


def run_of(method, folder, **given):
    parameters = {"method": method, "order": 0, "reverse": False, "seed": 3, "prefix_seeds": []}
    parameters |= {"n_short_prefixes": 2, "n_long_prefixes": 1, **given}
    return past_runs.PastRun(folder, parameters, tiny.tiny_model("gpt2"), FACTS, None)


def test_other_contexts_are_those_of_the_run_another_seed_other_words_and_the_bare_prompt(tmp_path):
    run = run_of("rome", tmp_path)
    found = past_runs.other_contexts(run, [3, 4], ["The"])
    # Seed 3 is the run's own, and not listed again.
    assert [(kind, seed) for kind, seed, _ in found] == [("run", 3), ("seed", 4), ("words", 3), ("bare", None)]
    assert found[0][2] == past_runs.contexts_of(run_of("rome", tmp_path))
    assert found[1][2] == past_runs.contexts_of(run_of("rome", tmp_path, seed=4))
    assert found[2][2] == past_runs.contexts_of(run_of("rome", tmp_path, prefix_seeds=["The"]))
    assert found[3][2] == ["{}"]


def test_memit_takes_words_of_its_own_and_fine_tuning_samples_no_contexts(tmp_path):
    memit = past_runs.other_contexts(run_of("memit", tmp_path), [4], ["The"])
    assert [kind for kind, *_ in memit] == ["run", "seed", "bare"] and memit[-1][2] == [["{}"]]
    assert [kind for kind, *_ in past_runs.other_contexts(run_of("ft-c", tmp_path), [4], ["The"])] == ["run"]


def test_facts_that_a_run_did_not_edit_come_from_its_fact_set(tmp_path):
    every = list(open_set(str(INVENTED)))
    run = past_runs.PastRun(tmp_path, {"fact_set": str(INVENTED)}, None, every[:3], None)
    assert past_runs.with_facts(run, [every[1].case_id]) == every[:3]
    assert past_runs.with_facts(run, [every[6].case_id, every[0].case_id]) == [*every[:3], every[6]]
    with pytest.raises(ValueError, match="invented_facts.json, the fact set of .*, has no case 12345"):
        past_runs.with_facts(run, [12345])


def test_a_fact_that_is_no_longer_what_another_run_edited_is_refused(tmp_path):
    every = list(open_set(str(INVENTED)))
    run = past_runs.PastRun(tmp_path, {"fact_set": str(INVENTED)}, None, every[:3], None)
    for folder, identity in (("same", every[6].identity), ("changed", "0" * 64)):
        book = Ledger(tmp_path / folder, {}, {})
        book.append({"case_id": every[6].case_id, "fact_sha256": identity}, [], 0.1)
    assert past_runs.with_facts(run, [every[6].case_id], [tmp_path / "same"]) == [*every[:3], every[6]]
    with pytest.raises(ValueError, match="is another fact than the one that .*changed edited; restore that file"):
        past_runs.with_facts(run, [every[6].case_id], [tmp_path / "same", tmp_path / "changed"])
