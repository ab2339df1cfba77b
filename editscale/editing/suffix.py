"""The steps of an optimization as a function of δ, with everything computed once that δ cannot change.

δ reaches only tokens from the subject's last one on, in the layers above the edited one. So the blocks up to that run
once, the tokens before the subject's last one leave their attention keys and values behind, and each step runs the few
remaining tokens through the upper blocks and takes logits at the scored positions only. On a GPU facts share rows of
tokens, of few sizes; on a CPU each text has a row, so that attention is not spent on what it does not see.
"""

from dataclasses import dataclass

import numpy as np

from editscale.kernels import cuda_graphs
from editscale.models import anatomy, tokens


def scored_positions(rows):
    """All target positions of a fact's rows: row, position, target id, weight 1 / (targets of the row)."""
    return [
        (i, p, t, 1 / len(row.targets))
        for i, row in enumerate(rows)
        for p, t in zip(row.predicting, row.targets, strict=True)
    ]


def mean_weights(scored, n_rows, like):
    """(rows, scored positions): what times the NLL at scored positions is the mean NLL of each row's targets."""
    import torch

    weights = torch.zeros(n_rows, len(scored), dtype=like.dtype)
    for j, (row, *_, weight) in enumerate(scored):
        weights[row, j] = weight
    return weights.to(like.device)


@dataclass(frozen=True)
class SuffixSteps:
    """The steps of an optimization: a function of δ (facts, d_model), see `Descent.advance`, with all it needs.

    Attributes:
        n_blocks: how many blocks are above the edited one; upper: runs them (`anatomy.segment`).
        logits: final hidden states ↦ logits.
        post: the norm behind the MLP, if there is one and δ enters before it.
        tensors: by name; tokens are those that δ reaches, from the subjects' last ones on, in rows of texts
            hidden: (rows, tokens, d_model) what leaves the edited block at δ = 0; mlp: output of its MLP, with `post`.
            fact: (rows, tokens) the fact that a token belongs to; at_subject: (rows, tokens, 1) where δ is added.
            mask, positions: of these tokens, behind the earlier ones.
            keys.<i>, values.<i>: (rows, heads, earlier tokens, d_head) of the earlier tokens in upper block i.
            scored: (positions + facts,) indices into all rows' tokens: where targets are scored, then the KL prompts.
            targets: (positions,) ids; weights: (facts · contexts, positions), see `mean_weights`.
    """

    n_blocks: int
    upper: object
    logits: object
    post: object
    tensors: dict

    def __call__(self, delta):
        import torch

        t = self.tensors
        change, n = delta[t["fact"]], len(delta)
        if self.post is not None:
            change = self.post(t["mlp"] + change) - self.post(t["mlp"])
        states = torch.where(t["at_subject"], t["hidden"] + change, t["hidden"])
        layers = [int(name.removeprefix("keys.")) for name in t if name.startswith("keys.")]
        earlier = anatomy.KeyValues({i: (t[f"keys.{i}"], t[f"values.{i}"]) for i in layers})
        final = self.upper(states, t["mask"], t["positions"], earlier)
        log_p = self.logits(final.flatten(0, 1)[t["scored"]]).log_softmax(dim=-1)
        nll = t["weights"] @ -log_p[:-n].gather(1, t["targets"][:, None])[:, 0]
        return nll.view(n, -1), log_p[-n:]


def _rounded(n):
    """n rounded up to three binary digits, so that few sizes come up."""
    step = 1 << max(0, n.bit_length() - 3)
    return -(-n // step) * step


def _shared_rows(sizes, capacity):
    """Items that share a row, for each row a list of their numbers: first-fit, the longest first.

    Args:
        sizes: (items, kinds) tokens of each kind; capacity: (kinds,) most of a row, no less than one item has.
    """
    rows, left = [], []
    for i in np.argsort(-sizes[:, 0], kind="stable"):
        row = next((r for r, room in enumerate(left) if (sizes[i] <= room).all()), len(rows))
        if row == len(rows):
            rows.append([])
            left.append(np.array(capacity))
        rows[row].append(int(i))
        left[row] -= sizes[i]
    return rows


def _slots(items, shared, kind, multiple):
    """Tokens of several items in rows: (fact, token) index arrays (rows, width), −1 where there is padding.

    Args:
        items: each a fact and its tokens of each kind; shared: for each row its items.
    """
    filled = [[(items[item][0], token) for item in row for token in items[item][1][kind]] for row in shared]
    slots = np.full((len(shared), -(-max(map(len, filled)) // multiple) * multiple, 2), -1)
    for row, of in zip(slots, filled, strict=True):
        row[: len(of)] = np.array(of).reshape(-1, 2)
    return slots


def _by_subject(trees, subjects):
    """For each subject's last token of each fact: the fact, and the tokens that see it and those it sees before it."""
    return [
        (i, [np.flatnonzero(packed.sees[:, node]), np.setdiff1d(np.flatnonzero(packed.sees[node]), node)])
        for i, (packed, of) in enumerate(zip(trees, subjects, strict=True))
        for node in np.unique(of)
    ]


def _sees(trees, queries, keys):
    """(rows, queries, keys) bool: which tokens of its fact's tree each token sees, both given as `_slots`.

    The last keys are the queries; padding sees itself alone.
    """
    each = np.arange(queries.shape[1])
    sees = np.zeros((*queries.shape[:2], keys.shape[1]), dtype=bool)
    for row, q, k in zip(sees, queries, keys, strict=True):
        for i in np.unique(q[:, 0][q[:, 0] >= 0]):
            of_query, of_key = np.flatnonzero(q[:, 0] == i), np.flatnonzero(k[:, 0] == i)
            row[np.ix_(of_query, of_key)] = trees[i].sees[np.ix_(q[of_query, 1], k[of_key, 1])]
    sees[:, each, each + keys.shape[1] - len(each)] = True
    return sees


def cached_forward(lm, rows, layer, at):
    """Prepare the optimization of some facts; everything δ cannot change is computed here, once.

    Args:
        rows: for each fact its `target_rows`.

    Returns:
        init (facts, d_model); keys and projection outputs at the subject-last tokens, for each fact (rows, d_key) and
        (rows, d_model); and a `SuffixSteps`.
    """
    import torch

    # Sizes of a CUDA graph: few, so that one serves many facts. Rows of several facts have one size whatever the facts.
    on_gpu = lm.device.type == "cuda"
    to_after, to_before = ((256, 768) if len(rows) > 1 else (32, 128)) if on_gpu else (1, 1)
    # The KL prompt is read at its subject only; what follows it there is not run.
    texts = [[*(row.ids for row in of[:-1]), of[-1].ids[: of[-1].subject_last + 1]] for of in rows]
    trees = [tokens.tree(text, [row.subject_last for row in of]) for text, of in zip(texts, rows, strict=True)]
    subjects = [
        [p[row.subject_last] for p, row in zip(t.places, of, strict=True)] for t, of in zip(trees, rows, strict=True)
    ]
    last, fact = torch.tensor(subjects, device=lm.device), torch.arange(len(rows), device=lm.device)[:, None]
    ids, positions, mask = tokens.tree_inputs(trees, lm.device, lm.dtype, multiple=min(to_before, 128))
    lower, upper = anatomy.segment(lm, 0, layer + 1), anatomy.segment(lm, layer + 1)

    def up_to_the_edited_block(t):
        seen, each = {}, torch.arange(len(t["last"]), device=t["last"].device)[:, None]

        def projection(keys, values):
            seen.update(keys=keys[each, t["last"]], values=values[each, t["last"]])

        with (
            anatomy.watching(lm.projection(layer), projection),
            anatomy.watching(lm.mlp(layer), lambda _, out: seen.update(mlp=out)),
        ):
            seen["block"] = lower(t["ids"], t["mask"], t["positions"])
        return seen

    inputs = {"ids": ids, "mask": mask, "positions": positions, "last": last}
    seen = cuda_graphs.without_gradient(lm, f"lower {layer}", range(layer + 1), up_to_the_edited_block, inputs)
    block_out = seen["block"]

    # δ reaches the tokens that see a subject's last one; rows of the same text up to the subject share that token.
    reached = [packed.sees[:, np.unique(of)] for packed, of in zip(trees, subjects, strict=True)]
    facts = [(i, [np.flatnonzero(of.any(axis=1)), np.flatnonzero(~of.any(axis=1))]) for i, of in enumerate(reached)]
    # Where the blocks above are a copy's own, row i must stay fact i's.
    own = any(lm.weight(i).ndim == 3 and len(lm.weight(i)) > 1 for i in range(layer + 1, lm.n_layers))
    # On a CPU each subject's last token has a row, with those that see it and those it sees.
    apart = not own and not on_gpu
    items = _by_subject(trees, subjects) if apart else facts
    sizes = np.array([list(map(len, of)) for _, of in items])
    longest = np.maximum(1, -(-sizes.max(axis=0) // (to_after, to_before))) * (to_after, to_before)
    shared = [[i] for i in range(len(items))] if own or apart else _shared_rows(sizes, longest)
    after, before = (_slots(items, shared, k, n) for k, n in enumerate((to_after, to_before)))
    # The tokens before run once, all of a fact in one row, where those that texts share are there once.
    run = _slots(facts, [[i] for i in range(len(facts))], 1, 1) if apart else before

    def part(states, slots):
        return states[tuple(torch.from_numpy(slots.clip(0)).to(lm.device).unbind(-1))]

    def mask_of(keys, queries):
        return tokens.additive_mask(torch.from_numpy(_sees(trees, queries, keys)).to(lm.device), lm.dtype)

    # Made here, while a GPU runs the lower blocks, and not after the upper ones, when it would wait.
    found = [scored_positions(of[:-1]) for of in rows]
    place_of = {tuple(slot): j for j, slot in enumerate(after.reshape(-1, 2).tolist())}
    scored = [place_of[i, t.places[r][p]] for i, t in enumerate(trees) for r, p, *_ in found[i]]
    n_contexts = len(rows[0]) - 1
    flat = [(i * n_contexts + r, p, t, w) for i, of in enumerate(found) for r, p, t, w in of]
    padding = (_rounded(len(flat)) if on_gpu else len(flat)) - len(flat)
    flat += [(0, 0, 0, 0.0)] * padding
    tensors = {
        "hidden": part(block_out, after),
        "fact": torch.from_numpy(after[..., 0].clip(0)),
        "at_subject": torch.from_numpy(
            np.array([[i >= 0 and token in subjects[i] for i, token in row] for row in after.tolist()])[..., None]
        ),
        "mask": mask_of(np.concatenate([before, after], axis=1), after),
        "positions": part(positions, after),
        "scored": torch.tensor([*scored, *[0] * padding, *(place_of[i, of[-1]] for i, of in enumerate(subjects))]),
        "targets": torch.tensor([t for _, _, t, _ in flat]),
        "weights": mean_weights(flat, len(rows) * n_contexts, block_out),
    }
    tensors = {name: tensor.to(lm.device) for name, tensor in tensors.items()}

    def keys_and_values(t):
        cache = anatomy.KeyValues()
        upper(t["hidden"], t["mask"], t["positions"], cache)
        return {
            f"{name}.{i}": x for i, of in cache.seen.items() for name, x in zip(("keys", "values"), of, strict=True)
        }

    # Of tokens before the subject's last one only attention keys and values in the upper blocks are kept.
    earlier = {}
    if before.size and layer + 1 < lm.n_layers:
        inputs = {"hidden": part(block_out, run), "mask": mask_of(run, run), "positions": part(positions, run)}
        earlier = cuda_graphs.without_gradient(
            lm, f"upper {layer}", range(layer + 1, lm.n_layers), keys_and_values, inputs
        )
    if apart and earlier:
        places = {tuple(run[place]): place for place in np.ndindex(run.shape[:2])}
        row, column = np.moveaxis([[places.get(tuple(slot), (0, 0)) for slot in of] for of in before], -1, 0)
        earlier = {name: x[row, :, column].transpose(1, 2) for name, x in earlier.items()}
    tensors |= earlier
    post = None
    if at == "mlp" and lm.family.post_norm:
        post, tensors["mlp"] = lm.block(layer).get_submodule(lm.family.post_norm), part(seen["mlp"], after)
    init = (seen["mlp"] if at == "mlp" else block_out)[fact[:, 0], last[:, 0]]
    return (
        init.clone(),
        seen["keys"],
        seen["values"],
        SuffixSteps(lm.n_layers - layer - 1, upper, lm.logits, post, tensors),
    )
