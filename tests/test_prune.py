"""PRUNE: what is scored is the edited model with its change restrained, and edits never notice."""

import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
import yaml
from test_ledger import cut, files
from test_rome import moment
from test_sequence import CONTEXTS, FACTS, PARAMS, TOGETHER, edit_sequence, edit_together

import editscale
from editscale.editing import editors, prune, updates
from editscale.metrics import scoring
from editscale.sequences import past_runs, replay, sequence
from editscale.sequences.ledger import Ledger
from editscale.sequences.single import shown_edit, single_edits

METHODS = ("memit-prune", "rome-prune")


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def of_edits(n, d_value=8, d_key=12, largest=2.0, base="e", rank=1):
    """The change by n edits of this rank, and the weight's change by the definition."""
    change = prune.Change(
        largest, prune.base_of(base), torch.zeros(d_value, 0).double(), torch.zeros(d_key, 0).double()
    )
    whole = torch.zeros(d_value, d_key, dtype=torch.float64)
    for i in range(n):
        update = updates.Update(0, random(d_value, rank, seed=i), random(d_key, rank, seed=100 + i))
        change, whole = change.after(update), whole + update.matrix()
    return change, whole


def by_definition(whole, largest, base):
    """U diag(f(σ)) Vᵀ of the whole matrix, in NumPy."""
    u, sigma, v = np.linalg.svd(whole.numpy(), full_matrices=False)
    if base == "linear":
        f = (sigma + largest) / 2
    else:
        a = math.e if base == "e" else float(base)
        f = np.log(np.maximum(sigma, 1e-300)) / np.log(a) - np.log(largest) / np.log(a) + largest
    return torch.tensor(u * np.where(sigma >= largest, f, sigma) @ v)


# ------------------------------------------------------------------------------------------- arithmetic


@pytest.mark.parametrize("base", ("e", "2", "1.5", "1.2", "3.7", "linear"))
@pytest.mark.parametrize(("d_value", "d_key"), [(8, 12), (12, 8)])
@pytest.mark.parametrize(("n", "rank"), [(1, 1), (3, 1), (3, 2), (7, 1), (8, 1), (9, 1), (30, 1)])
def test_factors_give_what_the_decomposition_of_the_whole_matrix_gives(n, rank, d_value, d_key, base):
    change, whole = of_edits(n, d_value, d_key, base=base, rank=rank)
    assert (change.right is None) == (n * rank >= 8)
    left, right = change.correction()
    ours, expected = whole + left @ right.T, by_definition(whole, 2.0, base)
    assert (ours - expected).norm() <= 1e-10 * expected.norm() < 0.99 * whole.norm() or base in ("1.5", "1.2")
    assert (ours - whole).norm() > 1e-3
    assert torch.linalg.matrix_rank(ours) == torch.linalg.matrix_rank(whole) == min(n * rank, 8)


def test_values_below_that_of_the_weight_stay_and_so_do_all_singular_vectors():
    u, v = torch.linalg.qr(random(8, 8)).Q, torch.linalg.qr(random(12, 8, seed=1)).Q
    sigma = torch.tensor([9.0, 3.0, 2.0, 1.9, 1.0, 0.1, 0.01, 0.0]).double()
    change = prune.Change(2.0, None, u * sigma @ v.T, None)
    left, right = change.correction()
    expected = torch.tensor([5.5, 2.5, 2.0, 1.9, 1.0, 0.1, 0.01, 0.0]).double()
    torch.testing.assert_close(u.T @ (change.left + left @ right.T) @ v, torch.diag(expected), rtol=0, atol=1e-12)


@pytest.mark.parametrize("n", (0, 2, 20))
def test_nothing_changes_while_no_singular_value_reaches_that_of_the_weight(n):
    change, whole = of_edits(n, largest=1.0)
    sigma = torch.linalg.matrix_norm(whole, 2).item()
    for largest in (sigma * 1.001, whole.norm().item() * 1.001, 100.0):
        assert replace(change, largest=largest + 1e-9).correction() is None
    if n:
        assert replace(change, largest=sigma * 0.999).correction() is not None


@pytest.mark.parametrize("base", ("e", "2", "1.5", "1.2"))
def test_a_logarithm_restrains_all_values_from_one_over_ln_a_on_and_enlarges_some_below(base):
    a = prune.base_of(base)
    for largest in (1 / math.log(a), 2 / math.log(a)):
        sigma = torch.linspace(largest, 50 * largest, 1000, dtype=torch.float64)
        restrained = prune.restrained(sigma, largest, a)
        assert (restrained <= sigma + 1e-12).all() and restrained[0] == pytest.approx(largest)
        assert (restrained.diff() > 0).all()
    largest = 0.9 / math.log(a)
    assert prune.restrained(torch.tensor([1.05 * largest]).double(), largest, a) > 1.05 * largest


@pytest.mark.parametrize("method", METHODS)
def test_a_run_whose_changes_may_grow_begins_with_a_warning(method):
    lm, params = tiny.tiny_model("gpt2"), PARAMS[method]
    largest = torch.linalg.matrix_norm(lm.weight(1).double(), 2).item()
    small, large = (f"{math.exp(1 / of):.6f}" for of in (largest * 1.01, largest * 0.99))
    where = {"layer": 1} if "rome" in method else {"layers": [1]}
    with pytest.warns(UserWarning, match=f"layer 1 of tiny_gpt2: .* is {largest:.3g}, and a logarithm to base {small}"):
        state = prune.started(lm, replace(params, **where, prune_base=small), [], {})
    assert state[1].largest == pytest.approx(largest) and state[1].correction() is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for base in (large, "linear"):
            prune.started(lm, replace(params, **where, prune_base=base), [], {})


@pytest.mark.parametrize("base", ("", "log", "1", "0.5", "-2", "nan", "inf"))
def test_what_is_no_base_is_refused(base):
    for method in METHODS:
        with pytest.raises(ValueError, match=f"prune_base is '{base}'; expected e, linear, or a number above 1"):
            replace(PARAMS[method], prune_base=base)


# ------------------------------------------------------------------------------------------------- runs


@pytest.fixture
def restraining(monkeypatch):
    """Let singular values be restrained from a hundredth of the weight's on, so that a few edits are large enough."""
    for name, method in list(prune.METHODS.items()):

        def start(lm, params, contexts, factors, start=method.start):
            state = start(lm, params, contexts, factors)
            return {layer: replace(of, largest=of.largest / 100) for layer, of in state.items()}

        monkeypatch.setitem(prune.METHODS, name, replace(method, start=start))


def tensors(book):
    return [updates.to_bytes(book.updates(edit)) for edit in range(1, len(book) + 1)]


def scores_of(book):
    return np.array([[row[name] for name in ("efficacy_magnitude", "neighborhood_magnitude")] for row in book.rows])


@pytest.mark.parametrize("method", METHODS)
def test_edits_are_those_of_the_method_itself_and_scores_are_not(tmp_path, restraining, method):
    base = method.removesuffix("-prune")
    plain, book = edit_sequence(tmp_path / "plain", base)
    lm, ours = edit_sequence(tmp_path / "ours", method)
    assert tensors(ours) == tensors(book)
    assert all(torch.equal(lm.weight(layer), plain.weight(layer)) for layer in editors.layers_of(PARAMS[method]))
    assert (abs(scores_of(ours) - scores_of(book)).max(axis=1) > 1e-4).all()


@pytest.mark.parametrize("method", METHODS)
def test_scores_are_those_of_the_plain_method_while_changes_are_small(tmp_path, method):
    _, plain = edit_sequence(tmp_path / "plain", method.removesuffix("-prune"), FACTS[:2])
    _, ours = edit_sequence(tmp_path / "ours", method, FACTS[:2])
    state = editors.of_record(tiny.tiny_model("gpt2"), method, ours.fingerprint["params"]).start
    for edit in (1, 2):
        state = prune.after(state, ours.updates(edit))
        assert (ours.rows[edit - 1] == plain.rows[edit - 1]) == (prune.evaluated(state) == [])
    assert ours.rows[0] == plain.rows[0]


@pytest.mark.parametrize("method", METHODS)
def test_a_killed_run_goes_on_with_the_same_bits(tmp_path, restraining, method):
    edit_sequence(tmp_path / "whole", method)
    edit_sequence(tmp_path / "cut", method)
    cut(tmp_path / "cut", 2)
    edit_sequence(tmp_path / "cut", method)
    assert files(tmp_path / "whole") == files(tmp_path / "cut")


@pytest.mark.parametrize("method", METHODS)
def test_orders_together_are_scored_each_on_its_restrained_copy(tmp_path, restraining, method):
    _, orders, books = edit_together(tmp_path, method)
    for name, order, book in zip(TOGETHER, orders, books, strict=True):
        _, alone = edit_sequence(tmp_path / f"{name}-alone", method, order)
        _, plain = edit_sequence(tmp_path / f"{name}-plain", method.removesuffix("-prune"), order)
        assert abs(scores_of(book) - scores_of(alone)).max() < 1e-4 < abs(scores_of(book) - scores_of(plain)).max()
    before = [files(tmp_path / name) for name in TOGETHER]
    edit_together(tmp_path, method, stopped=(2, 4, 3))
    assert [files(tmp_path / name) for name in TOGETHER] == before


def restrained_weights(lm, book, upto):
    """The weights that are scored after some edits of a run, by the definition, σ̂ as in `restraining`."""
    found = {}
    for layer in map(int, book.weights):
        weight = lm.weight(layer).double()
        whole = sum(u.matrix().double() for edit in range(1, upto + 1) for u in book.updates(edit) if u.layer == layer)
        largest = torch.linalg.matrix_norm(weight, 2).item() / 100
        found[layer] = weight + by_definition(whole, largest, book.fingerprint["params"]["prune_base"])
    return found


def past_run(folder, method, book):
    given = {"method": method, "order": 0, "reverse": False}
    return past_runs.PastRun(folder, given, tiny.tiny_model("gpt2"), FACTS, book)


@pytest.mark.parametrize("method", METHODS)
def test_a_recorded_run_is_looked_at_as_it_was_scored(tmp_path, restraining, method):
    _, book = edit_sequence(tmp_path, method)
    run = past_run(tmp_path, method, book)
    unedited = {layer: run.lm.weight(layer).clone() for layer in run.layers}
    for edits in past_runs.replayed(run, [1, 2, 5]):
        (row,) = [row for row in past_runs.recall_rows(run, edits) if row["edit"] == edits]
        assert row["efficacy_magnitude"] == pytest.approx(book.rows[edits - 1]["efficacy_magnitude"], abs=1e-6)
        for layer, expected in restrained_weights(tiny.tiny_model("gpt2"), book, edits).items():
            torch.testing.assert_close(run.lm.weight(layer).double(), expected, rtol=0, atol=1e-5)
    assert all(torch.equal(run.lm.weight(layer), weight) for layer, weight in unedited.items())


@pytest.mark.parametrize("method", METHODS)
def test_the_weights_of_a_look_are_taken_off_bit_for_bit(restraining, method):
    lm = tiny.tiny_model("gpt2")
    editing = editors.of_record(lm, method, vars(PARAMS[method]))
    layers = editing.layers
    made = [updates.Update(layer, random(lm.d_model, 1).float(), random(lm.d_key, 1).float()) for layer in layers]
    state = editors.after(editing, editing.start, made)
    updates.apply(lm, made)
    before = {layer: lm.weight(layer).clone() for layer in layers}
    with pytest.raises(ZeroDivisionError), editors.looked_at([editing], lm, [state]):
        assert not any(torch.equal(lm.weight(layer), before[layer]) for layer in layers)
        raise ZeroDivisionError
    assert all(torch.equal(lm.weight(layer), before[layer]) for layer in layers)


@pytest.mark.parametrize("method", METHODS)
def test_single_edits_and_the_model_of_a_run_are_the_restrained_ones(tmp_path, restraining, method):
    _, book = edit_sequence(tmp_path, method, FACTS[:2])
    lm, fact = tiny.tiny_model("gpt2"), FACTS[0]
    factors = {layer: torch.linalg.cholesky(moment(lm.d_key)) for layer in editors.layers_of(PARAMS[method])}
    editing = editors.begun(lm, editors.Editing(method, PARAMS[method], CONTEXTS[method], factors))
    expected = restrained_weights(lm, book, 1)
    seen = []

    def look(*_):
        seen.append(all((lm.weight(at).double() - w).abs().max() < 1e-5 for at, w in expected.items()))
        return scoring.score_prompts(lm, [(fact.rewrite_prompt, fact.target_new, fact.target_true)])[0]

    (score,) = editors.each_alone(editing, lm, [fact], look)
    assert seen == [True]
    _, effect = shown_edit(lm, fact, editing)
    assert effect.iloc[1][f"p({fact.target_new})"] == pytest.approx(math.exp(-score.nll_new), rel=1e-5)
    assert single_edits(lm, [fact], editing, [fact.rewrite_prompt])[0]["efficacy"] == (score.nll_new < score.nll_true)
    run = past_run(tmp_path, method, book)
    with replay.edited(run, [1, 2]) as model:
        for layer, weight in restrained_weights(lm, book, 2).items():
            torch.testing.assert_close(model.weight(layer).double(), weight, rtol=0, atol=1e-5)
    assert torch.equal(run.lm.weight(1), tiny.tiny_model("gpt2").weight(1))


@pytest.mark.parametrize("method", (*METHODS, "memit-seq"))
def test_the_first_edits_in_a_cell_go_through_the_states_of_a_method(tmp_path, restraining, monkeypatch, method):
    """As a run does: the second edit knows of the first, and scored is what the method scores."""
    lm, states = tiny.tiny_model("gpt2"), []
    real = editors.edit_each
    monkeypatch.setattr(editors, "edit_each", lambda *of, **more: states.append(more["states"]) or real(*of, **more))
    before = lm.weight(1).clone()
    hparams = tmp_path / "hparams.yaml"
    hparams.write_text(yaml.safe_dump(vars(PARAMS[method])))
    with editscale.edited(lm, method, FACTS[:2], hparams=str(hparams), show=False) as shown:
        assert not torch.equal(lm.weight(1), before)
        asked = [(fact.rewrite_prompt, fact.target_new, fact.target_true) for fact in FACTS[:2]]
        scores = [math.exp(-score.nll_new) for score in scoring.score_prompts(lm, asked)]
        assert shown.table["p(new) after"].tolist() == pytest.approx(scores)
        within = lm.weight(1).clone()
        shown.keep()
    assert len(states) == 2 and states[0][0][1] is not states[1][0][1]
    assert torch.equal(within, lm.weight(1)) == (method == "memit-seq")  # kept are the weights as edited


def test_a_ledger_says_how_singular_values_are_restrained(tmp_path):
    _, book = edit_sequence(tmp_path, "memit-prune", FACTS[:1])
    assert Ledger(tmp_path).fingerprint["params"]["prune_base"] == PARAMS["memit-prune"].prune_base
    lm = tiny.tiny_model("gpt2")
    other = editors.Editing("memit-prune", replace(PARAMS["memit-prune"], prune_base="1.2"), [], {})
    assert sequence.fingerprint(lm, other)["params"] != book.fingerprint["params"]
