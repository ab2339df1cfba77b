"""What is added in place of edits has their size and rank, and nothing else of them; limits are the run's models."""

import math

import pytest
import tiny
import torch
from test_sequence import FACTS, PARAMS

from editscale.columns import COLUMNS
from editscale.editing import updates
from editscale.metrics import generation
from editscale.sequences import interventions, past_runs

SHAPES = ((20, 30), (30, 20))


@pytest.fixture(scope="module", params=PARAMS)
def run(request, tmp_path_factory, sequence_of):
    """A finished run of five edits, reopened on an unedited model."""
    folder = tmp_path_factory.mktemp(request.param)
    _, book = sequence_of(request.param, folder)
    parameters = {"method": request.param, "order": 0, "reverse": False}
    return past_runs.PastRun(folder, parameters, tiny.tiny_model("gpt2"), FACTS, book)


@pytest.fixture(scope="module")
def rome(tmp_path_factory, sequence_of):
    folder = tmp_path_factory.mktemp("rome-alone")
    _, book = sequence_of("rome", folder)
    parameters = {"method": "rome", "order": 0, "reverse": False}
    return past_runs.PastRun(folder, parameters, tiny.tiny_model("gpt2"), FACTS, book)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def low_rank(shape, rank, seed=5):
    left, right = (torch.randn(n, rank, dtype=torch.float64, generator=seeded(seed + n)) for n in shape)
    return left @ torch.diag(2.0 ** -torch.arange(rank, dtype=torch.float64)) @ right.T


@pytest.mark.parametrize("shape", SHAPES)
def test_a_random_change_of_the_same_spectrum_has_the_singular_values_and_other_directions(shape):
    change = low_rank(shape, 4)
    drawn = interventions.spectrum(change, 4, seeded())
    expected, found = (torch.linalg.svdvals(of) for of in (change, drawn))
    torch.testing.assert_close(found[:4], expected[:4], rtol=1e-7, atol=0)
    assert found[4:].max() < 1e-12 * found[0]
    cosine = (change * drawn).sum() / change.norm() / drawn.norm()
    assert abs(cosine) < 0.3 and not torch.equal(drawn, interventions.spectrum(change, 4, seeded(1)))
    assert torch.equal(drawn, interventions.spectrum(change, 4, seeded()))


@pytest.mark.parametrize("shape", SHAPES)
def test_a_gaussian_change_has_the_size_and_the_rank_and_spreads_evenly(shape):
    change = low_rank(shape, 4)
    drawn = interventions.gaussian(change, 4, seeded())
    assert drawn.norm().item() == pytest.approx(change.norm().item(), rel=1e-12)
    values, own = torch.linalg.svdvals(drawn), torch.linalg.svdvals(change)
    assert torch.linalg.matrix_rank(drawn) == 4 and values[3] / values[0] > own[3] / own[0]


def test_singular_vectors_are_uniform_among_all_directions():
    """Of 3 × 3 matrices of rank one: the mean outer product of the drawn vectors is that of the sphere."""
    change, total = torch.zeros(3, 3, dtype=torch.float64), torch.zeros(3, 3, dtype=torch.float64)
    change[0, 0], generator = 1, seeded()
    for _ in range(2000):
        drawn = interventions.spectrum(change, 1, generator)
        total += drawn @ drawn.T / 2000
    torch.testing.assert_close(total, torch.eye(3, dtype=torch.float64) / 3, rtol=0, atol=0.03)


def test_each_permuted_edit_keeps_its_size_and_its_key_and_has_another_value():
    recorded = [
        [updates.Update(layer, torch.randn(20, 1, generator=seeded(t)), torch.randn(30, 1, generator=seeded(9 + t)))]
        for t, layer in enumerate((1, 1, 1, 1, 1))
    ]
    keys = torch.cat([of[0].right for of in recorded], dim=1).double()
    total = interventions.permuted(recorded, seeded())[1]
    values = total @ torch.linalg.pinv(keys.T)  # (20, 5): what is written at each key
    lefts = torch.cat([of[0].left for of in recorded], dim=1).double()
    torch.testing.assert_close(values.norm(dim=0), lefts.norm(dim=0))
    cosines = (values / values.norm(dim=0)).T @ (lefts / lefts.norm(dim=0))
    taken = cosines.argmax(dim=1).tolist()
    assert cosines.max(dim=1).values.tolist() == pytest.approx([1] * 5)
    assert sorted(taken) == list(range(5)) and all(of != own for own, of in enumerate(taken))


def test_of_several_layers_values_go_the_same_way_and_an_edit_that_left_one_out_is_passed_by():
    """Edits are told apart by the entry that their value has; edit 2 does not change layer 3."""
    eye, key = torch.eye(4), torch.eye(6)
    recorded = [
        [updates.Update(layer, eye[:, [t]], key[:, [t]]) for layer in (1, 3) if (t, layer) != (2, 3)] for t in range(4)
    ]
    found = interventions.permuted(recorded, seeded(3))
    of = {layer: {t: total[:, t].argmax().item() for t in range(4)} for layer, total in found.items()}
    whole, without = of[1], {t: value for t, value in of[3].items() if t != 2}
    assert found[3][:, 2].norm() == 0
    assert without == {t: value if value != 2 else whole[2] for t, value in whole.items() if t != 2}


def test_scale_1_is_the_model_of_the_run_and_scale_0_the_one_before_bit_for_bit(run):
    original = updates.saved_weights(run.lm, run.layers)
    for since, edits in ((0, 5), (2, 5)):
        before, after = interventions.models_at(run, [since, edits])
        change = interventions.difference(before, after)
        for scale, expected in ((0.0, before), (1.0, after)):
            with interventions.moved(run.lm, before, change, scale):
                now = interventions.parts(run.lm, run.layers)
                assert all(torch.equal(now[part], of) for part, of in expected.items())
        with pytest.raises(RuntimeError, match="within"), interventions.moved(run.lm, before, change, 2.0):
            raise RuntimeError("within")
        assert all(torch.equal(run.lm.weight(layer), of) for layer, of in original.items())
        assert all(torch.equal(run.lm.bias(layer), of) for layer, of in original.biases.items())


def test_changes_of_a_run_are_as_large_as_its_edits_in_each_layer_and_of_their_rank(run):
    change = interventions.difference(*interventions.models_at(run, [1, 5]))
    rank = interventions.ranks(run, 1, 5)
    for kind in ("spectrum", "gaussian"):
        drawn = interventions.drawn(run, change, 1, 5, kind, 0)
        assert {layer for layer, _ in drawn} == set(run.layers)
        for part, of in drawn.items():
            assert of.norm().item() == pytest.approx(change[part].norm().item(), rel=1e-9)
            assert torch.linalg.matrix_rank(of) <= rank[part]
            # Beyond that rank, the edits left what float32 rounds.
            assert torch.linalg.svdvals(change[part])[rank[part] :].sum() <= 1e-4 * change[part].norm()


def test_values_are_exchanged_where_edits_have_rank_one_and_else_it_says_why_not(run):
    why, method = interventions.why_not_permuted(run, 0, 5), run.key["method"]
    change = interventions.difference(*interventions.models_at(run, [0, 5]))
    reasons = {"ft-c": "by no matrix of rank one", "memit-rect": "by no matrix of rank one", "ultraedit": "of rank one"}
    reasons |= dict.fromkeys(("memit-prune", "rome-prune"), "scores other weights than it edits")
    assert (why == "") == (method not in reasons)
    if why:
        assert reasons[method] in why
        with pytest.raises(ValueError, match=f"cannot be exchanged among edits: .*{method}.*; leave permuted out"):
            interventions.drawn(run, change, 0, 5, "permuted", 0)
    else:
        assert "a single edit changes layer" in interventions.why_not_permuted(run, 4, 5)
        drawn = interventions.drawn(run, change, 0, 5, "permuted", 0)
        recorded = [run.ledger.updates(edit) for edit in range(1, 6)]
        for (layer, part), of in drawn.items():
            bound = sum(u.norm() for edit in recorded for u in edit if u.layer == layer) if part == "weight" else 0
            assert of.norm() <= bound * (1 + 1e-6) and (part == "bias" or not torch.allclose(of, change[layer, part]))


@pytest.mark.parametrize("since", (0, 3))
def test_rows_hold_the_recall_of_the_run_at_scale_1_and_of_the_model_before_at_scale_0(run, since):
    places = [0, 5] if since == 0 else [since, 5]
    looked = {
        n: (
            [row["efficacy_accuracy"] for row in past_runs.recall_rows(run, 5)],
            generation.perplexity(run.lm, generation.fixed_texts()),
        )
        for n in past_runs.replayed(run, places)
    }
    rows = list(interventions.measured(run, since, 5, [2.0], [3, 4]))
    assert set(rows[0]) <= set(COLUMNS)
    own = {row["scale"]: row for row in rows if row["change"] == "edits"}
    learned = [row["efficacy_accuracy"] == 1 for row in run.ledger.rows]
    for scale, place in ((0.0, since), (1.0, 5)):
        recalled, perplexity = looked[place]
        assert own[scale]["recall"] == sum(recalled) / 5 and own[scale]["perplexity"] == perplexity
        assert own[scale]["times_distance"] == scale
        if any(learned):
            of = [x for x, counts in zip(recalled, learned, strict=True) if counts]
            assert own[scale]["recall_learned"] == sum(of) / len(of)
    n_before = sum(looked[since][0][:since])
    assert {row["n_before"] for row in rows} == {n_before}
    assert math.isnan(own[0.0]["recall_before"]) if n_before == 0 else own[0.0]["recall_before"] == 1
    kinds = ["spectrum", "gaussian"] + ["permuted"] * (not interventions.why_not_permuted(run, since, 5))
    others = [(row["change"], row["seed"], row["scale"]) for row in rows if row["change"] != "edits"]
    assert others == [(kind, seed, scale) for kind in kinds for seed in (3, 4) for scale in (1.0, 2.0)]
    for row in rows:
        if row["change"] in ("spectrum", "gaussian"):
            assert row["times_distance"] == pytest.approx(row["scale"], rel=1e-9)


def test_what_cannot_be_asked_is_refused_before_anything_is(rome):
    def ask(since=0, edits=5, scales=(1.0,), seeds=(0,), run=rome):
        return list(interventions.measured(run, since, edits, list(scales), list(seeds)))

    for since, edits in ((5, 5), (3, 2), (-1, 5), (0, 6)):
        with pytest.raises(ValueError, match=f"has 5 edits, and no change from {since} to {edits}"):
            ask(since, edits)
    for given in ({"scales": (math.inf,)}, {"seeds": ()}, {"seeds": (1, 1)}):
        with pytest.raises(
            ValueError, match=r"scales \[.*\] must be finite; seeds \[.*\] must be one or more, and none"
        ):
            ask(**given)


def test_edits_that_changed_nothing_have_no_other_change(rome, monkeypatch):
    monkeypatch.setattr(type(rome.ledger), "updates", lambda *_: [])
    with pytest.raises(ValueError, match="edits 1 to 5 of .* changed nothing; take a longer stretch"):
        list(interventions.measured(rome, 0, 5, [1.0], [0]))
