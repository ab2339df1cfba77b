"""A sequence of edits: recorded whole, continued with the same bits, refused under other conditions."""

import json

import numpy as np
import pytest
import tiny
import torch
from test_rome import moment

from editscale import drift, editors, finetune, memit, rome, rome_multi, sequence, tables, updates
from editscale.facts import Fact
from editscale.ledger import Ledger

SUBJECTS = ("Ada Example", "Bo Sample", "Lund", "Stockholm", "Denmark")
FACTS = [
    Fact(
        10 + i,
        subject,
        "{} is in the",
        "harp",
        "town",
        "R1",
        paraphrase_prompts=(f"The river of {subject} is the",),
        neighborhood_prompts=("Sweden is in the", "Copenhagen is in the"),
    )
    for i, subject in enumerate(SUBJECTS)
]
COMMON = {"v_num_grad_steps": 4, "v_lr": 0.3, "v_weight_decay": 0.5, "kl_factor": 0.0625}
PARAMS = {
    "rome": rome.RomeParams(layer=1, clamp_norm_factor=4.0, mom2_adjustment=True, **COMMON),
    "memit": memit.MemitParams(layers=[0, 1], clamp_norm_factor=2.0, mom2_update_weight=20.0, **COMMON),
    "rome-multi": rome_multi.RomeMultiParams(layers=[0, 1], clamp_norm_factor=2.0, **COMMON),
    "ft-c": finetune.FtParams(layer=1, num_steps=4, lr=1e-2, weight_decay=0.0, norm_constraint=2e-2),
}
CONTEXTS = {
    "rome": ["{}", "The river. {}"],
    "memit": [["{}"], ["The river. {}", "Lund. {}"]],
    "rome-multi": ["{}", "The river. {}"],
    "ft-c": ["{}"],
}


def edit_sequence(folder, method="rome", facts=FACTS, **options):
    """A model edited from where the ledger in `folder` ends."""
    lm = tiny.tiny_model("gpt2")
    params = PARAMS[method]
    factors = {layer: torch.linalg.cholesky(moment(lm.d_key)) for layer in params.layers}
    book = Ledger(
        folder,
        sequence.fingerprint(lm, method, params, CONTEXTS[method], {"corpus": "none"}),
        sequence.weights_record(lm, params.layers),
    )
    sequence.run(lm, facts, method, params, CONTEXTS[method], factors, book, **options)
    return lm, book


TOGETHER = ("order-0", "order-1", "order-2")


def edit_together(folder, method="rome", n_facts=5, stopped=(), **options):
    """Three orders edited together, from where their ledgers end; after `stopped[i]` edits order i lost the rest."""
    orders = [FACTS[i:] + FACTS[:i] for i in range(3)]
    lm = tiny.tiny_model("gpt2")
    params = PARAMS[method]
    factors = {layer: torch.linalg.cholesky(moment(lm.d_key)) for layer in params.layers}
    conditions = (
        sequence.fingerprint(lm, method, params, CONTEXTS[method], {"corpus": "none"}, TOGETHER),
        sequence.weights_record(lm, params.layers),
    )
    for name, n in zip(TOGETHER, stopped, strict=False):
        path = folder / name / "edits.jsonl"
        path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:n]))
    books = [Ledger(folder / name, *conditions) for name in TOGETHER]
    chosen = [facts[:n_facts] for facts in orders]
    sequence.run_together(lm, chosen, method, params, CONTEXTS[method], factors, books, **options)
    return lm, orders, books


def files(folder):
    return {
        path.relative_to(folder): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "timing.jsonl"
    }


@pytest.mark.parametrize("method", PARAMS)
def test_resumed_run_equals_uninterrupted(tmp_path, method):
    whole, _ = edit_sequence(tmp_path / "whole", method)
    edit_sequence(tmp_path / "parts", method, FACTS[:2])
    resumed, _ = edit_sequence(tmp_path / "parts", method)
    assert all(torch.equal(whole.weight(layer), resumed.weight(layer)) for layer in PARAMS[method].layers)
    assert (tmp_path / "whole" / "edits.jsonl").read_bytes() == (tmp_path / "parts" / "edits.jsonl").read_bytes()
    assert files(tmp_path / "whole") == files(tmp_path / "parts")


@pytest.mark.parametrize("method", PARAMS)
def test_replayed_ledger_has_the_bits_of_the_edited_model(tmp_path, method):
    edited, book = edit_sequence(tmp_path, method)
    replayed = tiny.tiny_model("gpt2")
    sequence.replay(replayed, Ledger(tmp_path))
    assert all(torch.equal(edited.weight(layer), replayed.weight(layer)) for layer in PARAMS[method].layers)
    part = tiny.tiny_model("gpt2")
    sequence.replay(part, book, upto=2)
    shorter, _ = edit_sequence(tmp_path / "two", method, FACTS[:2])
    assert all(torch.equal(part.weight(layer), shorter.weight(layer)) for layer in PARAMS[method].layers)


def test_edits_are_made_on_the_edited_model_one_after_another(tmp_path):
    edited, book = edit_sequence(tmp_path)
    lm = tiny.tiny_model("gpt2")
    factors = {1: torch.linalg.cholesky(moment(lm.d_key))}
    editing = PARAMS["rome"], CONTEXTS["rome"], factors
    ahead = rome.directions(lm, FACTS, *editing)
    for fact, known, row in zip(FACTS, ahead, book.rows, strict=True):
        (edit,) = rome.edit_each(lm, [fact], *editing, [known])
        updates.apply(lm, edit.updates)
        assert row["case_id"] == fact.case_id and row["loss_last"] == editors.summary(edit)["loss_last"]
    assert torch.equal(lm.weight(1), edited.weight(1))


@pytest.mark.parametrize("method", PARAMS)
def test_drift_from_the_ledger_is_the_drift_of_the_weights(tmp_path, method):
    edited, book = edit_sequence(tmp_path, method)
    original = tiny.tiny_model("gpt2")
    for layer in PARAMS[method].layers:
        distance = (edited.weight(layer) - original.weight(layer)).double().norm().item()
        row = [r for r in drift.of_ledger(book) if r["layer"] == layer and r["edits"] == len(FACTS)][0]
        assert row["distance"] == pytest.approx(distance, rel=1e-5)
        assert row["normalised_l2"] == pytest.approx(distance / original.weight(layer).numel(), rel=1e-5)
        assert row["relative_drift"] == pytest.approx(distance / original.weight(layer).norm().item(), rel=1e-5)


def test_tables_have_one_described_row_per_measurement(tmp_path):
    _, book = edit_sequence(tmp_path, "memit")
    edits, drifts = tables.edits_table(book, "memit", 3, True), tables.drift_table(book, "memit", 3, True)
    assert edits["edits"].tolist() == [1, 2, 3, 4, 5] and edits["case_id"].tolist() == [f.case_id for f in FACTS]
    assert len(drifts) == 5 * 2 and set(drifts) | set(edits) <= set(tables.COLUMNS)
    assert edits["denominator"].isna().all()
    unedited = tables.unedited_table(book, "memit", 3, True)
    assert unedited["case_id"].tolist() == edits["case_id"].tolist()
    assert tables.summary(unedited).iloc[0]["ES"] == pytest.approx(100 * unedited["efficacy"].mean())


def test_other_conditions_are_refused_and_named(tmp_path):
    edit_sequence(tmp_path)
    with pytest.raises(ValueError, match="method: ledger 'rome', now 'memit'"):
        edit_sequence(tmp_path, "memit")


def test_other_facts_are_refused(tmp_path):
    edit_sequence(tmp_path, facts=FACTS[:3])
    with pytest.raises(ValueError, match="edit 2 of the ledger .* is case 11, not case 12"):
        edit_sequence(tmp_path, facts=[FACTS[0], *FACTS[2:]])


def test_a_fact_that_cannot_be_edited_is_named_before_the_first_edit(tmp_path):
    wrong = Fact(99, "Dan", "The language is {}ish and", "harp", "town")
    with pytest.raises(ValueError, match="case 99: subject 'Dan' not found in the tokenised prompt"):
        edit_sequence(tmp_path, facts=[*FACTS, wrong])
    assert len(Ledger(tmp_path)) == 0


def test_a_torn_last_row_is_dropped_and_its_edit_done_again(tmp_path):
    edit_sequence(tmp_path / "whole")
    edit_sequence(tmp_path / "torn", facts=FACTS[:4])
    path = tmp_path / "torn" / "edits.jsonl"
    path.write_bytes(path.read_bytes()[:-30])
    reopened = Ledger(tmp_path / "torn")
    assert len(reopened) == 3 and reopened.dropped
    edit_sequence(tmp_path / "torn")
    assert files(tmp_path / "whole") == files(tmp_path / "torn")


def test_damage_before_the_last_row_is_refused_with_its_number(tmp_path):
    edit_sequence(tmp_path)
    path = tmp_path / "edits.jsonl"
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([lines[0], lines[1][:20], *lines[2:]]))
    with pytest.raises(ValueError, match="damaged at edit 2"):
        Ledger(tmp_path)


def test_exchanged_factors_are_refused(tmp_path):
    _, book = edit_sequence(tmp_path)
    book.factors_path(2).write_bytes(book.factors_path(3).read_bytes())
    with pytest.raises(ValueError, match="not what edit 2 recorded"):
        sequence.replay(tiny.tiny_model("gpt2"), book)


def test_reading_a_missing_ledger_says_what_makes_one(tmp_path):
    with pytest.raises(FileNotFoundError, match="run notebook 02"):
        Ledger(tmp_path / "none")


@pytest.mark.parametrize(
    ("on_collapse", "statuses"),
    [("stop", ["edited", "non-finite"]), ("skip", ["edited", "non-finite", "edited", "edited", "edited"])],
)
def test_a_non_finite_edit_is_recorded_and_not_applied(tmp_path, monkeypatch, on_collapse, statuses):
    real = rome.rank_one_factors
    calls = iter(range(100))

    def planted(target, key, value, u):
        left, right = real(target, key, value, u)
        return (left * float("nan") if next(calls) == 1 else left), right

    monkeypatch.setattr(rome, "rank_one_factors", planted)
    lm, book = edit_sequence(tmp_path, on_collapse=on_collapse)
    assert [row["status"] for row in book.rows] == statuses
    assert lm.weight(1).isfinite().all()
    distances = [row["distance"] for row in drift.of_ledger(book)]
    assert distances[1] == distances[0] and np.isfinite(distances).all()
    before = files(tmp_path)
    edit_sequence(tmp_path, on_collapse=on_collapse)
    assert files(tmp_path) == before


def test_rows_are_strict_json(tmp_path):
    _, book = edit_sequence(tmp_path, "memit")
    for line in (tmp_path / "edits.jsonl").read_text().splitlines():
        row = json.loads(line, parse_constant=lambda constant: pytest.fail(f"{constant} is not JSON"))
        assert row["denominator"] is None


@pytest.mark.parametrize("method", PARAMS)
def test_orders_together_are_what_each_is_alone(tmp_path, method):
    lm, orders, books = edit_together(tmp_path, method)
    fresh = tiny.tiny_model("gpt2")
    assert all(torch.equal(lm.weight(layer), fresh.weight(layer)) for layer in range(lm.n_layers))
    for facts, book in zip(orders, books, strict=True):
        alone, other = edit_sequence(tmp_path / f"alone-{facts[0].case_id}", method, facts)
        for ours, row in zip(book.rows, other.rows, strict=True):
            assert (ours["case_id"], ours["steps"], ours["status"]) == (row["case_id"], row["steps"], row["status"])
            for name in ("loss_last", "delta_norm", "efficacy_magnitude", "neighborhood_magnitude"):
                # Fine-tuning has no δ.
                assert ours[name] == (row[name] and pytest.approx(row[name], rel=2e-3, abs=1e-5))
        sequence.replay(fresh_model := tiny.tiny_model("gpt2"), book)
        for layer in PARAMS[method].layers:
            change = alone.weight(layer) - fresh.weight(layer)
            difference = fresh_model.weight(layer) - alone.weight(layer)
            assert difference.norm() < 2e-3 * change.norm()


@pytest.mark.parametrize("method", PARAMS)
def test_orders_that_stopped_at_different_places_go_on_with_the_same_bits(tmp_path, method):
    edit_together(tmp_path / "whole", method)
    edit_together(tmp_path / "parts", method, n_facts=4)
    edit_together(tmp_path / "parts", method, stopped=(4, 2, 3))
    assert files(tmp_path / "whole") == files(tmp_path / "parts")


def test_an_order_that_collapses_leaves_the_batch(tmp_path, monkeypatch):
    real = rome.rank_one_factors
    calls = iter(range(100))

    def planted(target, key, value, u):
        left, right = real(target, key, value, u)
        return (left * float("nan") if next(calls) == 4 else left), right  # the second edit of the second order

    monkeypatch.setattr(rome, "rank_one_factors", planted)
    _, _, books = edit_together(tmp_path)
    assert [[row["status"] for row in book.rows] for book in books] == [
        ["edited"] * 5,
        ["edited", "non-finite"],
        ["edited"] * 5,
    ]
    before = files(tmp_path)
    edit_together(tmp_path)
    assert files(tmp_path) == before


def test_orders_of_different_lengths_are_refused(tmp_path):
    lm = tiny.tiny_model("gpt2")
    with pytest.raises(ValueError, match=r"orders of \[5, 4\] facts with 2 ledgers"):
        sequence.run_together(lm, [FACTS, FACTS[1:]], "rome", PARAMS["rome"], CONTEXTS["rome"], {}, [None, None])
