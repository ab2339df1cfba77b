"""An edit as a value: the low-rank change of one projection, and what can be done with it.

W-space throughout: `weight += left @ right.T` with W (d_value, d_key), whatever way the model stores W.
"""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Update:
    """Rank-r change of the projection of one layer.

    Attributes:
        layer: 0-indexed layer.
        left: (d_value, r), in the weight's dtype.
        right: (d_key, r), in the weight's dtype.
        bias: change of the projection's bias, (d_value,), or None.
    """

    layer: int
    left: object
    right: object
    bias: object = None

    def tensors(self):
        """The tensors it consists of, by name; what is None is left out."""
        named = {"left": self.left, "right": self.right, "bias": self.bias}
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    def to(self, device):
        """The same update with its tensors on another device."""
        return replace(self, **{name: tensor.to(device) for name, tensor in self.tensors().items()})

    def matrix(self):
        """ΔW, (d_value, d_key)."""
        return self.left @ self.right.T

    def norm(self):
        """‖ΔW‖ (Frobenius), a float, from the factors in float64."""
        left, right = self.left.double(), self.right.double()
        return ((left.T @ left) * (right.T @ right)).sum().clamp(min=0).sqrt().item()

    def is_finite(self):
        """Whether ΔW, in which the product of finite factors may overflow, and the bias hold no NaN or infinity."""
        changes = [self.matrix()] if self.bias is None else [self.matrix(), self.bias]
        return all(bool(change.isfinite().all()) for change in changes)


def apply(lm, updates, copy=None):
    """Add updates to the model, or to one of a stack of copies, in their order.

    The same updates in the same order give the same bits, whichever way the model is held.

    Raises ValueError, before anything changes, if a factor does not fit its weight.
    """
    weights = [lm.weight(u.layer) if copy is None else lm.weight(u.layer)[copy] for u in updates]
    for update, weight in zip(updates, weights, strict=True):
        fits = (
            update.left.ndim == update.right.ndim == 2
            and update.left.shape[1] == update.right.shape[1]
            and (update.left.shape[0], update.right.shape[0]) == tuple(weight.shape)
        )
        if not fits:
            raise ValueError(
                f"update of layer {update.layer} has factors {tuple(update.left.shape)} and "
                f"{tuple(update.right.shape)}; the weight of {lm.name} is {tuple(weight.shape)}"
            )
    for update, weight in zip(updates, weights, strict=True):
        weight += update.matrix().to(weight)


def saved_weights(lm, layers):
    """Copies of the projections of some layers, for `restore`."""
    return {layer: lm.weight(layer).clone() for layer in layers}


def restore(lm, weights):
    """Put saved projections back, bit for bit."""
    for layer, weight in weights.items():
        lm.weight(layer).copy_(weight)


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
        by_layer.setdefault(int(layer), {"right": None})[part] = tensor
    return [Update(layer, **by_layer[layer]) for layer in sorted(by_layer)]


def arrays(data):
    """The tensors in what `to_bytes` made, by name, as NumPy arrays and without torch; bfloat16 as float32."""
    import numpy as np
    from safetensors import deserialize

    kinds, found = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}, {}
    for name, stored in deserialize(data):
        values = np.frombuffer(stored["data"], dtype=kinds[stored["dtype"]])
        if stored["dtype"] == "BF16":
            values = (values.astype("<u4") << 16).view("<f4")
        found[name] = values.reshape(stored["shape"])
    return found
