"""PRUNE: edits are those of MEMIT or ROME; scored is a model in which what they have changed is restrained.

arXiv:2405.16821, as released in mjy1111/PRUNE (`read_weights` of `easyeditor/editors/bi_editor_loadw.py`). A weight W₀
has become W₀ + Δ after some edits, Δ = U diag(σ) Vᵀ, and σ̂ is the largest singular value of W₀. Whatever scores the
model sees W₀ + U diag(f(σ)) Vᵀ instead, and the next edit is made on W₀ + Δ again:

| prune_base | f(σ) where σ ≥ σ̂; below, σ stays |
|---|---|
| e, 2, 1.5, 1.2 or another base a | log_a σ − log_a σ̂ + σ̂ |
| linear | (σ + σ̂) / 2 |

A logarithm restrains all changes only if σ̂ ≥ 1 / ln a, which is 1 for e and 5.5 for 1.2. Of a weight with a smaller σ̂
it enlarges singular values just above σ̂. That is how the method was released, so it is done here; a run begins with a
warning then (`started`).

All is computed from the factors of the edits, in float64: of t columns on both sides, only a t × t matrix is
decomposed.
"""

import math
import warnings
from dataclasses import dataclass, replace

from editscale.editing import memit, rome
from editscale.editing.memit import MemitParams
from editscale.editing.rome import RomeParams
from editscale.editing.updates import Update


def base_of(text):
    """The base of the logarithm that a `prune_base` names, None for linear. Raises ValueError for anything else."""
    if text in ("e", "linear"):
        return {"e": math.e, "linear": None}[text]
    try:
        base = float(text)
    except ValueError:
        base = math.nan
    if not 1 < base < math.inf:
        raise ValueError(f"prune_base is {text!r}; expected e, linear, or a number above 1 such as '1.2'")
    return base


@dataclass(frozen=True)
class MemitPruneParams(MemitParams):
    """Those of MEMIT, and how singular values are restrained (see the module)."""

    prune_base: str

    def __post_init__(self):
        base_of(self.prune_base)


@dataclass(frozen=True)
class RomePruneParams(RomeParams):
    """Those of ROME, and how singular values are restrained (see the module)."""

    prune_base: str

    def __post_init__(self):
        base_of(self.prune_base)


@dataclass(frozen=True)
class Change:
    """The change Δ of one weight by all edits so far, float64.

    Attributes:
        largest: σ̂, the largest singular value of the unedited weight.
        base: of the logarithm, None for linear.
        left, right: (d_value, t) and (d_key, t), Δ = left rightᵀ. Once t would reach the smaller side of Δ, `left` is Δ
            itself, (d_value, d_key), and `right` None.
    """

    largest: float
    base: object
    left: object
    right: object

    def after(self, update):
        """The change with that of an `Update` of factors."""
        import torch

        left, right = update.left.to(self.left), update.right.to(self.left)
        if self.right is None:
            return replace(self, left=self.left + left @ right.T)
        left, right = torch.cat([self.left, left], dim=1), torch.cat([self.right, right], dim=1)
        if left.shape[1] < min(len(left), len(right)):
            return replace(self, left=left, right=right)
        return replace(self, left=left @ right.T, right=None)

    def decomposed(self):
        """U (d_value, r), σ (r,) descending, and V (d_key, r) of Δ."""
        import torch

        if self.right is None:
            u, sigma, v = torch.linalg.svd(self.left, full_matrices=False)
            return u, sigma, v.T
        (left, a), (right, b) = torch.linalg.qr(self.left), torch.linalg.qr(self.right)
        u, sigma, v = (x.to(left) for x in torch.linalg.svd((a @ b.T).cpu()))  # which a GPU is slow at
        return left @ u, sigma, right @ v.T

    def correction(self):
        """(left, right) of what turns W₀ + Δ into the weight that is scored, or None where they are the same.

        The singular vectors are those of Δ, so the restrained change has its rank.
        """
        if self._norm() < self.largest:  # and so is every singular value
            return None
        u, sigma, v = self.decomposed()
        large = sigma >= self.largest
        if not large.any():
            return None
        sigma = sigma[large]
        return u[:, large] * (restrained(sigma, self.largest, self.base) - sigma), v[:, large]

    def _norm(self):
        if self.right is None:
            return self.left.norm()
        return ((self.left.T @ self.left) * (self.right.T @ self.right)).sum().clamp(min=0).sqrt()


def restrained(sigma, largest, base):
    """f(σ) of singular values that are at least `largest`, σ̂; base None: linear."""
    if base is None:
        return (sigma + largest) / 2
    return (sigma / largest).log() / math.log(base) + largest


def started(lm, params, contexts, factors):
    """The state before the first edit: layer ↦ `Change`, 0. Warns where singular values can grow (see the module)."""
    import torch

    base, state = base_of(params.prune_base), {}
    for layer in sorted(params.layers):
        weight = lm.weight(layer).double()
        largest = torch.linalg.matrix_norm(weight, ord=2).item()
        needed = 1 / math.log(base) if base else 0.0
        if largest < needed:
            warnings.warn(
                f"layer {layer} of {lm.name}: the largest singular value of the unedited weight is {largest:.3g}, and "
                f"a logarithm to base {params.prune_base} restrains all changes only where it is {needed:.3g} or more; "
                "singular values of a change just above it are enlarged, as released (prune_base linear restrains all)",
                stacklevel=2,
            )
        state[layer] = Change(largest, base, weight.new_zeros(len(weight), 0), weight.new_zeros(weight.shape[1], 0))
    return state


def after(state, updates):
    """The state after an edit that left these updates."""
    return state | {update.layer: state[update.layer].after(update) for update in updates}


def evaluated(state):
    """The updates that turn the weights as edited into those that are scored."""
    found = {layer: change.correction() for layer, change in state.items()}
    return [Update(layer, *factors) for layer, factors in sorted(found.items()) if factors]


PRUNE = {"start": started, "after": after, "evaluated": evaluated}
METHODS = {
    "rome-prune": rome.method(RomePruneParams, rome.way, **PRUNE),
    "memit-prune": memit.method(MemitPruneParams, memit.way, **PRUNE),
}
