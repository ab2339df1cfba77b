"""Looking along a recorded run: the replayed model has the run's bits, and earlier facts get the scores they had."""

import pytest
import tiny
import torch
from test_sequence import FACTS, PARAMS, edit_sequence

from editscale import history, metrics, sequence, states


@pytest.fixture(params=PARAMS)
def edited(request, tmp_path):
    """The model right after a run, and the run reopened on an unedited model."""
    lm, book = edit_sequence(tmp_path, request.param)
    parameters = {"method": request.param, "order": 0, "reverse": False}
    return lm, history.Run(tmp_path, parameters, tiny.tiny_model("gpt2"), FACTS, book)


def test_the_model_at_each_place_is_that_of_the_run(edited):
    lm, run = edited
    layers = run.layers
    assert layers == list(PARAMS[run.key["method"]].layers)
    unedited = [run.lm.weight(layer).clone() for layer in layers]
    seen = []
    for edits in history.replayed(run, [0, 2, 5]):
        expected = tiny.tiny_model("gpt2")
        sequence.replay(expected, run.ledger, upto=edits)
        assert all(torch.equal(run.lm.weight(layer), expected.weight(layer)) for layer in layers)
        seen.append(edits)
    assert seen == [0, 2, 5]
    assert all(torch.equal(expected.weight(layer), lm.weight(layer)) for layer in layers)
    assert all(torch.equal(run.lm.weight(layer), w) for layer, w in zip(layers, unedited, strict=True))


def test_recall_right_after_an_edit_is_its_efficacy(edited):
    _, run = edited
    for edits in history.replayed(run, [1, 3, 5]):
        rows = history.recall_rows(run, edits)
        assert [row["edit"] for row in rows] == list(range(1, edits + 1))
        recorded = run.ledger.rows[edits - 1]
        for name in ("efficacy", "efficacy_accuracy"):
            assert rows[-1][name] == recorded[name]
        assert rows[-1]["efficacy_magnitude"] == pytest.approx(recorded["efficacy_magnitude"], abs=1e-6)


def test_earlier_facts_are_scored_on_the_model_of_the_checkpoint(edited):
    lm, run = edited
    for _ in history.replayed(run, [5]):
        rows = history.recall_rows(run, 5)
    for row, fact in zip(rows, FACTS, strict=True):
        (score,) = metrics.score_prompts(lm, [(fact.rewrite_prompt, fact.target_new, fact.target_true)])
        assert row["case_id"] == fact.case_id and row["efficacy"] == float(score.nll_new < score.nll_true)


def test_kept_states_leave_recall_as_it_is_at_every_checkpoint(edited):
    _, run = edited
    kept = states.Kept(run.lm, min(run.layers), 10**6)
    for edits in history.replayed(run, [1, 3, 5]):
        rows = history.recall_rows(run, edits, kept=kept, batch_tokens=20)
        assert rows == [pytest.approx(row, abs=1e-5) for row in history.recall_rows(run, edits)]
    assert bool(kept.held) == bool(min(run.layers))


def test_squared_singular_values_sum_to_the_squared_norm(edited):
    _, run = edited
    for edits in history.replayed(run, [0, 5]):
        rows = history.spectrum_rows(run, edits)
        for layer in {row["layer"] for row in rows}:
            values = [row["singular_value"] for row in rows if row["layer"] == layer]
            assert values == sorted(values, reverse=True)
            norm = run.lm.weight(layer).double().norm().item()
            assert sum(v**2 for v in values) ** 0.5 == pytest.approx(norm, rel=1e-12)


@pytest.mark.parametrize("shape", [(20, 50), (50, 20), (30, 30)])
def test_singular_values_are_those_of_the_decomposition(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0)) + 40  # one large value among small ones
    torch.testing.assert_close(
        history.singular_values(matrix), torch.linalg.svdvals(matrix.double()), rtol=1e-8, atol=0
    )


def test_checkpoints_are_multiples_within_the_run():
    assert history.checkpoints(50, 20) == [20, 40]
    for every in (0, 51):
        with pytest.raises(ValueError, match=f"every {every} edits does not fit a run of 50"):
            history.checkpoints(50, every)


@pytest.mark.parametrize("places", ([], [2, 1], [1, 1], [-1], [1, 6]))
def test_places_beyond_the_edits_or_out_of_order_are_refused(edited, places):
    with pytest.raises(ValueError, match="must ascend within 0 … 5"):
        next(history.replayed(edited[1], places))


def test_a_run_that_has_not_finished_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"no finished run in {tmp_path}; run notebook 02"):
        history.reopen(tmp_path)
