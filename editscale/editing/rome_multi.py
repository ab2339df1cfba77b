"""ROME spread over layers: MEMIT's way to split a residual, with ROME's contexts, key and equality constraint.

The value is optimized at the output of the last block, after ROME's contexts. Then each layer, ascending, takes an
even part of what is still missing there, r, by ROME's rank-one change with one key k, the plain mean over the contexts:

    ΔW = r (C⁻¹k)ᵀ / (kᵀC⁻¹k), which sends k to Wk + r and, of all changes that do, moves the keys of C least.

This is EMMET (arXiv:2403.14236) with one fact, and MEMIT's solve as its λ → 0. With a single layer it differs
from r-ROME in where the value is optimized: at the block's output instead of the MLP's.
"""

from dataclasses import dataclass

from editscale.editing import memit, moments
from editscale.editing.method import Method


@dataclass(frozen=True)
class RomeMultiParams:
    """Hyper-parameters, named as MEMIT's; params/rome-multi/*.yaml says what each means."""

    layers: list
    v_num_grad_steps: int
    v_lr: float
    v_weight_decay: float
    clamp_norm_factor: float
    kl_factor: float


def solve(keys, factor):
    """A = C⁻¹k / (kᵀC⁻¹k), (d_key, 1) float64, of one key (d_key, 1).

    Args:
        factor: lower Cholesky factor of C, (d_key, d_key) float64.

    Raises ValueError if the key does not fit the factor.
    """
    solved = moments.weighed(keys, factor)
    return solved / (keys.double().T @ solved)


def edit_each(lm, facts, params, contexts, factors, *, forward=None):
    """For each fact the updates of all layers that make the model, or copy i of a stack, say `fact.target_new`.

    The model is left as it was.

    Args:
        contexts: context templates, the bare one "{}" first.
        factors: layer ↦ lower Cholesky factor of C of the unedited model.
        forward: way to optimize the values, see `values.optimize`.

    Returns:
        One `Edit` per fact, with one `Update` of rank one per layer.

    Raises ValueError as `memit.edit` does.
    """

    def of_layer(keys, layer, _):
        return solve(keys, factors[layer])

    return memit.spread(lm, [[fact] for fact in facts], params, [contexts], of_layer, forward=forward)


METHODS = {"rome-multi": Method(RomeMultiParams, edit_each)}
