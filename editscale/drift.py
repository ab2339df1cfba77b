"""How far the edited weights have moved, from the recorded factors alone. NumPy; no model is needed.

normalised L2 distance at a layer = ‖W − W₀‖ / numel(W), the Frobenius norm over the number of entries, as the paper
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


def of_ledger(ledger):
    """Drift after each edit and at each edited layer: a list of dicts, ordered by layer and edit.

    Keys: layer, edits, update_norm, distance (‖W − W₀‖), normalised_l2, relative_drift.
    """
    rows, factors = [], [ledger.factors(edit) for edit in range(1, len(ledger) + 1)]
    for layer, weight in sorted(ledger.weights.items(), key=lambda item: int(item[0])):
        d_value, d_key = weight["shape"]
        lefts = [of_edit.get(f"{layer}.left", np.zeros((d_value, 0))) for of_edit in factors]
        rights = [of_edit.get(f"{layer}.right", np.zeros((d_key, 0))) for of_edit in factors]
        for edit, (alone, total) in enumerate(zip(norms(lefts, rights), distances(lefts, rights), strict=True), 1):
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
