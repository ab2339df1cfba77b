"""MEMIT: facts spread over several layers, each layer's change a ridge-like solve against the second moment.

arXiv:2210.07229, eq. 14 and algorithm 1, as released in kmeng01/memit `memit/`. With one fact at a time the change
of a layer is r · (λC)⁻¹k / (1 + kᵀ(λC)⁻¹k): the denominator is at least 1, so nothing explodes.

Where a norm stands between the MLP and the residual stream (Gemma 2 and 3), r is what the norm should add to the
stream, and the projection is given the change that makes it do so, or come nearest (`post_norm`). What one layer cannot
add is still missing at the next, so the layers after it take more; what the last one cannot add stays missing.
"""

from dataclasses import dataclass, replace
from functools import partial

from editscale.editing import moments, post_norm, updates, values
from editscale.editing.context_sampling import memit_contexts
from editscale.editing.method import Method, Way
from editscale.editing.updates import Edit, Update
from editscale.kernels import cuda_graphs
from editscale.models import anatomy, hidden_states, stacks

PER_FORWARD = 64  # facts of one batch whose prompts share a forward


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
    return moments.divided(g, inner)


def mean_keys(keys, groups):
    """Mean of group means, (d_key,): keys (contexts, d_key), groups the number of contexts in each group.

    The bare prompt is a group of its own and so weighs as much as all sampled contexts together, unlike in ROME.
    """
    import torch

    return torch.stack([part.mean(0) for part in keys.split(groups)]).mean(0)


def way(params, factors, state, n):
    """The `Way` of MEMIT."""
    return Way(lambda keys, layer, bare: solve(keys, factors[layer], params.mom2_update_weight))


def edit(lm, facts, params, contexts, factors, *, forward=None):
    """The updates of all edited layers that together make the model say the new targets of `facts`.

    The model is left as it was.

    Args:
        facts: one fact or more; they are edited together.
        contexts: groups of context templates, the first group the bare one: [["{}"], ["The river. {}", …]].
        factors: layer ↦ lower Cholesky factor of C of the unedited model.
        forward: way to optimize the values, see `values.optimize`.

    Returns:
        `Edit` with one `Update` per layer, of rank len(facts).
    """
    return spread(lm, [facts], params, contexts, [way(params, factors, None, len(facts))], forward=forward)[0]


def edit_each(lm, facts, params, contexts, factors, *, ways=None, forward=None):
    """For each fact the updates that make the model, or copy i of a stack, say its new target: one `Edit` per fact.

    The edits do not depend on each other. Arguments as for `edit`.

    Args:
        ways: a `Way` for each fact; None: MEMIT's.
    """
    ways = ways or [way(params, factors, None, 1)] * len(facts)
    return spread(lm, [[fact] for fact in facts], params, contexts, ways, forward=forward)


def method(params, way, contexts=memit_contexts, size=updates.low_rank_bytes, **more):
    """The `Method` that spreads values as MEMIT does, in a `Way` of its own. Its edits take `forward` too."""

    def edit_batches(lm, batches, params, contexts, factors, *, states=None, forward=None):
        of = [way(params, factors, state, len(batches[0])) for state in states or [None] * len(batches)]
        return spread(lm, batches, params, contexts, of, forward=forward)

    def edit_alone(lm, facts, *given, **options):
        return edit_batches(lm, [[fact] for fact in facts], *given, **options)

    return Method(
        params, edit_alone, contexts, way=way, together=edit_each, edit_batches=edit_batches, size=size, **more
    )


def spread(lm, batches, params, contexts, ways, *, forward=None):
    """One `Edit` for each batch of facts, all batches of the same size: the residual spread over `params.layers`.

    Each batch has its own copy of the model. Each layer, ascending and with the layers before it changed, takes an even
    part of what is still missing at the last layer's output. With A of the batch's `Way.solve` its change is (part) Aᵀ.

    Args:
        batches: lists of facts; the facts of a batch are edited together.
        params: has `layers`, and what `descent.Descent` needs.
        contexts: groups of context templates, see `mean_keys`, or templates that are one group; the first of all is the
            bare one.
        ways: a `Way` for each batch.
        forward: see `edit`.

    Batches of several facts are taken one after the other, and their prompts PER_FORWARD facts at a time: what enters
    the first layer is all that grows with the number of facts.
    """
    import torch

    if len(batches) > 1 and len(batches[0]) > 1:
        each = [
            (stacks.subset(lm, [i]), [batch], way) for i, (batch, way) in enumerate(zip(batches, ways, strict=True))
        ]
        return [spread(of, batch, params, contexts, [way], forward=forward)[0] for of, batch, way in each]
    contexts = [contexts] if isinstance(contexts[0], str) else contexts
    layers, groups = sorted(params.layers), [len(group) for group in contexts]
    contexts = [context for group in contexts for context in group]
    facts, n_each = [fact for batch in batches for fact in batch], len(batches[0])
    found = values.optimize(lm, facts, contexts, layers[-1], params, at="block", forward=forward)
    found = [ways[i // n_each].adjust(one) for i, one in enumerate(found)]
    z = torch.stack([one.init + one.delta for one in found])
    size = len(facts) if n_each == 1 else PER_FORWARD
    forwards = [_prepared(lm, facts[i : i + size], contexts, layers[0]) for i in range(0, len(facts), size)]
    changes = _no_changes(lm, layers, len(batches), n_each)
    updated, traces = [[] for _ in batches], [_trace(z, found, i, n_each) for i in range(len(batches))]
    for i, layer in enumerate(layers):
        keys, bare, out, put = [], [], [], []
        for run, inputs in forwards:
            through, function = range(layers[0], layers[-1] + 1), partial(_changed, lm, layers)
            seen = run(f"spread over {layers}", through, function, inputs | changes)
            of_facts = anatomy.in_full(seen[f"keys.{layer}"])
            keys += [mean_keys(k, groups) for k in of_facts]
            bare.append(of_facts[:, 0])
            out.append(seen["out"])
            put += [seen[f"values.{layer}"]] if lm.family.post_norm else []
        keys, bare, out = torch.stack(keys), torch.cat(bare), torch.cat(out)
        residual = (z - out).double() / (len(layers) - i)
        if lm.family.post_norm:
            residual = post_norm.change(lm.block(layer).get_submodule(lm.family.post_norm), torch.cat(put), residual)
        parts = (x.split(n_each) for x in (keys, bare, out, residual))
        for batch, (way, *of_batch) in enumerate(zip(ways, *parts, strict=True)):
            k, k_bare, now, r = (x.T for x in of_batch)
            solved = way.solve(k, layer, k_bare)
            kept = {"keys": k.to(lm.dtype)} if way.keep else {}
            update = Update(layer, *updates.factors(r, solved, lm.dtype), kept=kept)
            changes[f"left.{layer}"][batch], changes[f"right.{layer}"][batch] = update.left, update.right
            updated[batch].append(update)
            traces[batch][layer] = {"keys": k, "bare": k_bare, "current": now, "solved": solved, "residual": r}
    edits = [Edit(tuple(u), trace) for u, trace in zip(updated, traces, strict=True)]
    return [
        way.finish(lm, i, edit) if way.finish else edit for i, (way, edit) in enumerate(zip(ways, edits, strict=True))
    ]


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


def _prepared(lm, facts, contexts, first):
    """How to run a function of tensors, and those tensors of `_changed` that layers from `first` on do not change."""
    multiple = 64 if lm.device.type == "cuda" else 1  # so that there are few shapes
    ids, positions, mask, at = values.up_to_subjects(lm, facts, contexts, multiple=multiple)
    # CUDA graphs, where running takes no longer than launching.
    run = partial(
        cuda_graphs.without_gradient, lm if ids.numel() <= hidden_states.GRAPH_TOKENS else replace(lm, graphs=None)
    )
    inputs = {"mask": mask, "positions": positions, "states": ids, "at": at}
    if first:
        below = {"mask": mask, "positions": positions, "ids": ids}
        inputs["states"] = run(f"below {first}", range(first), partial(_below, lm, first), below)["out"]
    return run, inputs


def _no_changes(lm, layers, n_batches, n_each):
    """Those tensors of `_changed` that are the changes of each batch, 0."""
    import torch

    return {
        f"{side}.{layer}": torch.zeros(n_batches, size, n_each, dtype=lm.dtype, device=lm.device)
        for layer in layers
        for side, size in zip(("left", "right"), lm.weight(layer).shape[-2:], strict=True)
    }


def _below(lm, layer, t):
    """What enters a block."""
    return {"out": anatomy.segment(lm, 0, layer)(t["ids"], t["mask"], t["positions"])}


def _changed(lm, layers, t):
    """Keys of some layers, and what leaves the last of them, at the tokens `at` of each fact.

    To each layer's W the left rightᵀ of the fact's batch is added. Where a norm follows, what leaves the projections is
    among what is found, at the bare prompts.
    """
    import torch

    each, found = torch.arange(len(t["at"]), device=t["at"].device)[:, None], {}

    def change(layer):
        left, right = t[f"left.{layer}"], t[f"right.{layer}"]

        def hook(_, args, values):
            (keys,) = args
            found[f"keys.{layer}"] = keys[each, t["at"]]
            of_batch = keys.reshape(len(left), -1, keys.shape[-1])
            changed = values + (of_batch @ right @ left.mT).view(values.shape)
            if lm.family.post_norm:
                found[f"values.{layer}"] = changed[each, t["at"]][:, 0]
            return changed

        return lm.projection(layer).register_forward_hook(hook)

    handles = [change(layer) for layer in layers]
    try:
        out = anatomy.segment(lm, layers[0], layers[-1] + 1)(t["states"], t["mask"], t["positions"])
    finally:
        for handle in handles:
            handle.remove()
    return found | {"out": out[each, t["at"]][:, 0]}


METHODS = {"memit": method(MemitParams, way)}
