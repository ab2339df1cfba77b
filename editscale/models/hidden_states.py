"""Final hidden states of texts, with what no edit changes computed once.

Texts run as trees of tokens (`tokens.tree`), several side by side in one forward. Edits of layers ≥ L leave the hidden
states that enter block L as they were, and those are a function of the text so far alone: `StateCache` holds them, by
text, for texts that are looked at again after every few edits. Only the blocks from L on then run.
"""

import warnings

import numpy as np

from editscale.kernels import cuda_graphs
from editscale.models import anatomy, tokens

TREE_TOKENS = 512  # most tokens of a tree; attention grows with its square
GRAPH_TOKENS = 1024  # a forward of no more is a CUDA graph on a GPU, which takes longer to launch than to run it
BATCH_TOKENS = TREE_TOKENS  # most tokens of a forward: one tree, enough for a CPU; a GPU wants 16384 or so


def batches(items, size, batch_tokens, tree_tokens=0):
    """Items in order as forwards of trees: lists, one for each forward, of lists of items, one for each tree.

    Args:
        size: the tokens of an item, at most; an item of more than a tree holds has a tree of its own.
        batch_tokens: most tokens in one forward, padding included.
        tree_tokens: most tokens of a tree, 0 for TREE_TOKENS.
    """
    trees, n, most = [], 0, tree_tokens or TREE_TOKENS
    for item in items:
        if not trees or n + size(item) > min(most, batch_tokens):
            trees.append([])
            n = 0
        trees[-1].append(item)
        n += size(item)
    rows = max(1, batch_tokens // most)
    return [trees[i : i + rows] for i in range(0, len(trees), rows)]


def in_forwards(forward, batches):
    """Yield (rows, forward(rows)) of each of some `batches`; rows that do not fit into memory run in halves.

    So do later rows with as many items, and a warning says so. The results are the same, up to rounding. Raises what
    the device raised if there is not enough memory for a single item.
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
                if halves is None or not is_out_of_memory(error):
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


def is_out_of_memory(error):
    """Whether an exception says that a device, or the machine, has not enough memory."""
    import torch

    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )


def _halves(rows):
    """The rows of a forward in two parts, trees apart or the items of the one tree; None for a single item."""
    if len(rows) > 1:
        return rows[: (len(rows) + 1) // 2], rows[(len(rows) + 1) // 2 :]
    (items,) = rows
    middle = (len(items) + 1) // 2
    return ([items[:middle]], [items[middle:]]) if len(items) > 1 else None


def final(lm, trees, kept=None):
    """Final hidden states (trees, tokens, d_model) of some trees on the model as it stands, padded after their tokens.

    Row i runs on copy i of a stack (`stacks.py`). With `kept`, a `StateCache` of this model, the same from less work.
    """
    if kept is not None and kept.lm is not lm:
        raise ValueError(f"these states are kept of another model than this {lm.name}; make a StateCache of it")
    if kept is not None and kept.layer:
        _, positions, mask = tokens.tree_inputs(trees, lm.device, lm.dtype)
        return anatomy.segment(lm, kept.layer)(kept.entering(trees), mask, positions)
    small = sum(len(packed.ids) for packed in trees) <= GRAPH_TOKENS
    multiple = 64 if small and lm.device.type == "cuda" else 1  # so that there are few shapes
    ids, positions, mask = tokens.tree_inputs(trees, lm.device, lm.dtype, multiple=multiple)
    if multiple == 1:
        return anatomy.segment(lm, 0)(ids, mask, positions)

    def run(inputs):
        return {"out": anatomy.segment(lm, 0)(inputs["ids"], inputs["mask"], inputs["positions"])}

    inputs = {"ids": ids, "mask": mask, "positions": positions}
    return cuda_graphs.without_gradient(lm, "final", range(lm.n_layers), run, inputs)["out"]


class StateCache:
    """The hidden states that enter one block, by text: they stay valid while only that block and later ones are edited.

    Args:
        layer: number of the block, the lowest that is edited. There is nothing to keep below block 0.
        max_bytes: most bytes of hidden states to hold, on the model's device, which are allocated now (a CPU provides
            memory only as it fills). Texts for which there is no room are computed anew each time.

    Attributes:
        held: bytes of the hidden states held so far.
    """

    def __init__(self, lm, layer, max_bytes):
        import torch

        lm.check_layer(layer)
        self.lm, self.layer = lm, layer
        # A node is a text, and the number of its last token's state: (node of the text without it, token) ↦ node.
        self.nodes = {}
        row = torch.empty(1, lm.d_model, dtype=lm.dtype, device=lm.device)
        self.states = row.new_empty(max_bytes // row.nbytes if layer else 0, lm.d_model)

    @property
    def held(self):
        return self.states[: len(self.nodes)].nbytes

    def entering(self, trees):
        """What enters the block at the tokens of each tree: (trees, most tokens, d_model). What is not held runs."""
        nodes = [self._nodes(packed) for packed in trees]
        hidden = self.states.new_zeros(len(trees), max(map(len, nodes)), self.states.shape[1])
        for row, of in zip(hidden, nodes, strict=True):
            kept = np.flatnonzero(of >= 0)
            row[kept] = self.states[of[kept]]
        if all((of >= 0).all() for of in nodes):
            return hidden
        # Those that are missing, and the tokens before them.
        run = [np.flatnonzero(packed.sees[of < 0].any(axis=0)) for packed, of in zip(trees, nodes, strict=True)]
        parts = [
            tokens.Tree(packed.ids[of], packed.positions[of], packed.sees[np.ix_(of, of)], [])
            for packed, of in zip(trees, run, strict=True)
        ]
        ids, positions, mask = tokens.tree_inputs(parts, self.lm.device, self.lm.dtype)
        computed, fresh = anatomy.segment(self.lm, 0, self.layer)(ids, mask, positions), {}
        for i, (packed, of) in enumerate(zip(trees, nodes, strict=True)):
            hidden[i, run[i]] = computed[i, : len(run[i])]
            grown = self._nodes(packed, fresh)
            added = np.flatnonzero(grown != of)
            self.states[grown[added]] = hidden[i, added]
        self.nodes |= fresh
        return hidden

    def _nodes(self, packed, fresh=None):
        """The node of each token of a tree, −1 where there is none. With `fresh`, a dict, nodes are added to it for
        those, as long as there is room for their states."""
        nodes, ids = np.full(len(packed.ids), -1), packed.ids.tolist()
        for place in packed.places:
            node = None
            for p in place:
                key = (node, ids[p])
                node = self.nodes.get(key, -1)
                if node == -1 and fresh is not None:
                    if len(self.nodes) + len(fresh) < len(self.states):
                        fresh.setdefault(key, len(self.nodes) + len(fresh))
                    node = fresh.get(key, -1)
                nodes[p] = node
        return nodes
