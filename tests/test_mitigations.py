"""Editors against forgetting: the numbers of their authors' code, and what makes one of them another."""

from dataclasses import fields, replace
from pathlib import Path

import pytest
import tiny
import torch
from test_rome import moment
from test_sequence import COMMON, FACTS
from tools import verify

from editscale.editing import history, memit, memit_family, norm_anchor, rect, rome, updates
from editscale.editing.memit import MemitParams

GOLDEN = Path(__file__).parent / "golden"
CONTEXTS = [["{}"], ["The river. {}", "Lund. {}"]]
MEMIT = MemitParams(layers=[0, 1], clamp_norm_factor=2.0, mom2_update_weight=20.0, **COMMON)
FAMILIES = ("gpt2", "llama", "gemma")


def test_every_recorded_number_is_reproduced():
    found = verify.verify(GOLDEN / "mitigations", base=GOLDEN)
    assert [d for d in found if not d.agrees] == [], verify.table(found)
    there = {tuple(path.stem.rsplit("_", 1)) for path in GOLDEN.glob("mitigations/*_f??.*")}
    assert {(d.file, {"float32": "f32", "float64": "f64"}[d.precision]) for d in found} == there


def test_a_folder_whose_records_are_elsewhere_says_so(tmp_path):
    (tmp_path / "setup.json").write_text("{}")
    with pytest.raises(
        FileNotFoundError, match="no second_moments.npz in .*; give the folder of the records with --base"
    ):
        verify.verify(tmp_path)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def spread_out(d):
    """A second moment with eigenvalues from 0.01 to 10."""
    directions = torch.linalg.qr(random(d, d)).Q
    return directions @ torch.diag(torch.logspace(-2, 1, d, dtype=torch.float64)) @ directions.T


@pytest.mark.parametrize("n", (1, 3))
@pytest.mark.parametrize("ridge", (0.0, 2.0))
def test_a_solve_with_earlier_keys_is_the_direct_one(n, ridge):
    C, weight, eye = spread_out(12), 3.0, torch.eye(12, dtype=torch.float64)
    inverse, total = history.of_moment(torch.linalg.cholesky(C), weight, ridge), weight * C + ridge * eye
    for edit in range(5):
        keys = random(12, n, seed=edit)
        ours, direct = history.solve(inverse, keys), torch.linalg.solve(total + keys @ keys.T, keys)
        assert (ours - direct).norm() <= 1e-10 * direct.norm()
        inverse, total = inverse.after(keys), total + keys @ keys.T


@pytest.mark.parametrize("n", (1, 3))
def test_a_solve_in_the_null_space_is_the_direct_one_of_the_released_code(n):
    C, ridge, threshold, total = spread_out(12), 0.5, 0.3, torch.zeros(12, 12, dtype=torch.float64)
    values, directions = torch.linalg.eigh(C)
    P = directions[:, values < threshold] @ directions[:, values < threshold].T
    inverse = history.of_null_space(torch.linalg.cholesky(C), threshold, ridge)
    for edit in range(5):
        keys = random(12, n, seed=edit)
        direct = torch.linalg.solve(P @ (keys @ keys.T + total) + ridge * torch.eye(12, dtype=torch.float64), P @ keys)
        assert (history.solve(inverse, keys) - direct).norm() <= 1e-10 * direct.norm()
        inverse, total = inverse.after(keys), total + keys @ keys.T


def of(kind, params, **more):
    given = {field.name: getattr(params, field.name) for field in fields(params)}
    return kind(**{field.name: {**given, **more}[field.name] for field in fields(kind)})


def sequence(lm, method, params, n=3):
    """The changes of the first facts, edited one after another."""
    factors = {layer: torch.linalg.cholesky(moment(lm.d_key)) for layer in params.layers}
    state, made = method.start and method.start(lm, params, CONTEXTS, factors), []
    with updates.put_back(lm, params.layers):
        for fact in FACTS[:n]:
            given = {} if state is None else {"states": [state]}
            (edit,) = method.edit(lm, [fact], params, CONTEXTS, factors, **given)
            updates.apply(lm, edit.updates)
            state = state and method.after(state, edit.updates)
            made += [update.matrix() for update in edit.updates]
    return torch.stack(made)


@pytest.mark.parametrize("family", FAMILIES)
def test_methods_are_one_another_where_what_sets_them_apart_is_nothing(family):
    lm, methods = tiny.tiny_model(family, dtype=torch.float64), memit_family.METHODS
    base, first = sequence(lm, memit.METHODS["memit"], MEMIT), slice(0, 2)
    with_keys = sequence(lm, methods["memit-seq"], MEMIT)
    assert torch.allclose(with_keys[first], base[first], rtol=1e-6, atol=1e-9) and not torch.allclose(with_keys, base)
    encore = of(memit_family.EncoreParams, MEMIT, update_norm_lambda=0.0, prob_cutoff=-1e3, stop_tokens="all")
    assert torch.allclose(sequence(lm, methods["encore"], encore), with_keys, rtol=1e-6, atol=1e-9)
    anywhere = of(memit_family.AlphaEditParams, MEMIT, nullspace_threshold=float("inf"), L2=20.0)
    flat = {layer: history.of_moment(torch.eye(lm.d_key).double(), 20.0) for layer in MEMIT.layers}
    identity = replace(methods["memit-seq"], start=lambda *_: flat)
    assert torch.allclose(
        sequence(lm, methods["alphaedit"], anywhere), sequence(lm, identity, MEMIT), rtol=1e-6, atol=1e-9
    )
    anchored, both = of(norm_anchor.MemitNasParams, MEMIT, anchor_norm=10.0), norm_anchor.METHODS
    alone, with_both = (sequence(lm, both[name], anchored) for name in ("memit-nas", "memit-seq-nas"))
    assert torch.allclose(with_both[first], alone[first], rtol=1e-6, atol=1e-9) and not torch.allclose(with_both, alone)
    whole = of(rect.MemitRectParams, MEMIT, zeroed_fraction=0.0)
    assert torch.allclose(sequence(lm, replace(rect.METHODS["memit-rect"]), whole), base, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("family", FAMILIES)
def test_one_fact_and_one_layer_of_emmet_send_the_key_where_they_should(family):
    lm = tiny.tiny_model(family, dtype=torch.float64)
    params = of(memit_family.EmmetParams, MEMIT, layers=[1], emmet_lambda=0.1, update_norm_lambda=0.0)
    factors = {1: torch.linalg.cholesky(moment(lm.d_key))}
    state = memit_family.with_ridge(lm, params, CONTEXTS, factors)
    (edit,) = memit_family.METHODS["emmet"].edit(lm, FACTS[:1], params, CONTEXTS, factors, states=[state])
    seen, (update,) = edit.trace[1], edit.updates
    torch.testing.assert_close(update.matrix() @ seen["keys"], seen["residual"], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_value_with_the_anchors_norm_stays_and_one_beyond_twice_is_not_written(family):
    lm = tiny.tiny_model(family, dtype=torch.float64)
    (found,) = memit_values(lm)
    norm = (found.outputs[0] + found.delta).norm().item()
    torch.testing.assert_close(norm_anchor.anchored(found, norm).delta, found.delta, rtol=1e-8, atol=1e-9)
    moved = norm_anchor.anchored(found, 0.6 * norm)
    assert (moved.outputs[0] + moved.delta).norm().item() == pytest.approx(0.6 * norm)
    assert not norm_anchor.anchored(found, 0.4 * norm).delta.any()
    of_rome = norm_anchor.anchored(found, 0.4 * norm, at="mlp")
    assert (of_rome.init + of_rome.delta).norm().item() == pytest.approx(0.4 * norm)


def memit_values(lm):
    from editscale.editing import values

    return values.optimize(lm, FACTS[:1], ["{}", "Lund. {}"], 1, MEMIT, at="block")


@pytest.mark.parametrize(("cutoff", "tokens"), [(0.0, "all"), (1.5, "all"), (-4.0, "six")])
def test_a_stop_rule_that_there_is_not_is_refused(cutoff, tokens):
    with pytest.raises(ValueError, match=f"prob_cutoff {cutoff} and stop_tokens '{tokens}'; expected"):
        of(memit_family.EncoreParams, MEMIT, update_norm_lambda=0.0, prob_cutoff=cutoff, stop_tokens=tokens)


@pytest.mark.parametrize("zeroed", (-0.1, 1.0))
def test_a_share_of_entries_that_there_is_not_is_refused(zeroed):
    with pytest.raises(ValueError, match=f"zeroed_fraction is {zeroed}; expected a share"):
        rect.largest(random(3, 3), zeroed)


@pytest.mark.parametrize("one_more", (False, True))
@pytest.mark.parametrize("zeroed", (0.0, 0.3, 0.8, 0.999))
@pytest.mark.parametrize("special", ((), (float("inf"),), (float("nan"), float("inf"), 0.0, 0.0)))
def test_the_border_of_a_mask_is_the_entry_at_its_place_among_all_sorted_ones(special, zeroed, one_more):
    """NaN sorts last: the ratio of no change to a weight of 0."""
    scores = random(9, 20).abs()
    scores[4, : len(special)] = torch.tensor(special, dtype=scores.dtype)
    border = scores.flatten().sort().values[max(int(zeroed * 180) - one_more, 0)]
    assert torch.equal(rect.largest(scores, zeroed, one_more=one_more), scores >= border)


def test_the_anchor_leaves_out_the_largest_norms():
    norms = torch.arange(1.0, 41)
    assert norm_anchor.anchor(norms[torch.randperm(40)]) == pytest.approx(norms[:38].mean().item())


@pytest.mark.parametrize("shape", [(3, 8), (5, 7)])
def test_masks_keep_the_largest_entries_and_are_packed_and_unpacked(shape):
    scores = random(*shape).abs()
    kept, more = rect.largest(scores, 0.8), rect.largest(scores, 0.8, one_more=True)
    n = int(0.8 * scores.numel())
    assert (
        kept.sum() == scores.numel() - n and more.sum() == kept.sum() + 1 and scores[kept].min() > scores[~kept].max()
    )
    assert torch.equal(updates.unpacked(updates.packed(kept), kept.shape), kept)
    assert len(updates.packed(kept)) == -(-kept.numel() // 8)


def test_a_masked_edit_of_rome_is_its_largest_entries_beside_the_weight():
    lm, factors = tiny.tiny_model("gpt2"), {1: torch.linalg.cholesky(moment(tiny.tiny_model("gpt2").d_key))}
    plain = rome.RomeParams(layer=1, clamp_norm_factor=4.0, mom2_adjustment=True, **COMMON)
    params = of(rect.RomeRectParams, plain, zeroed_fraction=0.8)
    (whole,), (masked,) = (
        method(lm, FACTS[:1], params, ["{}", "Lund. {}"], factors)[0].updates
        for method in (rome.edit_each, rect.METHODS["rome-rect"].edit)
    )
    kept = masked.matrix() != 0
    assert kept.sum() == kept.numel() - int(0.8 * kept.numel())
    assert torch.equal(masked.matrix()[kept], whole.matrix()[kept])
    score = (whole.matrix() / lm.weight(1)).abs()
    assert score[kept].min() >= score[~kept].max()
