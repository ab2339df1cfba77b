"""The parameter files of a scale fit together, and those of the large models are the paper's protocol."""

import re
from pathlib import Path

import pytest
from tools import bench

from editscale.analysis import targets
from editscale.data import glue
from editscale.editing import editors
from editscale.sequences import overlap
from editscale.workflow.parameters import read_grid, read_parameters

PARAMS = Path(__file__).parents[1] / "params"
SCALES = sorted(path.parent.name for path in PARAMS.glob("*/grid.yaml"))
LARGE = {"gpt2-xl": "gpt2-xl", "gpt-j": "gpt-j-6b"}
# In figures of smollm2 and mitigations.
DRAWN_BY_OTHERS = {"interventions", "lasting", "one-time", "prospective", "start-token"}
DRY = {"dry-xl": "gpt2-xl", "dry-gpt-j": "gpt-j"}


def values(scale, notebook):
    (path,) = (PARAMS / scale).glob(f"{notebook}_*.yaml")
    return read_parameters(path)


def hyper_parameters(scale):
    """(method, its hyper-parameters) of each line of the scale's grid."""
    return [(run["method"], editors.read_params(run["method"], run["hparams"])) for run in grid(scale).values()]


def grid(scale):
    return read_grid(PARAMS / scale / "grid.yaml")


def test_the_large_scales_are_here():
    assert {*LARGE, *DRY} <= set(SCALES)


@pytest.mark.parametrize("scale", SCALES)
def test_second_moments_are_collected_for_every_layer_that_a_method_needs_them_for(scale):
    collected = set(values(scale, "01")["layers"])
    for method, params in hyper_parameters(scale):
        assert set(editors.moment_layers(method, params)) <= collected, method
    for method, path in values(scale, "06a").get("methods", {}).items():
        assert set(editors.moment_layers(method, editors.read_params(method, path))) <= collected, method


@pytest.mark.parametrize("scale", SCALES)
def test_notebooks_of_a_scale_name_one_model_its_moments_and_itself(scale):
    given = [values(scale, notebook) for notebook in ("01", "02a", "06a")]
    for name in ("model", "revision", "device", "start_token"):
        assert len({values_of.get(name) for values_of in given}) == 1, name
    moments = f"runs/{scale}/moments/second_moments.safetensors"
    assert [values_of["moments"] for values_of in given[1:]] == [moments, moments]
    gathering = ("02b", "03b", "04b", "05", "05b", "06b", "07") if scale not in DRAWN_BY_OTHERS else ()
    gathering = gathering or [path.name.split("_")[0] for path in (PARAMS / scale).glob("0[2-9]b_*.yaml")]
    assert {values(scale, notebook).get("scale") for notebook in gathering} == ({scale} if gathering else set())


ASKED = sorted(path.parent.name for path in PARAMS.glob("*/09b_mitigations.yaml"))  # what could prevent forgetting


@pytest.mark.parametrize("scale", ASKED)
def test_the_overlap_of_keys_is_measured_on_the_model_of_the_scale_for_methods_of_one_layer(scale):
    given = values(scale, "09a")
    assert given["moments"] == f"runs/{scale}/moments/second_moments.safetensors"
    assert values(scale, "09b")["scale"] == scale
    for method, path in given["methods"].items():
        assert method in overlap.METHODS and editors.read_params(method, path)
    if scale in SCALES:
        of_runs = values(scale, "02a")
        assert given["layer"] in values(scale, "01")["layers"] and given["fact_set"] == of_runs["fact_set"]
        for name in ("model", "revision", "device", "prefix_seeds", "n_short_prefixes", "n_long_prefixes"):
            assert given.get(name) == of_runs.get(name), name


@pytest.mark.parametrize("scale", sorted(path.parent.name for path in PARAMS.glob("*/10_denominators.yaml")))
def test_denominators_are_those_of_the_runs_of_the_scale(scale):
    """ROME's, with the contexts that its runs sample."""
    given, of_runs = values(scale, "10"), values(scale, "02a")
    sampling = ("prefix_seeds", "n_short_prefixes", "n_long_prefixes", "seed")
    for name in ("model", "revision", "device", "start_token", "fact_set", "moments", *sampling):
        assert given.get(name) == of_runs.get(name), name


@pytest.mark.parametrize("scale", sorted(path.parent.name for path in PARAMS.glob("*/11_forecast_tested.yaml")))
def test_a_forecast_is_tested_on_denominators_of_the_scale_with_hyper_parameters_of_its_runs(scale):
    given, device = values(scale, "11"), values(scale, "10").get("device")
    assert given["denominators"] == f"runs/{scale}/denominators" and given.get("device") == device
    assert set(given["layers"]) <= set(values(scale, "10").get("layers") or values(scale, "01")["layers"])
    if "hparams" in given:
        assert given["hparams"] in [run["hparams"] for run in grid(scale).values() if run["method"] == "rome"]


@pytest.mark.parametrize(("scale", "model"), LARGE.items())
def test_large_scales_are_four_methods_on_the_ten_orders_of_counterfact(scale, model):
    runs = grid(scale)
    assert set(runs) == {(m, f"order-{n}") for m in ("rome", "r-rome", "memit", "ft-c") for n in range(10)}
    assert all(run["hparams"].endswith(f"/{model}.yaml") for run in runs.values())
    assert values(scale, "02a")["fact_set"] == values(scale, "06a")["fact_set"] == "data/counterfact.json"
    assert values(scale, "04a")["tasks"] == list(glue.ORDER)
    assert values(scale, "06a")["methods"] == {method: runs[method, "order-0"]["hparams"] for method, _ in runs}
    assert not targets.published(values(scale, "06b")["targets"]).empty


@pytest.mark.parametrize("scale", LARGE)
def test_what_large_scales_take_from_the_hub_is_pinned(scale):
    pins = [values(scale, notebook)["revision"] for notebook in ("01", "02a", "06a")]
    pins += [values(scale, "01")["corpus_revision"], values(scale, "04a")["source_revision"]]
    assert all(re.fullmatch("[0-9a-f]{40}", pin) for pin in pins)
    assert values(scale, "04a")["source_revision"] == glue.REVISION


@pytest.mark.parametrize(("dry", "shape"), DRY.items())
def test_dry_runs_edit_the_real_layers_of_random_weights_of_the_real_shape(dry, shape):
    config, real = bench.SHAPES[shape].config, dict(zip(DRY, LARGE, strict=True))[dry]
    assert values(dry, "01")["model"] == f"runs/shapes/{shape}"
    assert values(dry, "01")["layers"] == values(real, "01")["layers"]
    first = {method: run["hparams"] for (method, order), run in grid(real).items() if order == "order-0"}
    assert {method: run["hparams"] for (method, _), run in grid(dry).items()} == first
    assert all(layer < config["n_layer"] for layer in values(dry, "01")["layers"])
    # More tokens than a key has entries: below that the second moments have no inverse.
    n_tokens = values(dry, "01")["n_documents"] * values(dry, "01")["max_length"]
    assert n_tokens >= 2 * 4 * config["n_embd"]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("rome/gpt2-xl", {"layer": 17, "v_num_grad_steps": 20, "clamp_norm_factor": 4.0, "mom2_adjustment": True}),
        ("rome/gpt-j-6b", {"layer": 5, "v_num_grad_steps": 20, "clamp_norm_factor": 4.0, "mom2_adjustment": True}),
        ("memit/gpt2-xl", {"layers": [13, 14, 15, 16, 17], "v_num_grad_steps": 20, "mom2_update_weight": 20000.0}),
        ("memit/gpt-j-6b", {"layers": [3, 4, 5, 6, 7, 8], "v_num_grad_steps": 25, "mom2_update_weight": 15000.0}),
        ("ft-c/gpt2-xl", {"layer": 0, "num_steps": 25, "lr": 5e-4, "norm_constraint": 5e-4}),
        ("ft-c/gpt-j-6b", {"layer": 0, "num_steps": 25, "lr": 5e-4, "norm_constraint": 5e-5}),
    ],
)
def test_hyper_parameters_of_the_large_models_are_the_published_ones(path, expected):
    method = path.split("/")[0]
    given = vars(editors.read_params(method, PARAMS / f"{path}.yaml"))
    common = {"v_lr": 0.5, "v_weight_decay": 0.5, "kl_factor": 0.0625}
    common |= {"clamp_norm_factor": 0.75} if method == "memit" else {}
    common = {"weight_decay": 0.0} if method == "ft-c" else common
    assert given == common | expected
