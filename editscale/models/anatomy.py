"""Where each family of language models keeps what an editor needs, and how to run a part of its layers.

The words used throughout the package: a *block* is one transformer layer; its *projection* is the output
projection W of its MLP, (d_value, d_key); the *key* is the projection's input at one token and the *value* its
output. Layers are 0-indexed, as in the released ROME and MEMIT code (the papers print layer + 1).
"""

import copy
from collections import OrderedDict
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property

from editscale.models import tokens


@dataclass(frozen=True)
class Family:
    """Attribute names inside a Hugging Face base model (`model.base_model`) of one architecture."""

    blocks: str  # the list of blocks
    projection: str  # the MLP output projection, inside a block
    norm: str  # the final norm, inside the base model
    mlp: str = "mlp"  # the MLP, inside a block
    post_norm: str = ""  # a norm between the MLP and the residual stream, where there is one
    windows: str = ""  # which blocks see config.sliding_window tokens only: "all", those of "layer_types", or none
    capped: bool = False  # whether logits are capped at config.final_logit_softcapping


_LLAMA = Family("layers", "mlp.down_proj", "norm")
_QWEN = replace(_LLAMA, windows="layer_types")
_GEMMA2 = replace(_QWEN, post_norm="post_feedforward_layernorm", capped=True)

# Keyed by `config.model_type`.
FAMILIES = {
    "gpt2": Family("h", "mlp.c_proj", "ln_f"),
    "gptj": Family("h", "mlp.fc_out", "ln_f"),
    "gpt_neox": Family("layers", "mlp.dense_4h_to_h", "final_layer_norm"),
    "llama": _LLAMA,
    "mistral": replace(_LLAMA, windows="all"),
    "qwen2": _QWEN,
    "qwen3": _QWEN,
    "gemma": _LLAMA,
    "gemma2": _GEMMA2,
    "gemma3_text": _GEMMA2,
}


def family_of(config):
    """The `Family` of a Hugging Face config. Raises ValueError for an architecture that is not supported."""
    if config.model_type not in FAMILIES:
        raise ValueError(
            f"model type {config.model_type!r} is not supported; editscale knows {', '.join(FAMILIES)} "
            "(a new family is one line of FAMILIES in editscale/models/anatomy.py)"
        )
    return FAMILIES[config.model_type]


@dataclass(eq=False)
class LanguageModel:
    """A causal language model with its tokenizer: what the functions of this package take.

    `model` is in eval mode, with frozen parameters and eager attention; `tokenizer` is a fast one; `identity`
    says, in strings, what was loaded (source, revision, sha256 of weights and of configs, dtype). `graphs` holds CUDA
    graphs of its upper blocks (`cuda_graphs.py`); they read the weights where these are, so they outlive edits; None:
    none are recorded. With `tf32_steps` the steps of optimizations multiply in TensorFloat-32 on a GPU, and nothing
    else does. With `after_start_token` the tokenizer puts a document-start token before every text, which the model's
    own does not (`loading.after_start_token`).
    """

    model: object
    tokenizer: object
    name: str
    identity: dict = field(default_factory=dict)
    graphs: dict | None = field(default_factory=dict)
    tf32_steps: bool = False
    after_start_token: bool = False

    @cached_property
    def family(self):
        return family_of(self.model.config)

    @property
    def blocks(self):
        return getattr(self.model.base_model, self.family.blocks)

    @property
    def n_layers(self):
        return len(self.blocks)

    @property
    def d_model(self):
        return self.weight(0).shape[-2]

    @property
    def d_key(self):
        return self.weight(0).shape[-1]

    @property
    def n_vocabulary(self):
        return self.model.get_output_embeddings().weight.shape[0]

    @property
    def device(self):
        return next(self.model.parameters()).device

    @property
    def dtype(self):
        return next(self.model.parameters()).dtype

    def check_layer(self, layer):
        """Raise ValueError unless `layer` is an int in 0 … n_layers − 1."""
        if isinstance(layer, bool) or not isinstance(layer, int) or not 0 <= layer < self.n_layers:
            raise ValueError(
                f"layer {layer!r} is not one of the {self.n_layers} layers 0–{self.n_layers - 1} of {self.name}"
            )

    def block(self, layer):
        self.check_layer(layer)
        return self.blocks[layer]

    def mlp(self, layer):
        return self.block(layer).get_submodule(self.family.mlp)

    def projection(self, layer):
        return self.block(layer).get_submodule(self.family.projection)

    def weight(self, layer):
        """W of a layer's projection as a (d_value, d_key) view: writing to it changes the model. On a stack of
        copies (`stacks.py`), (n, d_value, d_key) where the layer is stacked.

        The orientation follows from the module's type, never from its shape: GPT-2's Conv1D stores Wᵀ.
        """
        import torch
        from transformers.pytorch_utils import Conv1D

        module = self.projection(layer)
        if isinstance(module, Conv1D):
            return module.weight.data.mT
        if isinstance(module, torch.nn.Linear):
            return module.weight.data
        raise ValueError(
            f"the projection of {self.name} layer {layer} is a {type(module).__name__}; "
            "only Linear and Conv1D weights can be edited"
        )

    def bias(self, layer):
        """The bias of a layer's projection, (d_value,), to be written to; None where it has none. On a stack of copies,
        (n, d_value) where the layer is stacked."""
        bias = self.projection(layer).bias
        return None if bias is None else bias.data

    def logits(self, hidden):
        """Next-token logits (…, vocabulary), `in_full`, of final hidden states (…, d_model), after the final norm."""
        from editscale.kernels import matmul

        with matmul.fast(self.device):
            logits = self.model.get_output_embeddings()(hidden)
        cap = getattr(self.model.config, "final_logit_softcapping", None) if self.family.capped else None
        return in_full(logits if cap is None else cap * (logits / cap).tanh())


def in_full(tensor):
    """A tensor in float32 where its dtype has 16 bits, which are too few for losses, steps and solves."""
    return tensor.float() if tensor.dtype.itemsize < 4 else tensor


class KeyValues:
    """Attention keys and values of forwards so far, in parts that are joined for one layer at a time.

    Stands in for a Hugging Face cache: every attention layer hands its keys and values, (rows, heads, tokens, d_head),
    to `update`, which keeps them as one more part, and attends to what comes back. Parts of one row serve all rows.

    Args:
        tensors: those that it begins with are in it by the names that `tensors()` gives; others are ignored.
    """

    def __init__(self, tensors):
        self.parts = {}
        for name in tensors:
            kind, _, place = name.partition(".")
            if kind == "keys":
                layer = int(place.split(".")[0])
                self.parts.setdefault(layer, []).append([tensors[name], tensors[f"values.{place}"]])

    def tensors(self):
        """All parts by name: "keys.3.0" is layer 3's first."""
        return {
            f"{kind}.{layer}.{i}": tensor
            for layer, parts in self.parts.items()
            for i, pair in enumerate(parts)
            for kind, tensor in zip(("keys", "values"), pair, strict=True)
        }

    def add(self, keys, values, layer):
        """Keep the keys and values of a layer as one more part."""
        self.parts.setdefault(layer, []).append([keys, values])

    def joined(self, layer):
        """All parts of a layer as one, or None where there are none."""
        import torch

        parts = self.parts.get(layer, [])
        if len(parts) < 2:  # as they are: a copy lies in another order, on which the rounding of attention depends
            return tuple(parts[0]) if parts else None
        rows = max(len(k) for k, _ in parts)
        return tuple(torch.cat([x.expand(rows, -1, -1, -1) for x in of], dim=-2) for of in zip(*parts, strict=True))

    def update(self, keys, values, layer, *_, **__):
        self.add(keys, values, layer)
        return self.joined(layer)


def segment(lm, start, stop=None):
    """A function that runs blocks start … stop − 1 of the model on given hidden states.

    Returns `run(hidden, mask, positions, cache=None)` with hidden (rows, tokens, d_model) entering block `start`
    — or, when start is 0, token ids (rows, tokens) —, an additive attention mask (rows, 1, tokens, keys) and
    position ids (rows, tokens). It returns the hidden states that leave block stop − 1; with stop None those after
    the final norm. The Hugging Face code of each family does the work, on shared weights: an edit of the model
    shows at once, and the model itself is not touched.
    """
    from editscale.kernels import matmul
    from editscale.models import chain

    base = lm.model.base_model
    blocks = list(lm.blocks)[start:stop]
    if not blocks:  # nothing above the last block but the final norm
        norm = getattr(base, lm.family.norm)
        return lambda hidden, mask, positions, cache=None: norm(hidden) if stop is None else hidden

    entering = {}
    if lm.model.config.model_type in chain.FAMILIES:
        blocks = [chain.Chain(blocks, entering)]
    if start:
        # A copy of the first block that takes our hidden states, whatever the embeddings above it made.
        first = copy.copy(blocks[0])
        first._forward_pre_hooks = OrderedDict(first._forward_pre_hooks)
        first.register_forward_pre_hook(lambda _, args: (entering["hidden"], *args[1:]))
        blocks[0] = first

    part = copy.copy(base)
    part._modules = dict(base._modules)
    part._modules[lm.family.blocks] = type(lm.blocks)(blocks)
    if stop is not None:
        import torch

        part._modules[lm.family.norm] = torch.nn.Identity()
    part.config = copy.copy(base.config)
    part.config.num_hidden_layers = len(blocks)
    if getattr(base.config, "layer_types", None):
        part.config.layer_types = base.config.layer_types[start:stop]

    def run(hidden, mask, positions, cache=None):
        given = {"input_ids": hidden}
        entering.update(hidden=hidden, mask=mask, cache=cache)
        if start:
            given = {"inputs_embeds": hidden}
        given |= {"attention_mask": _masks(lm, mask), "position_ids": positions, "past_key_values": cache}
        with matmul.fast(lm.device):
            return part(**given, use_cache=cache is not None).last_hidden_state

    return run


def _masks(lm, mask):
    """A mask as the model takes it: for blocks that attend to a window, cut to that window."""
    window = getattr(lm.model.config, "sliding_window", None) if lm.family.windows else None
    if not window or mask.shape[-1] <= window:
        return mask
    cut = tokens.windowed(mask, window)
    return cut if lm.family.windows == "all" else {"full_attention": mask, "sliding_attention": cut}


def up_to(lm, layer, ids, mask, positions):
    """What blocks 0 … layer make of tokens: `block`, what leaves the last of them; `mlp`, the output of its MLP; `keys`
    and `values`, what enters its projection and what leaves it. Each (rows, tokens, …); arguments as for `segment`.
    """
    seen = {}
    with (
        watching(lm.projection(layer), lambda keys, values: seen.update(keys=keys, values=values)),
        watching(lm.mlp(layer), lambda _, output: seen.update(mlp=output)),
    ):
        return seen | {"block": segment(lm, 0, layer + 1)(ids, mask, positions)}


@contextmanager
def watching(module, seen):
    """While open, call `seen(input, output)` with the tensors of each forward of `module`."""

    def hook(_, args, output):
        seen(args[0] if args else None, output[0] if isinstance(output, tuple) else output)

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
