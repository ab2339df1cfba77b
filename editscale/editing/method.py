"""What makes up an editing method. A module of a method has METHODS: its names ↦ `Method`; `editors` finds it there."""

from dataclasses import dataclass

from editscale.editing.context_sampling import rome_contexts


def as_it_is(value):
    """The value."""
    return value


@dataclass(frozen=True)
class Way:
    """How optimized values become the edits of one run: all that sets methods apart which optimize the same values.

    Attributes:
        solve: (keys (d_key, n), layer, keys of the bare prompts (d_key, n)) ↦ A (d_key, n), see `memit.spread`; ROME
            has none.
        adjust: `values.Optimized` ↦ `Optimized`, what becomes of a value before it is written.
        finish: (lm, i, `Edit`) ↦ `Edit`, what becomes of an edit of the model, or of copy i of a stack; None: nothing.
        keep: whether an `Update` keeps the layer's "keys", (d_key, n) in the weight's dtype, for the run's state.
    """

    solve: object = None
    adjust: object = as_it_is
    finish: object = None
    keep: bool = False


@dataclass(frozen=True)
class Method:
    """One editing method.

    Attributes:
        params: the dataclass of its hyper-parameters; it has `layers`.
        edit: (lm, facts, params, contexts, factors) -> [Edit, …], the model left as it was. Each fact is edited by
            itself, as if it were the only one; given a stack of copies (`stacks`), fact i on copy i. An `Edit` without
            updates and with "screened" in its trace leaves its fact out: no failure, a run goes on after it.
        contexts: (lm, starts, generator, n_short, n_long) -> context templates.
        ahead: (lm, facts, params, contexts, factors) -> list of what no edit of the method changes, one value per fact,
            computed for many facts at once before the first edit and given to `edit` as its last argument; or None.
        moments: whether it weighs its changes against second moments of keys.
        way: (params, factors, state, n) -> the `Way` of a run, n facts being edited at a time; None: it has none.
        together: as `edit`, of facts of several methods that have the same `together`, given `ways`, one for each fact,
            by that name; they share contexts and hyper-parameters of the optimization (`editors.alike`).
        order_free: whether an update is the same whatever was edited before it.
        start: (lm, params, contexts, factors) -> the state of a run before its first edit, made once from the unedited
            model; None for a method without one. `edit` then takes `states`, one for each fact, by that name.
        after: (state, updates) -> the state after an edit that left these updates, none if it was not applied. It reads
            them as they are recorded, so that a run that is resumed or replayed has the same bits.
        evaluated: state ↦ updates that turn the weights as edited into those that are scored; put on for each look at
            the model, and taken off bit for bit before the next edit. None: the weights as edited are scored. `start`
            of such a method needs the model and its hyper-parameters alone, so that a recorded run can be looked at.
        made_of: state ↦ bytes, what a first state holds that neither hyper-parameters nor second moments determine.
        edit_batches: (lm, batches, params, contexts, factors) -> [Edit, …], one for each list of facts, whose facts are
            edited together. All lists have one size; given a stack, list i is edited on copy i. It takes `states`, one
            for each list, where `edit` does. With lists of one fact it gives what `edit` gives. Of how values were
            found, a trace has an entry or a column for each fact. None: there is no such form.
        size: (lm, params, n) -> bytes of the tensors that are recorded of n facts edited together, at most, from shapes
            alone. None: not known before the first edit.
        by_token: whether `size` is that of n tokens of the facts' targets.
    """

    params: type
    edit: object
    contexts: object = rome_contexts
    ahead: object = None
    moments: bool = True
    way: object = None
    together: object = None
    order_free: bool = False
    start: object = None
    after: object = None
    evaluated: object = None
    made_of: object = None
    edit_batches: object = None
    size: object = None
    by_token: bool = False
