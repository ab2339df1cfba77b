"""An edit as a value: the low-rank change of one projection, and what can be done with it.

W-space throughout: `weight += left @ right.T` with W (d_value, d_key), whatever way the model stores W.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Update:
    """Rank-r change of the projection of one layer.

    Attributes:
        layer: 0-indexed layer.
        left: (d_value, r), in the weight's dtype.
        right: (d_key, r), in the weight's dtype.
    """

    layer: int
    left: object
    right: object

    def matrix(self):
        """ΔW, (d_value, d_key)."""
        return self.left @ self.right.T

    def norm(self):
        """‖ΔW‖ (Frobenius), a float, from the factors in float64."""
        left, right = self.left.double(), self.right.double()
        return ((left.T @ left) * (right.T @ right)).sum().clamp(min=0).sqrt().item()

    def is_finite(self):
        return bool(self.left.isfinite().all() and self.right.isfinite().all())


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
