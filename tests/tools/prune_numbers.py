"""The numbers of PRUNE as this package computes them, for `verify` (see `mitigations`).

They are of the weights that MEMIT left in the folder with the records: its files memit_f32.npz and memit_f64.npz.
"""

from editscale.editing import prune, updates
from tools import mitigations

FILES = {"prune": mitigations.Of("memit-prune", 2e-5, 1e-10)}
BASES = {"log": "e", "log2": "2", "log1_5": "1.5", "log1_2": "1.2", "linear": "linear"}


def compare(see, file, lm, golden, setup, base, factors, look):
    """As `mitigations.compare`."""
    precision = str(lm.dtype).removeprefix("torch.")
    ours, allowed = recomputed(lm, base["folder"], look), getattr(FILES[file], precision)
    for where, value in golden.items():
        if where not in ours:
            raise ValueError(f"{file}: nothing here computes {where}")
        see(mitigations.kind_of(where), where, ours[where], value, allowed)


def recomputed(lm, folder, look):
    """name ↦ what this package gives for the array of that name. The model is left as it was.

    Args:
        folder: with MEMIT's weights. look: as in `mitigations.compare`.
    """
    import numpy as np
    import torch

    found, layers = {}, (0, 1, 2)
    suffix = {torch.float32: "f32", torch.float64: "f64"}[lm.dtype]
    with np.load(folder / f"memit_{suffix}.npz") as file, updates.put_back(lm, layers) as original:
        for tag in ("seq", "batch"):
            for layer in layers:
                name = f"seq.final_weight.layer{layer}" if tag == "seq" else f"batch.layer{layer}.update"
                given = torch.tensor(file[name].T, device=lm.device, dtype=lm.dtype)
                lm.weight(layer).copy_(given if tag == "seq" else original[layer] + given)
            edited = updates.saved_weights(lm, layers)
            for name, text in BASES.items():
                state = {layer: _changed(original[layer], edited[layer], text) for layer in layers}
                updates.restore(lm, edited)
                updates.apply(lm, prune.evaluated(state))
                look(f"{name}.{tag}")
                for layer, change in state.items():
                    weight, delta = lm.weight(layer), change.left
                    at, sigma = f"{tag}.{name}.pruned_weight.layer{layer}", torch.linalg.svdvals(delta)
                    values = torch.linalg.svdvals((weight - original[layer]).double())
                    noise = sigma[0] * max(delta.shape) * torch.finfo(lm.dtype).eps
                    found |= {at: weight.T.clone(), f"{at}.singular_values_of_change": values}
                    found |= {f"{tag}.sigma_delta.layer{layer}": sigma}
                    found |= {f"{tag}.sigma_max_original.layer{layer}": delta.new_tensor([change.largest])}
                    found |= {f"{tag}.rank.layer{layer}": (sigma > noise).sum()}
                    if name == "log":  # the restrained change is added to the edited weight
                        driver = f"{tag}.alphaedit_driver.final_weight.layer{layer}"
                        found[driver] = (edited[layer] + weight - original[layer]).T
    return found


def _changed(original, edited, text):
    """The `prune.Change` of a weight that is given before and after all edits."""
    import torch

    largest = torch.linalg.matrix_norm(original.double(), ord=2).item()
    return prune.Change(largest, prune.base_of(text), (edited - original).double(), None)
