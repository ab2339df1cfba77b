"""ROME without its disabling edits: facts of a small denominator are left out, or edited by another method.

ROME divides by k·u (`rome`), which is known of every fact before the first edit. Below `least_denominator`, stated
beforehand, a fact is not edited by ROME. Left out, it is recorded as "screened" and the run goes on: nothing
failed. With `instead`, another method edits it, as if it were alone. All other facts are edited as by `rome`, bit for
bit where no other method changes what enters ROME's layer: keys of ROME's edits are those of the model as it stands,
while what is screened follows from the unedited model alone.
"""

from dataclasses import dataclass, replace

from editscale.editing import context_sampling, editors, finetune, memit, norm_anchor, rect, rome, rome_multi, updates
from editscale.editing.method import Method
from editscale.editing.rome import RomeParams
from editscale.editing.updates import Edit
from editscale.models import stacks

# Methods that can edit what ROME does not: those of the package without a state.
OTHERS = {
    name: method
    for module in (rome, memit, rome_multi, finetune, rect, norm_anchor)
    for name, method in module.METHODS.items()
    if method.start is None
}


@dataclass(frozen=True)
class RomeScreenedParams(RomeParams):
    """Those of ROME, and what it does not edit; params/rome-screened/*.yaml says what each means.

    Attributes:
        least_denominator: facts of a smaller |k·u| are not edited by ROME.
        instead: "method", one of OTHERS, and all its hyper-parameters; empty: such facts are left out.

    Raises ValueError for a threshold that is negative or NaN, and for what is no method with its hyper-parameters.
    """

    least_denominator: float
    instead: dict

    def __post_init__(self):
        if not self.least_denominator >= 0:
            raise ValueError(
                f"least_denominator is {self.least_denominator}; expected 0 (all facts are edited) or more"
            )
        if self.instead and self.instead.get("method") not in OTHERS:
            raise ValueError(
                f"instead names method {self.instead.get('method')!r}; expected {{}}, or {', '.join(OTHERS)} with "
                "its hyper-parameters"
            )
        _ = self.other  # its hyper-parameters are checked

    @property
    def other(self):
        """The other method and its hyper-parameters; None where facts are left out."""
        if not self.instead:
            return None
        method = OTHERS[self.instead["method"]]
        given = {name: value for name, value in self.instead.items() if name != "method"}
        return method, editors.params_of(method.params, given, f"instead, {self.instead['method']}")

    @property
    def layers(self):
        """Layers that may change, ascending."""
        return tuple(sorted({self.layer, *(self.other[1].layers if self.instead else ())}))

    @property
    def moment_layers(self):
        """Layers whose second moments are weighed, ascending."""
        method, params = self.other or (None, None)
        return tuple(sorted({self.layer, *(params.layers if method and method.moments else ())}))


def contexts_for(method, contexts):
    """What a method edits with in the place of ROME's contexts: these; the bare one; or groups, the bare one first."""
    if method.contexts is context_sampling.bare_context:
        return contexts[:1]
    if method.contexts is context_sampling.memit_contexts:
        return [group for group in (contexts[:1], contexts[1:]) if group]
    return contexts


def edit_each(lm, facts, params, contexts, factors, ahead=None):
    """For each fact ROME's `Edit`, that of the other method, or one without updates and with "screened" in its trace.

    The model is left as it was. In every trace "denominator" is ROME's k·u.

    Args: as for `rome.edit_each`; ahead: the facts' `directions` on the unedited model, None: on `lm` as it stands.
    """
    found = rome.directions(lm, facts, params, contexts, factors) if ahead is None else ahead
    denominators = [along.key @ along.u for along in found]
    small = [abs(k_u.item()) < params.least_denominator for k_u in denominators]
    edits = [Edit((), {"screened": True, "denominator": k_u}) for k_u in denominators]
    kept, others = ([i for i, screened in enumerate(small) if screened is which] for which in (False, True))
    if kept:
        # Another method may have changed what enters ROME's layer since `ahead`.
        same = ahead is not None and min(params.layers) == params.layer
        known = [[ahead[i] for i in kept]] if same else []
        _put(edits, kept, rome.edit_each(*_part(lm, facts, kept), params, contexts, factors, *known))
    if others and params.instead:
        method, of = params.other
        made = method.edit(*_part(lm, facts, others), of, contexts_for(method, contexts), factors)
        named = zip(others, made, strict=True)
        _put(edits, others, [Edit(e.updates, e.trace | {"denominator": denominators[i]}) for i, e in named])
    return edits


def _part(lm, facts, rows):
    """The model, or the copies of a stack, and the facts of some rows."""
    return (lm if len(rows) == len(facts) else stacks.subset(lm, rows)), [facts[i] for i in rows]


def _put(edits, rows, made):
    for i, edit in zip(rows, made, strict=True):
        edits[i] = edit


def size(lm, params, n):
    """Bytes of n facts: ROME's, or those of the other method if these are more. What is left out takes none."""
    own = updates.low_rank_bytes(lm, replace(params, instead={}), n)
    method, of = params.other or (None, None)
    return max(own, method.size(lm, of, n)) if method else own


METHODS = {"rome-screened": Method(RomeScreenedParams, edit_each, ahead=rome.directions, size=size)}
