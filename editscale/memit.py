"""MEMIT: facts spread over several layers, each layer's change a ridge-like solve against the second moment.

arXiv:2210.07229, eq. 14 and algorithm 1, as released in kmeng01/memit `memit/`. With one fact at a time the change
of a layer is r · (λC)⁻¹k / (1 + kᵀ(λC)⁻¹k): the denominator is at least 1, so nothing explodes.
"""

from dataclasses import dataclass

from editscale import anatomy, tokens, updates, values
from editscale.rome import Edit
from editscale.updates import Update


@dataclass(frozen=True)
class MemitParams:
    """Hyper-parameters, named as in kmeng01/memit `hparams/MEMIT`; params/memit/*.yaml says what each means."""

    layers: list
    v_num_grad_steps: int
    v_lr: float
    v_weight_decay: float
    clamp_norm_factor: float
    kl_factor: float
    mom2_update_weight: float


def solve(keys, factor, weight):
    """A = (λC + KKᵀ)⁻¹ K, (d_key, n) float64.

    Args:
        keys: K, (d_key, n).
        factor: lower Cholesky factor of C, (d_key, d_key) float64.
        weight: λ.

    With G = (λC)⁻¹K this is G (I + KᵀG)⁻¹ (Woodbury), which needs no new factorisation.
    """
    import torch

    if factor.shape[0] != keys.shape[0]:
        raise ValueError(
            f"keys have {keys.shape[0]} entries but the second moment is {factor.shape[0]} × "
            f"{factor.shape[1]}; it was collected for another model or layer"
        )
    keys = keys.double()
    g = torch.cholesky_solve(keys, factor) / weight
    inner = torch.eye(keys.shape[1], dtype=torch.float64, device=keys.device) + keys.T @ g
    return torch.linalg.solve(inner, g.T).T


def mean_keys(keys, groups):
    """Mean of group means, (d_key,): keys (contexts, d_key), groups the number of contexts in each group.

    The bare prompt is a group of its own and so weighs as much as all sampled contexts together, unlike in ROME.
    """
    import torch

    return torch.stack([part.mean(0) for part in keys.split(groups)]).mean(0)


def edit(lm, facts, params, contexts, factors, *, forward=None):
    """The updates of all edited layers that make the model say the new targets of `facts`. The model is left as it was.

    Args:
        facts: one fact or more; they are edited together.
        contexts: groups of context templates, the first group the bare one: [["{}"], ["The river. {}", …]].
        factors: layer ↦ lower Cholesky factor of C of the unedited model.
        forward: way to optimise the values, see `values.optimise`.

    Returns:
        `Edit` with one `Update` per layer, of rank len(facts).

    Raises ValueError if a norm stands between the model's MLPs and the residual stream (Gemma 2 and later): there a
    wanted change of the residual stream is not a wanted change of the projection's output.
    """
    import torch

    if lm.family.post_norm:
        raise ValueError(
            f"MEMIT needs MLP outputs that are added to the residual stream as they are; {lm.name} has "
            f"{lm.family.post_norm} in between; use a ROME variant"
        )
    layers = sorted(params.layers)
    groups = [len(group) for group in contexts]
    contexts = [context for group in contexts for context in group]
    last = layers[-1]
    found = [values.optimise(lm, fact, contexts, last, params, at="block", forward=forward) for fact in facts]
    z = torch.stack([one.init + one.delta for one in found], dim=1)
    trace = {
        "z": z,
        "init": torch.stack([one.init for one in found], dim=1),
        "delta": torch.stack([one.delta for one in found], dim=1),
        "losses": [one.losses for one in found],
        "nll_per_prompt": [one.nll_per_prompt for one in found],
    }

    rows = [row for fact in facts for row in tokens.context_rows(lm.tokenizer, contexts, fact.prompt, fact.subject)]
    # What follows the subject's last token cannot change its key: leave it out.
    ids, lengths = tokens.pad([row.ids[: row.subject_last + 1] for row in rows], lm.device)
    each = torch.arange(len(rows), device=lm.device)
    at = lengths - 1
    positions, mask = tokens.causal(lengths, ids.shape[1], lm.dtype)
    first = layers[0]
    original = updates.saved_weights(lm, layers)
    done = []
    try:
        with torch.no_grad():
            entering = anatomy.segment(lm, 0, first)(ids, mask, positions) if first else ids
            run = anatomy.segment(lm, first, last + 1)
            for i, layer in enumerate(layers):
                seen = {}
                with anatomy.watching(lm.projection(layer), lambda k, _, seen=seen: seen.update(key=k[each, at])):
                    block_out = run(entering, mask, positions)[each, at]
                per_fact = seen["key"].split(len(contexts))
                keys = torch.stack([mean_keys(k, groups) for k in per_fact], dim=1)
                current = block_out[:: len(contexts)].T
                residual = (z - current).double() / (len(layers) - i)
                solved = solve(keys, factors[layer], params.mom2_update_weight)
                update = Update(layer, residual.to(lm.dtype), solved.to(lm.dtype))
                updates.apply(lm, [update])
                done.append(update)
                trace[layer] = {"keys": keys, "current": current, "solved": solved, "residual": residual}
    finally:
        updates.restore(lm, original)
    return Edit(tuple(done), trace)
