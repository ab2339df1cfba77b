"""The steps of an optimization as a function of δ, with everything computed once that δ cannot change.

δ is added at the subject's last token, to what the edited layer puts out. Through attention it reaches the later tokens
in the layers above, and nothing else. Of one text, with layer 1 of four edited:

                The   mother  tongue  of    Bo    Sample  is
    layer 3     k v   k v     k v     k v   k v   ######  ####      ####  runs at every step
    layer 2     k v   k v     k v     k v   k v   ######  ####      k v   runs once; its attention keys and values are
    layer 1     ....  ....    ....    ....  ....  .. +δ   ....            kept, and each step reads them
    layer 0     ....  ....    ....    ....  ....  ......  ....      ....  runs once, whatever δ is

Logits are taken at the scored positions only. On a GPU facts share rows of tokens, of few sizes. On a CPU each text has
a row, before the steps too where texts share few tokens, so that attention is not spent on tokens that it does not see.
"""

from dataclasses import dataclass

import numpy as np

from editscale.editing.descent import Steps
from editscale.kernels import cuda_graphs
from editscale.models import anatomy, tokens

SHARED = 1.5  # times the tokens of all texts; texts that take more in rows of their own share enough to be run together


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

    weights = torch.zeros(n_rows, len(scored), dtype=anatomy.in_full(like).dtype)
    for j, (row, *_, weight) in enumerate(scored):
        weights[row, j] = weight
    return weights.to(like.device)


class SuffixSteps(Steps):
    """The steps of an optimization of some facts' values: a function of δ (facts, d_model), see `Descent.advance`.

    `tensors`, where tokens are those that δ reaches, from the subjects' last ones on, in rows of texts:
        hidden: (rows, tokens, d_model) what leaves the edited block at δ = 0; mlp: output of its MLP, with `post`.
        fact: (rows, tokens) the fact that a token belongs to; at_subject: (rows, tokens, 1) where δ is added.
        mask, positions: of these tokens, after the earlier ones.
        keys.<i>.0, values.<i>.0: (rows, heads, earlier tokens, d_head) of the earlier tokens in upper block i.
        scored: (positions + facts,) indices into all rows' tokens: where targets are scored, then the KL prompts.
        targets: (positions,) ids; weights: (facts · contexts, positions), see `mean_weights`.
    """

    def __call__(self, delta):
        import torch

        t, n = self.tensors, len(delta)
        change = self.as_added(delta[t["fact"]])
        changed = (t["hidden"] + change).to(t["hidden"].dtype)
        states = torch.where(t["at_subject"], changed, t["hidden"])
        final = self.upper(states, t["mask"], t["positions"], anatomy.KeyValues(t))
        log_p = self.logits(final.flatten(0, 1)[t["scored"]]).log_softmax(dim=-1)
        nll = t["weights"] @ -log_p[:-n].gather(1, t["targets"][:, None])[:, 0]
        first = (log_p[:-n].detach().argmax(dim=1) == t["targets"]).to(nll)
        return nll.view(n, -1), log_p[-n:], ((t["weights"] > 0).to(nll) @ first).view(n, -1)


def _rounded(n, digits=3):
    """n rounded up to so many binary digits, so that there are few sizes."""
    step = 1 << max(0, n.bit_length() - digits)
    return -(-n // step) * step


@dataclass(frozen=True)
class Multiples:
    """Rows on a GPU have multiples of so many tokens: few sizes, so that one CUDA graph serves many facts.

    Attributes:
        lower: of the rows that run once, before the steps. after: of those that each step runs. before: of the earlier
            tokens, which a step only reads.
    """

    lower: int
    after: int
    before: int


def multiples(packed):
    """The `Multiples` of `Packed` rows. Rows of several facts have one size whatever the facts.

    Of one fact the tokens that each step runs are rounded up to two binary digits, 32 at least; the others, which cost
    little, in steps that grow with the number of texts: ROME's 22 texts seldom have more than 384, MEMIT's 7 than 128.
    """
    if len(packed.trees) > 1:
        return Multiples(128, 256, 768)
    ((_, (after, _)),) = packed.by_fact()
    coarse = 128 * -(-len(packed.trees[0].places) // 8)
    return Multiples(coarse, max(32, _rounded(len(after), 2)), coarse)


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


@dataclass(frozen=True)
class Packed:
    """The rows of some facts, the texts of each fact as one tree.

    Attributes:
        trees: a `tokens.Tree` for each fact; subjects: for each fact the subjects' last tokens of its texts, in order.
    """

    trees: list
    subjects: list

    def by_fact(self):
        """For each fact (fact, [tokens that δ reaches, the others]): δ reaches what sees a subject's last token."""
        reached = [tree.sees[:, np.unique(of)] for tree, of in zip(self.trees, self.subjects, strict=True)]
        return [(i, [np.flatnonzero(of.any(axis=1)), np.flatnonzero(~of.any(axis=1))]) for i, of in enumerate(reached)]

    def by_subject(self):
        """For each subject's last token of each fact (fact, [tokens that see it, tokens that it sees before it])."""
        return [
            (i, [np.flatnonzero(tree.sees[:, node]), np.setdiff1d(np.flatnonzero(tree.sees[node]), node)])
            for i, (tree, of) in enumerate(zip(self.trees, self.subjects, strict=True))
            for node in np.unique(of)
        ]

    def by_text(self):
        """For each text of each fact (fact, [its tokens])."""
        return [(i, [np.array(place)]) for i, tree in enumerate(self.trees) for place in tree.places]


def _own_rows(items, kind):
    """Items in a row each, as `_slots`; None where a row for each fact takes far fewer tokens (SHARED)."""
    slots = _slots(items, [[i] for i in range(len(items))], kind, 1)
    together = len({(fact, token) for fact, of in items for token in of[kind].tolist()})
    return slots if slots[..., 0].size <= SHARED * together else None


def _pack(rows):
    """The `Packed` rows of some facts. A subject's last token is shared by texts that are the same up to it."""
    # The KL prompt is read at its subject only, so what follows the subject there is left out.
    texts = [[*(row.ids for row in of[:-1]), of[-1].ids[: of[-1].subject_last + 1]] for of in rows]
    trees = [tokens.tree(text, [row.subject_last for row in of]) for text, of in zip(texts, rows, strict=True)]
    return Packed(
        trees,
        [[p[row.subject_last] for p, row in zip(t.places, of, strict=True)] for t, of in zip(trees, rows, strict=True)],
    )


def _lower_blocks(lm, packed, layer, multiple):
    """What blocks 0 … layer make of all tokens: `anatomy.up_to`, of keys and values those at the subjects' last tokens
    (facts, rows, …); and the tokens' positions."""
    import torch

    def at_subjects(seen, last):
        each = torch.arange(len(last), device=last.device)[:, None]
        return seen | {name: seen[name][each, last] for name in ("keys", "values")}

    def together(t):
        return at_subjects(anatomy.up_to(lm, layer, t["ids"], t["mask"], t["positions"]), t["last"])

    ids, positions, mask = tokens.tree_inputs(packed.trees, lm.device, lm.dtype, multiple=multiple)
    inputs = {"ids": ids, "mask": mask, "positions": positions, "last": torch.tensor(packed.subjects, device=lm.device)}
    slots = None if lm.device.type == "cuda" or _copies(lm, range(layer + 1)) else _own_rows(packed.by_text(), 0)
    if slots is None:
        seen = cuda_graphs.without_gradient(lm, f"lower {layer}", range(layer + 1), together, inputs)
    else:
        with torch.no_grad():
            seen = anatomy.up_to(lm, layer, _at(ids, slots), _mask(lm, packed, slots, slots), _at(positions, slots))
        row, column = _places(slots, np.moveaxis(np.indices(ids.shape), 0, -1))
        seen = at_subjects({name: x[row, column] for name, x in seen.items()}, inputs["last"])
    return seen | {"positions": positions}


def _copies(lm, layers):
    """Whether some layers are those of several copies: row i must stay fact i's there."""
    return any(lm.weight(i).ndim == 3 and len(lm.weight(i)) > 1 for i in layers)


def _places(slots, wanted):
    """Row and column in `slots` of each (fact, token) of an array (…, 2), two arrays; 0 and 0 of what is not there."""
    places = {tuple(slots[place]): place for place in np.ndindex(slots.shape[:2])}
    found = [places.get(tuple(of), (0, 0)) for of in wanted.reshape(-1, 2)]
    return np.moveaxis(np.reshape(found, (*wanted.shape[:-1], 2)), -1, 0)


@dataclass(frozen=True)
class Layout:
    """Which tokens stand where, each as `_slots`.

    Attributes:
        after: tokens that δ reaches, in the rows that each step runs.
        before: tokens that those of a row see, and that δ does not reach: a step reads their keys and values.
        run: the same tokens, in the rows in which they run ahead of all steps.
    """

    after: np.ndarray
    before: np.ndarray
    run: np.ndarray


def _lay_out(lm, packed, layer, to_after, to_before):
    """The `Layout` of steps above a layer, rows rounded up to multiples of `to_after` and `to_before` tokens."""
    facts = packed.by_fact()
    alone = [[i] for i in range(len(facts))]
    if _copies(lm, range(layer + 1, lm.n_layers)):
        items, shared = facts, alone
    elif lm.device.type == "cuda":
        sizes = np.array([list(map(len, of)) for _, of in facts])
        multiples = to_after, to_before
        items, shared = facts, _shared_rows(sizes, np.maximum(1, -(-sizes.max(axis=0) // multiples)) * multiples)
    else:  # each subject's last token has a row
        items = packed.by_subject()
        shared = [[i] for i in range(len(items))]
    after, before = (_slots(items, shared, k, n) for k, n in enumerate((to_after, to_before)))
    as_it_is = items is facts or _own_rows(items, 1) is not None
    return Layout(after, before, before if as_it_is else _slots(facts, alone, 1, 1))


def _at(states, slots):
    """States (facts, tokens, …) at `_slots`; what is anywhere where there is padding."""
    import torch

    return states[tuple(torch.from_numpy(slots.clip(0)).to(states.device).unbind(-1))]


def _mask(lm, packed, keys, queries):
    import torch

    return tokens.additive_mask(torch.from_numpy(_sees(packed.trees, queries, keys)).to(lm.device), lm.dtype)


def _step_tensors(lm, rows, packed, layout, lower):
    """The tensors of `SuffixSteps` but for the earlier keys and values."""
    import torch

    after, n_contexts = layout.after, len(rows[0]) - 1
    place_of = {tuple(slot): j for j, slot in enumerate(after.reshape(-1, 2).tolist())}
    found = [scored_positions(of[:-1]) for of in rows]
    scored = [place_of[i, t.places[r][p]] for i, t in enumerate(packed.trees) for r, p, *_ in found[i]]
    flat = [(i * n_contexts + r, p, t, w) for i, of in enumerate(found) for r, p, t, w in of]
    padding = (_rounded(len(flat)) if lm.device.type == "cuda" else len(flat)) - len(flat)
    flat += [(0, 0, 0, 0.0)] * padding
    at_subject = [[i >= 0 and token in packed.subjects[i] for i, token in row] for row in after.tolist()]
    essence = [place_of[i, of[-1]] for i, of in enumerate(packed.subjects)]
    tensors = {
        "hidden": _at(lower["block"], after),
        "fact": torch.from_numpy(after[..., 0].clip(0)),
        "at_subject": torch.from_numpy(np.array(at_subject)[..., None]),
        "mask": _mask(lm, packed, np.concatenate([layout.before, after], axis=1), after),
        "positions": _at(lower["positions"], after),
        "scored": torch.tensor([*scored, *[0] * padding, *essence]),
        "targets": torch.tensor([t for _, _, t, _ in flat]),
        "weights": mean_weights(flat, len(rows) * n_contexts, lower["block"]),
    }
    return {name: tensor.to(lm.device) for name, tensor in tensors.items()}


def _earlier(lm, packed, layout, lower, layer, upper):
    """Keys and values of the tokens before, as `SuffixSteps` has them; none where there are no such tokens."""
    if not layout.before.size or layer + 1 == lm.n_layers:
        return {}

    def keys_and_values(t):
        cache = anatomy.KeyValues({})
        upper(t["hidden"], t["mask"], t["positions"], cache)
        return cache.tensors()

    run = layout.run
    inputs = {"hidden": _at(lower["block"], run), "mask": _mask(lm, packed, run, run)}
    inputs["positions"] = _at(lower["positions"], run)
    above = range(layer + 1, lm.n_layers)
    earlier = cuda_graphs.without_gradient(lm, f"upper {layer}", above, keys_and_values, inputs)
    if run is layout.before:
        return earlier
    row, column = _places(run, layout.before)
    return {name: x[row, :, column].transpose(1, 2) for name, x in earlier.items()}


def cached_forward(lm, rows, layer, at):
    """Prepare the optimization of some facts; everything δ cannot change is computed here, once.

    Args:
        rows: for each fact its `target_rows`.

    Returns:
        init (facts, d_model); keys and projection outputs at the subject-last tokens, for each fact (rows, d_key) and
        (rows, d_model); and a `SuffixSteps`.
    """
    packed, upper, post = _pack(rows), anatomy.segment(lm, layer + 1), None
    of = multiples(packed) if lm.device.type == "cuda" else Multiples(1, 1, 1)
    lower = _lower_blocks(lm, packed, layer, of.lower)
    # Made while a GPU runs the lower blocks, and not after the upper ones, when it would wait.
    layout = _lay_out(lm, packed, layer, of.after, of.before)
    tensors = _step_tensors(lm, rows, packed, layout, lower)
    tensors |= _earlier(lm, packed, layout, lower, layer, upper)
    if at == "mlp" and lm.family.post_norm:
        post, tensors["mlp"] = lm.block(layer).get_submodule(lm.family.post_norm), _at(lower["mlp"], layout.after)
    bare = np.array([[i, of[0]] for i, of in enumerate(packed.subjects)])
    steps = SuffixSteps(lm.n_layers - layer - 1, upper, lm.logits, post, tensors)
    return _at(lower["mlp" if at == "mlp" else "block"], bare), lower["keys"], lower["values"], steps
