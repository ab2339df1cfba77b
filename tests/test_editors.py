"""Methods by name and their hyper-parameter files; every shipped file can be read."""

from pathlib import Path

import pytest
import torch

from editscale.editing import editors

PARAMS = Path(__file__).parents[1] / "params"
GOOD = (PARAMS / "rome" / "gpt2-xl.yaml").read_text()


@pytest.mark.parametrize(
    "path",
    sorted(p for name in editors.MODULES for p in PARAMS.glob(f"{name}/*.yaml")),
    ids=lambda p: f"{p.parent.name} {p.stem}",
)
def test_every_shipped_file_is_read_and_every_line_says_its_source(path):
    params = editors.read_params(path.parent.name, path)
    assert editors.layers_of(params)
    for line in path.read_text().splitlines()[1:]:
        meaning = line.split("#", 1)[1]
        assert len(meaning.split(";")) >= 2, f"{path.name}: {line} lacks a meaning or a source"


def test_published_values_of_gpt2_xl():
    rome, memit = (editors.read_params(name, PARAMS / name / "gpt2-xl.yaml") for name in ("rome", "memit"))
    assert (rome.layer, rome.clamp_norm_factor, rome.mom2_adjustment) == (17, 4, True)
    assert (memit.layers, memit.clamp_norm_factor, memit.mom2_update_weight) == ([13, 14, 15, 16, 17], 0.75, 20000)
    for params in (rome, memit):
        assert (params.v_num_grad_steps, params.v_lr, params.v_weight_decay, params.kl_factor) == (20, 0.5, 0.5, 0.0625)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD.replace("layer: 17", "layre: 17"), "unknown entry 'layre'"),
        (GOOD.replace("layer: 17", ""), "entry 'layer' is missing"),
        (GOOD.replace("layer: 17", "layer: seventeen"), "layer must be a int, not 'seventeen'"),
        (GOOD.replace("layer: 17", "layer: true"), "layer must be a int, not True"),
        (GOOD.replace("v_lr: 0.5", "v_lr: fast"), "v_lr must be a float, not 'fast'"),
        ("- 1", "must map names to values"),
    ],
)
def test_a_wrong_file_is_one_clear_error(tmp_path, text, message):
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        editors.read_params("rome", path)


def test_missing_files_and_unknown_methods_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no hyper-parameters for rome"):
        editors.read_params("rome", tmp_path / "none.yaml")
    with pytest.raises(
        ValueError, match="unknown method 'room'; the methods are rome, r-rome, p-rome, memit, rome-multi, ft-c"
    ):
        editors.method("room")


def test_a_singular_moment_is_named():
    with pytest.raises(ValueError, match="second moment of layer 3 is not positive definite"):
        editors.cholesky_factors({3: torch.zeros(4, 4)}, "cpu")
