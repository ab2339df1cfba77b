"""Methods by name and their hyper-parameter files; every shipped file can be read."""

from pathlib import Path

import pytest
import tiny
import torch
from test_rome import moment
from test_sequence import CONTEXTS, FACTS
from test_sequence import PARAMS as OF_METHODS

from editscale.editing import editors, modules, updates

PARAMS = Path(__file__).parents[1] / "params"
GOOD = (PARAMS / "rome" / "gpt2-xl.yaml").read_text()


@pytest.mark.parametrize(
    "path",
    sorted(p for name in modules.MODULES for p in PARAMS.glob(f"{name}/*.yaml")),
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
        ("layer: [17", "wrong.yaml is not readable as YAML: while parsing"),
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


def test_each_edit_is_looked_at_alone_and_one_that_failed_is_not_applied(monkeypatch):
    lm = tiny.tiny_model("gpt2")
    factors = {layer: torch.linalg.cholesky(moment(lm.d_key)) for layer in OF_METHODS["rome"].layers}
    editing = editors.Editing("rome", OF_METHODS["rome"], CONTEXTS["rome"], factors)
    (layer,), before = editing.layers, lm.weight(editing.layers[0]).clone()
    real = editors.alone

    def with_a_failure(*of):
        for i, edit in enumerate(real(*of)):
            yield updates.Edit((), {"failed": "singular"}) if i == 1 else edit

    monkeypatch.setattr(editors, "alone", with_a_failure)
    moved = editors.each_alone(editing, lm, FACTS[:3], lambda fact, edit: (fact, edit, lm.weight(layer) - before))
    assert [fact for fact, *_ in moved] == FACTS[:3] and not moved[1][2].any()
    for _, edit, change in (moved[0], moved[2]):
        torch.testing.assert_close(change, edit.updates[0].matrix(), rtol=0, atol=1e-5)
    assert torch.equal(lm.weight(layer), before)


def test_the_model_is_left_as_it_was_when_looking_fails():
    lm = tiny.tiny_model("gpt2")
    factors = {layer: torch.linalg.cholesky(moment(lm.d_key)) for layer in OF_METHODS["rome"].layers}
    editing = editors.Editing("rome", OF_METHODS["rome"], CONTEXTS["rome"], factors)
    before = lm.weight(editing.layers[0]).clone()

    def fails(fact, edit):
        raise RuntimeError("on the way")

    with pytest.raises(RuntimeError, match="on the way"):
        editors.each_alone(editing, lm, FACTS[:2], fails)
    assert torch.equal(lm.weight(editing.layers[0]), before)
