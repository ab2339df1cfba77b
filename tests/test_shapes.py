"""Models of published shapes with random weights, and folders of sharded safetensors: whole, or one clear error."""

import json
import shutil

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from tools import shape

from editscale.models import loading
from editscale.workflow import cli

GPT2 = {**shape.SHAPES["gpt2-xl"], "vocab_size": 400, "n_layer": 4, "n_embd": 64, "n_head": 4}
GPTJ = {**shape.SHAPES["gpt-j"], "vocab_size": 400, "n_layer": 6, "n_embd": 64, "n_head": 4, "rotary_dim": 8}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A small GPT-2 in several files."""
    folder = tmp_path_factory.mktemp("shapes") / "gpt2-tiny"
    return shape.write(folder, GPT2 | {"n_embd": 128}, tiny.tiny_tokenizer(), shard_mb=1)


@pytest.fixture
def folder(written, tmp_path):
    """A copy of it to damage."""
    return shutil.copytree(written, tmp_path / "gpt2-tiny")


def shards(folder):
    return sorted(folder.glob("model-*-of-*.safetensors"))


@pytest.mark.parametrize(("config", "shard_mb"), [(GPT2, 2000), (GPT2, 1), (GPTJ, 1)])
def test_a_written_shape_loads_as_the_model_that_was_drawn(config, shard_mb, tmp_path):
    folder = shape.write(tmp_path / "shape", config, tiny.tiny_tokenizer(), shard_mb=shard_mb)
    drawn, lm = shape.random_model(config), loading.load(folder)
    assert (len(shards(folder)) > 1) == (folder / "model.safetensors.index.json").exists() == (shard_mb == 1)
    assert lm.model.state_dict().keys() == drawn.state_dict().keys()
    assert all(torch.equal(weight, drawn.state_dict()[name]) for name, weight in lm.model.state_dict().items())
    assert (lm.n_layers, lm.d_model, lm.d_key) == (config["n_layer"], 64, 256)
    # As the hub has it; loading takes the same function as one kernel.
    assert json.loads((folder / "config.json").read_text())["activation_function"] == "gelu_new"
    ids = lm.tokenizer(tiny.TEXT[:40])["input_ids"]
    assert ids == tiny.tiny_tokenizer()(tiny.TEXT[:40])["input_ids"]


def test_a_seed_gives_its_weights_again_and_another_gives_others(tmp_path):
    paths = [tmp_path / name for name in "abc"]
    for path, seed in zip(paths, (0, 0, 1), strict=True):
        shape.write(path, GPT2, tiny.tiny_tokenizer(), seed=seed)
    first, again, other = (loading.load(path).identity["weights_sha256"] for path in paths)
    assert first == again != other


def test_half_precision_takes_half_the_bytes_and_loads_in_the_precision_asked_for(tmp_path):
    for dtype in ("float32", "bfloat16"):
        shape.write(tmp_path / dtype, GPT2, tiny.tiny_tokenizer(), dtype=dtype)
    sizes = [(tmp_path / dtype / "model.safetensors").stat().st_size for dtype in ("bfloat16", "float32")]
    assert sizes[0] / sizes[1] == pytest.approx(0.5, rel=0.02)
    assert loading.load(tmp_path / "bfloat16", dtype="float32").dtype == torch.float32


def test_parameters_are_counted_without_being_made():
    drawn = shape.random_model(GPT2)
    assert shape.n_parameters(GPT2) == sum(parameter.numel() for parameter in drawn.parameters())


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"dtype": "int8"}, ValueError, "dtype 'int8' is not one of float32"),
        ({"shard_mb": 0}, ValueError, "a shard of 0 MB"),
        ({"config": GPT2 | {"vocab_size": 100}}, ValueError, "has 340 tokens, the model 100"),
        ({"config": GPT2 | {"vocab_size": 10**12}}, OSError, r"takes 256\d\d\d\.\d GB and its disk has"),
    ],
)
def test_what_cannot_be_written_is_named_before_a_weight_is_made(change, error, message, tmp_path, monkeypatch):
    monkeypatch.setattr(shape, "random_model", None)
    given = {"config": GPT2, **change}
    with pytest.raises(error, match=message):
        shape.write(tmp_path / "shape", given.pop("config"), tiny.tiny_tokenizer(), **given)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_there_is_left_alone(tmp_path):
    with pytest.raises(FileExistsError, match="is there already"):
        shape.write(tmp_path, GPT2, tiny.tiny_tokenizer())


def test_an_interrupted_writing_leaves_no_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(tiny.PreTrainedTokenizerFast, "save_pretrained", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        shape.write(tmp_path / "shape", GPT2, tiny.tiny_tokenizer())
    assert list(tmp_path.iterdir()) == []


def test_the_command_writes_a_shape_by_name_and_says_what_was_wrong(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(shape.SHAPES, "gpt2-small", GPT2)
    tiny.tiny_tokenizer().save_pretrained(tmp_path / "tokenizer")
    options = ["--shard-mb", "1", "--tokenizer", str(tmp_path / "tokenizer")]
    command = ["shape", "gpt2-small", str(tmp_path / "shape"), *options]
    assert cli.main(command) == 0
    assert f"{shape.n_parameters(GPT2):,} random parameters in {len(shards(tmp_path / 'shape'))} files" in (
        capsys.readouterr().out
    )
    assert cli.main(command) == 2 and "is there already" in capsys.readouterr().err
    assert cli.main([*command[:-1], str(tmp_path)]) == 2 and "no tokenizer.json" in capsys.readouterr().err


# Sharded folders that are not what their index says


def test_a_missing_shard_is_named(folder):
    shards(folder)[1].unlink()
    with pytest.raises(FileNotFoundError, match=f"lacks {shards(folder)[0].name.replace('00001', '00002')}"):
        loading.load(folder)


@pytest.mark.parametrize("left", [0, 4, 100, -1000, -1])
def test_a_truncated_shard_is_named(folder, left):
    shard = shards(folder)[-1]
    shard.write_bytes(shard.read_bytes()[:left])
    with pytest.raises(ValueError, match=f"{shard.name} is damaged or incomplete"):
        loading.load(folder)


@pytest.mark.parametrize(
    "name", ["../secret.safetensors", "/etc/secret.safetensors", "sub/model.safetensors", "..", "model.bin", 7]
)
def test_an_index_that_names_a_file_elsewhere_is_refused(folder, name):
    save_file({"secret": torch.ones(1)}, folder.parent / "secret.safetensors")
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["transformer.wte.weight"] = name
    path.write_text(json.dumps(index))
    with pytest.raises(ValueError, match="index.json holds .*; it should name .*safetensors files beside it"):
        loading.load(folder)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": []}', '{"weight_map": {}}'])
def test_an_index_that_maps_nothing_is_refused(folder, text):
    (folder / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ValueError, match="index.json .*(not complete|holds|JSON)"):
        loading.load(folder)


def test_a_tensor_that_no_shard_holds_is_named(folder):
    shard = next(path for path in shards(folder) if "transformer.h.2.mlp.c_proj.weight" in load_file(path))
    save_file({"left": torch.ones(1)}, shard, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks transformer\.h\.\d.*, which .*index.json has in model-"):
        loading.load(folder)


def test_tensors_of_another_shape_are_named_with_both(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"n_inner": 48}))
    with pytest.raises(ValueError, match=r"12 tensors are .*mlp\.c_fc\.bias \(512,\) instead of \(48,\)"):
        loading.load(folder)
