"""ROME spread over layers: MEMIT's way to split a residual, with ROME's contexts, keys and equality constraint.

The value is optimized at the output of the last block, after ROME's contexts. Then each layer, ascending, takes an
even part of what is still missing there, r, by ROME's rank-one change, with k̄ the plain mean key over the contexts:

    ΔW = r (C⁻¹k̄)ᵀ / (kᵀC⁻¹k̄), which sends k to Wk + r.

| method | k | with a single layer |
|---|---|---|
| rome-multi | k̄: of all changes that send it there, this one moves the keys of C least | r-rome without m₀ − m̄ |
| rome-multi-two-keys | key of the bare prompt, as the released ROME has it | rome |

The first is EMMET (arXiv:2403.14236) without ε, and MEMIT's solve as its λ → 0. Of several facts edited together, K
their mean keys and R what is missing, it is ΔW = R (KᵀC⁻¹K)⁻¹ (C⁻¹K)ᵀ. With a single layer and fact both differ from
ROME in what δ is held against, ‖h₀‖ of the block instead of ‖m₀‖ of its MLP; and r-ROME writes m₀ + δ − m̄ where
rome-multi writes δ, m₀ and m̄ being the MLP's outputs at the bare prompt and their mean over the contexts.
"""

from dataclasses import dataclass, replace
from functools import partial

from editscale.editing import memit, moments
from editscale.editing.context_sampling import rome_contexts
from editscale.editing.method import Way


@dataclass(frozen=True)
class RomeMultiParams:
    """Hyper-parameters, named as MEMIT's; params/rome-multi/*.yaml says what each means."""

    layers: list
    v_num_grad_steps: int
    v_lr: float
    v_weight_decay: float
    clamp_norm_factor: float
    kl_factor: float


def solve(keys, factor, bare=None):
    """A = C⁻¹K̄ (KᵀC⁻¹K̄)⁻¹, (d_key, n) float64, of keys K̄ (d_key, n).

    Args:
        factor: lower Cholesky factor of C, (d_key, d_key) float64.
        bare: K, (d_key, n); None: K̄.

    Raises ValueError if the keys do not fit the factor.
    """
    import torch

    solved = moments.weighed(keys, factor)
    inner = (keys if bare is None else bare).double().T @ solved
    return solved / inner if keys.shape[1] == 1 else torch.linalg.solve(inner, solved, left=False)


def way(params, factors, state, n, two_keys=False):
    """The `Way` of ROME over layers; with two keys, k is that of the bare prompt.

    The trace of an edit has then ROME's "denominator" for each layer, k·u with u = C⁻¹k̄ / ‖C⁻¹k̄‖, and the first
    layer's as its own: no edit of the run changes it.

    Raises ValueError for more facts at a time than keys have entries: no weight meets all these constraints.
    """
    if n > (d_key := len(factors[min(params.layers)])):
        raise ValueError(
            f"facts_per_step is {n}, and rome-multi meets each fact of a step exactly, which a weight here can do for "
            f"{d_key}; give fewer, or a method such as memit"
        )
    if two_keys:
        return Way(lambda keys, layer, bare: solve(keys, factors[layer], bare), finish=_with_denominators)
    return Way(lambda keys, layer, bare: solve(keys, factors[layer]))


def _with_denominators(lm, i, edit):
    seen = {update.layer: edit.trace[update.layer] for update in edit.updates}
    for of_layer in seen.values():
        of_layer["denominator"] = _denominator(**of_layer)
    return replace(edit, trace=edit.trace | {"denominator": seen[min(seen)]["denominator"]})


def _denominator(keys, solved, **_):
    """k·u, from A = u / (k·u): 1 / ‖A‖, with the sign of k̄ᵀA, since k̄ᵀC⁻¹k̄ is positive."""
    return (keys.double().T @ solved).squeeze().sign() / solved.norm()


METHODS = {
    "rome-multi": memit.method(RomeMultiParams, way, rome_contexts),
    "rome-multi-two-keys": replace(
        memit.method(RomeMultiParams, partial(way, two_keys=True), rome_contexts), edit_batches=None
    ),
}
