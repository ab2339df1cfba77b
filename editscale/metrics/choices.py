"""How often a model finds the right continuation the likeliest, and by how much: choice tasks and minimal pairs.

A continuation after a context is scored by the mean log-likelihood of its tokens, nats per token, so that long ones do
not lose by their length alone. EleutherAI/lm-evaluation-harness (acc_norm) divides by bytes; tokens are what `scoring`
divides by, and what the models of one run have in common. Whole sentences without a context are scored by the sum,
nats, as in BLiMP (Warstadt et al. 2020, arXiv:1912.00582). They stand after the tokenizer's start token where it puts
one, else after `loading.start_token`, so that a first word counts.
"""

import math

import numpy as np

from editscale.data.choice_files import ALL
from editscale.metrics.downstream import binomial_error
from editscale.metrics.likelihoods import Likelihoods
from editscale.models import loading, tokens


class ChoicePrompts:
    """A set of choices (`choice_files.Choices`), and a model that is asked it again after every few edits.

    Args:
        given: layer, max_bytes and batch_tokens of `Likelihoods`.

    Raises ValueError if a text is too long for the model, or if a context and a continuation share a token.
    """

    def __init__(self, lm, choices, **given):
        self.choices, self.asks = choices, Likelihoods(lm, _pairs(lm, choices.items), **given)

    def scores(self):
        """Scores of the continuations of each item on the model as it stands: a list of float64 arrays."""
        found = iter(zip(self.asks(), self.asks.pairs, strict=True))
        scores = []
        for item in self.choices.items:
            of = [next(found) for _ in item.continuations]
            scores.append(np.array([total / len(ids) if item.context else total for total, (_, ids) in of]))
        return scores

    def rows(self):
        """Rows of the choices table on the model as it stands, one of all items, and one for each of several phenomena:
        task, phenomenon, n_examples, accuracy, accuracy_se, chance, invalid, margin, margin_se."""
        scores, items = self.scores(), self.choices.items
        names = list(dict.fromkeys(item.phenomenon for item in items))
        rows = []
        for name in [ALL, *(names if len(names) > 1 else [])]:
            chosen = [i for i, item in enumerate(items) if name in (ALL, item.phenomenon)]
            found = summary([scores[i] for i in chosen], [items[i].right for i in chosen])
            rows.append({"task": self.choices.name, "phenomenon": name, **found})
        return rows


def summary(scores, right):
    """n_examples, accuracy and mean margin with standard errors, chance, and the share of invalid items.

    An item is right where the right continuation has the highest score, in part where others have it too, as if lots
    were drawn; the margin is its score minus that of the best wrong one. An item with a score that is not finite is
    invalid: wrong, and without a margin. Errors are those of independent items: binomial (`binomial_error`), and that
    of a mean, NaN for fewer than two margins.

    Args:
        scores: an array for each item. right: the number of its right continuation.
    """
    hits, margins = [], []
    for values, place in zip(scores, right, strict=True):
        best = values == values.max()
        valid = bool(np.isfinite(values).all())
        hits.append(best[place] / best.sum() if valid else 0.0)
        margins += [values[place] - np.delete(values, place).max()] if valid else []
    n, accuracy, n_valid = len(hits), float(np.mean(hits)), len(margins)
    return {
        "n_examples": n,
        "accuracy": accuracy,
        "accuracy_se": binomial_error(accuracy, n),
        "chance": float(np.mean([1 / len(values) for values in scores])),
        "invalid": 1 - n_valid / n,
        "margin": float(np.mean(margins)) if margins else math.nan,
        "margin_se": float(np.std(margins, ddof=1)) / math.sqrt(n_valid) if n_valid > 1 else math.nan,
    }


def _pairs(lm, items):
    """Token ids of what stands before each continuation of each item, and of the continuation."""
    start = tuple(lm.tokenizer("")["input_ids"])
    before = start or (loading.start_token(lm),)
    asked = [(item.context, text) for item in items for text in item.continuations]
    whole = [text for context, text in asked if not context]
    sentences = iter([(before, ids[len(start) :]) for ids in tokens.texts_ids(lm.tokenizer, whole)])
    after = [pair for pair in asked if pair[0]]
    continued = iter(tokens.with_targets(lm.tokenizer, *zip(*after, strict=True)) if after else ())
    return [next(continued if context else sentences) for context, _ in asked]
