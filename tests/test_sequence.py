"""A sequence of edits: recorded whole, continued with the same bits, refused under other conditions."""

import errno
import json
import os
import signal
from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
from test_ledger import cut, files
from test_rome import moment

from editscale.analysis import tables
from editscale.data.facts import Fact
from editscale.editing import editors, finetune, lifelong, memit, memit_family, prune, rect, rome, rome_multi, updates
from editscale.metrics import drift
from editscale.models import loading, stacks
from editscale.sequences import frames, sequence, stopping
from editscale.sequences.ledger import Ledger

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
    "memit-seq": memit.MemitParams(layers=[0, 1], clamp_norm_factor=2.0, mom2_update_weight=20.0, **COMMON),
    "alphaedit": memit_family.AlphaEditParams(
        layers=[0, 1], clamp_norm_factor=2.0, nullspace_threshold=1.0, L2=0.5, **COMMON
    ),
    "memit-rect": rect.MemitRectParams(
        layers=[0, 1], clamp_norm_factor=2.0, mom2_update_weight=20.0, zeroed_fraction=0.6, **COMMON
    ),
    "memit-prune": prune.MemitPruneParams(
        layers=[0, 1], clamp_norm_factor=2.0, mom2_update_weight=20.0, prune_base="e", **COMMON
    ),
    "rome-prune": prune.RomePruneParams(
        layer=1, clamp_norm_factor=4.0, mom2_adjustment=True, prune_base="linear", **COMMON
    ),
    "ultraedit": lifelong.UltraEditParams(layers=[0, 1], eta=1e-3, alpha=1.0, unbiased=False, mini_batch=2),
}
CONTEXTS = {
    "rome": ["{}", "The river. {}"],
    "memit": [["{}"], ["The river. {}", "Lund. {}"]],
    "rome-multi": ["{}", "The river. {}"],
    "ft-c": ["{}"],
    **dict.fromkeys(("memit-seq", "alphaedit", "memit-rect", "memit-prune"), [["{}"], ["The river. {}", "Lund. {}"]]),
    "rome-prune": ["{}", "The river. {}"],
    "ultraedit": ["{}"],
}


def edit_sequence(folder, method="rome", facts=FACTS, **options):
    """A model edited from where the ledger in `folder` ends."""
    lm = tiny.tiny_model("gpt2")
    params, contexts = (of["rome" if method in rome.VARIANTS else method] for of in (PARAMS, CONTEXTS))
    factors = {layer: torch.linalg.cholesky(moment(lm.d_key)) for layer in params.layers}
    editing = editors.begun(lm, editors.Editing(method, params, contexts, factors, {"corpus": "none"}))
    book = Ledger(
        folder,
        sequence.fingerprint(lm, editing, on_collapse=options.get("on_collapse", "stop")),
        sequence.weights_record(lm, params.layers),
    )
    sequence.run(lm, facts, editing, book, **options)
    return lm, book


TOGETHER = ("order-0", "order-1", "order-2")


def edit_together(folder, method="rome", n_facts=5, stopped=(), **options):
    """Three orders edited together, from where their ledgers end; after `stopped[i]` edits order i lost the rest.

    Method and number of facts are those of all orders, or one each."""
    orders = [FACTS[i:] + FACTS[:i] for i in range(3)]
    lm = tiny.tiny_model("gpt2")
    methods = [method] * 3 if isinstance(method, str) else list(method)
    lengths = [n_facts] * 3 if isinstance(n_facts, int) else n_facts
    method = methods[0]
    params = PARAMS[method]
    factors = {layer: torch.linalg.cholesky(moment(lm.d_key)) for layer in params.layers}
    record = sequence.weights_record(lm, params.layers)
    for name, n in zip(TOGETHER, stopped, strict=False):
        cut(folder / name, n)
    editings = [
        editors.Editing(of, PARAMS.get(of, params), CONTEXTS[method], factors, {"corpus": "none"}) for of in methods
    ]
    editings = [editors.begun(lm, editing) for editing in editings]
    made_under = [sequence.fingerprint(lm, editing, TOGETHER) for editing in editings]
    books = [Ledger(folder / name, of, record) for name, of in zip(TOGETHER, made_under, strict=True)]
    chosen = [facts[:n] for facts, n in zip(orders, lengths, strict=True)]
    sequence.run_together(lm, chosen, editings, books, **options)
    return lm, orders, books


@pytest.mark.parametrize("method", PARAMS)
def test_resumed_run_equals_uninterrupted(tmp_path, sequence_of, method):
    whole, _ = sequence_of(method, tmp_path / "whole")
    sequence_of(method, tmp_path / "parts", 2)
    resumed, _ = edit_sequence(tmp_path / "parts", method)
    assert all(torch.equal(whole.weight(layer), resumed.weight(layer)) for layer in PARAMS[method].layers)
    assert (tmp_path / "whole" / "edits.jsonl").read_bytes() == (tmp_path / "parts" / "edits.jsonl").read_bytes()
    assert files(tmp_path / "whole") == files(tmp_path / "parts")


@pytest.mark.parametrize("method", PARAMS)
def test_replayed_ledger_has_the_bits_of_the_edited_model(tmp_path, sequence_of, method):
    edited, book = sequence_of(method, tmp_path)
    replayed = tiny.tiny_model("gpt2")
    sequence.replay(replayed, Ledger(tmp_path))
    assert all(torch.equal(edited.weight(layer), replayed.weight(layer)) for layer in PARAMS[method].layers)
    part = tiny.tiny_model("gpt2")
    sequence.replay(part, book, upto=2)
    shorter, _ = sequence_of(method, tmp_path / "two", 2)
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
def test_drift_from_the_ledger_is_the_drift_of_the_weights(tmp_path, sequence_of, method):
    edited, book = sequence_of(method, tmp_path)
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
    with pytest.raises(ValueError, match="case 99: subject 'Dan' not found in the tokenized prompt"):
        edit_sequence(tmp_path, facts=[*FACTS, wrong])
    assert len(Ledger(tmp_path)) == 0


@pytest.mark.filterwarnings("ignore:.*; cut off")
@pytest.mark.parametrize("method", PARAMS)
@pytest.mark.parametrize("n_bytes", (1, 100, 900))
def test_a_torn_last_edit_is_made_again_with_the_same_bits(tmp_path, sequence_of, method, n_bytes):
    sequence_of(method, tmp_path / "whole")
    sequence_of(method, tmp_path / "torn", 4)
    log = tmp_path / "torn" / "edits.log"
    os.truncate(log, log.stat().st_size - n_bytes)
    _, book = edit_sequence(tmp_path / "torn", method)
    assert "after edit 3" in book.dropped and files(tmp_path / "whole") == files(tmp_path / "torn")


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


@pytest.mark.parametrize("on_collapse", ("stop", "skip"))
def test_a_failed_solve_is_recorded_with_its_edit_and_not_applied(tmp_path, monkeypatch, on_collapse):
    real = memit.solve

    def singular(keys, factor, weight):
        failing = Ledger(tmp_path).rows
        return (
            torch.linalg.solve(torch.zeros(2, 2), torch.ones(2, 1)) if len(failing) == 2 else real(keys, factor, weight)
        )

    monkeypatch.setattr(memit, "solve", singular)
    lm, book = edit_sequence(tmp_path, "memit", on_collapse=on_collapse)
    assert [row["status"] for row in book.rows][:3] == ["edited", "edited", "failed-solve"]
    assert len(book) == {"stop": 3, "skip": 5}[on_collapse] and lm.weight(1).isfinite().all()
    assert book.factors(3) == {} and all(book.rows[2][name] is None for name in editors.SUMMARY)
    table = tables.edits_table(book, "memit", 0, False)
    assert np.isnan(table["loss_last"][2]) and table["efficacy"].notna().all()


def test_a_failed_solve_of_one_order_leaves_the_others_of_its_batch_editing(tmp_path, monkeypatch):
    edit_together(tmp_path / "sound", "memit")
    method, failing = memit.METHODS["memit"], tmp_path / "failing"

    def edit(lm, facts, *editing):
        second = (failing / TOGETHER[1]).exists() and len(Ledger(failing / TOGETHER[1])) == 1
        if second and 12 in [fact.case_id for fact in facts]:  # the second fact of the second order
            torch.linalg.solve(torch.zeros(2, 2), torch.ones(2, 1))
        return method.edit(lm, facts, *editing)

    monkeypatch.setitem(memit.METHODS, "memit", replace(method, edit=edit))
    _, _, books = edit_together(failing, "memit")
    assert [[row["status"] for row in book.rows] for book in books] == [
        ["edited"] * 5,
        ["edited", "failed-solve"],
        ["edited"] * 5,
    ]
    sound = Ledger(tmp_path / "sound" / "order-0")
    for ours, row in zip(books[0].rows, sound.rows, strict=True):
        assert ours["loss_last"] == pytest.approx(row["loss_last"], rel=2e-3)


def test_factors_whose_product_overflows_are_not_finite():
    update = updates.Update(0, torch.full((2, 1), 1e30), torch.full((3, 1), 1e30))
    assert editors.status(rome.Edit((update,), {})) == "non-finite"


def test_every_scalar_that_describes_an_edit_is_known_for_a_failed_one(tmp_path):
    _, book = edit_sequence(tmp_path, facts=FACTS[:1])
    assert set(editors.SUMMARY) <= set(book.rows[0])
    assert set(editors.summary(rome.Edit((), {"failed": "singular"}))) == set(editors.SUMMARY)


def test_facts_changed_before_they_were_edited_are_refused(tmp_path):
    edit_sequence(tmp_path)
    cut(tmp_path, 3)
    changed = [*FACTS[:4], replace(FACTS[4], target_new="cello")]
    with pytest.raises(
        ValueError, match="fact 5 of the ledger at .* is case 14, not case 14 as it is in this sequence"
    ):
        edit_sequence(tmp_path, facts=changed)


def test_what_follows_a_collapse_is_a_condition(tmp_path):
    lm, book = edit_sequence(tmp_path, facts=FACTS[:1])
    editing = editors.Editing("rome", PARAMS["rome"], CONTEXTS["rome"], {}, {"corpus": "none"})
    with pytest.raises(ValueError, match="on_collapse is 'skip', and 'stop' in the ledger"):
        sequence.run(lm, FACTS, editing, book, on_collapse="skip")
    with pytest.raises(ValueError, match="on_collapse: ledger 'stop', now 'skip'"):
        edit_sequence(tmp_path, on_collapse="skip")


def test_all_that_determines_edits_is_named_where_it_differs(monkeypatch):
    lm, other = tiny.tiny_model("gpt2"), tiny.tiny_model("gpt2")
    editing = editors.Editing("rome", PARAMS["rome"], CONTEXTS["rome"], {}, {"layer.1": "a" * 64})
    other.identity["config_sha256"] = "0" * 64
    monkeypatch.setattr(loading, "start_token", lambda lm: int(lm is other))
    later = replace(editing, moments={"layer.1": "b" * 64}, contexts=["{}"], params=replace(editing.params, v_lr=0.2))
    one = sequence.fingerprint(lm, editing)
    two = sequence.fingerprint(other, later, ["a"], "skip")
    differing = {name for name in one if one[name] != two[name]}
    assert {"config_sha256", "moments_sha256", "contexts_sha256", "params", "together", "on_collapse"} <= differing
    assert "start_token" in differing and not differing & {"method", "model", "weights_sha256", "code_sha256", "torch"}


def stops_at(monkeypatch, edit, error):
    """Let the edit of this number raise, or do, something."""
    real, calls = rome.rank_one_factors, iter(range(1, 100))

    def stopping_there(*of):
        if next(calls) == edit:
            error()
        return real(*of)

    monkeypatch.setattr(rome, "rank_one_factors", stopping_there)


def raising(error):
    def do():
        raise error

    return do


@pytest.mark.parametrize(
    ("error", "stopped", "message"),
    [
        (raising(KeyboardInterrupt()), stopping.Interrupted, r"KeyboardInterrupt \(Ctrl-C\): 2 of 5 edits are kept in"),
        (lambda: signal.raise_signal(signal.SIGTERM), stopping.Interrupted, r"\(SIGTERM\): 2 of 5 edits are kept"),
        (raising(torch.OutOfMemoryError("CUDA out of memory")), stopping.Stopped, "give it more memory"),
        (raising(MemoryError()), stopping.Stopped, "MemoryError .*: 2 of 5 edits are kept"),
        (raising(torch.AcceleratorError("CUDA error: device lost")), stopping.Stopped, "device lost.*: 2 of 5"),
        (raising(OSError(errno.EIO, "Input/output error")), stopping.Stopped, "run the same command again"),
    ],
)
def test_what_stops_a_run_says_what_is_kept_and_the_same_run_goes_on(tmp_path, monkeypatch, error, stopped, message):
    edit_sequence(tmp_path / "whole")
    handler = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        stops_at(patch, 3, error)
        with pytest.raises(stopped, match=message):
            edit_sequence(tmp_path / "parts")
    assert signal.getsignal(signal.SIGTERM) is handler and len(Ledger(tmp_path / "parts")) == 2
    edit_sequence(tmp_path / "parts")
    assert files(tmp_path / "whole") == files(tmp_path / "parts")


def test_an_error_of_the_code_passes_as_it_is(tmp_path, monkeypatch):
    stops_at(monkeypatch, 1, raising(RuntimeError("a bug")))
    with pytest.raises(RuntimeError, match="^a bug$"):
        edit_sequence(tmp_path)


def test_a_full_disk_keeps_the_edits_before_and_says_so(tmp_path, monkeypatch):
    edit_sequence(tmp_path / "whole")
    real, calls = frames.write_all, iter(range(100))

    def full(fd, data):
        if len(data) > 500 and next(calls) == 3:
            real(fd, data[:321])
            raise OSError(errno.ENOSPC, "No space left on device")
        real(fd, data)

    with monkeypatch.context() as patch:
        patch.setattr(frames, "write_all", full)
        with pytest.raises(stopping.Stopped, match=r"No space left on device.* of 5 edits are kept"):
            edit_sequence(tmp_path / "parts")
    assert not Ledger(tmp_path / "parts").dropped
    edit_sequence(tmp_path / "parts")
    assert files(tmp_path / "whole") == files(tmp_path / "parts")


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


@pytest.mark.parametrize(
    "methods",
    [
        ("rome", "r-rome", "p-rome"),
        ("rome", "rome-prune", "r-rome"),
        ("memit", "alphaedit", "memit-rect"),
        ("memit-seq", "memit-prune", "memit"),
    ],
)
def test_a_batch_of_methods_and_lengths_holds_what_each_run_is_alone(tmp_path, methods):
    lengths = (5, 3, 4)
    for part, cuts in (("whole", ()), ("parts", (4, 1, 4))):
        edit_together(tmp_path / part, methods, n_facts=lengths)
        if cuts:
            edit_together(tmp_path / part, methods, n_facts=lengths, stopped=cuts)
    assert files(tmp_path / "whole") == files(tmp_path / "parts")
    for i, (method, n) in enumerate(zip(methods, lengths, strict=True)):
        book = Ledger(tmp_path / "whole" / TOGETHER[i])
        _, alone = edit_sequence(tmp_path / method, method, (FACTS[i:] + FACTS[:i])[:n])
        assert len(book) == n
        for ours, row in zip(book.rows, alone.rows, strict=True):
            assert ours["case_id"] == row["case_id"]
            for name in ("delta_norm", "denominator", "efficacy_magnitude"):
                if row[name] is not None:
                    assert ours[name] == pytest.approx(row[name], rel=2e-3, abs=1e-5)


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        (["rome"], "2 orders with 1 editings and 2 ledgers"),
        (["rome", "memit"], "runs of rome, memit are no batch"),
    ],
)
def test_what_is_no_batch_is_refused(methods, message):
    lm = tiny.tiny_model("gpt2")
    with pytest.raises(ValueError, match=message):
        editings = [editors.Editing(of, PARAMS[of], CONTEXTS["rome"], {}) for of in methods]
        sequence.run_together(lm, [FACTS, FACTS], editings, [None, None])


def test_steps_in_tf32_are_another_condition_and_stay_with_copies():
    lm = tiny.tiny_model("gpt2")
    tf32 = replace(lm, tf32_steps=True)
    editing = editors.Editing("rome", PARAMS["rome"], ["{}"], {})
    plain, other = (sequence.fingerprint(of, editing) for of in (lm, tf32))
    assert {name for name in plain if plain[name] != other[name]} == {"tf32_steps"}
    assert stacks.copies(tf32, [1], 2).tf32_steps and not stacks.copies(lm, [1], 2).tf32_steps


def test_facts_without_a_true_object_are_edited_and_what_compares_with_it_is_missing(tmp_path, capsys):
    given = [
        replace(FACTS[0], target_true=""),
        replace(FACTS[1], target_true="", neighborhood_answers=("town", "house")),
        replace(FACTS[2], portability_prompts=("The river of Lund is the",), portability_answers=("town",)),
    ]
    _, book = edit_sequence(tmp_path, facts=given)
    edits, unedited = tables.edits_table(book, "rome", 0, False), tables.unedited_table(book, "rome", 0, False)
    for table in (edits, unedited):
        assert table["efficacy"].isna().tolist() == table["paraphrase_magnitude"].isna().tolist() == [True, True, False]
        assert table["neighborhood"].isna().tolist() == [True, False, False]
        assert table[["efficacy_accuracy", "paraphrase_accuracy"]].notna().all(axis=None)
        assert table["portability_accuracy"].isna().tolist() == [True, True, False]
        assert tables.summary(table)["ES"].item() == 100 * table["efficacy"].iloc[2]
    assert capsys.readouterr().out.count("2 of 3 facts have no true answer: what compares with it is missing") == 1


def test_facts_as_they_always_were_get_the_columns_they_always_had(tmp_path, capsys):
    _, book = edit_sequence(tmp_path, facts=FACTS[:1])
    assert not [name for name in tables.edits_table(book, "rome", 0, False) if "portability" in name]
    assert "no true answer" not in capsys.readouterr().out
