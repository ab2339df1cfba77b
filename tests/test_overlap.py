"""The overlap of new directions with earlier keys: limits on invented keys, and what edits of the tiny model do."""

import math
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import tiny
import torch
from test_rome import moment
from test_sequence import COMMON, FACTS

from editscale import columns
from editscale.data import facts
from editscale.editing import editors, history, memit_family, rome, rome_multi, updates
from editscale.editing.memit import MemitParams
from editscale.models import loading
from editscale.sequences import overlap

MEMIT = MemitParams(layers=[1], clamp_norm_factor=2.0, mom2_update_weight=20.0, **COMMON)
ROME = rome.RomeParams(layer=1, clamp_norm_factor=4.0, mom2_adjustment=True, **COMMON)
MULTI = rome_multi.RomeMultiParams(layers=[1], clamp_norm_factor=2.0, **COMMON)
NULL_SPACE = memit_family.AlphaEditParams(layers=[1], clamp_norm_factor=2.0, nullspace_threshold=1.0, L2=0.5, **COMMON)
EMMET = memit_family.EmmetParams(**vars(MEMIT), emmet_lambda=0.1, update_norm_lambda=0.5)
PARAMS = {
    **{"memit": MEMIT, "memit-seq": MEMIT, "emmet": EMMET, "alphaedit": NULL_SPACE},
    **{"rome": ROME, "r-rome": ROME, "rome-multi": MULTI, "rome-multi-two-keys": MULTI},
}
GROUPS = [["{}"], ["The river. {}", "Lund. {}"]]


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def prepared(lm, name, params=None):
    contexts = ["{}", "The river. {}"] if name.startswith(("rome", "r-rome")) else GROUPS
    factors = {1: torch.linalg.cholesky(moment(lm.d_key))}
    return editors.begun(lm, editors.Editing(name, params or PARAMS[name], contexts, factors))


# Invented keys


def test_orthogonal_keys_do_not_meet_and_share_nothing():
    keys = torch.linalg.qr(random(8, 5)).Q.T
    rows = overlap.met(keys @ keys.T)
    assert [row["own"] for row in rows] == [pytest.approx(1)] * 5
    assert all(row["overlap"] < 1e-15 and row["largest"] < 1e-15 for row in rows[1:])
    assert math.isnan(rows[0]["overlap"]) and overlap.of_pairs(keys) < 1e-30


def test_overlap_is_the_root_mean_square_at_earlier_keys_over_that_at_the_own():
    row = overlap.met(torch.tensor([[2.0, 9.0, 9.0], [9.0, 2.0, 9.0], [3.0, -4.0, -2.0]]))[2]
    assert row == {
        "own": -2, "interference": pytest.approx(12.5**0.5), "overlap": pytest.approx(12.5**0.5 / 2), "largest": 2
    }  # fmt: skip


def test_whitened_products_are_those_of_the_inverse_second_moment():
    keys, C = random(5, 6), moment(6)
    x = overlap.whitened(keys, torch.linalg.cholesky(C))
    torch.testing.assert_close(x @ x.T, keys @ torch.linalg.inv(C) @ keys.T, rtol=1e-10, atol=1e-12)


def test_products_of_pairs_are_summed_without_those_of_a_key_with_itself():
    keys = random(7, 4)
    slow = sum((keys[s] @ keys[t]).item() ** 2 for s in range(7) for t in range(7) if s != t)
    assert overlap.of_pairs(keys) == pytest.approx(slow, rel=1e-12)


def test_shares_of_pairs_end_at_one_and_those_of_one_common_direction_are_its_own():
    rows = overlap.shares(random(9, 6))
    assert [row["directions"] for row in rows] == [0, 1, 2, 3, 4, 5, 6] and rows[-1]["share"] == pytest.approx(1)
    steps = [b["share"] - a["share"] for a, b in zip([{"share": 0}, *rows[1:]], rows[1:], strict=False)]
    assert sum(steps) == pytest.approx(1) and all(row["share"] <= 1 + 1e-12 for row in rows)
    common = torch.eye(9, 12, dtype=torch.float64)  # orthogonal, but for a direction that all of them share
    common[:, -1] = 5
    first = {row["directions"]: row["share"] for row in overlap.shares(common)}
    assert first[0] == pytest.approx(1, abs=0.02) and first[1] == pytest.approx(1, abs=0.02)
    assert [row["directions"] for row in overlap.shares(random(9, 6), most=2)] == [0, 1, 2]


def test_shares_are_what_is_gone_with_the_directions_of_the_decomposed_second_moment():
    keys = random(6, 5)
    values, directions = torch.linalg.eigh(keys.T @ keys)
    rest = keys @ directions[:, :-2]  # without the first two
    slow = sum((rest[s] @ rest[t]).item() ** 2 for s in range(6) for t in range(6) if s != t)
    found = {row["directions"]: row["share"] for row in overlap.shares(keys)}
    assert found[2] == pytest.approx(1 - slow / overlap.of_pairs(keys), rel=1e-9)


def test_shares_are_given_of_whitened_and_of_raw_keys():
    keys, factor = random(6, 5), torch.linalg.cholesky(moment(5))
    table = overlap.share_table(keys, factor, most=3)
    assert table.groupby("keys", sort=False)["directions"].apply(list).to_dict() == {
        "whitened": [0, 1, 2, 3], "raw": [0, 1, 2, 3]
    }  # fmt: skip
    of = {way: rows["share"].tolist() for way, rows in table.groupby("keys")}
    assert of["raw"] == [row["share"] for row in overlap.shares(keys, 3)] != of["whitened"]


def test_the_share_along_leading_directions_is_that_of_the_decomposed_second_moment():
    x, a, n_leading = random(6, 9), random(6, 9, seed=1), 2
    products = (a @ x.T)[None]
    found = overlap.along_leading(products, x @ x.T, n_leading)[0]
    for t in range(1, 6):
        values, directions = torch.linalg.eigh(x[:t].T @ x[:t])
        parts = values * (directions.T @ a[t]) ** 2
        assert found[t].item() == pytest.approx((parts[-n_leading:].sum() / parts.sum()).item(), rel=1e-9)
    assert found[:3].isnan().tolist() == [True, False, False] and found[1:3].tolist() == [pytest.approx(1)] * 2


def test_with_earlier_keys_and_a_vanishing_second_moment_nothing_earlier_is_met():
    """Keys that are independent: then A_t is 1 at its own key and 0 at those before it."""
    keys, factor = random(5, 12), torch.linalg.cholesky(moment(12))
    largest = []
    for weight in (1.0, 1e-3, 1e-6):
        inverse, found = history.of_moment(factor, weight), []
        for k in keys:
            found.append(history.solve(inverse, k[:, None])[:, 0])
            inverse = inverse.after(k[:, None])
        rows = overlap.met(torch.stack(found) @ keys.T)
        largest.append(max(row["largest"] for row in rows[1:]))
    assert largest[0] > 1e-2 and largest[1] < largest[0] / 50 and largest[2] < largest[1] / 500
    assert rows[-1]["own"] == pytest.approx(1, abs=1e-4)


# The tiny model


@pytest.fixture(scope="module")
def lm():
    return tiny.tiny_model("gpt2")


@pytest.mark.parametrize("name", PARAMS)
def test_directions_are_those_of_the_updates_that_edits_one_after_another_leave(lm, name):
    """Up to the length of each, which the optimized value decides."""
    editing = prepared(lm, name)
    ours, state = overlap.directions(lm, FACTS, editing), editing.start
    with updates.put_back(lm, [1]):
        for fact, direction in zip(FACTS, ours, strict=True):
            (edit,) = editors.edit_each(editing, lm, [fact], states=None if state is None else [state])
            right = edit.updates[0].right[:, 0].double()
            cosine = torch.cosine_similarity(right, direction, dim=0).abs()
            assert cosine.item() == pytest.approx(1, abs=1e-6)
            if "solved" in edit.trace.get(1, {}):
                torch.testing.assert_close(edit.trace[1]["solved"][:, 0], direction, rtol=1e-4, atol=1e-7)
            updates.apply(lm, edit.updates)
            state = editors.after(editing, state, edit.updates)


def test_an_edit_moves_an_earlier_key_by_what_the_products_say(lm):
    """The layer's output at the bare key of fact i moves by r_t (A_t·k_i)."""
    editing, keys = prepared(lm, "memit"), overlap.context_keys(lm, FACTS, ["{}"], 1)[:, 0]
    products = overlap.directions(lm, FACTS, editing) @ keys.T
    (edit,) = editors.edit_each(editing, lm, FACTS[3:4])
    left, right = (side.double() for side in (edit.updates[0].left, edit.updates[0].right))
    moved = (left @ (right.T @ keys.T)).norm(dim=0) / edit.trace[1]["residual"].norm()
    torch.testing.assert_close(moved, products[3].abs(), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("name", ("rome", "r-rome"))
def test_sizes_of_updates_and_the_unedited_model_say_how_far_edits_in_a_row_move_each_key(lm, name):
    """Held against the dense updates of an edited model, at its own keys; and k·u against what the edits record."""
    editing, dense, told = prepared(lm, name), [], []
    products, denominators = overlap.unit_products(lm, FACTS, editing)
    with updates.put_back(lm, [1]):
        for fact in FACTS:
            (edit,) = editors.edit_each(editing, lm, [fact])
            dense.append((edit.updates[0].left @ edit.updates[0].right.T).double())
            told.append(abs(edit.trace["denominator"].item()))
            updates.apply(lm, edit.updates)
        keys = overlap.context_keys(lm, FACTS, ["{}"], 1)[:, 0]
    moved = torch.stack([(change @ keys.T).norm(dim=0) for change in dense])
    norms = torch.stack([change.norm() for change in dense])
    torch.testing.assert_close(norms[:, None] * torch.from_numpy(products).abs(), moved, rtol=1e-4, atol=1e-8)
    assert denominators == pytest.approx(told, rel=1e-4)


def test_rome_writes_its_value_whole_and_earlier_keys_in_the_solve_leave_earlier_facts_less_moved(lm):
    """Less, and not unmoved: the solve knows mean keys, and what is asked has the bare prompt's."""
    close = replace(MEMIT, mom2_update_weight=1e-4)
    made = {name: prepared(lm, name, close if "memit" in name else None) for name in ("rome", "memit", "memit-seq")}
    table = overlap.measure(lm, FACTS, made, n_leading=2)
    own = table.groupby("method")["own"].apply(list)
    assert own["rome"] == [pytest.approx(1, abs=1e-5)] * len(FACTS)
    last = table[table["edits"] == len(FACTS)].set_index("method")["interference"]
    assert last["memit-seq"] < last["memit"] / 2


def test_a_table_has_every_column_described_and_a_row_for_each_method_and_edit(lm):
    before = lm.weight(1).clone()
    table = overlap.measure(lm, FACTS, {name: prepared(lm, name) for name in ("rome", "memit-seq")}, n_leading=2)
    assert list(table) == list(columns.OVERLAP) and torch.equal(before, lm.weight(1))
    assert table["case_id"].tolist() == [fact.case_id for fact in FACTS] * 2
    assert table["edits"].tolist() == [1, 2, 3, 4, 5] * 2 and set(table["layer"]) == {1}
    first = table["edits"] == 1
    numbers = ["interference", "overlap", "largest", "leading"]
    assert table.loc[first, numbers].isna().all(axis=None) and table.loc[~first, numbers].notna().all(axis=None)
    assert table.loc[~first, "leading"].between(0, 1 + 1e-9).all()


def test_keys_in_batches_are_those_of_each_fact_alone(lm, monkeypatch):
    whole = overlap.mean_keys(lm, FACTS, GROUPS, 1)
    monkeypatch.setattr(editors, "TOGETHER", 2)
    torch.testing.assert_close(overlap.mean_keys(lm, FACTS, GROUPS, 1), whole, rtol=1e-5, atol=1e-6)


ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        ({}, "of no method; expected some of rome"),
        ({"ft-c": "params/ft-c/tiny-gpt2.yaml"}, "no direction is known from keys alone of ft-c; expected some of"),
        ({"rome": "params/memit/tiny-gpt2.yaml"}, "unknown entry 'layers'"),
    ],
)
def test_methods_without_a_direction_from_keys_are_refused(lm, methods, message):
    with pytest.raises(ValueError, match=message):
        overlap.prepare(lm, methods, "none.safetensors", 1)


def test_all_methods_edit_one_layer_with_their_own_hyper_parameters(tmp_path):
    from editscale.editing import corpora, moments

    lm = loading.load(ROOT / "tests/golden/tiny_gpt2")
    documents = corpora.sampled_documents(lm, 64, 64, torch.Generator().manual_seed(0), progress=False)
    moments.save(moments.collect(lm, documents, [1], progress=False), tmp_path / "moments.safetensors")
    files = {name: ROOT / f"params/{name}/tiny-gpt2.yaml" for name in ("rome", "memit", "encore")}
    made = overlap.prepare(lm, files, tmp_path / "moments.safetensors", 1, n_short=2, n_long=1)
    assert [of.layers for of in made.values()] == [[1]] * 3
    assert made["encore"].params.update_norm_lambda == 2.0 and len(made["rome"].contexts) == 4
    known = facts.load(ROOT / "params/smoke/invented_facts.json")[:6]
    assert pd.notna(overlap.measure(lm, known, made).query("edits > 1")["overlap"]).all()
