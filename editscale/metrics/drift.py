"""How far the edited weights have moved, from the recorded updates alone. NumPy; no model is needed.

normalized L2 distance at a layer = ‖W − W₀‖ / numel(W), the Frobenius norm over the number of entries, as the paper
plots it (scalable-model-editing/gradual-catastrophic-forgetting `experiments/evaluate_glue.py`);
relative drift = ‖W − W₀‖ / ‖W₀‖, which compares layers and models.
"""

import numpy as np


def distances(lefts, rights):
    """‖Σ_{i≤t} L_i R_iᵀ‖ (Frobenius) after each edit t, (edits,) float64.

    Args:
        lefts, rights: one array per edit, (d_value, r) and (d_key, r); rank 0 for an edit that changed nothing.

    The squared norm is the sum of (LᵀL) ∘ (RᵀR) over all columns so far, so no weight is ever formed.
    """
    if not lefts:
        return np.zeros(0)
    left, right = (np.concatenate(parts, axis=1).astype(np.float64) for parts in (lefts, rights))
    gram = np.cumsum(np.cumsum((left.T @ left) * (right.T @ right), axis=0), axis=1)
    ranks = np.cumsum([part.shape[1] for part in lefts])
    squared = np.array([gram[r - 1, r - 1] if r else 0.0 for r in ranks])
    return np.sqrt(np.clip(squared, 0, None))


def norms(lefts, rights):
    """‖L_t R_tᵀ‖ of each edit alone, (edits,) float64."""
    return np.array([distances([left], [right])[0] for left, right in zip(lefts, rights, strict=True)])


def exponent(edits, distances):
    """Exponent of the growth of distances with the number of edits: the slope of their logarithms.

    NaN where there are not two positive distances.
    """
    edits, distances = np.asarray(edits, dtype=float), np.asarray(distances, dtype=float)
    used = distances > 0
    return float(np.polyfit(np.log(edits[used]), np.log(distances[used]), 1)[0]) if used.sum() > 1 else np.nan


def of_matrices(matrices, shape):
    """`norms` and `distances` of updates that are full matrices, read one after the other.

    Args:
        matrices: ΔW of each edit, (d_value, d_key), or None for an edit that changed nothing.
    """
    moved, alone, total = np.zeros(shape), [], []
    for matrix in matrices:
        if matrix is not None:
            moved += matrix
        alone.append(0.0 if matrix is None else np.linalg.norm(matrix.astype(np.float64)))
        total.append(np.linalg.norm(moved))
    return np.array(alone), np.array(total)


def _matrix(tensors, layer):
    """ΔW of an edit that has no low rank, from its tensors; None if it changed nothing."""
    left, right, mask = (tensors.get(f"{layer}.{name}") for name in ("left", "right", "mask"))
    if left is None or right is None:
        return left
    whole = left @ right.T
    return whole if mask is None else whole * np.unpackbits(mask, count=whole.size).reshape(whole.shape)


def of_ledger(ledger):
    """Drift after each edit and at each edited layer: a list of dicts, ordered by layer and edit.

    Keys: layer, edits, update_norm, distance (‖W − W₀‖), normalised_l2, relative_drift. Of a run with several facts in
    a step, a row for each step, at its last edit: inside a step no model ever was.
    """
    step = ledger.facts_per_step
    rows, edits, low_rank = [], range(step, len(ledger) + 1, step), None
    applied = next((names for edit in edits if (names := set(ledger.factors(edit)))), set())

    def whole(names, layer):
        """Whether what changes a layer has no low rank, by the names of its tensors."""
        return f"{layer}.left" in names and f"{layer}.right" not in names or f"{layer}.mask" in names

    for layer, weight in sorted(ledger.weights.items(), key=lambda item: int(item[0])):
        d_value, d_key = weight["shape"]
        left, right = f"{layer}.left", f"{layer}.right"
        if not whole(applied, layer):
            low_rank = low_rank or [ledger.factors(edit) for edit in edits]
        if whole(applied, layer):
            found = of_matrices((_matrix(ledger.factors(edit), layer) for edit in edits), weight["shape"])
        elif any(whole(of, layer) for of in low_rank):  # several methods in one run
            found = of_matrices((_matrix(of, layer) for of in low_rank), weight["shape"])
        else:
            lefts = [of.get(left, np.zeros((d_value, 0))) for of in low_rank]
            rights = [of.get(right, np.zeros((d_key, 0))) for of in low_rank]
            found = norms(lefts, rights), distances(lefts, rights)
        for edit, alone, total in zip(edits, *found, strict=True):
            rows.append(
                {
                    "layer": int(layer),
                    "edits": edit,
                    "update_norm": alone,
                    "distance": total,
                    "normalised_l2": total / (d_value * d_key),
                    "relative_drift": total / weight["norm"],
                }
            )
    return rows
