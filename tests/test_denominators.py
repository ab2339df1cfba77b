"""k·u of all facts at all layers without an edit: what ROME records, in any batch, and where a sink's key is."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from test_rome import PARAMS, moment
from test_values import CONTEXTS, FACTS

from editscale.columns import COLUMNS
from editscale.editing import moments, rome
from editscale.models import anatomy, loading, tokens
from editscale.sequences import denominators

KNOWN = list(FACTS.values())
LAYERS = [0, 1, 2, 3]


def model(kind="gpt2", **given):
    return tiny.tiny_model(kind, **{"dtype": torch.float64, **given})


def factors_of(lm, layers=LAYERS):
    return {layer: torch.linalg.cholesky(moment(lm.d_key, seed=layer)) for layer in layers}


def measure(lm, facts=KNOWN, contexts=CONTEXTS, layers=LAYERS, **given):
    return denominators.measure(lm, facts, contexts, factors_of(lm, layers), progress=False, **given)


@pytest.mark.parametrize("start_token", (False, True))
@pytest.mark.parametrize(("kind", "tolerance"), [("gpt2", 1e-10), ("llama", 2e-5), ("gemma2", 2e-5)])
def test_the_denominator_is_that_of_romes_edit_at_every_layer(kind, tolerance, start_token):
    """Llama and Gemma compute norms and softmax in float32 whatever the dtype."""
    lm = model(kind, bos=False)
    lm = loading.after_start_token(lm) if start_token else lm
    table, factors = measure(lm).set_index(["case_id", "layer"]), factors_of(lm)
    for fact in KNOWN:
        for layer in LAYERS:
            edit = rome.edit(lm, fact, replace(PARAMS, layer=layer, v_num_grad_steps=1), CONTEXTS, factors)
            row, trace = table.loc[(fact.case_id, layer)], edit.trace
            assert row["denominator"] == pytest.approx(trace["denominator"].item(), rel=tolerance, abs=tolerance)
            assert row["key_norm"] == pytest.approx(trace["key"].norm().item(), rel=tolerance)
            assert row["key_norm_contexts"] == pytest.approx(trace["key_mean"].norm().item(), rel=tolerance)


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
def test_in_lower_precision_it_is_the_recorded_one_up_to_rounding(dtype):
    lm = model("llama", dtype=dtype)
    row = measure(lm, layers=[1]).set_index("case_id")["denominator"]
    recorded = [
        rome.edit(lm, fact, replace(PARAMS, v_num_grad_steps=1), CONTEXTS, factors_of(lm)).trace for fact in KNOWN
    ]
    rounding = 1e-5 if dtype == torch.float32 else 0.05
    for fact, trace in zip(KNOWN, recorded, strict=True):
        assert abs(row[fact.case_id] - trace["denominator"].item()) < rounding * trace["key"].norm().item()


def test_one_context_that_is_the_bare_prompt_leaves_the_length_of_k_along_its_own_direction():
    """k̄ = k: with C = I, k·u = ‖k‖."""
    lm = model()
    eye = {layer: torch.eye(lm.d_key, dtype=torch.float64) for layer in LAYERS}
    table = denominators.measure(lm, KNOWN, ["{}"], eye, progress=False)
    np.testing.assert_allclose(table["denominator"], table["key_norm"], rtol=1e-12)
    assert table["key_norm"].equals(table["key_norm_contexts"])


def plain_keys(lm, ids, layer):
    """Keys of one text at all its tokens, by a forward of the whole Hugging Face model."""
    seen = {}
    with anatomy.watching(lm.projection(layer), lambda keys, _: seen.update(keys=keys[0])), torch.no_grad():
        lm.model(torch.tensor([ids]))
    return seen["keys"]


@pytest.mark.parametrize("start_token", (False, True))
def test_the_sink_is_the_mean_key_of_position_0_over_whole_prompts(start_token):
    lm = model(bos=False)
    lm = loading.after_start_token(lm) if start_token else lm
    table = measure(lm).set_index(["case_id", "layer"])
    for layer in LAYERS:
        keys, sink = {}, 0
        for fact in KNOWN:
            (row,) = tokens.context_rows(lm.tokenizer, ["{}"], fact.prompt, fact.subject)
            own = plain_keys(lm, row.ids, layer)
            keys[fact.case_id], sink = own[row.subject_last], sink + own[0] / len(KNOWN)
            assert table.loc[(fact.case_id, layer), "subject_place"] == row.subject_last
        for case_id, key in keys.items():
            found = table.loc[(case_id, layer), "sink_cosine"]
            assert found == pytest.approx(torch.cosine_similarity(key, sink, dim=0).item(), rel=1e-9)
    alone = table.loc[FACTS["one token at position 0"].case_id]
    assert (alone["subject_place"] == start_token).all()


def test_the_subject_that_is_the_only_first_token_has_the_sinks_key_itself():
    table = measure(model(), [FACTS["one token at position 0"]])
    np.testing.assert_allclose(table["sink_cosine"], 1, rtol=1e-12)
    assert (measure(model(), [FACTS["last"]])["sink_cosine"] < 0.999).all()


def test_a_planted_sink_is_found_where_the_subject_ends_at_it_and_not_after_a_start_token():
    """A position embedding that drowns the token: keys at position 0 are one, whatever the subject."""
    own = model(bos=False)
    own.model.transformer.wpe.weight.data[0] *= 300
    facts = [replace(KNOWN[3], case_id=i, subject=subject) for i, subject in enumerate("ALSD")]
    before, after = (measure(lm, facts) for lm in (own, loading.after_start_token(own)))
    assert (before["subject_place"] == 0).all() and (before["sink_cosine"] > 0.99).all()
    assert (after["subject_place"] == 1).all() and (after["sink_cosine"] < 0.9).all()


@pytest.mark.parametrize("batch_tokens", (1, 40, 16384))
def test_batches_change_nothing_but_rounding_and_no_forward_is_made_per_layer(batch_tokens, monkeypatch):
    lm, ran, whole = model(), [], measure(model())
    segment = anatomy.segment
    monkeypatch.setattr(anatomy, "segment", lambda *of: ran.append(of[1:]) or segment(*of))
    twice = measure(lm, KNOWN + KNOWN, batch_tokens=batch_tokens)
    pd.testing.assert_frame_equal(twice, pd.concat([whole, whole], ignore_index=True), rtol=1e-9)
    assert set(ran) == {(0, 4)} and len(ran) <= 2 * len(KNOWN) + len(KNOWN)
    assert set(twice.columns) <= set(COLUMNS)


def test_layers_are_measured_as_each_alone():
    lm = model()
    alone = pd.concat([measure(lm, layers=[layer]) for layer in (3, 1)])
    both = measure(lm, layers=[3, 1])
    assert both["layer"].tolist() == [1, 3] * len(KNOWN)
    expected = alone.sort_values(["case_id", "layer"]).reset_index(drop=True)
    pd.testing.assert_frame_equal(both, expected, rtol=1e-9)


def test_what_cannot_be_measured_is_refused_before_anything_runs(monkeypatch):
    lm = model()
    monkeypatch.setattr(anatomy, "segment", None)
    for given in ({"facts": []}, {"layers": []}, {"contexts": []}, {"contexts": ["Lund. {}", "{}"]}):
        with pytest.raises(ValueError, match="and the bare prompt {} as first context"):
            measure(lm, **given)
    with pytest.raises(ValueError, match="layer 4 is not one of the 4 layers"):
        measure(lm, layers=[4])
    inside = replace(KNOWN[0], case_id=77, subject="Dan", prompt="The {}ish harp")
    with pytest.raises(ValueError, match="case 77: subject 'Dan' not found"):
        measure(lm, [KNOWN[0], inside])
    with pytest.raises(ValueError, match="case 78: a text of .* tokens is longer than"):
        measure(lm, [replace(KNOWN[2], case_id=78, prompt="harp " * 200 + "{}")])


def test_factors_are_those_of_the_layers_asked_for_or_of_all_that_the_file_holds(tmp_path):
    lm, path = model(), tmp_path / "second_moments.safetensors"
    held = {layer: moment(lm.d_key, seed=layer) for layer in (0, 2)}
    identity = {"model": lm.name, "weights_sha256": lm.identity["weights_sha256"], "n_tokens": "9"}
    moments.save(moments.SecondMoments(held, 9, identity), path)
    for asked, layers in (([], [0, 2]), ([2], [2])):
        found = denominators.factors(lm, path, asked)
        assert list(found) == layers
        for layer, factor in found.items():
            torch.testing.assert_close(factor @ factor.T, held[layer])
    with pytest.raises(ValueError, match="no second moment for tiny_gpt2 layer 1"):
        denominators.factors(lm, path, [0, 1])
    with pytest.raises(FileNotFoundError, match="run notebook 01"):
        denominators.factors(lm, tmp_path / "none.safetensors")


def invented():
    size = [0.05, -0.09, 0.2, 0.4, -0.5, 0.6]
    one = {"denominator": size, "sink_cosine": [0.9, 0.8, 0.7, 0.6, 0.5, 0.4], "key_norm": [1, 2, 3, 4, 5, 9]}
    other = {"denominator": 1.0, "sink_cosine": 0.5, "key_norm": [3, 1, 2, 4, 5, 6]}
    rest = {"case_id": range(6), "key_norm_contexts": 2.0, "subject_place": [0, 0, 1, 2, 3, 7]}
    return pd.concat([pd.DataFrame({"layer": at, **of, **rest}) for at, of in ((3, one), (9, other))])


def test_small_denominators_are_counted_by_layer_with_what_they_go_with():
    first, second = denominators.by_layer(invented(), 10, 0.1).to_dict("records")
    assert first == {
        "layer": 3, "depth": pytest.approx(1 / 3), "facts": 6, "small": pytest.approx(1 / 3),
        "denominator": pytest.approx(0.3), "with_sink": pytest.approx(-1), "with_norm": pytest.approx(1),
    }  # fmt: skip
    assert (second["depth"], second["small"], second["denominator"]) == (1, 0, 1)
    assert np.isnan(second["with_sink"]) and np.isnan(second["with_norm"])  # all are the same


def test_small_denominators_are_counted_by_the_place_of_the_subject():
    table = denominators.by_place(invented(), 3, 0.1).set_index("place")
    assert list(table.index) == ["0", "1", "2", "3+"] and table["facts"].tolist() == [2, 1, 1, 2]
    assert table["small"].tolist() == [1, 0, 0, 0]
    assert table["denominator"].tolist() == pytest.approx([0.07, 0.2, 0.4, 0.55])
    assert table["key_norm"].tolist() == [1.5, 3, 4, 7] and (table["key_norm_contexts"] == 2).all()
    assert table["sink_cosine"].tolist() == pytest.approx([0.85, 0.7, 0.6, 0.45])
