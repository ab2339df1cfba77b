"""Final hidden states of texts, with what no edit changes computed once.

Texts run as trees of tokens (`tokens.tree`), several side by side in one forward. Edits of layers ≥ L leave the hidden
states that enter block L as they were, and those are a function of the text so far alone: `Kept` holds them, by text,
for texts that are looked at again after every few edits. Only the blocks from L on then run.
"""

import warnings

import numpy as np

from editscale import anatomy, graphs, stopping, tokens

TREE_TOKENS = 512  # most tokens of a tree; attention grows with its square
GRAPH_TOKENS = 1024  # a forward of no more is a CUDA graph on a GPU, which takes longer to launch than to run it
BATCH_TOKENS = TREE_TOKENS  # most tokens of a forward: one tree, enough for a CPU; a GPU wants 16384 or so


def batches(items, size, batch_tokens):
    """Items in order as forwards of trees: lists, one for each forward, of lists of items, one for each tree.

    Args:
        size: the tokens of an item, at most; an item of more than a tree holds has a tree of its own.
        batch_tokens: most tokens in one forward, padding included.
    """
    trees, n = [], 0
    for item in items:
        if not trees or n + size(item) > min(TREE_TOKENS, batch_tokens):
            trees.append([])
            n = 0
        trees[-1].append(item)
        n += size(item)
    rows = max(1, batch_tokens // TREE_TOKENS)
    return [trees[i : i + rows] for i in range(0, len(trees), rows)]


def in_forwards(forward, batches):
    """Yield (rows, forward(rows)) of each of some `batches`; rows that memory does not suffice for run in halves.

    So do those behind them that are as many. A warning says so. The results are those of all at once, up to rounding.
    Raises what the device raised if there is not memory enough for a single item.
    """
    todo, most = list(reversed(batches)), None
    while todo:
        rows = todo.pop()
        n_items = sum(map(len, rows))
        halves = _halves(rows)
        if most is None or n_items <= most or halves is None:
            try:
                result = forward(rows)
            except (RuntimeError, MemoryError) as error:
                if halves is None or not stopping.is_out_of_memory(error):
                    raise
                most = sum(map(len, halves[0]))
                warnings.warn(
                    f"not enough memory for {n_items} texts in one forward ({str(error).splitlines()[0]}); they run in "
                    f"forwards of at most {most} from here on: a smaller batch_tokens avoids the attempt",
                    stacklevel=2,
                )
            else:
                yield rows, result
                continue
        todo += reversed(halves)


def _halves(rows):
    """The rows of a forward in two parts, trees apart or the items of the one tree; None for a single item."""
    if len(rows) > 1:
        return rows[: (len(rows) + 1) // 2], rows[(len(rows) + 1) // 2 :]
    (items,) = rows
    middle = (len(items) + 1) // 2
    return ([items[:middle]], [items[middle:]]) if len(items) > 1 else None


def final(lm, trees, kept=None):
    """Final hidden states (trees, tokens, d_model) of some trees on the model as it stands, padded behind their tokens.

    Row i runs on copy i of a stack (`copies.py`). With `kept`, a `Kept` of this model, the same from less work.
    """
    return Growing(lm, len(trees), kept=kept, cached=False)(trees)


class Kept:
    """The hidden states that enter one block, by text: they stay while only that block and later ones are edited.

    Args:
        layer: number of the block, the lowest that is edited. Nothing is to be kept below block 0.
        max_bytes: most bytes of hidden states to hold, on the model's device, where they are set aside at once (a CPU
            gives memory only as it fills). Texts that come when all are taken are computed anew each time.

    Attributes:
        held: bytes of the hidden states held so far.
    """

    def __init__(self, lm, layer, max_bytes):
        import torch

        lm.check_layer(layer)
        self.lm, self.layer = lm, layer
        # A node is a text, and the number of its last token's state: (node of the text without it, token) ↦ node.
        # The first token of a tree follows the token ids that stand before all of the tree.
        self.nodes = {}
        row = torch.empty(1, lm.d_model, dtype=lm.dtype, device=lm.device)
        self.states = row.new_empty(max_bytes // row.nbytes if layer else 0, lm.d_model)

    @property
    def held(self):
        return self.states[: len(self.nodes)].nbytes

    def entering(self, trees, new, lower, beginning):
        """What enters the block at tokens `new` of each tree behind a beginning: (trees, most new tokens, d_model).

        Args:
            lower: `_Blocks`, those below; they run for texts that are not held.
        """
        nodes = [self._nodes(packed, beginning) for packed in trees]
        known = [of[chosen] >= 0 for of, chosen in zip(nodes, new, strict=True)]
        hidden = self.states.new_zeros(len(trees), max(map(len, new)), self.states.shape[1])
        for i, (of, chosen) in enumerate(zip(nodes, new, strict=True)):
            hidden[i, np.flatnonzero(known[i])] = self.states[of[chosen[known[i]]]]
        if all(map(np.all, known)):
            return hidden
        missing = [chosen[~of] for chosen, of in zip(new, known, strict=True)]
        computed, ran = lower(trees, missing)
        fresh = {}
        for i, packed in enumerate(trees):
            hidden[i, np.flatnonzero(~known[i])] = computed[i, np.searchsorted(ran[i], missing[i])]
            grown = self._nodes(packed, beginning, fresh)
            added = np.flatnonzero(grown != nodes[i])
            self.states[grown[added]] = computed[i, np.searchsorted(ran[i], added)]
        self.nodes |= fresh
        return hidden

    def _nodes(self, packed, beginning, fresh=None):
        """The node of each token of a tree, −1 where there is none. With `fresh`, a dict, nodes are added to it for
        those, as long as there is room for their states."""
        nodes, ids = np.full(len(packed.ids), -1), packed.ids.tolist()
        for place in packed.places:
            node = beginning
            for p in place:
                key = (node, ids[p])
                node = self.nodes.get(key, -1)
                if node == -1 and fresh is not None:
                    if len(self.nodes) + len(fresh) < len(self.states):
                        fresh.setdefault(key, len(self.nodes) + len(fresh))
                    node = fresh.get(key, -1)
                nodes[p] = node
        return nodes


class Growing:
    """Final hidden states of trees that grow, one row each, on the model as it stands: called with the trees, it runs
    the tokens that were not there before, (rows, most new tokens, d_model), behind what it has of the others.

    Args:
        beginning: token ids, a tuple, that stand before all trees.
        past: layer ↦ attention keys and values of the beginning, (1, heads, tokens, d_head).
        kept: a `Kept` of this model, or None.
        cached: False if the trees will not grow: no keys and values are held.
    """

    def __init__(self, lm, n_rows, beginning=(), past=None, *, kept=None, cached=True):
        if kept is not None and kept.lm is not lm:
            raise ValueError(f"these states are kept of another model than this {lm.name}; make a Kept of it")
        cache = _Cache(past or {}, n_rows) if cached else None
        layer = kept.layer if kept else 0
        self.kept, self.beginning = (kept if layer else None), beginning
        self.lower, self.upper = (
            _Blocks(lm, start, stop, n_rows, len(beginning), cache) for start, stop in ((0, layer), (layer, None))
        )
        self.done = [0] * n_rows

    def __call__(self, trees):
        new = [np.arange(n, len(packed.ids)) for n, packed in zip(self.done, trees, strict=True)]
        self.done = [len(packed.ids) for packed in trees]
        entering = self.kept and self.kept.entering(trees, new, self.lower, self.beginning)
        return self.upper(trees, new, entering)[0]


class _Blocks:
    """Blocks start … stop − 1 over trees that grow, one row each: a token runs once, behind those that ran before it.

    Attributes:
        columns: for each tree, where the keys of its tokens are, −1 for those that have not run.
        width: how many keys there are, the first `shared` of them of the beginning.
    """

    def __init__(self, lm, start, stop, n_rows, shared, cache):
        self.lm, self.run, self.cache = lm, anatomy.segment(lm, start, stop), cache
        self.layers = range(lm.n_layers)[start:stop]
        self.shared = self.width = shared
        self.columns = [np.empty(0, dtype=int)] * n_rows

    def __call__(self, trees, wanted, hidden=None):
        """Run the tokens `wanted` of each tree, and those before them that have not run: what leaves the blocks,
        (rows, tokens, d_model), and for each row the tokens.

        Args:
            hidden: what enters, if all tokens before those wanted have run; None for token ids, into block 0.
        """
        import torch

        ran, parts, behind = [], [], []
        for i, (packed, tail) in enumerate(zip(trees, wanted, strict=True)):
            columns = np.append(self.columns[i], np.full(len(packed.ids) - len(self.columns[i]), -1))
            chosen = np.flatnonzero(packed.sees[tail].any(axis=0) & (columns < 0))
            sees = np.zeros((len(chosen), self.width), dtype=bool)
            sees[:, : self.shared] = True
            before = np.flatnonzero(columns >= 0)
            sees[:, columns[before]] = packed.sees[np.ix_(chosen, before)]
            columns[chosen] = self.width + np.arange(len(chosen))
            self.columns[i] = columns
            positions = packed.positions[chosen] + self.shared
            parts.append(tokens.Tree(packed.ids[chosen], positions, packed.sees[np.ix_(chosen, chosen)], []))
            behind.append(sees)
            ran.append(chosen)
        alone = self.cache is None and hidden is None and not self.width
        small = sum(len(part.ids) for part in parts) <= GRAPH_TOKENS
        multiple = 64 if alone and small and self.lm.device.type == "cuda" else 1  # so that few shapes come up
        ids, positions, mask = tokens.tree_inputs(parts, self.lm.device, self.lm.dtype, multiple=multiple)
        if self.width:
            sees = np.zeros((*ids.shape, self.width), dtype=bool)
            for row, of in zip(sees, behind, strict=True):
                row[: len(of)] = of
            past = tokens.additive_mask(torch.from_numpy(sees).to(self.lm.device), self.lm.dtype)
            mask = torch.cat([past, mask], dim=-1)
        self.width += ids.shape[1]
        if multiple > 1:
            inputs = {"ids": ids, "mask": mask, "positions": positions}
            name = f"blocks {self.layers}"
            return graphs.without_gradient(self.lm, name, self.layers, self._alone, inputs)["out"], ran
        return self.run(ids if hidden is None else hidden, mask, positions, self.cache), ran

    def _alone(self, inputs):
        return {"out": self.run(inputs["ids"], inputs["mask"], inputs["positions"])}


class _Cache:
    """Attention keys and values of the tokens so far, in parts that are joined for one layer at a time. Stands in for
    a Hugging Face cache, as `anatomy.KeyValues` does; each forward leaves its part."""

    def __init__(self, past, n_rows):
        self.parts = {layer: [[x.expand(n_rows, -1, -1, -1) for x in pair]] for layer, pair in past.items()}

    def update(self, keys, values, layer, *_, **__):
        import torch

        parts = self.parts.setdefault(layer, [])
        parts.append([keys, values])
        return tuple(torch.cat(of, dim=-2) for of in zip(*parts, strict=True))
