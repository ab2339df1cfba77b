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

from dataclasses import dataclass
from functools import partial

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


def edit_each(lm, facts, params, contexts, factors, *, two_keys=False, forward=None):
    """For each fact the updates of all layers that make the model, or copy i of a stack, say `fact.target_new`.

    The model is left as it was.

    Args:
        contexts: context templates, the bare one "{}" first.
        factors: layer ↦ lower Cholesky factor of C of the unedited model.
        two_keys: whether k is the key of the bare prompt.
        forward: way to optimize the values, see `values.optimize`.

    Returns:
        One `Edit` per fact, with one `Update` of rank one per layer. With two keys the trace has ROME's "denominator",
        k·u with u = C⁻¹k̄ / ‖C⁻¹k̄‖, of each layer, and of the first one as the edit's: no edit of the run changes it.

    Raises ValueError as `memit.edit` does.
    """
    batches = [[fact] for fact in facts]
    return edit_batches(lm, batches, params, contexts, factors, two_keys=two_keys, forward=forward)


def edit_batches(lm, batches, params, contexts, factors, *, two_keys=False, forward=None):
    """For each list of facts one `Edit`, as `edit_each` makes it, whose updates have the rank of their number.

    Raises ValueError for more facts in a list than keys have entries: no weight meets all these constraints.
    """
    if len(batches[0]) > lm.d_key:
        raise ValueError(
            f"facts_per_step is {len(batches[0])}, and rome-multi meets each fact of a step exactly, which a weight of "
            f"{lm.name} can do for {lm.d_key}; give fewer, or a method such as memit"
        )

    def of_layer(keys, layer, _, bare=None):
        return solve(keys, factors[layer], bare)

    edits = memit.spread(lm, batches, params, [contexts], of_layer, two_keys=two_keys, forward=forward)
    for edit in edits if two_keys else []:
        for layer in params.layers:
            edit.trace[layer]["denominator"] = _denominator(**edit.trace[layer])
        edit.trace["denominator"] = edit.trace[min(params.layers)]["denominator"]
    return edits


def _denominator(keys, solved, **_):
    """k·u, from A = u / (k·u): 1 / ‖A‖, with the sign of k̄ᵀA, since k̄ᵀC⁻¹k̄ is positive."""
    return (keys.double().T @ solved).squeeze().sign() / solved.norm()


METHODS = {
    "rome-multi": Method(RomeMultiParams, edit_each, edit_batches=edit_batches),
    "rome-multi-two-keys": Method(RomeMultiParams, partial(edit_each, two_keys=True)),
}
