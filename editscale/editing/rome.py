"""ROME: one fact as a rank-one change of one layer's projection.

arXiv:2202.05262, eq. 2, as released in kmeng01/rome `rome/` and, for the variants, in
scalable-model-editing/rebuilding-rome `rome/` (arXiv:2403.07175). The variants differ in the key k they use:

| variant | direction u = C⁻¹k / ‖C⁻¹k‖ | denominator k·u and current value |
|---|---|---|
| rome   | mean key over the contexts | key and value of the bare prompt |
| r-rome | mean key over the contexts | mean key and mean value over the contexts |
| p-rome | key of the bare prompt     | key and value of the bare prompt |

The derivation uses one key everywhere. The released ROME mixes two, and where the bare prompt's key is far from the
mean (a subject that opens the prompt) its denominator gets tiny and the update huge: a disabling edit.
"""

from dataclasses import dataclass
from functools import partial

from editscale.editing import moments, updates, values
from editscale.editing.method import Method, Way
from editscale.editing.updates import Edit, Update
from editscale.models import anatomy

VARIANTS = ("rome", "r-rome", "p-rome")


@dataclass(frozen=True)
class RomeParams:
    """Hyper-parameters, named as in kmeng01/rome `hparams/ROME`; params/rome/*.yaml says what each means."""

    layer: int
    v_num_grad_steps: int
    v_lr: float
    v_weight_decay: float
    clamp_norm_factor: float
    kl_factor: float
    mom2_adjustment: bool

    @property
    def layers(self):
        return (self.layer,)


def direction(key, factor):
    """u = C⁻¹k / ‖C⁻¹k‖, (…, d_key), solved in float64 and returned in the key's dtype.

    Args:
        key: (…, d_key).
        factor: lower Cholesky factor of the second moment C, (d_key, d_key) float64; None means C = I.

    Raises ValueError if the key does not fit the factor.
    """
    if factor is None:
        return key / key.norm(dim=-1, keepdim=True)
    solved = moments.weighed(key.reshape(-1, key.shape[-1]).T, factor).T.reshape(key.shape)
    return (solved / solved.norm(dim=-1, keepdim=True)).to(key.dtype)


@dataclass(frozen=True)
class Direction:
    """The part of a ROME edit that no earlier edit changes: edits of a layer do not change what enters its projection.

    Attributes:
        u_key: (d_key,) the key that u is made from; u: (d_key,).
        key: (d_key,) the key of the denominator, `key @ u`: a value near 0 announces a disabling edit.
        averaged: whether that key, and the value it belongs to, are means over the contexts.
    """

    u_key: object
    u: object
    key: object
    averaged: bool


def _direction(keys, factor, variant):
    """The `Direction` of one fact or, with leading dimensions, of several, from keys (…, contexts, d_key)."""
    mean_key, bare, averaged = keys.mean(-2), keys[..., 0, :], variant == "r-rome"
    u_key = bare if variant == "p-rome" else mean_key
    return Direction(u_key, direction(u_key, factor), mean_key if averaged else bare, averaged)


def directions(lm, facts, params, contexts, factors, *, variant="rome"):
    """The `Direction` of each fact, on a model edited at `params.layer` or not: one batch of forwards up to there.

    Arguments as for `edit_each`.
    """
    import torch

    ids, positions, mask, at = values.up_to_subjects(lm, facts, contexts)
    each = torch.arange(len(facts), device=lm.device)[:, None]
    with torch.no_grad():
        keys = anatomy.in_full(anatomy.up_to(lm, params.layer, ids, mask, positions)["keys"][each, at])
    found = _direction(keys, factors[params.layer] if params.mom2_adjustment else None, variant)
    each = zip(found.u_key, found.u, found.key, strict=True)
    return [Direction(*of_fact, found.averaged) for of_fact in each]


def rank_one_factors(target, key, value, u):
    """(left, right) of the rank-one change after which W sends `key` to `target`, given it now sends it to `value`.

    Args: target v*, value Wk, (d_value,); key k, direction u, (d_key,).
    Returns: left (d_value, 1) = (v* − Wk) / (k·u), right (d_key, 1) = u.
    """
    return ((target - value) / (key @ u))[:, None], u[:, None]


def edit(lm, fact, params, contexts, factors, *, variant="rome", forward=None):
    """`edit_each` for one fact: its `Edit`."""
    return edit_each(lm, [fact], params, contexts, factors, variant=variant, forward=forward)[0]


def edit_each(lm, facts, params, contexts, factors, ahead=None, *, variant="rome", ways=None, forward=None):
    """For each fact the rank-one update that makes the model, or copy i of a stack, say `fact.target_new`.

    The model is not changed, and the edits do not depend on each other.

    Args:
        contexts: context templates, the bare one "{}" first.
        factors: layer ↦ lower Cholesky factor of C of the unedited model.
        ahead: the facts' `directions` if they were computed before; they may be of several variants.
        variant: "rome", "r-rome" or "p-rome", see the module's table; unused where `ahead` is given.
        ways: a `Way` for each fact; None: what the module says.
        forward: way to optimize the values, see `values.optimize`.

    Returns:
        One `Edit` per fact, with one `Update` each.
    """
    if variant not in VARIANTS:
        raise ValueError(f"variant {variant!r} is not one of {', '.join(VARIANTS)}")
    found = values.optimize(lm, facts, contexts, params.layer, params, at="mlp", forward=forward)
    ways = ways or [Way()] * len(facts)
    found = [way.adjust(one) for way, one in zip(ways, found, strict=True)]
    if ahead is None:
        factor = factors[params.layer] if params.mom2_adjustment else None
        ahead = [_direction(one.keys, factor, variant) for one in found]
    edits = [_edit(one, of, params.layer, lm.dtype) for one, of in zip(found, ahead, strict=True)]
    return [
        way.finish(lm, i, edit) if way.finish else edit for i, (way, edit) in enumerate(zip(ways, edits, strict=True))
    ]


def _edit(found, along, layer, dtype):
    """The `Edit`, of weights in a dtype, of an optimized value along a `Direction`."""
    value = found.outputs.mean(0) if along.averaged else found.outputs[0]
    left, right = rank_one_factors(found.init + found.delta, along.key, value, along.u)
    trace = {
        "keys": found.keys,
        "key_mean": along.u_key,
        "u": along.u,
        "init": found.init,
        "losses": found.losses,
        "nll_per_prompt": found.nll_per_prompt,
        "delta": found.delta,
        "key": along.key,
        "value": value,
        "denominator": along.key @ along.u,
    }
    return Edit((Update(layer, left.to(dtype), right.to(dtype)),), trace)


def way(params, factors, state, n):
    """The `Way` of ROME and its variants, which differ in what `directions` gives."""
    return Way()


def method(params, way, variant="rome", size=updates.low_rank_bytes, **more):
    """The `Method` that edits as a variant of ROME does, in a `Way` of its own. Its edits take `forward` too."""

    def edit_alone(lm, facts, params, contexts, factors, ahead=None, *, states=None, forward=None):
        of = [way(params, factors, state, 1) for state in states or [None] * len(facts)]
        return edit_each(lm, facts, params, contexts, factors, ahead, variant=variant, ways=of, forward=forward)

    ahead = partial(directions, variant=variant)
    return Method(params, edit_alone, ahead=ahead, way=way, together=edit_each, size=size, **more)


METHODS = {name: method(RomeParams, way, name) for name in VARIANTS}
