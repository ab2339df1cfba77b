"""How far the direction that an edit writes along meets the keys of the facts edited before it. No edit is made.

An edit of fact t adds r_t A_tᵀ to its layer. No edit of that layer changes what enters it, so at the key k_i of an
earlier fact the layer's output is moved by r_t (A_t·k_i), whatever the value r_t: 0 leaves fact i as it was, and
A_t·k_t = 1 writes r_t whole. All of it follows from keys of the unedited model. Keys k are those of bare prompts, which
recall reads; each method makes A of the keys over its own contexts. All of it in float64.
"""

from dataclasses import replace

import numpy as np
import pandas as pd

from editscale.columns import OVERLAP, method_label
from editscale.editing import editors, history, memit, moments, rome, rome_multi, values
from editscale.editing.memit_family import EmmetParams
from editscale.models import anatomy
from editscale.sequences.sequence import check_facts

METHODS = (*rome.METHODS, *rome_multi.METHODS, "memit", "memit-seq", "encore", "alphaedit", "emmet")


def prepare(lm, methods, moments_path, layer, **sampling):
    """What each method would edit with if it edited one layer: method ↦ `editors.Editing`.

    Args:
        methods: method of METHODS ↦ its YAML file, of which all is taken but the layers.
        moments_path: file of notebook 01 with this layer.
        sampling: see `editors.sample_contexts`.

    Raises ValueError for no method, or one whose direction does not follow from keys or is another one's, and what
    `editors.read_params` and `moments.load` raise.
    """
    if not methods or (odd := [name for name in methods if name not in METHODS]):
        raise ValueError(
            f"no direction is known from keys alone of {', '.join(odd) if methods else 'no method'}; expected some of "
            f"{', '.join(METHODS)}: what NAS, RECT, PRUNE and screening change is not the direction"
        )
    params = {name: _at(editors.read_params(name, path), layer) for name, path in methods.items()}
    factors = editors.cholesky_factors(moments.load(moments_path, lm, [layer]).moments, lm.device)
    made, sampled = {}, {}
    for name, of in params.items():
        kind = editors.method(name).contexts  # methods that share it sample the same from one seed
        if kind not in sampled:
            sampled[kind] = editors.sample_contexts(lm, name, **sampling)
        made[name] = editors.begun(lm, editors.Editing(name, of, sampled[kind], factors))
    return made


def _at(params, layer):
    return replace(params, layer=layer) if hasattr(params, "layer") else replace(params, layers=[layer])


def context_keys(lm, facts, contexts, layer):
    """Keys of facts at a layer after each context, (facts, contexts, d_key) float64, on the model as it stands."""
    import torch

    found = []
    for first in range(0, len(facts), editors.TOGETHER):
        part = facts[first : first + editors.TOGETHER]
        ids, positions, mask, at = values.up_to_subjects(lm, part, contexts)
        each = torch.arange(len(part), device=lm.device)[:, None]
        with torch.no_grad():
            found.append(anatomy.up_to(lm, layer, ids, mask, positions)["keys"][each, at].double())
    return torch.cat(found)


def mean_keys(lm, facts, contexts, layer):
    """The keys that MEMIT edits, `memit.mean_keys` over its groups of contexts: (facts, d_key) float64."""
    import torch

    flat, groups = [context for group in contexts for context in group], [len(group) for group in contexts]
    return torch.stack([memit.mean_keys(keys, groups) for keys in context_keys(lm, facts, flat, layer)])


def directions(lm, facts, editing):
    """A of the edit of each fact, all edited one after another at one layer: (facts, d_key) float64.

    Args:
        editing: of `prepare`.
    """
    import torch

    name, params, (layer,) = editing.method, editing.params, editing.layers
    if name in rome.METHODS:
        ahead = editors.method(name).ahead
        parts = (facts[first : first + editors.TOGETHER] for first in range(0, len(facts), editors.TOGETHER))
        found = [one for part in parts for one in ahead(lm, part, params, editing.contexts, editing.factors)]
        return torch.stack([one.u.double() / (one.key.double() @ one.u.double()) for one in found])
    if name in rome_multi.METHODS:
        keys = context_keys(lm, facts, editing.contexts, layer)
        bare = keys[:, 0] if name == "rome-multi-two-keys" else keys.mean(1)
        pairs = zip(keys.mean(1), bare, strict=True)
        return torch.stack([rome_multi.solve(k[:, None], editing.factors[layer], b[:, None])[:, 0] for k, b in pairs])
    keys, own = mean_keys(lm, facts, editing.contexts, layer), 0.0 if isinstance(params, EmmetParams) else 1.0
    if editing.start is None:
        return torch.cat([memit.solve(k[:, None], editing.factors[layer], params.mom2_update_weight).T for k in keys])
    inverse, found = editing.start[layer], []
    for k in keys:
        found.append(history.solve(inverse, k[:, None], own)[:, 0])
        inverse = inverse if own == 0 else inverse.after(k[:, None])
    return torch.stack(found)


def unit_products(lm, facts, editing):
    """û_j·k_i of the edits and keys of facts all edited one after another at one layer, and |k·u| of their solves.

    û_j is the direction along which edit j writes, of length 1, its sign aside; k_i the key of fact i's bare prompt.

    Args:
        editing: of `prepare`.

    Returns numpy arrays, float64: (facts, facts), a row per edit; (facts,), of ROME variants the recorded denominators.
    """
    (layer,) = editing.layers
    along = directions(lm, facts, editing)
    lengths = along.norm(dim=-1)
    products = (along / lengths[:, None]) @ context_keys(lm, facts, ["{}"], layer)[:, 0].T
    return products.cpu().numpy(), (1 / lengths).cpu().numpy()


def whitened(keys, factor):
    """L⁻¹k of keys (n, d_key), as rows, L being the lower Cholesky factor of C: x_s·x_t = k_sᵀ C⁻¹ k_t."""
    import torch

    return torch.linalg.solve_triangular(factor, keys.double().T, upper=False).T


def met(products):
    """What each edit does at earlier keys: one dict per edit.

    Args:
        products: A_t·k_i, (edits, edits), a row per edit.

    Returns own, A_t·k_t; interference, the root mean square of A_t·k_i over i < t; overlap, that over |own|; largest,
    the largest |A_t·k_i| over |own|. The first edit has no earlier one: NaN there.
    """
    rows = []
    for t, row in enumerate(products.cpu().numpy()):
        own, earlier = float(row[t]), np.abs(row[:t])
        rms, most = (float(np.sqrt(np.mean(earlier**2))), float(earlier.max())) if t else (np.nan, np.nan)
        rows.append({"own": own, "interference": rms, "overlap": rms / abs(own), "largest": most / abs(own)})
    return rows


def along_leading(products, gram, n_leading):
    """Share of Σ_{i<t} (A_t·k_i)² along the leading principal directions of the earlier keys: (methods, edits).

    Args:
        products: A_t·k_i of each method, (methods, edits, edits).
        gram: x_s·x_t of the whitened keys, (edits, edits); x_i has its principal directions v_j in Σ_{i<t} x_i x_iᵀ.
        n_leading: how many directions; up to as many edits they carry all.

    With a = LᵀA_t the sum is Σ_j λ_j (a·v_j)², and λ_j (a·v_j)² = (u_j·m)² for the eigenvectors u_j of `gram` and
    m_i = A_t·k_i. NaN for the first edit.
    """
    import torch

    shares = torch.full(products.shape[:2], torch.nan, dtype=torch.float64)
    for t in range(1, len(gram)):
        leading = torch.linalg.eigh(gram[:t, :t]).eigenvectors[:, -n_leading:]
        earlier = products[:, t, :t]
        shares[:, t] = ((earlier @ leading).square().sum(-1) / earlier.square().sum(-1)).cpu()
    return shares


def measure(lm, facts, editing, n_leading=10):
    """`met` and `along_leading` of each method and edit as one table, columns as in `columns.OVERLAP`.

    Args:
        facts: in the order in which they would be edited.
        editing: of `prepare`, all at one layer.
        n_leading: see `along_leading`; 0: not measured, NaN (it takes a decomposition for each edit).
    """
    import torch

    (layer,) = {layer for of in editing.values() for layer in of.layers}
    for of in editing.values():
        check_facts(lm, facts, of.contexts)
    keys = context_keys(lm, facts, ["{}"], layer)[:, 0]
    x = whitened(keys, next(iter(editing.values())).factors[layer])
    products = torch.stack([directions(lm, facts, of) @ keys.T for of in editing.values()])
    none = torch.full(products.shape[:2], torch.nan)
    shares = (along_leading(products, x @ x.T, n_leading) if n_leading else none).tolist()
    rows = [
        {"method": method_label(name), "layer": layer, "edits": t, "case_id": fact.case_id, **row, "leading": share}
        for name, of_method, of_share in zip(editing, products, shares, strict=True)
        for t, (fact, row, share) in enumerate(zip(facts, met(of_method), of_share, strict=True), start=1)
    ]
    return pd.DataFrame(rows)[list(OVERLAP)]


def of_pairs(keys):
    """Σ_{s≠t} (k_s·k_t)² of keys (n, d)."""
    gram = keys @ keys.T
    return (gram.square().sum() - gram.diagonal().square().sum()).item()


def shares(keys, most=50):
    """Share of `of_pairs` that is gone once the first j principal directions of keys (n, d) are: one dict per j.

    Args:
        most: the largest j; fewer where the keys have fewer directions.

    Returns directions (j; 0 stands for the direction of the mean key, alone) and share. It is at most 1, and 1 with all
    directions; below 0 where keys are more alike without them.
    """
    import torch

    total, mean = of_pairs(keys), keys.mean(0)
    bases = [(0, (mean / mean.norm())[None])]
    basis = torch.linalg.svd(keys, full_matrices=False).Vh
    bases += [(j, basis[:j]) for j in range(1, min(most, len(basis)) + 1)]
    return [{"directions": j, "share": 1 - of_pairs(keys - keys @ of.T @ of) / total} for j, of in bases]


def share_table(keys, factor, most=50):
    """`shares` of keys (n, d_key), whitened and as they are: columns keys ("whitened" or "raw"), directions, share."""
    ways = {"whitened": whitened(keys, factor), "raw": keys}
    return pd.DataFrame([{"keys": way, **row} for way, of in ways.items() for row in shares(of, most)])
