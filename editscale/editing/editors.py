"""The editing methods by name, and how to add one.

A method is one line of METHODS: its hyper-parameters (a dataclass), how its context templates are sampled, and a
function `(lm, facts, params, contexts, factors) -> [Edit, …]` that leaves the model as it was. It edits each fact by
itself, as if it were the only one; given several facts and a stack of copies (`stacks.py`), fact i on copy i.
"""

from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path

from editscale.editing import context_sampling, finetune, memit, rome, rome_multi
from editscale.models import stacks

SUMMARY = ("steps", "loss_first", "loss_last", "nll_last", "kl_last", "delta_norm", "init_norm", "denominator")
TOGETHER = 16  # facts that are looked at together where they do not depend on each other


@dataclass(frozen=True)
class Method:
    """One editing method; see the module's first lines."""

    params: type
    contexts: object  # (lm, starts, generator, n_short, n_long) -> contexts
    edit: object  # (lm, facts, params, contexts, factors, ahead) -> [Edit, …]; the last only with `ahead`
    # What no edit of the method changes, computed for many facts at once before the first edit, one value per fact:
    ahead: object = None  # (lm, facts, params, contexts, factors) -> list
    moments: bool = True  # whether it weighs its changes against second moments of keys
    # Methods of one kind differ in what `ahead` gives only, so that a batch may hold facts of several of them.
    kind: str = ""
    # Whether an update is the same whatever was edited before it, so that recorded ones make up other histories too.
    order_free: bool = False


def _rome_contexts(lm, starts, generator, n_short, n_long):
    return context_sampling.rome_contexts(lm, starts, generator, n_short=n_short, n_long=n_long)


def _memit_contexts(lm, starts, generator, n_short, n_long):
    return context_sampling.memit_contexts(lm, generator)  # always one text from each of five seed words


def _bare_context(lm, starts, generator, n_short, n_long):
    return ["{}"]


def _rome(variant):
    """The line of a ROME variant."""
    return Method(
        rome.RomeParams,
        _rome_contexts,
        partial(rome.edit_each, variant=variant),
        partial(rome.directions, variant=variant),
        kind="rome",
    )


METHODS = {
    **{name: _rome(name) for name in rome.VARIANTS},
    "memit": Method(memit.MemitParams, _memit_contexts, memit.edit_each),
    "rome-multi": Method(rome_multi.RomeMultiParams, _rome_contexts, rome_multi.edit_each),
    "ft-c": Method(finetune.FtParams, _bare_context, finetune.edit_each, moments=False),
}


def method(name):
    """The `Method` of this name. Raises ValueError that lists the known ones."""
    if name not in METHODS:
        raise ValueError(
            f"unknown method {name!r}; the methods are {', '.join(METHODS)} (editscale/editing/editors.py)"
        )
    return METHODS[name]


def same_kind(names):
    """Whether facts of all these methods can be edited in one batch."""
    return len(set(names)) == 1 or len({method(name).kind or name for name in names}) == 1


def edit_each(method, lm, facts, params, contexts, factors, *ahead):
    """`method.edit` of some facts; an edit whose solve fails has no updates, and the reason in its trace ("failed").

    When one of several fails, each is made again alone, so that the others do not depend on it but for rounding.
    """
    import torch

    try:
        return method.edit(lm, facts, params, contexts, factors, *ahead)
    except torch.linalg.LinAlgError as error:
        if len(facts) == 1:
            return [rome.Edit((), {"failed": str(error)})]
    return [
        edit
        for i, fact in enumerate(facts)
        for edit in edit_each(method, stacks.take(lm, [i]), [fact], params, contexts, factors, *([x[i]] for x in ahead))
    ]


def status(edit):
    """What became of an edit: "edited", "non-finite" (NaN, infinity or overflow in it), or "failed-solve"."""
    if "failed" in edit.trace:
        return "failed-solve"
    return "edited" if all(update.is_finite() for update in edit.updates) else "non-finite"


def alone(name, lm, facts, params, contexts, factors):
    """The `Edit` of each fact alone, one after the other, on the model as it stands when TOGETHER of them begin."""
    for first in range(0, len(facts), TOGETHER):
        yield from edit_each(method(name), lm, facts[first : first + TOGETHER], params, contexts, factors)


def read_params(name, path):
    """Hyper-parameters of a method from a flat YAML file.

    Raises FileNotFoundError, or ValueError that names the file, the entry and what was expected there.
    """
    import yaml

    params = method(name).params
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no hyper-parameters for {name} at {path}; see the folders in params")
    given = yaml.safe_load(path.read_text())
    if not isinstance(given, dict):
        raise ValueError(f"{path} must map names to values")
    expected = {f.name: f.type for f in fields(params)}
    for entry in given:
        if entry not in expected:
            raise ValueError(f"{path}: unknown entry {entry!r}; {params.__name__} has {', '.join(expected)}")
    for entry, kind in expected.items():
        if entry not in given:
            raise ValueError(f"{path}: entry {entry!r} is missing")
        value = float(given[entry]) if kind is float and type(given[entry]) is int else given[entry]
        if type(value) is not kind or (kind is list and not all(type(x) is int for x in value)):
            raise ValueError(f"{path}: {entry} must be a {kind.__name__}, not {given[entry]!r}")
        given[entry] = value
    return params(**given)


def layers_of(params):
    """The layers a method edits, ascending."""
    return sorted(params.layers)


def moment_layers(name, params):
    """The layers whose second moments a method needs, ascending."""
    return layers_of(params) if method(name).moments else []


def cholesky_factors(moments, device):
    """layer ↦ lower Cholesky factor of the second moment, float64, computed once for a run, on the device.

    Args:
        moments: layer ↦ C, (d_key, d_key).

    Raises ValueError if a moment is not positive definite: collected from too few tokens.
    """
    import torch

    factors = {}
    for layer, moment in moments.items():
        factor, info = torch.linalg.cholesky_ex(moment.to(device, torch.float64))
        if info:
            raise ValueError(
                f"the second moment of layer {layer} is not positive definite; collect it from more tokens "
                f"(at least about 10 × {moment.shape[0]})"
            )
        factors[layer] = factor
    return factors


def summary(edit):
    """Scalars that describe an edit: a row for a table, floats and ints.

    steps are forwards; losses, `nll` and `kl` in nats per token; norms in the model's units; `denominator` is k·u
    (ROME variants; None for others). A method that optimises no value has no KL and no δ: None there, and its loss is
    the NLL. For several facts edited together, the first one's. All None for a failed solve.
    """
    trace = edit.trace
    if "failed" in trace:
        return dict.fromkeys(SUMMARY)
    losses = trace["losses"][0] if isinstance(trace["losses"], list) else trace["losses"]
    row = {"steps": len(losses), "loss_first": losses[0, 0].item(), "loss_last": losses[-1, 0].item()}
    if "delta" not in trace:
        names = ("kl_last", "delta_norm", "init_norm", "denominator")
        return {**row, "nll_last": row["loss_last"], **dict.fromkeys(names)}
    init = trace["init"][:, 0] if trace["init"].ndim == 2 else trace["init"]
    delta = trace["delta"][:, 0] if trace["delta"].ndim == 2 else trace["delta"]
    return {
        **row,
        "nll_last": losses[-1, 1].item(),
        "kl_last": losses[-1, 2].item(),
        "delta_norm": delta.norm().item(),
        "init_norm": init.norm().item(),
        "denominator": trace["denominator"].item() if "denominator" in trace else None,
    }
