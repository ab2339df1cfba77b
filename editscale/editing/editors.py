"""The editing methods by name: those of the package (data/methods.yaml), and one's own (`modules`)."""

import importlib
import typing
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import partial
from pathlib import Path

from editscale import dependencies
from editscale.editing import context_sampling, modules, moments, updates
from editscale.editing.method import Method
from editscale.models import stacks

# Hyper-parameters of the optimization of values.
DESCENT = """layer layers v_num_grad_steps v_lr v_weight_decay clamp_norm_factor kl_factor prob_cutoff stop_tokens
             mom2_adjustment""".split()
SUMMARY = ("steps", "loss_first", "loss_last", "nll_last", "kl_last", "delta_norm", "init_norm", "denominator")
TOGETHER = 16  # facts that are edited or scored together where they do not depend on each other


def method(name):
    """The `Method` of a name (see `modules`).

    Raises ValueError that lists the methods, or says what is wrong with the module or function that the name names.
    """
    if name in modules.REGISTERED:
        return modules.REGISTERED[name][0]
    found = modules.located(name)
    if found is None:
        known = ", ".join([*modules.MODULES, *modules.REGISTERED])
        raise ValueError(
            f"unknown method {name!r}; the methods are {known}, or one's own: my_module:function, or what "
            "editors.register was given in this notebook"
        )
    module, function = found
    try:
        home = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.split(".")[0]:
            raise
        raise ValueError(
            f"method {name!r}: there is no module {module}; put {module}.py into the folder where this runs (notebooks "
            "run in the repository's root), or install it"
        ) from None
    if not function:
        return home.METHODS[name]
    if not hasattr(home, function):
        raise ValueError(f"method {name!r}: {home.__file__} has no {function}")
    return as_method(getattr(home, function))


def check_loaded(name):
    """Raise ValueError if the code of a method of one's own, or what it imports, changed since this process loaded it.

    What is recorded of code is what its files say. What was loaded is noted in the module, the first time it is asked.
    """
    module, function = ("", "") if name in modules.REGISTERED else modules.located(name) or ("", "")
    if function:
        home, now = importlib.import_module(module), dependencies.of_modules(module)
        if vars(home).setdefault("__code_sha256__", now) != now:
            raise ValueError(
                f"method {name!r}: {home.__file__}, or what it imports, changed after it was loaded; restart the "
                "kernel, so that what edits is what the record names"
            )


def as_method(function):
    """The `Method` that a function is: (lm, facts, params: Params, contexts, factors) -> [Edit, …], see `Method.edit`.

    A `Method` is itself. Raises ValueError unless `params` is annotated with the dataclass of the hyper-parameters.
    """
    if isinstance(function, Method):
        return function
    kind = typing.get_type_hints(function).get("params") if callable(function) else None
    if not is_dataclass(kind):
        raise ValueError(
            f"{function!r} is no editing method: a Method, or a function of (lm, facts, params, contexts, factors) "
            "whose params are annotated with a dataclass of hyper-parameters, such as rome.RomeParams"
        )
    return Method(kind, function)


def register(name, function):
    """Let this process know a function or `Method` as an editing method: it gets ledger, scores, figures and a color.

    To name it in a grid or on a command line, keep it in a file and name it "my_module:function". Registering a name
    again takes the place of what it was. Raises ValueError for the name of a method of the package.
    """
    if ":" in name or name in modules.MODULES:
        raise ValueError(f"{name!r} cannot name a method of one's own: small letters, digits, hyphens, not yet taken")
    modules.check_name(name)
    made = as_method(function)
    code = made.edit
    while isinstance(code, partial):
        code = code.func
    before = dict(modules.REGISTERED)
    try:
        modules.REGISTERED[name] = made, code
        modules.code_of(name)
    except (OSError, ValueError) as error:
        modules.REGISTERED.clear()
        modules.REGISTERED.update(before)
        if isinstance(error, ValueError):
            raise
        raise ValueError(f"the code of {name} is not to be found ({error}): write it in a cell or a file") from error


def alike(name, params, facts_per_step=1):
    """What all runs of a batch have in common: a value that is equal for those that one batch can hold.

    Methods that have the same `Method.together` share a batch where they optimize the same values (DESCENT) after the
    same contexts, a fact at a time. Any other batch holds one method with one set of hyper-parameters.
    """
    made = method(name)
    if made.way is None or facts_per_step > 1:
        return name, params, facts_per_step
    return made.together, made.contexts, {entry: getattr(params, entry, None) for entry in DESCENT}


def no_batch(names):
    """What is wrong with a batch of runs of these methods that are not `alike`."""
    return (
        f"runs of {', '.join(dict.fromkeys(names))} are no batch: it holds runs that optimize the same values at the "
        "same layers, a fact at a time (MEMIT and methods that spread as it does, or variants of ROME, with equal "
        f"{', '.join(DESCENT)}), or else runs of one method with the same hyper-parameters and facts per step; give "
        "other lines of the grid batches of their own (batch: …)"
    )


@dataclass(frozen=True)
class Editing:
    """What a run edits with, made once from the unedited model (`prepare`).

    Attributes:
        method: its name.
        params: hyper-parameters.
        contexts: context templates, in groups where the method wants groups.
        factors: layer ↦ lower Cholesky factor of the second moment of keys, (d_key, d_key) float64.
        moments: what the second moments were computed from, in strings; empty without any.
        start: the state of a run before its first edit (`Method.start`), None for a method without one.
        facts_per_step: facts of a run that are edited in one call of the method, see `check_steps`.
    """

    method: str
    params: object
    contexts: list
    factors: dict
    moments: dict = field(default_factory=dict)
    start: object = None
    facts_per_step: int = 1

    @property
    def layers(self):
        """The layers it edits, ascending."""
        return layers_of(self.params)


def sample_contexts(lm, name, *, prefix_seeds=(), n_short=10, n_long=10, seed=0):
    """The context templates of a method, sampled from a model that should be unedited.

    Args:
        prefix_seeds, n_short, n_long: see `context_sampling.seed_starts` and `rome_contexts`.
    """
    import torch

    starts, generator = context_sampling.seed_starts(lm, prefix_seeds), torch.Generator().manual_seed(seed)
    return method(name).contexts(lm, starts, generator, n_short, n_long)


def prepare(lm, name, hparams, moments_path, *, factors=None, contexts=None, facts_per_step=1, **sampling):
    """The `Editing` of a method on a model as it stands, which should be unedited.

    Args:
        hparams: YAML file of hyper-parameters.
        moments_path: file of second moments that notebook 01 wrote, of this model, even if the method needs none.
        factors: factors made before, of the same model and file: taken where they are, added to where they are not.
        contexts: contexts sampled before, in the same way (`Method.contexts`) and with the same `sampling`.
        facts_per_step: see `Editing`.
        sampling: see `sample_contexts`.

    Raises what `read_params`, `check_loaded` and `moments.load` raise, before anything is sampled.
    """
    params, factors = read_params(name, hparams), {} if factors is None else factors
    check_loaded(name)
    layers = moment_layers(name, params)
    second_moments = moments.load(moments_path, lm, layers)
    missing = {layer: moment for layer, moment in second_moments.moments.items() if layer not in factors}
    factors |= cholesky_factors(missing, lm.device)
    own = {layer: factors[layer] for layer in layers}
    contexts = sample_contexts(lm, name, **sampling) if contexts is None else contexts
    return begun(lm, Editing(name, params, contexts, own, second_moments.identity, facts_per_step=facts_per_step))


def begun(lm, editing):
    """An `Editing` with the state of a run before its first edit, made from the unedited model."""
    if (start := method(editing.method).start) is None:
        return editing
    return replace(editing, start=start(lm, editing.params, editing.contexts, editing.factors))


def check_steps(name, n_edits, facts_per_step):
    """Raise ValueError unless a method edits so many facts in one call, and n_edits is a multiple of them."""
    if facts_per_step < 1:
        raise ValueError(f"facts_per_step is {facts_per_step}; a step edits 1 fact or more")
    if n_edits % facts_per_step:
        fitting = max(n_edits - n_edits % facts_per_step, facts_per_step)
        raise ValueError(f"n_edits is {n_edits}, no multiple of facts_per_step {facts_per_step}; give {fitting}")
    if facts_per_step > 1 and method(name).edit_batches is None:
        known = ", ".join(other for other in modules.MODULES if method(other).edit_batches)
        raise ValueError(
            f"facts_per_step is {facts_per_step}, and {name} edits one fact in a step: give 1, or a method that edits "
            f"several together ({known})"
        )


def after(editing, state, updates):
    """The state of a run after an edit that left these updates, none if it was not applied."""
    return state if state is None else method(editing.method).after(state, updates)


def bytes_per_edit(editing, lm):
    """Bytes of the tensors that a ledger keeps of an edit, or of a step of several facts; None: not known before one.

    Of UltraEdit and StableEdit (`Method.by_token`) it is what each token of the facts' targets takes. A fact that is
    left out takes none, and `rome-screened` at most this.
    """
    made = method(editing.method)
    if made.size is None:
        return None
    return made.size(lm, editing.params, 1 if made.by_token else editing.facts_per_step)


def of_record(lm, name, params):
    """The `Editing` of a recorded run as far as looks at its model need it, the model being unedited.

    Args:
        params: its hyper-parameters as in a ledger, names ↦ values.
    """
    made = method(name)
    if made.evaluated is None:
        return Editing(name, None, [], {})
    return begun(lm, Editing(name, made.params(**params), [], {}))


@contextmanager
def looked_at(editings, lm, states):
    """For the block, give the model, or each copy of a stack, the weights that are scored (`Method.evaluated`).

    Args:
        editings, states: of the run on each copy, the states after its edits so far.

    Afterwards the weights have their bits again, also after an error.
    """
    evaluated = [method(editing.method).evaluated for editing in editings]
    if not any(evaluated):
        yield
        return
    layers = editings[0].layers
    with updates.put_back(lm, layers):
        stacked = lm.weight(layers[0]).ndim == 3
        for copy, (of, state) in enumerate(zip(evaluated, states, strict=True)):
            updates.apply(lm, of(state) if of else [], copy if stacked else None)
        yield


def edit_each(editing, lm, facts, *ahead, states=None):
    """`Method.edit` of some facts; an edit whose solve fails has no updates, and the reason in its trace ("failed").

    When one of several fails, each is made again alone, so that the others do not depend on it but for rounding.

    Args:
        states: of the run that each fact belongs to, for a method with states; None: all before their first edit.
    """
    return _edits(method(editing.method).edit, editing, lm, facts, *ahead, states=states)


def edit_together(editings, lm, facts, *ahead, states):
    """`edit_each` for facts of runs that are `alike`, each with its own editing: fact i on copy i of a stack."""
    import torch

    first = editings[0]
    if all((editing.method, editing.params) == (first.method, first.params) for editing in editings):
        return edit_each(first, lm, facts, *ahead, states=states)
    ways = [method(e.method).way(e.params, e.factors, state, 1) for e, state in zip(editings, states, strict=True)]
    given = first.params, first.contexts, first.factors
    try:
        return method(first.method).together(lm, facts, *given, *ahead, ways=ways)
    except torch.linalg.LinAlgError:
        of_each = zip(editings, facts, states, strict=True)
        return [
            edit_each(editing, stacks.subset(lm, [i]), [fact], *([x[i]] for x in ahead), states=[state])[0]
            for i, (editing, fact, state) in enumerate(of_each)
        ]


def edit_steps(editing, lm, batches, states=None):
    """`Method.edit_batches` of some lists of facts, a failed solve as in `edit_each`: its list has no updates."""
    return _edits(method(editing.method).edit_batches, editing, lm, batches, states=states)


def _edits(edit, editing, lm, each, *ahead, states):
    """An `Edit` for each fact, or list of facts, see `edit_each`."""
    import torch

    states = states or [editing.start] * len(each)
    given = {} if editing.start is None else {"states": states}
    try:
        return edit(lm, each, editing.params, editing.contexts, editing.factors, *ahead, **given)
    except torch.linalg.LinAlgError as error:
        if len(each) == 1:
            return [updates.Edit((), {"failed": str(error)})]
    return [
        made
        for i, one in enumerate(each)
        for made in _edits(edit, editing, stacks.subset(lm, [i]), [one], *([x[i]] for x in ahead), states=[states[i]])
    ]


def status(edit):
    """What became of an edit: "edited", "screened" (left out on purpose), "non-finite" (NaN, infinity or overflow in
    it), or "failed-solve". Only the last two are failures (`columns.SOUND`)."""
    if "failed" in edit.trace:
        return "failed-solve"
    if "screened" in edit.trace:
        return "screened"
    return "edited" if all(update.is_finite() for update in edit.updates) else "non-finite"


def alone(editing, lm, facts):
    """The `Edit` of each fact alone, one after the other, on the model as it stands when TOGETHER of them begin."""
    for first in range(0, len(facts), TOGETHER):
        yield from edit_each(editing, lm, facts[first : first + TOGETHER])


def each_alone(editing, lm, facts, look):
    """What `look(fact, edit)` says of each fact, called on the model as it stands with the edit of that fact alone.

    An edit that is not "edited" by its `status` is not applied. The model is left as it was, bit for bit, also after an
    error.
    """
    from tqdm import tqdm

    found, facts = [], tqdm(facts, desc=f"single edits, {editing.method}", unit="edit")
    for fact, edit in zip(facts, alone(editing, lm, facts.iterable), strict=True):
        with updates.put_back(lm, editing.layers):
            made = edit.updates if status(edit) == "edited" else ()
            updates.apply(lm, made)
            with looked_at([editing], lm, [after(editing, editing.start, made)]):
                found.append(look(fact, edit))
    return found


def read_params(name, path):
    """Hyper-parameters of a method from a flat YAML file.

    Raises FileNotFoundError, or ValueError that names the file, the entry and what was expected there.
    """
    import yaml

    params = method(name).params
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no hyper-parameters for {name} at {path}; see the folders in params")
    try:
        given = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not readable as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(given, dict):
        raise ValueError(f"{path} must map names to values")
    return params_of(params, given, path)


def params_of(params, given, where):
    """Hyper-parameters, of a dataclass, from names and values. ValueError says `where` and which entry is wrong."""
    expected, values = {f.name: f.type for f in fields(params)}, {}
    for entry in given:
        if entry not in expected:
            raise ValueError(f"{where}: unknown entry {entry!r}; {params.__name__} has {', '.join(expected)}")
    for entry, kind in expected.items():
        if entry not in given:
            raise ValueError(f"{where}: entry {entry!r} is missing")
        value = float(given[entry]) if kind is float and type(given[entry]) is int else given[entry]
        if type(value) is not kind or (kind is list and not all(type(x) is int for x in value)):
            raise ValueError(f"{where}: {entry} must be a {kind.__name__}, not {given[entry]!r}")
        values[entry] = value
    return params(**values)


def layers_of(params):
    """The layers a method edits, ascending."""
    return sorted(params.layers)


def moment_layers(name, params):
    """The layers whose second moments a method needs, ascending: all, unless the hyper-parameters name them."""
    return sorted(getattr(params, "moment_layers", params.layers)) if method(name).moments else []


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


def summary(edit, i=0):
    """Scalars that describe an edit: a row for a table, floats and ints.

    steps are forwards; losses, `nll` and `kl` in nats per token; norms in the model's units; `denominator` is k·u
    (ROME variants; None for others). A method that optimizes no value has no KL and no δ: None there, and its loss is
    the NLL. Of several facts edited together, number i's. All None for a failed solve, and but for the denominator for
    a fact that was left out.
    """
    trace = edit.trace
    denominator = trace["denominator"].item() if "denominator" in trace else None
    if "losses" not in trace:
        return dict.fromkeys(SUMMARY) | {"denominator": denominator}
    losses = trace["losses"][i] if isinstance(trace["losses"], list) else trace["losses"]
    row = {"steps": len(losses), "loss_first": losses[0, 0].item(), "loss_last": losses[-1, 0].item()}
    if "delta" not in trace:
        names = ("kl_last", "delta_norm", "init_norm")
        return {**row, "nll_last": row["loss_last"], **dict.fromkeys(names), "denominator": denominator}
    init = trace["init"][:, i] if trace["init"].ndim == 2 else trace["init"]
    delta = trace["delta"][:, i] if trace["delta"].ndim == 2 else trace["delta"]
    return {
        **row,
        "nll_last": losses[-1, 1].item(),
        "kl_last": losses[-1, 2].item(),
        "delta_norm": delta.norm().item(),
        "init_norm": init.norm().item(),
        "denominator": denominator,
    }
