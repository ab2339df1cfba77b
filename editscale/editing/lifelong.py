"""Lifelong normalization: ridge regressions on gradients that are normalized by statistics of all edits so far.

UltraEdit (arXiv:2505.14679) and StableEdit (arXiv:2605.11836), as released in XiaojieGu/UltraEdit and
MINE-USTC/StableEdit (`editor/ultraedit.py`, `editor/stableedit.py`, `nets.py`). No value is optimized, and no second
moment needed: an edit is one forward and one backward of prompt and target. At each of the b tokens that predict the
target, each edited layer has a key k, and g, the gradient of the loss at the output of its projection. With μ and s,
mean and deviation of all x = [k, g] so far, those of this edit and of all layers among them:

    k̂ = (k − μ_k) / (s_k + ε)        ĝ = (g − μ_g) / (s_g + ε)        ε = 2⁻⁵²
    v = −η ‖k̂‖² ĝ                    the change of the output that is asked for
    ΔW = V (KᵀK + αI)⁻¹ Kᵀ           ridge regression: K (d_key, b) and V (d_value, b), one column for each token

StableEdit differs in the lines that end with "StableEdit". It whitens gradients, ĝ = Q (g − μ_g) with Q the inverse
square root of their covariance, once there are more than d_value + 1 of them. And it edits facts first that are not
part of a run: they warm up the statistics, and their change of the weights stays. Here that change is part of the first
edit, so that a ledger holds all that was added to a model.

Several facts edited together, a turn, are read in mini-batches, the longest texts first. A mini-batch has one loss, the
mean over the target tokens of all its facts, and enters the statistics as one. Then the layers are solved, each with
the tokens of all mini-batches. Of a turn that is no multiple of the mini-batch, the last one is smaller (the released
UltraEdit loses its gradients).

Statistics and solves are in float64, where the released code takes float32.
"""

from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property, partial

from editscale.data import orders
from editscale.editing import updates
from editscale.editing.context_sampling import bare_context
from editscale.editing.method import Method
from editscale.editing.updates import Edit, Update
from editscale.models import anatomy, tokens

EPSILON = 2.0**-52  # ε of float64
SMALLEST = 1e-6  # an eigenvalue of the gradients' covariance is at least this when they are whitened


@dataclass(frozen=True)
class UltraEditParams:
    """Hyper-parameters; params/ultraedit/*.yaml says what each means."""

    layers: list
    eta: float
    alpha: float
    unbiased: bool
    mini_batch: int


@dataclass(frozen=True)
class StableEditParams:
    """Hyper-parameters; params/stableedit/*.yaml says what each means."""

    layers: list
    eta: float
    alpha: float
    warm_up: int  # StableEdit
    mini_batch: int


@dataclass(frozen=True)
class State:
    """Running statistics of x = [k, g] over the tokens of all edits so far, float64.

    The projections of a model have one shape, and all edited layers share the statistics.

    Attributes:
        n: how many x: each token counts once for each edited layer.
        mean: μ, (d_key + d_value,).
        squares: sums of squared deviations from μ, (d_key + d_value,).
        products: sums of products of the gradients' deviations, (d_value, d_value), or None: nothing is whitened.
        unbiased: whether the deviations of b tokens from their own mean count b / (b − 1) times.
        shift: the change by a warm-up that no recorded edit holds yet, an `Update` for each layer.
    """

    n: int
    mean: object
    squares: object
    products: object = None  # StableEdit
    unbiased: bool = False
    shift: tuple = ()  # StableEdit

    @cached_property
    def whitening(self):
        """Q, (d_value, d_value) float64: the inverse square root of the gradients' covariance, one for all layers. None
        where nothing is whitened, or too few gradients were seen."""
        import torch

        if self.products is None or self.n <= (d := len(self.products)) + 1:
            return None
        values, vectors = torch.linalg.eigh(self.products / (self.n - d - 1 + EPSILON))
        return vectors / values.clamp(min=SMALLEST).sqrt() @ vectors.T


def start_ultraedit(lm, params, contexts, factors):
    """The `State` before the first edit: nothing was seen."""
    return _nothing_seen(lm, unbiased=params.unbiased)


def start_stableedit(lm, params, contexts, factors):
    """The `State` after a warm-up with `params.warm_up` facts of AtlasFacts, taken evenly from all of them.

    The model is left as it was. Raises ValueError unless there are so many.
    """
    facts = orders.open_set("atlas")
    if not 0 <= params.warm_up <= len(facts):
        raise ValueError(f"warm_up is {params.warm_up}; AtlasFacts has {len(facts)} facts, so give 0 to as many")
    return warmed(lm, [facts[i * len(facts) // params.warm_up] for i in range(params.warm_up)], params)


def warmed(lm, facts, params, turn=1):
    """The `State` after some facts, `turn` of them edited at a time, without whitening. The model is left as it was."""
    state, shift = _nothing_seen(lm), ()
    state = replace(state, products=state.mean.new_zeros(lm.d_model, lm.d_model))
    with updates.put_back(lm, params.layers):
        for first in range(0, len(facts), turn):
            (made,) = _edits(lm, [facts[first : first + turn]], params, [state], whiten=False)
            updates.apply(lm, made.updates)
            state, shift = after(state, made.updates), _joined(shift, made.updates)
    return replace(state, shift=shift)


def _nothing_seen(lm, **options):
    import torch

    zeros = torch.zeros(lm.d_key + lm.d_model, dtype=torch.float64, device=lm.device)
    return State(0, zeros, zeros, **options)


def after(state, updates):
    """The `State` after an edit of which `updates` were recorded; unchanged if there are none."""
    state = _all_seen(state, list(zip(*map(_parts, updates), strict=True)))
    return replace(state, shift=()) if updates else state


def _parts(update):
    """Keys and gradients of each mini-batch of a recorded `Update`."""
    gradients = update.kept["gradients"]
    b = gradients.shape[1]
    sizes = update.kept["sizes"].tolist() if "sizes" in update.kept else [b]
    return list(zip(update.right[:, -b:].split(sizes, dim=1), gradients.split(sizes, dim=1), strict=True))


def _all_seen(state, mini_batches):
    """The statistics with the tokens of some mini-batches, each the (keys, gradients) of its layers."""
    for of_layers in mini_batches:
        for keys, gradients in of_layers:
            state = seen(state, keys, gradients)
    return state


def seen(state, keys, gradients):
    """The statistics with b more tokens.

    Args:
        keys, gradients: (d_key, b) and (d_value, b), in any dtype.

    A single token has no deviation from its own mean. The released UltraEdit divides 0 by 0 there, and all its
    statistics are NaN from then on.
    """
    import torch

    x = torch.cat([keys, gradients]).to(state.mean)
    b, mean = x.shape[1], x.mean(1)
    n, inside, between = state.n + b, x - mean[:, None], mean - state.mean
    weight = b / max(b - 1, 1) if state.unbiased else 1
    squares = state.squares + weight * (inside**2).sum(1) + state.n * b / n * between**2
    products = state.products
    if products is not None:
        inside, outside = inside[len(keys) :], between[len(keys) :]
        products = products + inside @ inside.T + state.n * b / n * torch.outer(outside, outside)  # StableEdit
    return replace(state, n=n, mean=state.mean + b / n * between, squares=squares, products=products)


def asked(state, keys, gradients, eta, *, whiten=True):
    """V, (d_value, b) float64: the change of the output that is asked for at each token.

    Args:
        state: statistics that these tokens are part of.
        keys, gradients: (d_key, b) and (d_value, b).
        whiten: whether to whiten gradients where the state can.
    """
    import torch

    deviation = (state.squares / (state.n - 1 + EPSILON)).sqrt() + EPSILON
    x = torch.cat([keys, gradients]).to(state.mean) - state.mean[:, None]
    normalized, d = x / deviation[:, None], len(gradients)
    direction = normalized[-d:]
    if whiten and state.whitening is not None:  # StableEdit
        direction = state.whitening @ x[-d:]  # StableEdit
    return -eta * (normalized[:-d] ** 2).sum(0) * direction


def ridge(keys, values, alpha):
    """V (KᵀK + αI)⁻¹, (d_value, b) float64: ΔW is this times Kᵀ, which equals V Kᵀ (K Kᵀ + αI)⁻¹.

    Args:
        keys: K, (d_key, b). values: V, (d_value, b).
    """
    import torch

    keys = keys.double()
    gram = keys.T @ keys + alpha * torch.eye(keys.shape[1], dtype=keys.dtype, device=keys.device)
    return torch.linalg.solve(gram, values, left=False)


def keys_and_gradients(lm, facts, layers):
    """For each fact, on the model as it stands or on copy i of a stack: its loss, and layer ↦ (keys, gradients).

    The loss is the mean of −log p over the b tokens of the target, each after the prompt and the tokens before it.
    Keys, (d_key, b), and gradients, (d_value, b), are those where these tokens are predicted, in the weights' dtype.

    Args:
        layers: ascending.

    Raises ValueError if the model cannot read a text, or a prompt shares a token with its target.
    """
    import torch

    pairs = tokens.with_targets(lm.tokenizer, [f.rewrite_prompt for f in facts], [f.target_new for f in facts])
    tokens.check(lm, [prompt + target for prompt, target in pairs])
    trees = [tokens.tree([prompt + target[:-1]]) for prompt, target in pairs]
    ids, positions, mask = tokens.tree_inputs(trees, lm.device, lm.dtype)
    places = [slice(len(prompt) - 1, len(prompt) - 1 + len(target)) for prompt, target in pairs]
    found = {}

    def watched(layer):
        def keep(keys, values):
            found[layer] = keys.detach(), values if values.requires_grad else values.requires_grad_()

        return anatomy.watching(lm.projection(layer), keep)

    with torch.no_grad():
        entering = anatomy.segment(lm, 0, layers[0])(ids, mask, positions) if layers[0] else ids
    with torch.enable_grad(), ExitStack() as stack:
        for layer in layers:
            stack.enter_context(watched(layer))
        final = anatomy.segment(lm, layers[0])(entering, mask, positions)
        log_p = [lm.logits(row[at]).log_softmax(dim=-1) for row, at in zip(final, places, strict=True)]
        targets = [torch.tensor(target, device=lm.device)[:, None] for _, target in pairs]
        losses = torch.stack([-of.gather(1, target).mean() for of, target in zip(log_p, targets, strict=True)])
        backward = torch.autograd.grad(losses.sum(), [values for _, values in found.values()])
    both = {layer: (keys, of) for (layer, (keys, _)), of in zip(found.items(), backward, strict=True)}
    return [
        (loss, {layer: tuple(x[i, at].T.contiguous() for x in of) for layer, of in both.items()})
        for i, (loss, at) in enumerate(zip(losses.detach(), places, strict=True))
    ]


def edit(lm, facts, params, contexts, factors, *, states):
    """For each fact the change that makes the model, or copy i of a stack, say its new target: one `Edit` per fact.

    As `edit_batches` with lists of one fact.
    """
    return edit_batches(lm, [[fact] for fact in facts], params, contexts, factors, states=states)


def edit_batches(lm, batches, params, contexts, factors, *, states):
    """For each list of facts the change that makes the model, or copy i of a stack, say all its new targets, made as
    one turn: one `Edit` per list.

    The model is left as it was.

    Args:
        batches: lists of facts, all of one length.
        contexts, factors: not used; the bare prompt is read, and no second moment.
        states: one `State` for each list, before its edit. Lists that share a model share a warm-up too.

    Returns:
        An `Edit` with an `Update` per layer, of rank b, the tokens of all targets: `right` holds the keys, and `kept`
        the gradients, and of several mini-batches also their "sizes" in tokens. Where the state has a shift, its
        columns stand before those.

    Raises ValueError unless α is positive and a mini-batch has a fact, or as `keys_and_gradients` does.
    """
    return _edits(lm, batches, params, states, whiten=True)


def _edits(lm, batches, params, states, *, whiten):
    import torch

    if not params.alpha > 0:
        raise ValueError(f"alpha is {params.alpha}; a ridge regression needs a positive one")
    if not params.mini_batch > 0:
        raise ValueError(f"mini_batch is {params.mini_batch}; give the number of facts in one, 1 or more")
    layers, edits = sorted(params.layers), []
    stacked = lm.weight(layers[0]).ndim == 3
    with updates.put_back(lm, layers if any(state.shift for state in states) else ()):
        for copy in range(len(lm.weight(layers[0])) if stacked else 1):
            updates.apply(lm, states[copy].shift, copy if stacked else None)
        turns = _turns(lm, batches, layers, params.mini_batch)
    for (losses, mini_batches), state in zip(turns, states, strict=True):
        now, made = _all_seen(state, mini_batches), []
        for layer, parts in zip(layers, zip(*mini_batches, strict=True), strict=True):
            keys, gradients = (torch.cat(x, dim=1) for x in zip(*parts, strict=True))
            values = asked(now, keys, gradients, params.eta, whiten=whiten)
            left = ridge(keys, values, params.alpha).to(lm.dtype)
            kept, sizes = {"gradients": gradients}, [of.shape[1] for of, _ in parts]
            kept |= {"sizes": torch.tensor(sizes, dtype=torch.int32, device=lm.device)} if len(sizes) > 1 else {}
            made.append(Update(layer, left, keys, kept=kept))
        edits.append(Edit(tuple(_joined(state.shift, made)), {"losses": [loss[None, None] for loss in losses]}))
    return edits


def _turns(lm, batches, layers, size):
    """For each list of facts: the loss of each, and of each mini-batch the (keys, gradients) of its one loss by layer.

    The copies of a stack read one fact each in a forward, a single model a whole mini-batch of every list.
    """
    alone = lm.weight(layers[0]).ndim == 3 and len(lm.weight(layers[0])) > 1
    orders = [_longest_first(lm, batch) for batch in batches]
    found = [[None] * len(batch) for batch in batches]
    parts = range(0, len(batches[0]), size)
    for first in parts:
        rows = [[(of, i) for i in order[first : first + size]] for of, order in enumerate(orders)]
        for places in zip(*rows, strict=True) if alone else [sum(rows, [])]:
            read = keys_and_gradients(lm, [batches[of][i] for of, i in places], layers)
            for (of, i), one in zip(places, read, strict=True):
                found[of][i] = one
    return [
        ([loss for loss, _ in of], [_as_one([of[i][1] for i in order[first : first + size]]) for first in parts])
        for of, order in zip(found, orders, strict=True)
    ]


def _longest_first(lm, facts):
    """The places of facts in a list, those with more tokens of prompt and target first."""
    pairs = tokens.with_targets(lm.tokenizer, [f.rewrite_prompt for f in facts], [f.target_new for f in facts])
    return sorted(range(len(facts)), key=lambda i: sum(map(len, pairs[i])), reverse=True)


def _as_one(facts):
    """(keys, gradients) by layer of the mean loss over the tokens of some facts, given layer ↦ those of each alone."""
    import torch

    total, found = sum(keys.shape[1] for keys, _ in (next(iter(of.values())) for of in facts)), []
    for of_facts in zip(*(of.values() for of in facts), strict=True):
        scaled = [(keys, gradients * (keys.shape[1] / total)) for keys, gradients in of_facts]
        found.append(tuple(torch.cat(of, dim=1) for of in zip(*scaled, strict=True)))
    return found


def _joined(first, second):
    """Updates of the same layers as one, the columns of the first before those of the second."""
    import torch

    def both(name, a, b):
        return torch.cat([getattr(a, name), getattr(b, name)], dim=1)

    if not first:
        return tuple(second)
    pairs = zip(first, second, strict=True)
    return tuple(replace(b, left=both("left", a, b), right=both("right", a, b)) for a, b in pairs)


LIFELONG = {
    "edit": edit,
    "edit_batches": edit_batches,
    "contexts": bare_context,
    "moments": False,
    "after": after,
    "size": partial(updates.low_rank_bytes, left=2),  # the gradients are kept
    "by_token": True,
}
METHODS = {
    "ultraedit": Method(UltraEditParams, start=start_ultraedit, **LIFELONG),
    "stableedit": Method(
        StableEditParams,
        start=start_stableedit,
        made_of=lambda state: updates.to_bytes(state.shift),
        **LIFELONG,
    ),
}
