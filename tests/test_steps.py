"""Several facts in a step: what one solve of many is, a row for each fact, and no place inside a step."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from test_copies import EXACT
from test_ledger import cut, files
from test_mitigations import random, spread_out
from test_rome import moment
from test_sequence import COMMON, CONTEXTS, FACTS, PARAMS

from editscale.analysis import collapse, damage, disabling, drift_loss, tables
from editscale.editing import editors, history, memit, memit_family, modules, norm_anchor, rome_multi, updates
from editscale.metrics import scoring
from editscale.models import stacks
from editscale.sequences import past_runs, replay, sequence
from editscale.sequences.ledger import Ledger

SIX = [*FACTS, replace(FACTS[0], case_id=15, subject="Copenhagen", paraphrase_prompts=())]
GROUPS = CONTEXTS["memit"]
MEMIT = {"layers": [0, 1], "clamp_norm_factor": 2.0, "mom2_update_weight": 20.0, **COMMON}
PARAMS = {name: PARAMS[name] for name in ("memit", "rome-multi", "memit-seq", "alphaedit", "memit-rect")} | {
    "encore": memit_family.EncoreParams(**MEMIT, update_norm_lambda=2.0, prob_cutoff=-2.0, stop_tokens="all"),
    "emmet": memit_family.EmmetParams(**MEMIT, emmet_lambda=0.1, update_norm_lambda=0.0),
    "memit-nas": norm_anchor.MemitNasParams(**MEMIT, anchor_norm=30.0),
    "alphaedit-nas": norm_anchor.AlphaEditNasParams(**vars(PARAMS["alphaedit"]), anchor_norm=30.0),
}
RUNS = ("memit", "memit-seq", "alphaedit", "memit-rect", "rome-multi")


def editing_of(lm, method, size=1):
    factors = {layer: torch.linalg.cholesky(moment(lm.d_key, layer)) for layer in (0, 1)}
    contexts = CONTEXTS["rome"] if method == "rome-multi" else GROUPS
    return editors.begun(lm, editors.Editing(method, PARAMS[method], contexts, factors, facts_per_step=size))


def edit_sequence(folder, method, size, facts=SIX, **options):
    """A model edited from where the ledger in `folder` ends, so many facts in a step."""
    lm = tiny.tiny_model("gpt2")
    editing, collapse = editing_of(lm, method, size), options.get("on_collapse", "stop")
    made_under = sequence.fingerprint(lm, editing, on_collapse=collapse)
    book = Ledger(folder, made_under, sequence.weights_record(lm, editing.layers))
    sequence.run(lm, facts, editing, book, **options)
    return lm, book


NAMES = ("order-0", "order-1", "order-2")


def edit_together(folder, method, size, n_facts=6, stopped=()):
    """Three orders in one batch, from where their ledgers end; after `stopped[i]` edits order i lost the rest."""
    lm, orders = tiny.tiny_model("gpt2"), [(SIX[i:] + SIX[:i])[:n_facts] for i in range(3)]
    editing = editing_of(lm, method, size)
    for name, n in zip(NAMES, stopped, strict=False):
        cut(folder / name, n)
    record, made_under = sequence.weights_record(lm, editing.layers), sequence.fingerprint(lm, editing, NAMES)
    books = [Ledger(folder / name, made_under, record) for name in NAMES]
    sequence.run_together(lm, orders, [editing] * 3, books)
    return orders, books


# -------------------------------------------------------------------------------------------------------- arithmetic

C = spread_out(16)
STARTS = {
    "memit-seq": lambda: history.of_moment(torch.linalg.cholesky(C), 3.0),
    "encore": lambda: history.of_moment(torch.linalg.cholesky(C), 3.0, 2.0),
    "alphaedit": lambda: history.of_null_space(torch.linalg.cholesky(C), 1.0, 0.5),
}


def written(weight, keys, targets, steps, start, remembers=True):
    """The weight after solves over so many keys each, their residuals towards fixed targets."""
    inverse = start()
    for k, v in zip(keys.split(steps, dim=1), targets.split(steps, dim=1), strict=True):
        weight = weight + (v - weight @ k) @ history.solve(inverse, k).T
        inverse = inverse.after(k) if remembers else inverse
    return weight


@pytest.mark.parametrize("method", STARTS)
@pytest.mark.parametrize("steps", ([1] * 20, [4] * 5, [2, 7, 11]))
def test_edits_with_the_keys_of_earlier_ones_end_where_one_solve_of_all_facts_does(method, steps):
    """Recursive least squares: targets v are fixed, whatever was edited before; arXiv:2605.26670."""
    weight, keys, targets = random(5, 16, seed=1), random(16, 20, seed=2), random(5, 20, seed=3)
    once = written(weight, keys, targets, [20], STARTS[method])
    after = written(weight, keys, targets, steps, STARTS[method])
    assert (after - once).norm() <= 1e-10 * (once - weight).norm()
    forgetful = written(weight, keys, targets, steps, STARTS[method], remembers=False)
    assert (forgetful - once).norm() > 1e-2 * (once - weight).norm()


def test_one_solve_of_all_facts_is_the_least_squares_solution():
    """The W with the least λ tr (W − W₀) C (W − W₀)ᵀ + Σ ‖W k − v‖²: its gradient there is 0."""
    weight, keys, targets = random(5, 16, seed=1), random(16, 20, seed=2), random(5, 20, seed=3)
    found = written(weight, keys, targets, [20], STARTS["memit-seq"])
    gradient = 3.0 * (found - weight) @ C + (found @ keys - targets) @ keys.T
    assert gradient.norm() <= 1e-10 * (targets @ keys.T).norm()


def test_rome_multi_sends_all_keys_of_a_step_where_they_should_go_and_moves_others_least():
    keys = random(16, 5, seed=2)
    solved = rome_multi.solve(keys, torch.linalg.cholesky(C))
    torch.testing.assert_close(solved.T @ keys, torch.eye(5, dtype=torch.float64), rtol=0, atol=1e-10)
    free = torch.linalg.qr(torch.cat([keys, random(16, 11, seed=3)], dim=1)).Q[:, 5:]  # where no key of the step is
    assert (solved.T @ C @ free).norm() <= 1e-10 * (solved.T @ C).norm()
    assert (solved - memit.solve(keys, torch.linalg.cholesky(C), 1e-9)).norm() <= 1e-6 * solved.norm()


# ----------------------------------------------------------------------------------------------- methods and batches


def test_these_are_the_methods_with_a_batch_form():
    assert {name for name in PARAMS} <= {name for name in modules.MODULES if editors.method(name).edit_batches}
    for name in ("rome", "r-rome", "p-rome", "rome-rect", "rome-nas", "rome-prune", "rome-multi-two-keys", "ft-c"):
        assert editors.method(name).edit_batches is None


@pytest.mark.parametrize("copies", (0, 3))
@pytest.mark.parametrize("method", PARAMS)
def test_batches_of_one_fact_are_single_edits_bit_for_bit(method, copies):
    lm = tiny.tiny_model("gpt2")
    editing, lm = editing_of(lm, method), stacks.copies(lm, (0, 1), copies) if copies else lm
    single = editors.edit_each(editing, lm, FACTS[:3])
    batches = editors.edit_steps(editing, lm, [[fact] for fact in FACTS[:3]])
    for one, other in zip(single, batches, strict=True):
        assert updates.to_bytes(one.updates) == updates.to_bytes(other.updates)
        assert editors.summary(one) == editors.summary(other)


@pytest.mark.parametrize("method", PARAMS)
def test_a_batch_of_facts_is_edited_on_its_copy_as_alone(method):
    lm = tiny.tiny_model("gpt2", dtype=torch.float64)
    editing, batches = editing_of(lm, method), [SIX[:3], SIX[3:]]
    stack = stacks.copies(lm, (0, 1), 2)
    stack.weight(1)[1].mul_(1.1)
    state = editing.start and editors.after(
        editing, editing.start, editors.edit_each(editing, lm, FACTS[:1])[0].updates
    )
    states, before = [editing.start, state], stack.weight(1).clone()
    for i, edit in enumerate(editors.edit_steps(editing, stack, batches, states)):
        (alone,) = editors.edit_steps(editing, stacks.subset(stack, [i]), [batches[i]], [states[i]])
        (plain,) = editors.edit_steps(editing, lm, [batches[i]], [states[i]])
        for ours, expected, other in zip(edit.updates, alone.updates, plain.updates, strict=True):
            scale = expected.matrix().norm()
            assert scale > 0
            assert (ours.matrix() - expected.matrix()).norm() <= 10 * EXACT["gpt2"] * scale
            assert (i == 0) == bool((ours.matrix() - other.matrix()).norm() <= 10 * EXACT["gpt2"] * scale)
            assert ours.right.shape[1] == 3
        own, losses = stacks.subset(stack, [i]), [editors.summary(edit, n)["loss_first"] for n in range(3)]
        singles = [
            editors.summary(of)["loss_first"] for fact in batches[i] for of in editors.edit_each(editing, own, [fact])
        ]
        assert losses == pytest.approx(singles, rel=1e-9) and len(set(losses)) == 3
    assert torch.equal(stack.weight(1), before)


@pytest.mark.parametrize("method", ("memit", "alphaedit", "rome-multi"))
def test_facts_whose_prompts_take_several_forwards_are_edited_the_same(method, monkeypatch):
    lm = tiny.tiny_model("llama", dtype=torch.float64)
    editing, seen, real = editing_of(lm, method), [], memit._prepared
    (whole,) = editors.edit_steps(editing, lm, [SIX])
    monkeypatch.setattr(memit, "PER_FORWARD", 4)
    monkeypatch.setattr(memit, "_prepared", lambda lm, facts, *of: seen.append(len(facts)) or real(lm, facts, *of))
    (parts,) = editors.edit_steps(editing, lm, [SIX])
    assert seen == [4, 2]
    for ours, expected in zip(parts.updates, whole.updates, strict=True):
        assert (ours.matrix() - expected.matrix()).norm() <= 10 * EXACT["llama"] * expected.matrix().norm()


def test_a_failed_solve_of_one_batch_leaves_the_others(monkeypatch):
    lm, real = tiny.tiny_model("gpt2"), memit.solve
    editing = editing_of(lm, "memit", 3)

    def singular(keys, factor, weight):
        if keys.shape[1] == 3 and failing in keys.T.tolist()[0]:
            torch.linalg.solve(torch.zeros(2, 2), torch.ones(2, 1))
        return real(keys, factor, weight)

    sound = editors.edit_steps(editing, lm, [SIX[:3], SIX[3:]])
    failing = sound[1].trace[0]["keys"][:, 0].tolist()[0]
    monkeypatch.setattr(memit, "solve", singular)
    one, other = editors.edit_steps(editing, lm, [SIX[:3], SIX[3:]])
    assert [editors.status(edit) for edit in (one, other)] == ["edited", "failed-solve"]
    assert updates.to_bytes(one.updates) == updates.to_bytes(sound[0].updates)
    assert set(editors.summary(other, 2).values()) == {None}


# --------------------------------------------------------------------------------------------------------- sequences


@pytest.mark.parametrize("method", RUNS)
def test_every_fact_has_a_row_and_the_last_of_a_step_its_updates(tmp_path, method):
    lm, book = edit_sequence(tmp_path, method, 3)
    assert len(book) == 6 and [bool(book.factors(edit)) for edit in range(1, 7)] == [False, False, True] * 2
    assert [row["case_id"] for row in book.rows] == [fact.case_id for fact in SIX]
    assert {row["status"] for row in book.rows} == {"edited"}
    model = tiny.tiny_model("gpt2")
    editing = editing_of(model, method, 3)
    state = editing.start
    for first in (0, 3):
        (edit,) = editors.edit_steps(editing, model, [SIX[first : first + 3]], [state])
        assert updates.to_bytes(edit.updates) == updates.to_bytes(book.updates(first + 3))
        state = editors.after(editing, state, edit.updates)
        updates.apply(model, edit.updates)
        for n, fact in enumerate(SIX[first : first + 3]):
            row = book.rows[first + n]
            assert editors.summary(edit, n).items() <= row.items()
            (scores,) = scoring.score_facts(model, [fact])
            assert row["efficacy_magnitude"] == pytest.approx(
                scoring.fact_scores(scores)["efficacy_magnitude"], abs=1e-5
            )
    assert all(torch.equal(model.weight(layer), lm.weight(layer)) for layer in (0, 1))


@pytest.mark.parametrize("method", RUNS)
def test_a_run_stopped_anywhere_between_rows_equals_the_uninterrupted_one(tmp_path, method):
    whole, _ = edit_sequence(tmp_path / "whole", method, 3)
    edit_sequence(tmp_path / "parts", method, 3)
    for n in (5, 4, 3, 2, 1):
        cut(tmp_path / "parts", n)
        before = (tmp_path / "parts/edits.log").read_bytes()
        resumed, _ = edit_sequence(tmp_path / "parts", method, 3)
        assert (tmp_path / "parts/edits.log").read_bytes().startswith(before)
        assert files(tmp_path / "whole") == files(tmp_path / "parts")
        assert all(torch.equal(whole.weight(layer), resumed.weight(layer)) for layer in (0, 1))


@pytest.mark.parametrize("method", ("memit", "alphaedit", "memit-rect"))
def test_orders_together_take_steps_as_each_alone_and_go_on_from_inside_them(tmp_path, method):
    orders, books = edit_together(tmp_path / "whole", method, 2)
    for i, (facts, book) in enumerate(zip(orders, books, strict=True)):
        _, alone = edit_sequence(tmp_path / f"alone-{i}", method, 2, facts)
        for ours, row in zip(book.rows, alone.rows, strict=True):
            assert (ours["case_id"], ours["steps"]) == (row["case_id"], row["steps"])
            for name in ("loss_last", "delta_norm", "efficacy_magnitude", "neighborhood_magnitude"):
                assert ours[name] == pytest.approx(row[name], rel=2e-3, abs=1e-5)
    edit_together(tmp_path / "parts", method, 2, n_facts=4)
    for stopped in ((4, 1, 3), (5, 3, 2), (0, 6, 1)):
        edit_together(tmp_path / "parts", method, 2, stopped=stopped)
        assert files(tmp_path / "whole") == files(tmp_path / "parts")


@pytest.mark.parametrize("n", (4, 5))
@pytest.mark.parametrize(("on_collapse", "n_rows"), [("stop", 4), ("skip", 6)])
def test_a_step_that_fails_is_recorded_whole_and_not_applied(tmp_path, monkeypatch, on_collapse, n_rows, n):
    real = memit.solve

    def singular(keys, factor, weight):
        failing = 2 <= len(Ledger(tmp_path / "run").rows) < 4
        return torch.linalg.solve(torch.zeros(2, 2), torch.ones(2, 1)) if failing else real(keys, factor, weight)

    monkeypatch.setattr(memit, "solve", singular)
    _, book = edit_sequence(tmp_path / "run", "memit", 2, on_collapse=on_collapse)
    statuses = ["edited"] * 2 + ["failed-solve"] * 2 + ["edited"] * 2
    assert [row["status"] for row in book.rows] == statuses[:n_rows] and book.factors(4) == {}
    whole = files(tmp_path / "run")
    cut(tmp_path / "run", n - 1 if on_collapse == "stop" else n)
    edit_sequence(tmp_path / "run", "memit", 2, on_collapse=on_collapse)
    assert files(tmp_path / "run") == whole


def test_steps_of_one_fact_leave_conditions_as_they_were_and_others_are_named(tmp_path):
    lm = tiny.tiny_model("gpt2")
    one, three = (sequence.fingerprint(lm, editing_of(lm, "memit", size)) for size in (1, 3))
    assert three == one | {"facts_per_step": 3} and "facts_per_step" not in one
    edit_sequence(tmp_path, "memit", 3)
    with pytest.raises(ValueError, match="facts_per_step: ledger 3, now None"):
        edit_sequence(tmp_path, "memit", 1)
    with pytest.raises(ValueError, match="facts_per_step is 2, and 3 in the ledger at"):
        sequence.run(lm, SIX, editing_of(lm, "memit", 2), Ledger(tmp_path))


def test_what_cannot_be_edited_in_steps_is_refused_before_anything_starts(tmp_path):
    with pytest.raises(
        ValueError, match=r"facts_per_step is 4, and ft-c edits one fact .* give 1, or .*\(memit, rome-m"
    ):
        editors.check_steps("ft-c", 8, 4)
    with pytest.raises(ValueError, match="n_edits is 6, no multiple of facts_per_step 4; give 4"):
        edit_sequence(tmp_path, "memit", 4)
    assert not len(Ledger(tmp_path)) and not Ledger(tmp_path).unedited()
    for size in (0, -1):
        with pytest.raises(ValueError, match=f"facts_per_step is {size}; a step edits 1 fact or more"):
            editors.check_steps("memit", 6, size)
    lm = tiny.tiny_model("gpt2")
    with pytest.raises(ValueError, match=f"facts_per_step is {lm.d_key + 1}, and rome-multi meets each fact"):
        editors.edit_steps(editing_of(lm, "rome-multi"), lm, [SIX[:1] * (lm.d_key + 1)])


# ------------------------------------------------------------------------------------------------------ looking back


@pytest.fixture
def run(tmp_path):
    _, book = edit_sequence(tmp_path / "run", "memit-seq", 3)
    return past_runs.PastRun(tmp_path / "run", {"method": "memit-seq", "order": 0, "reverse": False},
                             tiny.tiny_model("gpt2"), SIX, book)  # fmt: skip


def test_a_run_is_looked_at_after_whole_steps_alone(run):
    assert list(past_runs.replayed(run, [0, 3, 6])) == [0, 3, 6] and run.facts_per_step == 3
    assert past_runs.checkpoints(6, 3, 3) == [3, 6]
    message = "4 edits end inside a step of the run, which edits 3 facts at a time; give multiples of 3"
    with pytest.raises(ValueError, match=message):
        next(past_runs.replayed(run, [0, 4]))
    assert past_runs.checkpoints(12, 2, 3) == [6, 12]
    with pytest.raises(ValueError, match="every 4 edits does not fit a run of 6 in steps of 3"):
        past_runs.checkpoints(6, 4, 3)
    replay.check_steps([4, 5, 6], 3)
    for edits in ([1, 2, 3, 4], [1, 3], [6, 5]):
        with pytest.raises(ValueError, match="are one step of the run and have one update; take or leave whole steps"):
            replay.check_steps(edits, 3)


def test_recall_after_a_step_is_the_efficacy_of_its_facts(run):
    for edits in past_runs.replayed(run, [3, 6]):
        for row in past_runs.recall_rows(run, edits)[-3:]:
            recorded = run.ledger.rows[row["edit"] - 1]
            assert row["efficacy_magnitude"] == pytest.approx(recorded["efficacy_magnitude"], abs=1e-5)


def test_drift_has_a_row_for_each_step_and_no_median_counts_the_facts_in_it(run):
    drift = tables.drift_table(run.ledger, "memit-seq", 0, False)
    assert drift["edits"].tolist() == [3, 6] * 2 and (drift["update_norm"] > 0).all()
    assert drift["update_norm"].tolist() == pytest.approx(
        [update.norm() for layer in (0, 1) for edit in (3, 6) for update in [run.ledger.updates(edit)[layer]]]
    )
    edited = tiny.tiny_model("gpt2")
    sequence.replay(edited, run.ledger)
    for layer in (0, 1):
        moved = (edited.weight(layer) - run.lm.weight(layer)).double().norm().item()
        assert drift[drift["layer"] == layer]["distance"].iloc[-1] == pytest.approx(moved, rel=1e-5)


KEY = {"method": "memit", "order": 0, "reversed": False}


def test_a_planted_step_is_flagged_at_its_end_with_the_perplexity_before_it():
    places = np.arange(10, 81, 10)
    drift = pd.DataFrame({**KEY, "layer": 3, "edits": places, "update_norm": [1.0, 1.1, 0.9, 1.0, 1.2, 9.0, 1.0, 1.0]})
    edits = pd.DataFrame({**KEY, "edits": range(1, 81), "case_id": range(101, 181), "efficacy_accuracy": 1.0})
    perplexity = pd.DataFrame({**KEY, "edits": [0, *places], "perplexity": [*range(20, 26), 50.0, 60.0, 70.0]})
    (row,) = disabling.detect(drift).merge(edits, on=[*KEY, "edits"]).itertuples()
    assert (row.edits, row.case_id) == (60, 160)
    done = damage.damage(edits, perplexity, collapse.where(perplexity)).set_index("edits")
    assert done["damage"][60] == pytest.approx(np.log(50 / 25)) and done.index.max() == 60


def test_scores_inside_a_step_go_with_the_drift_of_its_end():
    places = np.array([10, 20, 30, 40])
    drift = pd.DataFrame({**KEY, "layer": 3, "edits": places, "relative_drift": [0.1, 0.3, 0.4, 0.8]})
    of_step = np.repeat(drift["relative_drift"], 10).to_numpy()
    unedited = pd.DataFrame({**KEY, "edits": range(1, 41), "efficacy": 0.5, "neighborhood": 0.5})
    edits = unedited.assign(efficacy=0.5 + 0.2 * of_step)
    (row,) = drift_loss.decay(edits, unedited, drift, [40]).itertuples()
    assert row.drift == 0.8 and row.efficacy == pytest.approx(0.2 * of_step.mean())
    assert row.efficacy_per_step == pytest.approx(0.2 * drift_loss.STEP)
