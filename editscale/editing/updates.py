"""An edit as a value: the change of one projection, and what can be done with it.

W-space throughout: `weight += left @ right.T` with W (d_value, d_key), whatever way the model stores W. A method whose
changes have no low rank gives the whole matrix, and may change the projection's bias.
"""

from contextlib import contextmanager
from dataclasses import dataclass, field, replace

PARTS = ("left", "right", "bias", "mask")  # what changes a projection


@dataclass(frozen=True)
class Update:
    """Change of the projection of one layer: of rank r, or a full matrix.

    Attributes:
        layer: 0-indexed layer.
        left: (d_value, r), in the weight's dtype; ΔW itself, (d_value, d_key), where there is no `right`.
        right: (d_key, r), in the weight's dtype, or None.
        bias: change of the projection's bias, (d_value,), or None.
        mask: which entries of left rightᵀ count, as `packed` gives it; None: all.
        kept: name ↦ tensor, what the edit leaves to the state of its run (`method.Method.after`); no part of ΔW.
    """

    layer: int
    left: object
    right: object = None
    bias: object = None
    mask: object = None
    kept: dict = field(default_factory=dict)

    def change(self):
        """The tensors that ΔW and the bias' change consist of, by name; what is None is left out."""
        named = {"left": self.left, "right": self.right, "bias": self.bias, "mask": self.mask}
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    def tensors(self):
        """All tensors, by name: those of `change`, and what is kept."""
        return self.change() | self.kept

    def to(self, device):
        """The same update with its tensors on another device."""
        kept = {name: tensor.to(device) for name, tensor in self.kept.items()}
        return replace(self, **{name: tensor.to(device) for name, tensor in self.change().items()}, kept=kept)

    def matrix(self):
        """ΔW, (d_value, d_key)."""
        whole = self.left if self.right is None else self.left @ self.right.T
        return whole if self.mask is None else whole * unpacked(self.mask, whole.shape)

    def norm(self):
        """‖ΔW‖ (Frobenius; the bias is no part of it), a float, computed in float64."""
        left = self.left.double()
        if self.right is None or self.mask is not None:
            return self.matrix().double().norm().item()
        right = self.right.double()
        return ((left.T @ left) * (right.T @ right)).sum().clamp(min=0).sqrt().item()

    def is_finite(self):
        """Whether ΔW, in which the product of finite factors may overflow, and the bias hold no NaN or infinity."""
        changes = [self.matrix()] if self.bias is None else [self.matrix(), self.bias]
        return all(bool(change.isfinite().all()) for change in changes)


def packed(mask):
    """A mask (d_value, d_key) as bytes, eight entries in each, row by row, the first in the highest bit."""
    import torch

    flat = torch.nn.functional.pad(mask.flatten(), (0, -mask.numel() % 8)).view(-1, 8).to(torch.uint8)
    return (flat << torch.arange(7, -1, -1, dtype=torch.uint8, device=mask.device)).sum(1, dtype=torch.uint8)


def unpacked(mask, shape):
    """The mask of this shape that `packed` gave, bool."""
    import torch

    bits = (mask[:, None] >> torch.arange(7, -1, -1, dtype=torch.uint8, device=mask.device)) & 1
    return bits.flatten()[: shape.numel()].view(shape).bool()


def factors(left, right, dtype):
    """Factors of a change in the dtype of its weight. In float16, which holds nothing below 6e-8, they are made equally
    large (Frobenius)."""
    import torch

    if dtype == torch.float16 and left.norm() and right.norm():
        scale = (left.norm() / right.norm()).sqrt()
        left, right = left / scale, right * scale
    return left.to(dtype), right.to(dtype)


def low_rank_bytes(lm, params, n, *, left=1, right=1, masked=False):
    """Bytes of the tensors of an `Update` of rank n for each of `params.layers`, in the weights' dtype.

    Args:
        left, right: how many tensors (d_value, n) and (d_key, n) an update holds, with those that are kept.
        masked: whether it has a mask.
    """
    total = 0
    for layer in params.layers:
        d_value, d_key = lm.weight(layer).shape[-2:]
        total += n * (left * d_value + right * d_key) * lm.dtype.itemsize
        total += -(-d_value * d_key // 8) if masked else 0
    return total


@dataclass(frozen=True)
class Edit:
    """What an editor returns: the updates, and a trace of named tensors that says how they came about."""

    updates: tuple
    trace: dict


def apply(lm, updates, copy=None):
    """Add updates to the model, or to one of a stack of copies, in their order.

    The same updates in the same order give the same bits, whichever way the model is held.

    Raises ValueError, before anything changes, if a tensor of an update does not fit.
    """
    weights, biases = ([of(u.layer) for u in updates] for of in (lm.weight, lm.bias))
    if copy is not None:
        weights, biases = ([None if of is None else of[copy] for of in part] for part in (weights, biases))
    for update, weight, bias in zip(updates, weights, biases, strict=True):
        _check_fits(lm, update, weight, bias)
    for update, weight, bias in zip(updates, weights, biases, strict=True):
        weight += update.matrix().to(weight)
        if update.bias is not None:
            bias += update.bias.to(bias)


def _check_fits(lm, update, weight, bias):
    given = {name: tuple(tensor.shape) for name, tensor in update.change().items()}
    if update.right is None:
        wanted = {"left": tuple(weight.shape)}
    else:
        rank = given["left"][1] if update.left.ndim == 2 else 1
        wanted = {"left": (weight.shape[0], rank), "right": (weight.shape[1], rank)}
    if update.mask is not None:
        wanted["mask"] = (-(-weight.numel() // 8),)
    if update.bias is not None:
        wanted["bias"] = None if bias is None else tuple(bias.shape)
    if given != wanted:
        raise ValueError(
            f"update of layer {update.layer} has {_words(given)}; the weight of {lm.name} is {tuple(weight.shape)}, "
            f"its bias {None if bias is None else tuple(bias.shape)}"
        )


def _words(shapes):
    return ", ".join(f"{name} {shape}" for name, shape in shapes.items())


class SavedWeights(dict):
    """layer ↦ a copy of its projection's W; `biases`: layer ↦ a copy of its bias, where it has one."""

    def __init__(self, weights, biases):
        super().__init__(weights)
        self.biases = biases


def saved_weights(lm, layers):
    """Copies of the projections of some layers, a `SavedWeights`, for `restore`."""
    layers = list(layers)
    biases = {layer: lm.bias(layer).clone() for layer in layers if lm.bias(layer) is not None}
    return SavedWeights({layer: lm.weight(layer).clone() for layer in layers}, biases)


def restore(lm, weights):
    """Put saved projections, biases included, back, bit for bit."""
    for layer, weight in weights.items():
        lm.weight(layer).copy_(weight)
    for layer, bias in weights.biases.items():
        lm.bias(layer).copy_(bias)


@contextmanager
def put_back(lm, layers):
    """The `saved_weights` of some layers, which are put back when the block ends, also by an error."""
    weights = saved_weights(lm, layers)
    try:
        yield weights
    finally:
        restore(lm, weights)


def to_bytes(updates):
    """Updates as safetensors, "<layer>.left", "<layer>.right", …; the same updates give the same bytes."""
    from safetensors.torch import save

    named = {f"{u.layer}.{name}": tensor for u in updates for name, tensor in u.tensors().items()}
    return save({name: tensor.detach().to("cpu").contiguous() for name, tensor in named.items()})


def from_bytes(data):
    """The updates in what `to_bytes` made, by layer, on the CPU."""
    from safetensors.torch import load

    by_layer = {}
    for name, tensor in load(data).items():
        layer, part = name.split(".")
        of = by_layer.setdefault(int(layer), {"kept": {}})
        (of if part in PARTS else of["kept"])[part] = tensor
    return [Update(layer, **by_layer[layer]) for layer in sorted(by_layer)]


def arrays(data):
    """The tensors in what `to_bytes` made, by name, as NumPy arrays and without torch; bfloat16 as float32."""
    import numpy as np
    from safetensors import deserialize

    kinds, found = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "U8": "u1", "I32": "<i4"}, {}
    for name, stored in deserialize(data):
        values = np.frombuffer(stored["data"], dtype=kinds[stored["dtype"]])
        if stored["dtype"] == "BF16":
            values = (values.astype("<u4") << 16).view("<f4")
        found[name] = values.reshape(stored["shape"])
    return found
