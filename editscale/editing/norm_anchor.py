"""Norm anchors (NAS): the value an edit writes gets the norm that values have on the unedited model.

arXiv:2602.02543; SasyaTitech/NAS `baselines/*/compute_z.py` and `util/vstar_stats.py`. The anchor N belongs to a model
and the layer where values are optimized; it is a hyper-parameter here (`anchor_norm`), which `anchor` finds. The value
is what the MLP returns: MEMIT's family optimizes the output of the whole block, of which only that part is scaled.
"""

from dataclasses import dataclass, replace
from functools import partial

from editscale.editing import memit, memit_family, rome, values
from editscale.editing.memit import MemitParams
from editscale.editing.memit_family import AlphaEditParams
from editscale.editing.rome import RomeParams

GROUP = 16  # facts whose values are optimized together where the anchor is found, as in the released code
KEPT = 0.95  # share of the norms that the anchor is the mean of, the largest left out
TINY = 1e-10


@dataclass(frozen=True)
class RomeNasParams(RomeParams):
    """Those of ROME, and the anchor N."""

    anchor_norm: float


@dataclass(frozen=True)
class MemitNasParams(MemitParams):
    """Those of MEMIT, and the anchor N."""

    anchor_norm: float


@dataclass(frozen=True)
class AlphaEditNasParams(AlphaEditParams):
    """Those of AlphaEdit, and the anchor N."""

    anchor_norm: float


def anchored(found, anchor, at="block"):
    """A `values.Optimized` with its value scaled to the anchor's norm.

    at="block": v* = v₀ + δ, v₀ being the MLP's output at the bare prompt; beyond twice the anchor it becomes v₀ again,
    so that nearly nothing is written. at="mlp": v* = init + δ.
    """
    base = found.outputs[0] if at == "block" else found.init
    value = base + found.delta
    norm = value.norm()
    if at == "block" and norm > 2 * anchor:
        return replace(found, delta=found.delta * 0)
    return replace(found, delta=value * (anchor / (norm + TINY)) - base)


def norms(lm, facts, layer, params):
    """‖v₀ + δ‖ of each fact on the unedited model, (facts,), δ optimized after the bare prompt alone."""
    import torch

    found = values.optimize(lm, facts, ["{}"], layer, params, at="block")
    return torch.stack([(one.outputs[0] + one.delta).norm() for one in found])


def anchor(found):
    """The anchor: the mean of these norms without the largest ⌊(1 − 0.95) n⌋."""
    ordered = found.sort().values
    return ordered[: len(ordered) - int((1 - KEPT) * len(ordered))].mean().item()


def _anchoring(way, at="block"):
    """A way of another method, with values scaled to the anchor's norm before they are written."""

    def anchoring(params, factors, state, n):
        return replace(way(params, factors, state, n), adjust=partial(anchored, anchor=params.anchor_norm, at=at))

    return anchoring


KEEPING = {"after": memit_family.with_keys, "size": memit_family.SIZE}
METHODS = {
    "rome-nas": rome.method(RomeNasParams, _anchoring(rome.way, "mlp")),
    "memit-nas": memit.method(MemitNasParams, _anchoring(memit.way)),
    "memit-seq-nas": memit.method(
        MemitNasParams, _anchoring(memit_family.way), start=memit_family.with_moment, **KEEPING
    ),
    "alphaedit-nas": memit.method(
        AlphaEditNasParams, _anchoring(memit_family.way), start=memit_family.in_null_space, **KEEPING
    ),
}
