"""What one edit of every method costs, beside MEMIT's in the same run: rows of `bench` for a table of `costs`.

An edit is all that a run does for it but its scores: it is found with all its steps, checked, applied, made into the
bytes of a ledger, and joined to the state of the run; and what is scored in place of the edited weights is found
(PRUNE). A method with a state is timed before the first edit, and after EARLIER ones with random keys and changes.

Each is timed in turns with MEMIT, so that a ratio holds where seconds waver. With one thread on a CPU seconds are those
of the process on its core, which other work on the machine hardly changes.

All methods take the facts, contexts and second moments of `parts.Case`; ROME's and MEMIT's kinds edit the layers of
these two, UltraEdit and StableEdit their own. No optimization may stop early (STEADY): ENCORE's would.
"""

import statistics
import time
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import partial

from editscale.editing import context_sampling, editors, hparams, modules, updates
from tools import costs

EARLIER = (100, 1000)
REPEATS = 5
# Hyper-parameters with which an edit is all its steps and of every fact, and half of the directions a null space.
STEADY = {"lr": 1e-7, "least_denominator": 0.0, "nullspace_threshold": 0.75}


def hparams_file(name, stem):
    """The file with a method's hyper-parameters for a model. Raises FileNotFoundError if there is none."""
    path = hparams.folder(name) / f"{stem}.yaml"
    if not path.is_file():
        raise FileNotFoundError(f"no hyper-parameters of {name} for {stem} at {path}")
    return path


def available(stem):
    """The methods of the package, or none if one of them has no hyper-parameters for a model."""
    try:
        return [name for name in modules.MODULES if hparams_file(name, stem)]
    except FileNotFoundError:
        return []


def editing_of(case, name, stem):
    """The `Editing` of a method on a case, before its first edit."""
    params, kind = editors.read_params(name, hparams_file(name, stem)), editors.method(name).contexts
    like = "memit" if kind is context_sampling.memit_contexts else "rome"
    steady = STEADY | {"v_lr": case.params[like].v_lr, "layer": case.params["rome"].layer}
    if like == "memit":
        steady["layers"] = case.params["memit"].layers
    names = {of.name for of in fields(params)}
    params = replace(params, **{entry: value for entry, value in steady.items() if entry in names})
    one = next(iter(case.factors.values()))
    factors = {layer: case.factors.get(layer, one) for layer in editors.moment_layers(name, params)}
    contexts = ["{}"] if kind is context_sampling.bare_context else case.contexts[like]
    return editors.begun(case.lm, editors.Editing(name, params, contexts, factors))


@dataclass(frozen=True)
class Edited:
    """One edit to time: of a fact, on a model in whose run there were `earlier` edits, which left a state."""

    lm: object
    editing: object
    fact: object
    state: object
    earlier: int = 0

    def __call__(self):
        """Make the edit; what it records (bytes)."""
        (edit,) = editors.edit_each(self.editing, self.lm, [self.fact], states=[self.state])
        if (status := editors.status(edit)) != "edited":
            raise ValueError(f"an edit of {self.editing.method} is {status}; nothing was measured")
        self._check_steps(edit)
        updates.apply(self.lm, edit.updates)
        recorded = updates.to_bytes(edit.updates)
        state = editors.after(self.editing, self.state, edit.updates)
        with editors.looked_at([self.editing], self.lm, [state]):
            return recorded

    def _check_steps(self, edit):
        params, taken = self.editing.params, editors.summary(edit)["steps"]
        wanted = getattr(params, "v_num_grad_steps", getattr(params, "num_steps", 1))
        if taken != wanted:
            raise ValueError(
                f"an edit of {self.editing.method} stopped after {taken} of {wanted} steps; give a smaller rate"
            )

    def timed(self):
        """Seconds of the edit, which is taken back, and what it records."""
        import torch

        on_cpu = self.lm.device.type == "cpu"
        clock = time.process_time if on_cpu and torch.get_num_threads() == 1 else time.perf_counter
        wait = (lambda: None) if on_cpu else torch.cuda.synchronize
        with updates.put_back(self.lm, self.editing.layers):
            wait()
            began = clock()
            recorded = self()
            wait()
            return clock() - began, recorded


def many(update, n, generator):
    """An `Update` as n edits like this one leave it: n times its columns, random ones."""

    def drawn(tensor):
        return tensor.new_empty(*tensor.shape[:-1], n * tensor.shape[-1]).normal_(generator=generator)

    kept = {name: drawn(tensor) for name, tensor in update.kept.items()}
    return replace(update, left=drawn(update.left), right=drawn(update.right), kept=kept)


def begun(case, name, stem):
    """What is timed of a method: an `Edited` before the first edit and, where earlier edits change its state, after
    EARLIER ones. Each edit was made once, so that none is timed when its code runs for the first time."""
    import torch

    editing = editing_of(case, name, stem)
    first = Edited(case.lm, editing, case.facts[0], editing.start)
    _, recorded = first.timed()
    if editing.start is None:
        return [first]
    generator, found = torch.Generator(case.lm.device).manual_seed(0), [first]
    for n in EARLIER:
        left = [many(update.to(case.lm.device), n, generator) for update in updates.from_bytes(recorded)]
        state = editors.after(editing, editing.start, left)
        if state is not editing.start:
            found.append(replace(first, state=state, earlier=n))
    return found


def state_bytes(state, besides=()):
    """Bytes of all tensors that a state holds, each storage once, without those of the tensors `besides`."""
    known = {tensor.untyped_storage().data_ptr() for tensor in besides}
    return sum(size for at, size in _storages(state).items() if at not in known)


def _storages(value):
    """Address ↦ bytes of the storages of all tensors in a value."""
    import torch

    if isinstance(value, torch.Tensor):
        return {value.untyped_storage().data_ptr(): value.untyped_storage().nbytes()}
    if is_dataclass(value):
        value = [getattr(value, of.name) for of in fields(value)]
    if isinstance(value, partial):
        value = (*value.args, *value.keywords.values())
    if isinstance(value, dict):
        value = tuple(value.values())
    found = {}
    for part in value if isinstance(value, tuple | list) else ():
        found |= _storages(part)
    return found


def rows(case, names, stem, *, repeats=None, seconds=60.0):
    """Yield the rows of some methods, see `costs.METHOD_HEADS`.

    Args:
        names: of the methods.
        stem: of the files with hyper-parameters.
        repeats: rounds, each MEMIT's edit and then the method's; None: REPEATS.
        seconds: begin no further round of a method after so long.
    """
    (memit,) = begun(case, "memit", stem)
    for name in names:
        timed = begun(case, name, stem)
        began, taken, ratios, sizes = time.perf_counter(), *([[] for _ in timed] for _ in range(3))
        for done in range(repeats or REPEATS):
            if done and time.perf_counter() - began > seconds:
                break
            yardstick, _ = memit.timed()
            for i, edited in enumerate(timed):
                taken_s, recorded = edited.timed()
                taken[i].append(taken_s)
                ratios[i].append(taken_s / yardstick)
                sizes[i] = len(recorded)
        for edited, own, beside, size in zip(timed, taken, ratios, sizes, strict=True):
            yield costs.method_row(
                method=name,
                shape=case.shape,
                device=costs.device_name(case.lm.device),
                precision=case.precision,
                earlier=edited.earlier,
                rounds=len(own),
                seconds=statistics.median(own),
                ratio=statistics.median(beside),
                ledger_bytes=size,
                state_bytes=state_bytes(edited.state, edited.editing.factors.values()),
            )
