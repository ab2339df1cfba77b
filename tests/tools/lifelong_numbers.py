"""The numbers of UltraEdit and StableEdit as this package computes them, for `verify` (see `mitigations`)."""

from dataclasses import replace

from editscale.editing import lifelong, updates
from editscale.editing.lifelong import StableEditParams, UltraEditParams
from tools import mitigations

# Largest relative difference (Frobenius); the released code has its statistics and solves in float32 in the f32 files.
FILES = {
    "ultraedit": mitigations.Of("ultraedit", 5e-4),
    "stableedit": mitigations.Of("stableedit", 2e-3, 1e-8),
}


def compare(see, file, lm, golden, setup, base, factors, look):
    """As `mitigations.compare`; statistics of keys and of gradients apart, as gradients are small beside keys."""
    import numpy as np

    precision = str(lm.dtype).removeprefix("torch.")
    ours, allowed = recomputed(file, lm, setup, base["facts"], look), getattr(FILES[file], precision)
    for where, value in golden.items():
        if (kind := mitigations.kind_of(where)) in mitigations.LAYOUT:
            continue
        if where not in ours:
            raise ValueError(f"{file}: nothing here computes {where}")
        if isinstance(ours[where], tuple):
            for part, one, other in zip(("keys", "gradients"), ours[where], np.split(value, [lm.d_key]), strict=True):
                see(f"{kind} of {part}", where, one, other, allowed)
        else:
            see(kind, where, ours[where], value, allowed)


def params_of(method, setup):
    """Hyper-parameters of a folder's setup.json."""
    given, turn = setup["hparams"][method], setup["ultraedit_turn"]
    common = {"layers": given["layers"], "eta": given["lr"], "alpha": given["alpha"], "mini_batch": turn["mini_batch"]}
    if method == "ultraedit":
        return UltraEditParams(**common, unbiased=given["variance"] == "unbiased")
    return StableEditParams(**common, warm_up=len(setup["stableedit_warmup"]))


def of_state(state, d_key):
    """Arrays of the running statistics; (of keys, of gradients) where both are in one."""
    import torch

    deviation = (state.squares / (state.n - 1)).sqrt()
    parts = {"mean": state.mean, "std": deviation}
    return {"n": torch.tensor([state.n]), **{name: (x[:d_key], x[d_key:]) for name, x in parts.items()}}


def of_updates(made):
    """Arrays of the updates of an edit."""
    found = {}
    for update in made:
        at, matrix = f"layer{update.layer}", update.matrix().T
        found |= {f"{at}.keys": update.right.T, f"{at}.values_grad": update.kept["gradients"].T}
        found |= {
            f"{at}.update": matrix,
            f"{at}.update_frobenius": matrix.norm(),
            f"{at}.update_corner": matrix[:8, :8],
        }
    return found


def own(update):
    """An update without the warm-up that it may carry."""
    b = update.kept["gradients"].shape[1]
    return replace(update, left=update.left[:, -b:], right=update.right[:, -b:])


def recomputed(method, lm, setup, records, look):
    """name ↦ what this package gives for the array of that name. The model is left as it was.

    Args:
        look: called with the name of each state of the model that is scored, the model in it.
    """
    params, found = params_of(method, setup), {}
    warm_up = [mitigations.fact_of(i, request) for i, request in enumerate(setup["stableedit_warmup"])]
    turn = [records[i] for i in setup["ultraedit_turn"]["records"]]

    def see(prefix, named):
        found.update({f"{prefix}.{name}": value for name, value in named.items()})

    def weights():
        return {f"layer{layer}": lm.weight(layer).T.clone() for layer in params.layers}

    def edited(facts, state):
        (edit,) = lifelong.edit_batches(lm, [facts], params, ["{}"], {}, states=[state])
        updates.apply(lm, edit.updates)
        return edit.updates, lifelong.after(state, edit.updates)

    def started(facts, size=1):
        stable = method == "stableedit"
        return lifelong.warmed(lm, facts, params, size) if stable else lifelong.start_ultraedit(lm, params, [], {})

    with updates.put_back(lm, params.layers):
        state = started(warm_up, len(turn))
        updates.apply(lm, state.shift)
        see("turn.warm_weight", weights())
        see("turn.warm_norm", of_state(state, lm.d_key) if state.n else {})
        made, state = edited(turn, replace(state, shift=()))
        see("turn", of_updates(made))
        see("turn.norm", of_state(state, lm.d_key))
        look("turn")
    if method == "stableedit":
        with updates.put_back(lm, params.layers):
            state = started([])
            for i, fact in enumerate(warm_up[:2]):
                made, state = edited([fact], state)
                see(f"warm{i}", of_updates(made))
                see(f"warm{i}.norm", of_state(state, lm.d_key))
    with updates.put_back(lm, params.layers):
        state = started(warm_up)
        with updates.put_back(lm, params.layers):
            updates.apply(lm, state.shift)
            see("warm.weight", weights())
        see("warm.norm", (of_state(state, lm.d_key) if state.n else {}) | {"cov_value": state.products})
        for i, fact in enumerate(records):
            made, state = edited([fact], state)
            see(f"seq{i}", of_updates(map(own, made)))
            see(f"seq{i}.norm", of_state(state, lm.d_key))
            look(f"sequential {i}")
        see("seq.final_weight", weights())
    return found
