"""The safetensors files of a model folder: which there are, which tensors they hold, and which of the model's they are.

All of it is checked by names and shapes before a tensor is read, and before memory is taken for one.
"""

import re
import struct

from editscale.files import json_of, read_json
from editscale.models.anatomy import family_of
from editscale.models.configs import sizes

LFS = b"version https://git-lfs"
FLOATS = ("F64", "F32", "F16", "BF16")
MOST_BUFFERS = 2**26  # bytes that what a model keeps besides its weights, such as rotary positions, may always take
# Where files have a part of a language model ↦ where transformers has it: those of a model for texts and images, which
# came in two layouts, and those of GPT-NeoX.
PARTS = {
    r"^language_model\.model\.": "model.",
    r"^model\.language_model\.": "model.",
    r"^language_model\.lm_head\.": "lm_head.",
    r"^embed_out\.": "lm_head.",
}


def headers(folder):
    """{safetensors file: `tensors_in` it} of a folder. Raises FileNotFoundError for one that is not there, ValueError
    for a damaged one, and where an index and its files do not name the same tensors."""
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if whole.is_file():
        return {whole: tensors_in(whole)}
    if not index.is_file():
        pickled = sorted(file.name for file in folder.glob("*.bin"))
        raise FileNotFoundError(
            f"{folder} holds no model.safetensors{f', only {pickled[0]}' if pickled else ''}. Weights are "
            "read from safetensors, never from pickles: convert them (from_pretrained, then save_pretrained "
            "of transformers) where you trust the file, or name a revision of the hub id that has them"
        )
    listed = read_json(index, "get it again").get("weight_map")
    names = set(listed.values()) if type(listed) is dict and all(type(n) is str for n in listed.values()) else set()
    odd = sorted(name for name in names if not re.fullmatch(r"[\w-][\w.-]*\.safetensors", name))
    if odd or not names:
        found = repr(odd[0]) if odd else "no weight_map of tensors to files"
        raise ValueError(f"{index} holds {found}; it should name *.safetensors files beside it: get it again")
    found = {}
    for file in sorted(folder / name for name in names):
        if not file.is_file():
            raise FileNotFoundError(f"{folder} lacks {file.name}, one of {len(names)} shards in {index.name}")
        found[file] = tensors_in(file)
        other = found[file].keys() ^ {name for name, of in listed.items() if of == file.name}
        for name in sorted(other, key=lambda name: (name in found[file], name)):
            there = "holds" if name in found[file] else "lacks"
            raise ValueError(f"{file} {there} {name}, which {index.name} has in {listed.get(name)}; get both again")
    return found


def tensors_in(file):
    """{name: {"dtype", "shape", …}} of the tensors in a safetensors file, out of its header."""
    from safetensors import SafetensorError, safe_open

    check_no_pointer(file)
    try:
        with safe_open(file, "pt"):  # checks the header against the file
            pass
        with open(file, "rb") as opened:
            header = json_of(opened.read(struct.unpack("<Q", opened.read(8))[0]))
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"{file} is damaged or incomplete ({error}); get it again") from error
    return {name: of for name, of in header.items() if name != "__metadata__"}


def check_no_pointer(file):
    """Raise ValueError if a file is what Git leaves in place of a large one that Git LFS was not there to get."""
    with open(file, "rb") as opened:
        if opened.read(len(LFS)) == LFS:
            raise ValueError(f"{file} is a pointer of Git LFS, not the file itself; `git lfs pull` there gets it")


def places(headers, model):
    """{a model's name of a tensor: (file, the file's name of it)} for a Hugging Face model on the device "meta".

    Args:
        headers: of the files, as `headers` gives them.

    Raises ValueError unless the files hold each tensor of the model once, in its shape and in floating point. Tensors
    that the model has no use for are left out, but not the layers that it lacks.
    """
    own = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    folder, n_layers = min(headers).parent, model.config.num_hidden_layers
    blocks = re.compile(rf"({model.base_model_prefix}\.)?{family_of(model.config).blocks}\.(\d+)\.")
    found, wrong, left = {}, [], []
    for file, tensors in headers.items():
        for name, of in tensors.items():
            part = name
            for pattern, plain in PARTS.items():
                part = re.sub(pattern, plain, part)
            part = part if part in own else f"{model.base_model_prefix}.{part}"
            if part in found:
                raise ValueError(f"{folder} holds {part} of the model twice: as {found[part][1]} and as {name}")
            if part not in own:
                left += [name] if (block := blocks.match(name)) and int(block[2]) >= n_layers else []
                continue
            found[part] = file, name
            if of["dtype"] not in FLOATS:
                raise ValueError(
                    f"{file} has {name} in {of['dtype']}; an edit needs weights in full precision, {', '.join(FLOATS)}"
                )
            if tuple(of["shape"]) != own[part]:
                wrong.append(f"{part} {tuple(of['shape'])} instead of {own[part]}")
    tied = getattr(model, "all_tied_weights_keys", {}) | {}
    tied |= {source: target for target, source in tied.items()}
    absent = sorted([*(name for name in own if name not in found and tied.get(name) not in found), *wrong])
    if absent:
        raise ValueError(
            f"the weights in {folder} do not belong to its config: {len(absent)} tensors "
            f"are missing or of another shape ({', '.join(absent[:3])}, …). What config.json leaves out, such as "
            f"vocab_size or tie_word_embeddings, is what its model_type has by default: {sizes(model.config)}"
        )
    if left:
        raise ValueError(
            f"the weights in {folder} do not belong to its config, which states {n_layers} layers: there is {min(left)}"
        )
    kept = sum(buffer.nbytes for buffer in model.buffers())
    if kept > max(MOST_BUFFERS, sum(parameter.nbytes for parameter in model.parameters())):
        raise ValueError(
            f"{folder / 'config.json'} has so many positions that what is kept of them takes {kept / 1e9:.0f} GB, "
            "more than the weights: get it again"
        )
    return found


def read(found):
    """The tensors at the places that `places` gives, by the model's names; as they lie in the files, on the CPU."""
    from safetensors import safe_open

    tensors = {}
    for file in {file for file, _ in found.values()}:
        with safe_open(file, "pt") as opened:
            tensors |= {part: opened.get_tensor(name) for part, (of, name) in found.items() if of == file}
    return tensors
