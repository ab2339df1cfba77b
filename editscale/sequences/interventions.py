"""Is it how far edits moved the weights that loses facts, or where to? Their change is scaled, or replaced by another.

Between two places of a recorded run, after m and after n edits, the projection of a layer changes by D = W(n) − W(m),
and so does its bias where a method edits it, taken as a matrix of one column.
On the model after m edits, s·D′ is added in place of D, for all layers at once:

| change | D′ |
|---|---|
| edits | D, what the edits did |
| spectrum | U diag(σ) Vᵀ with the singular values σ of D, and random orthonormal columns U and V |
| gaussian | c·A Bᵀ: i.i.d. normal entries, as many columns as D has rank, and c that makes it ‖D‖ (Frobenius) |
| permuted | of edits u_t v_tᵀ of rank one, Σ_t ‖u_t‖ û_π(t) v_tᵀ: each with another edit's value, in its own size |

`spectrum` and `gaussian` move a layer as far as its edits did, with the same rank, in directions that know nothing of
keys or values; `spectrum` also as unevenly, most of it along a few directions. `permuted` still writes at the keys of
the edits. If distance were what loses facts, all of them would lose as many as `edits` does.

What is lost must have been there: facts that the model recalled after m edits. From m = 0 there are none. A random
change teaches nothing: recall after it is about that of the unedited model, by construction, and the perplexity of
texts is what compares the changes there.

Changes are float64. With s = 0 and s = 1, `edits` gives the bits of the run's models after m and n edits, as long as
weights have float32 or less: the sum is exact to 2⁻⁵² and rounded once.
"""

import math
from contextlib import contextmanager

from editscale.editing import editors, updates
from editscale.metrics import generation, text_loss
from editscale.models.hidden_states import BATCH_TOKENS
from editscale.sequences import past_runs

RANDOM = ("spectrum", "gaussian", "permuted")  # changes that are drawn, by a seed each


def check(run, since, edits, scales, seeds):
    """Raise ValueError unless since < edits are places of the run, scales finite, and seeds some different ones."""
    if not 0 <= since < edits <= len(run.ledger):
        raise ValueError(
            f"{run.folder} has {len(run.ledger)} edits, and no change from {since} to {edits}; give places within it, "
            "each of since before each of at"
        )
    past_runs.check_places((since, edits), run.facts_per_step)
    if not all(map(math.isfinite, scales)) or not seeds or len({*seeds}) < len(seeds):
        raise ValueError(f"scales {scales} must be finite; seeds {seeds} must be one or more, and none twice")


def parts(lm, layers):
    """(layer, "weight" or "bias") ↦ that part of the model's projections, a view; biases are columns, (d_value, 1)."""
    found = {(layer, "weight"): lm.weight(layer) for layer in layers}
    biases = {(layer, "bias"): lm.bias(layer) for layer in layers}
    return found | {part: bias[:, None] for part, bias in biases.items() if bias is not None}


def models_at(run, places):
    """Copies of the `parts` of a run after each number of edits in `places`, ascending, as they are scored: a list. The
    model is unedited again afterwards."""
    return [
        {part: of.clone() for part, of in parts(run.lm, run.layers).items()} for _ in past_runs.replayed(run, places)
    ]


def difference(before, after):
    """part ↦ D, after − before, (d_value, d_key) float64 of a weight, (d_value, 1) of a bias."""
    return {part: after[part].double() - of.double() for part, of in before.items()}


def ranks(run, since, edits):
    """part ↦ the rank that the sum of edits since + 1 … edits has at most: their columns, counted; 1 of a bias.

    An edit that is a full matrix or has a mask counts as one of full rank. Of a method that scores other weights than
    it edits, all edits from the first on count.
    """
    first = since if editors.method(run.parameters["method"]).evaluated is None else 0
    found = {part: int(part[1] == "bias") for part in parts(run.lm, run.layers)}
    for update in (update for edit in range(first + 1, edits + 1) for update in run.ledger.updates(edit)):
        full, part = min(run.lm.weight(update.layer).shape), (update.layer, "weight")
        columns = full if update.right is None or update.mask is not None else update.left.shape[1]
        found[part] = min(found[part] + columns, full)
    return found


def spectrum(change, rank, generator):
    """A matrix with the first `rank` singular values of another, (d_value, d_key) float64, its size ‖·‖ and random
    singular vectors, uniform among all. `generator`: CPU `torch.Generator`."""
    import torch

    values = past_runs.singular_values(change)[:rank].cpu()
    left, right = (torch.linalg.qr(_normal(n, rank, generator))[0] for n in change.shape)
    return _as_large(((left * values) @ right.T).to(change), change)


def gaussian(change, rank, generator):
    """A matrix of another's size ‖·‖ and of a rank, the product of factors with i.i.d. normal entries, float64."""
    left, right = (_normal(n, rank, generator) for n in change.shape)
    return _as_large((left @ right.T).to(change), change)


def _normal(n, columns, generator):
    import torch

    return torch.randn(n, columns, dtype=torch.float64, generator=generator)


def _as_large(matrix, other):
    """A matrix scaled to the size of another; 0 where one of them is 0."""
    return matrix * (other.norm() / matrix.norm()) if matrix.norm() else matrix


def why_not_permuted(run, since, edits):
    """Why the values of these edits cannot be exchanged among them, in words; "" where they can."""
    if editors.method(run.parameters["method"]).evaluated is not None:
        return f"{run.key['method']} scores other weights than it edits"
    counts = dict.fromkeys(run.layers, 0)
    for edit in range(since + 1, edits + 1):
        for update in run.ledger.updates(edit):
            if set(update.change()) != {"left", "right"} or update.left.shape[1] > 1:
                return f"edit {edit} of {run.key['method']} changes layer {update.layer} by no matrix of rank one"
            counts[update.layer] += 1
    return next((f"a single edit changes layer {layer}" for layer, count in counts.items() if count == 1), "")


def permuted(recorded, generator):
    """layer ↦ the sum of rank-one updates, each in its own size and with its own key, and with the value of another.

    Args:
        recorded: the `updates.Update`s of each edit, in lists; of each layer two edits or more. Values go round a
            random circle of all edits, in which none keeps its own; of several layers it is the same, without those
            edits that do not change the layer.

    Returns (d_value, d_key) float64.
    """
    import torch

    circle, of_layers = torch.randperm(len(recorded), generator=generator).tolist(), {}
    for edit in circle:
        for update in recorded[edit]:
            of_layers.setdefault(update.layer, []).append((update.left.double(), update.right.double()))
    return {
        layer: torch.cat(
            [_sized(of, own) for (of, _), (own, _) in zip(pairs[1:] + pairs[:1], pairs, strict=True)], dim=1
        )
        @ torch.cat([key for _, key in pairs], dim=1).T
        for layer, pairs in of_layers.items()
    }


def _sized(value, own):
    """A value in the size of another; one of size 0 has no direction, and stays 0."""
    return value * (own.norm() / value.norm()) if value.norm() else value


def drawn(run, change, since, edits, kind, seed):
    """D′ of a kind of `RANDOM`, part ↦ matrix as in `difference`; the same for a seed on any device, up to rounding.

    Args:
        change: `difference` of the two places.

    Raises ValueError for values that cannot be exchanged, see `why_not_permuted`.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    if kind == "permuted":
        if why := why_not_permuted(run, since, edits):
            raise ValueError(f"values cannot be exchanged among edits: {why}; leave permuted out")
        found = permuted([run.ledger.updates(edit) for edit in range(since + 1, edits + 1)], generator)
        found = {(layer, "weight"): of for layer, of in found.items()}
        return {part: found[part].to(of) if part in found else 0 * of for part, of in change.items()}
    of_rank = ranks(run, since, edits)
    draw = {"spectrum": spectrum, "gaussian": gaussian}[kind]
    return {part: draw(of, of_rank[part], generator) for part, of in change.items()}


@contextmanager
def moved(lm, before, change, scale):
    """For the block, give a model before + scale · change; afterwards it has its own bits again, also after an error.

    Args:
        before: one of `models_at`. change: part ↦ D′, float64.
    """
    layers = sorted({layer for layer, _ in before})
    with updates.put_back(lm, layers):
        for part, of in parts(lm, layers).items():
            of.copy_(before[part].double() + scale * change[part])
        yield lm


def size(change):
    """How far a change moves a model: the Frobenius norm of all its parts together."""
    return math.sqrt(sum(of.norm().item() ** 2 for of in change.values()))


def measured(run, since, edits, scales, seeds, *, batch_tokens=BATCH_TOKENS, kept=None, texts=()):
    """Yield a row of measurements for each change between two places of a run, at each scale and for each seed.

    Args:
        scales: factors of each change besides 0 and 1. 0, where nothing is added, is asked once for all changes.
        texts: windows of a held-out text (`text_loss.windows`), or none.
        batch_tokens, kept: as for `past_runs.recall_rows`.

    Columns are described in columns.yaml. Kinds that the run has no change of are left out (`why_not_permuted`). Raises
    ValueError as `check` does, and for edits that changed nothing, before anything is asked.
    """
    check(run, since, edits, scales, seeds)
    scales = sorted({0.0, 1.0, *map(float, scales)})
    before, after = models_at(run, [since, edits])
    if not size(change := difference(before, after)):
        raise ValueError(f"edits {since + 1} to {edits} of {run.folder} changed nothing; take a longer stretch")
    kinds = [kind for kind in RANDOM if kind != "permuted" or not why_not_permuted(run, since, edits)]
    asked = run.ledger.rows[:edits]
    learned = [row["efficacy_accuracy"] == 1 and row["status"] != "screened" for row in asked]

    def look(of, scale):
        with moved(run.lm, before, of, scale):
            rows = past_runs.recall_rows(run, edits, batch_tokens=batch_tokens, kept=kept)
            found = {"perplexity": generation.perplexity(run.lm, generation.fixed_texts(), kept=kept)}
            loss = text_loss.losses(run.lm, texts, batch_tokens=batch_tokens) if texts else None
        return [row["efficacy_accuracy"] == 1 for row in rows], found, loss

    nothing = look(change, 0.0)
    recalled = [knows and i < since for i, knows in enumerate(nothing[0])]

    def changes():  # one at a time: each is as large as the projections in float64
        yield from (("edits", math.nan, change, scale) for scale in scales)
        for kind, seed in ((kind, seed) for kind in kinds for seed in seeds):
            of = drawn(run, change, since, edits, kind, seed)
            yield from ((kind, seed, of, scale) for scale in scales if scale)

    for kind, seed, of, scale in changes():
        knows, found, loss = look(of, scale) if scale else nothing
        yield {
            "since": since,
            "edits": edits,
            "change": kind,
            "seed": seed,
            "scale": scale,
            "times_distance": scale * size(of) / size(change),
            "recall": _share(knows, [True] * edits),
            "recall_learned": _share(knows, learned),
            "recall_before": _share(knows, recalled),
            "n_before": sum(recalled),
            **found,
            **(text_loss.summary(loss, nothing[2]) if texts else {}),
        }


def _share(knows, among):
    """The share, of those that are among them, that the model knows; NaN of none."""
    of = [known for known, counts in zip(knows, among, strict=True) if counts]
    return sum(of) / len(of) if of else math.nan
