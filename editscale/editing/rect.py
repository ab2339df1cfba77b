"""RECT: of a change of the weights only the entries that are large beside the weight they change.

arXiv:2401.04700. On ROME as in JasonForJoy/Model-Editing-Hurt `easyeditor/models/rome/` (its block taken out of the
string literal that holds it), on MEMIT as in jianghoucheng/AlphaEdit `memit/memit_rect_main.py`, where higher layers
see the whole changes of lower ones. The two count and compare differently:

| method | score of an entry | kept |
|---|---|---|
| rome-rect | abs(ΔW / W) | all but the ⌊zN⌋ smallest |
| memit-rect | abs(ΔW / (W + 1e-8)) | those not below the ⌊zN⌋-th smallest, one more |

W is the weight at the time of the edit, N its number of entries, z the share `zeroed_fraction`. An edit keeps its low
rank and a bit for each entry.
"""

from dataclasses import dataclass, replace
from functools import partial

from editscale.editing import memit, rome, updates
from editscale.editing.memit import MemitParams
from editscale.editing.rome import RomeParams

TINY = 1e-8


@dataclass(frozen=True)
class RomeRectParams(RomeParams):
    """Those of ROME, and the share of entries that stay as they are."""

    zeroed_fraction: float


@dataclass(frozen=True)
class MemitRectParams(MemitParams):
    """Those of MEMIT, and the share of entries that stay as they are."""

    zeroed_fraction: float


def largest(scores, zeroed, *, one_more=False):
    """The entries, bool, of a matrix that remain without the ⌊zeroed · N⌋ smallest; with `one_more` the largest of
    these too. Entries of equal score at the border all remain."""
    if not 0 <= zeroed < 1:
        raise ValueError(f"zeroed_fraction is {zeroed}; expected a share from 0 to below 1")
    place = max(int(zeroed * scores.numel()) - one_more, 0)  # among all, in ascending order, from 0
    return scores >= scores.flatten().kthvalue(place + 1).values


def masked(lm, i, edit, *, zeroed, tiny, one_more):
    """An `Edit` of the model, or of copy i of a stack, with masks."""
    found = []
    for update in edit.updates:
        weight = lm.weight(update.layer)
        weight = weight[i] if weight.ndim == 3 else weight
        seen = edit.trace.get(update.layer)
        change = seen["residual"] @ seen["solved"].T if seen else update.matrix()  # of MEMIT, before it is rounded
        mask = largest((change / (weight + tiny)).abs(), zeroed, one_more=one_more)
        found.append(replace(update, mask=updates.packed(mask)))
    return replace(edit, updates=tuple(found))


def _masking(way, **how):
    """A way of another method, with masks on its edits."""

    def masking(params, factors, state, n):
        finish = partial(masked, zeroed=params.zeroed_fraction, **how)
        return replace(way(params, factors, state, n), finish=finish)

    return masking


SIZE = partial(updates.low_rank_bytes, masked=True)
METHODS = {
    "rome-rect": rome.method(RomeRectParams, _masking(rome.way, tiny=0.0, one_more=False), size=SIZE),
    "memit-rect": memit.method(MemitRectParams, _masking(memit.way, tiny=TINY, one_more=True), size=SIZE),
}
