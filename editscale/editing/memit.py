"""MEMIT: facts spread over several layers, each layer's change a ridge-like solve against the second moment.

arXiv:2210.07229, eq. 14 and algorithm 1, as released in kmeng01/memit `memit/`. With one fact at a time the change
of a layer is r · (λC)⁻¹k / (1 + kᵀ(λC)⁻¹k): the denominator is at least 1, so nothing explodes.
"""

from dataclasses import dataclass, replace
from functools import partial

from editscale.editing import moments, updates, values
from editscale.editing.context_sampling import memit_contexts
from editscale.editing.method import Method
from editscale.editing.updates import Edit, Update
from editscale.kernels import cuda_graphs
from editscale.models import anatomy, hidden_states


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

    With G = (λC)⁻¹K this is G (I + KᵀG)⁻¹ (Woodbury), which needs no new factorization.

    Raises ValueError if the keys do not fit the factor.
    """
    import torch

    g, keys = moments.weighed(keys, factor) / weight, keys.double()
    inner = torch.eye(keys.shape[1], dtype=torch.float64, device=keys.device) + keys.T @ g
    return torch.linalg.solve(inner, g.T).T


def mean_keys(keys, groups):
    """Mean of group means, (d_key,): keys (contexts, d_key), groups the number of contexts in each group.

    The bare prompt is a group of its own and so weighs as much as all sampled contexts together, unlike in ROME.
    """
    import torch

    return torch.stack([part.mean(0) for part in keys.split(groups)]).mean(0)


def edit(lm, facts, params, contexts, factors, *, adjust=None, forward=None):
    """The updates of all edited layers that together make the model say the new targets of `facts`.

    The model is left as it was.

    Args:
        facts: one fact or more; they are edited together.
        contexts: groups of context templates, the first group the bare one: [["{}"], ["The river. {}", …]].
        factors: layer ↦ lower Cholesky factor of C of the unedited model.
        adjust: `Optimized` ↦ `Optimized`, what becomes of each value before it is written; None: nothing.
        forward: way to optimize the values, see `values.optimize`.

    Returns:
        `Edit` with one `Update` per layer, of rank len(facts).

    Raises ValueError if there is a norm between the model's MLPs and the residual stream (Gemma 2 and later): there,
    a change of the residual stream is not a change of the projection's output.
    """
    return _edits(lm, [facts], params, contexts, factors, adjust=adjust, forward=forward)[0]


def edit_each(lm, facts, params, contexts, factors, *, adjust=None, forward=None):
    """For each fact the updates that make the model, or copy i of a stack, say its new target: one `Edit` per fact.

    The edits do not depend on each other. Arguments and errors as for `edit`.
    """
    return _edits(lm, [[fact] for fact in facts], params, contexts, factors, adjust=adjust, forward=forward)


def _edits(lm, batches, params, contexts, factors, **options):
    def of_layer(keys, layer, _):
        return solve(keys, factors[layer], params.mom2_update_weight)

    return spread(lm, batches, params, contexts, of_layer, **options)


def spread(lm, batches, params, contexts, solve, *, keep=False, two_keys=False, adjust=None, forward=None):
    """One `Edit` for each batch of facts, all batches of the same size: the residual spread over `params.layers`.

    Each batch has its own copy of the model. Each layer, ascending and with the layers before it changed, takes an even
    part of what is still missing at the last layer's output.

    Args:
        batches: lists of facts; the facts of a batch are edited together.
        params: has `layers`, and what `descent.Descent` needs.
        contexts: groups of context templates, see `mean_keys`; the first of all is the bare one.
        solve: (keys (d_key, n), layer, number of the batch) ↦ A (d_key, n); a layer's change is (its part) Aᵀ.
        two_keys: whether `solve` gets the keys of the bare prompts too, (d_key, n), as its last argument.
        keep: whether an `Update` keeps the layer's "keys", (d_key, n) in the weight's dtype, for the run's state.
        adjust, forward: see `edit`.

    Raises ValueError as `edit` does.
    """
    import torch

    if lm.family.post_norm:
        raise ValueError(
            "MEMIT and ROME over several layers need MLP outputs that are added to the residual stream as they are; "
            f"{lm.name} has {lm.family.post_norm} in between; use a ROME variant of one layer"
        )
    layers, groups = sorted(params.layers), [len(group) for group in contexts]
    contexts = [context for group in contexts for context in group]
    facts, n_each = [fact for batch in batches for fact in batch], len(batches[0])
    found = values.optimize(lm, facts, contexts, layers[-1], params, at="block", forward=forward)
    found = [adjust(one) for one in found] if adjust else found
    z = torch.stack([one.init + one.delta for one in found])
    run, inputs = _prepared(lm, facts, contexts, layers, n_each)
    updated, traces = [[] for _ in batches], [_trace(z, found, i, n_each) for i in range(len(batches))]
    for i, layer in enumerate(layers):
        seen = run(f"spread over {layers}", range(layers[0], layers[-1] + 1), partial(_changed, lm, layers), inputs)
        seen_keys = anatomy.in_full(seen[f"keys.{layer}"])
        keys = torch.stack([mean_keys(k, groups) for k in seen_keys])
        residual = (z - seen["out"]).double() / (len(layers) - i)
        parts = (x.split(n_each) for x in (keys, seen_keys[:, 0], seen["out"], residual))
        for batch, of_batch in enumerate(zip(*parts, strict=True)):
            k, bare, now, r = (x.T for x in of_batch)
            solved = solve(k, layer, batch, *([bare] if two_keys else []))
            kept = {"keys": k.to(lm.dtype)} if keep else {}
            update = Update(layer, *updates.factors(r, solved, lm.dtype), kept=kept)
            inputs[f"left.{layer}"][batch], inputs[f"right.{layer}"][batch] = update.left, update.right
            updated[batch].append(update)
            traces[batch][layer] = {"keys": k, "bare": bare, "current": now, "solved": solved, "residual": r}
    return [Edit(tuple(u), trace) for u, trace in zip(updated, traces, strict=True)]


def _trace(z, found, batch, n_each):
    """What the `Edit` of a batch says of how its values were found."""
    import torch

    part = slice(batch * n_each, (batch + 1) * n_each)
    of = found[part]
    return {
        "z": z[part].T,
        "init": torch.stack([one.init for one in of], dim=1),
        "delta": torch.stack([one.delta for one in of], dim=1),
        "losses": [one.losses for one in of],
        "nll_per_prompt": [one.nll_per_prompt for one in of],
    }


def _prepared(lm, facts, contexts, layers, n_each):
    """How to run a function of tensors, and the tensors of `_changed`, all changes being 0."""
    import torch

    multiple = 64 if lm.device.type == "cuda" else 1  # so that there are few shapes
    ids, positions, mask, at = values.up_to_subjects(lm, facts, contexts, multiple=multiple)
    # CUDA graphs, where running takes no longer than launching.
    run = partial(
        cuda_graphs.without_gradient, lm if ids.numel() <= hidden_states.GRAPH_TOKENS else replace(lm, graphs=None)
    )
    inputs, first = {"mask": mask, "positions": positions, "states": ids, "at": at}, layers[0]
    if first:
        below = {"mask": mask, "positions": positions, "ids": ids}
        inputs["states"] = run(f"below {first}", range(first), partial(_below, lm, first), below)["out"]
    for layer in layers:
        for side, size in zip(("left", "right"), lm.weight(layer).shape[-2:], strict=True):
            shape = len(facts) // n_each, size, n_each
            inputs[f"{side}.{layer}"] = torch.zeros(shape, dtype=lm.dtype, device=lm.device)
    return run, inputs


def _below(lm, layer, t):
    """What enters a block."""
    return {"out": anatomy.segment(lm, 0, layer)(t["ids"], t["mask"], t["positions"])}


def _changed(lm, layers, t):
    """Keys of some layers, and what leaves the last of them, at the tokens `at` of each fact.

    To each layer's W the left rightᵀ of the fact's batch is added.
    """
    import torch

    each, found = torch.arange(len(t["at"]), device=t["at"].device)[:, None], {}

    def change(layer):
        left, right = t[f"left.{layer}"], t[f"right.{layer}"]

        def hook(_, args, values):
            (keys,) = args
            found[f"keys.{layer}"] = keys[each, t["at"]]
            of_batch = keys.reshape(len(left), -1, keys.shape[-1])
            return values + (of_batch @ right @ left.mT).view(values.shape)

        return lm.projection(layer).register_forward_hook(hook)

    handles = [change(layer) for layer in layers]
    try:
        out = anatomy.segment(lm, layers[0], layers[-1] + 1)(t["states"], t["mask"], t["positions"])
    finally:
        for handle in handles:
            handle.remove()
    return found | {"out": out[each, t["at"]][:, 0]}


METHODS = {"memit": Method(MemitParams, edit_each, memit_contexts)}
