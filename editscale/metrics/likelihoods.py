"""The log-likelihoods of continuations, asked again after every few edits: what no edit changes is computed once."""

import os

from editscale.models import hidden_states, tokens
from editscale.models.hidden_states import BATCH_TOKENS


class Likelihoods:
    """Texts with their continuations: called, log p of each continuation's tokens on the model as it stands.

    A call returns a list of floats, nats, summed over the tokens; NaN where the logits hold NaN.

    Args:
        pairs: token ids (before, continuation), neither of them empty.
        layer, max_bytes: the lowest layer that edits change between calls, 0 if unknown, and most bytes to keep, on the
            model's device, of what enters it (`hidden_states.StateCache`).
        batch_tokens: most tokens in one forward, without what its texts share with those before. Does not change the
            result. Halved where memory does not suffice.

    Raises ValueError if a text is too long for the model, or holds a token that it has no embedding of.
    """

    def __init__(self, lm, pairs, *, layer=0, max_bytes=0, batch_tokens=BATCH_TOKENS):
        self.lm, self.pairs = lm, [(tuple(before), tuple(ids)) for before, ids in pairs]
        self.texts = [(before + ids)[:-1] for before, ids in self.pairs]
        tokens.check(lm, [before + ids for before, ids in self.pairs])
        neighbors_share_most, size, last = sorted(range(len(self.texts)), key=self.texts.__getitem__), {}, ()
        for i in neighbors_share_most:
            size[i] = len(self.texts[i]) - len(os.path.commonprefix([self.texts[i], last]))
            last = self.texts[i]
        self.rows = hidden_states.batches(neighbors_share_most, size.__getitem__, batch_tokens)
        most = sum(size.values()) * lm.d_model * lm.dtype.itemsize  # of all states that there are
        self.kept = hidden_states.StateCache(lm, layer, min(max_bytes, most))

    def __call__(self):
        found, ran = {}, []
        for rows, sums in hidden_states.in_forwards(self._sums, self.rows):
            found |= sums
            ran.append(rows)
        self.rows = ran  # what did not fit is not tried again
        return [found[i] for i in range(len(self.pairs))]

    def _sums(self, rows):
        """{number of a pair: its log-likelihood} from one forward, the pairs of each of `rows` as one tree."""
        import torch

        trees, numbers = [tokens.tree([self.texts[i] for i in row]) for row in rows], [i for row in rows for i in row]
        targets = [self.pairs[i][1] for i in numbers]
        places = [(r, place) for r, packed in enumerate(trees) for place in packed.places]
        ends = [(r, place[-len(ids) :]) for (r, place), ids in zip(places, targets, strict=True)]
        index = tuple(zip(*((r, p) for r, end in ends for p in end), strict=True))
        wanted = torch.tensor([token for ids in targets for token in ids], device=self.lm.device)
        with torch.no_grad():
            logits = self.lm.logits(hidden_states.final(self.lm, trees, self.kept)[index])
            log_p = logits.gather(1, wanted[:, None])[:, 0] - logits.logsumexp(dim=-1)
        sums = [of.sum().item() for of in log_p.double().cpu().split([len(ids) for ids in targets])]
        return dict(zip(numbers, sums, strict=True))
