"""What makes up an editing method. A module of a method has METHODS: its names ↦ `Method`; `editors` finds it there."""

from dataclasses import dataclass

from editscale.editing.context_sampling import rome_contexts


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
        kind: methods of one kind differ only in what `ahead` gives, so a batch may hold facts of several of them.
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
    """

    params: type
    edit: object
    contexts: object = rome_contexts
    ahead: object = None
    moments: bool = True
    kind: str = ""
    order_free: bool = False
    start: object = None
    after: object = None
    evaluated: object = None
    made_of: object = None
    edit_batches: object = None
