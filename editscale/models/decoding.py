"""The most probable continuations of prompts, found again after every few edits.

The beginning that the prompts share, such as solved examples, runs once. The rest of each runs in trees of tokens
(`tokens.tree`), several side by side in one forward. Edits of layers ≥ L change nothing below block L: what enters it,
and the attention keys and values of the blocks below, are computed once and kept. All that depends on the texts alone
(token ids, masks, places) is made once too, so that asking again is one function of the weights: a CUDA graph on a GPU.
"""

import os
from itertools import takewhile

import numpy as np

from editscale.kernels import cuda_graphs
from editscale.models import anatomy, hidden_states, tokens
from editscale.models.hidden_states import BATCH_TOKENS

NARROW = 256  # most tokens of a tree on a GPU, which has many side by side: attention grows with the square
_HELD = ("entering", "keys", "values")  # tensors that lower blocks made
_NOTHING = -1  # where the logits hold NaN: no token


class Greedy:
    """Prompts to continue: called, the `n_new` most probable next tokens of each on the model as it stands.

    A call returns tuples of ids, in the prompts' order: fewer than n_new where the model ends its text (an end token is
    left out), and where its logits are NaN.

    Args:
        prompts: token ids, none empty.
        layer: the lowest layer that edits change between calls; 0 if unknown.
        max_bytes: most bytes to keep of what the blocks below it make of the prompts, on the model's device. Prompts
            for which there is no room run through all blocks each time.
        batch_tokens: most tokens in one forward, without the shared beginning. Does not change the result. Halved
            where memory does not suffice.

    Raises ValueError if a prompt is too long for the model, or holds a token that it has no embedding of.
    """

    def __init__(self, lm, prompts, n_new, *, layer=0, max_bytes=0, batch_tokens=BATCH_TOKENS):
        lm.check_layer(layer)
        prompts = [tuple(prompt) for prompt in prompts]
        tokens.check(lm, prompts)
        tokens.check_length(lm, max(map(len, prompts), default=0) + n_new - 1)
        shared = min(len(os.path.commonprefix(prompts)), min(map(len, prompts), default=1) - 1)
        self.lm, self.n_new, self.layer, self.max_bytes = lm, n_new, layer, max_bytes
        self.beginning, self.rests = prompts[0][:shared] if prompts else (), [prompt[shared:] for prompt in prompts]
        narrow = NARROW if lm.device.type == "cuda" else 0
        self.rows = hidden_states.batches(range(len(prompts)), lambda i: len(self.rests[i]), batch_tokens, narrow)
        self.prepared = {}  # the prompts of a forward, by number ↦ its tensors

    @property
    def held(self):
        """Bytes of what the lower blocks made of the prompts that have run."""
        held = (x for of in self.prepared.values() for name, x in of.items() if name.split(".")[0] in _HELD)
        return sum(x.nbytes for x in held)

    def __call__(self):
        import torch

        new, ran = [], []
        with torch.no_grad():
            past = self._past()
            for rows, found in hidden_states.in_forwards(lambda rows: self._continue(rows, past), self.rows):
                new += found
                ran.append(rows)
        self.rows = ran  # what did not fit is not tried again
        ends = self.lm.model.generation_config.eos_token_id
        stops = {_NOTHING, *(ends if isinstance(ends, list) else [ends])}
        return [tuple(takewhile(lambda token: token not in stops, row)) for row in new]

    def _past(self):
        """Attention keys and values of the beginning, by name."""
        if not self.beginning:
            return {}
        if () not in self.prepared:
            inputs = _inputs(tokens.tree_inputs([tokens.tree([self.beginning])], self.lm.device, self.lm.dtype))
            self.prepared[()] = inputs | self._kept(inputs, {})
        return self._run("beginning", self._begin, self.prepared[()])

    def _continue(self, rows, past):
        """n_new tokens for each prompt of some rows, whose prompts are given by number."""
        key = tuple(map(tuple, rows))
        tensors = self.prepared.get(key)
        if tensors is None:
            inputs = self._prepare(rows)
            tensors = inputs | self._kept(inputs, past)
        new = self._run(f"greedy {self.n_new}", self._decode, past | tensors)["new"].cpu()
        self.prepared[key] = tensors  # not of rows that memory did not suffice for
        return [tuple(new[:, i, j].tolist()) for i, row in enumerate(rows) for j in range(len(row))]

    def _run(self, name, function, tensors):
        return cuda_graphs.without_gradient(
            self.lm, f"{name} from {self.layer}", range(self.lm.n_layers), function, tensors
        )

    def _prepare(self, rows):
        """The tensors of some rows that follow from the texts alone."""
        import torch

        lm, n_shared = self.lm, len(self.beginning)
        trees = [tokens.tree([self.rests[i] for i in row]) for row in rows]
        found = _inputs(tokens.tree_inputs(trees, lm.device, lm.dtype))
        width, most = found["ids"].shape[1], max(map(len, rows))
        last = np.zeros((len(rows), most), dtype=np.int64)
        lengths = np.ones_like(last)
        sees = np.zeros((len(rows), most, n_shared + width + most * (self.n_new - 1)), dtype=bool)
        sees[:, :, :n_shared] = True
        for i, (packed, row) in enumerate(zip(trees, rows, strict=True)):
            last[i, : len(row)] = [place[-1] for place in packed.places]
            lengths[i, : len(row)] = [len(place) for place in packed.places]
            sees[i, : len(row), n_shared : n_shared + width][:, : len(packed.ids)] = packed.sees[last[i, : len(row)]]
        for each in range(self.n_new - 1):  # the new tokens so far of one's own prompt
            at = n_shared + width + each * most + np.arange(most)
            sees[:, np.arange(most), at] = True
        return found | {
            "mask": torch.nn.functional.pad(found["mask"], (n_shared, 0)),  # all see all of the beginning
            "positions": found["positions"] + n_shared,
            "last": torch.from_numpy(last).to(lm.device),
            "lengths": torch.from_numpy(n_shared + lengths).to(lm.device),
            "later mask": tokens.additive_mask(torch.from_numpy(sees).to(lm.device), lm.dtype),
        }

    def _kept(self, inputs, past):
        """What the blocks below the edited ones make of some texts that follow a past, if there is room for it: what
        enters the lowest edited block, and the attention keys and values."""
        if not self.layer:
            return {}
        cache = anatomy.KeyValues({name: x for name, x in past.items() if int(name.split(".")[1]) < self.layer})
        before = set(cache.tensors())
        entering = anatomy.segment(self.lm, 0, self.layer)(inputs["ids"], inputs["mask"], inputs["positions"], cache)
        below = {"entering": entering} | {name: x for name, x in cache.tensors().items() if name not in before}
        fits = self.held + sum(tensor.nbytes for tensor in below.values()) <= self.max_bytes
        return below if fits else {}

    def _enter(self, tensors, cache):
        """Final hidden states of texts, their keys and values in a cache."""
        kept = "entering" in tensors
        run = anatomy.segment(self.lm, self.layer if kept else 0)
        return run(tensors["entering" if kept else "ids"], tensors["mask"], tensors["positions"], cache)

    def _begin(self, tensors):
        cache = anatomy.KeyValues(tensors)
        self._enter(tensors, cache)
        return cache.tensors()

    def _decode(self, tensors):
        """{"new": (n_new, rows, prompts)}: the tokens, a function of the tensors and the weights alone."""
        import torch

        lm, new, cache = self.lm, [], anatomy.KeyValues(tensors)
        hidden = self._enter(tensors, cache)
        hidden = hidden.gather(1, tensors["last"][..., None].expand(-1, -1, hidden.shape[-1]))
        n_before, most = tensors["mask"].shape[-1], hidden.shape[1]
        while True:
            logits = lm.logits(hidden)
            token = logits.argmax(dim=-1)
            new.append(token.where(~logits.isnan().any(dim=-1), _NOTHING))
            if len(new) == self.n_new:
                return {"new": torch.stack(new)}
            step = len(new)
            mask = tensors["later mask"][..., : n_before + step * most]
            # A new token sees those before it and itself: its own column of each step so far.
            hidden = anatomy.segment(lm, 0)(token, mask, tensors["lengths"] + step - 1, cache)


def _inputs(tree_inputs):
    return dict(zip(("ids", "positions", "mask"), tree_inputs, strict=True))
