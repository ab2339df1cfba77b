"""A model's answers to few-shot tasks, and their scores. The answers are greedy continuations of the prompts.

The answers are those of decoding each prompt alone, as scalable-model-editing/gradual-catastrophic-forgetting
`glue_eval/` does; `decoding` decodes all of a task together.

An answer needs the format and has a threshold: a model may know more than it answers. So the answer words are scored
too, each as a whole right after the prompt, by the mean log-likelihood of its tokens (as `scoring` scores objects), and
of two labels the area under the ROC curve is taken, which needs neither.
"""

import functools
import math
from collections import Counter
from dataclasses import replace

import numpy as np

from editscale.data import glue
from editscale.metrics.likelihoods import Likelihoods
from editscale.models import decoding, tokens
from editscale.models.hidden_states import BATCH_TOKENS

N_NEW = 3  # tokens of an answer; all of them, since a later one can hold an answer word or another final marker


class TaskPrompts:
    """A task, and a model that is asked it again after every few edits; see `decoding.Greedy`.

    Args:
        layer, max_bytes: the lowest layer that edits change in between, and most bytes to keep of what is below it,
            half of them for answers and half for answer words.
        batch_tokens: most tokens in one forward, without the shared beginning. Does not change the answers.

    Raises ValueError if a prompt is too long for the model; it says with how many demonstrations none is.
    """

    def __init__(self, lm, task, *, layer=0, max_bytes=0, batch_tokens=BATCH_TOKENS):
        self.lm, self.task, self.prompts = lm, task, tokens.texts_ids(lm.tokenizer, task.prompts)
        n_new = answer_length(lm, task)
        self.given = {"layer": layer, "max_bytes": max_bytes // 2, "batch_tokens": batch_tokens}
        _check_length(lm, task, self.prompts, n_new)
        self.greedy = decoding.Greedy(lm, self.prompts, n_new, **self.given)

    def answers(self):
        """The model's label for each example: 0, 1, …, or glue.INVALID. NaN weights give invalid answers."""
        if self.task.format.own:
            decoded = self.lm.tokenizer.batch_decode(self.greedy(), skip_special_tokens=True)
            return [self.task.format.first(text) for text in decoded]
        texts = [prompt + ids for prompt, ids in zip(self.prompts, self.greedy(), strict=True)]
        decoded = self.lm.tokenizer.batch_decode(texts, skip_special_tokens=True)
        return [self.task.format.parse(text) for text in decoded]

    @functools.cached_property
    def words(self):
        """The `Likelihoods` of each answer word after each prompt."""
        words = list(self.task.format.words)
        prompts = [prompt for prompt in self.task.prompts for _ in words]
        pairs = tokens.with_targets(self.lm.tokenizer, prompts, words * len(self.prompts))
        return Likelihoods(self.lm, pairs, **self.given)

    def label_scores(self):
        """The score of each label after each prompt on the model as it stands, (examples, labels) float64, nats per
        token: that of the likeliest of its answer words. NaN where the model gives none."""
        lengths = [len(word) for _, word in self.words.pairs]
        scores = (np.array(self.words()) / lengths).reshape(len(self.prompts), -1)
        labels = np.array(list(self.task.format.words.values()))
        return np.stack([scores[:, labels == k].max(axis=1) for k in range(len(self.task.format.labels))], axis=1)

    def separation(self):
        """auroc and auroc_se (`auroc`) of label 1's score minus label 0's, NaN for more than two labels."""
        if len(self.task.format.labels) != 2:
            return {"auroc": math.nan, "auroc_se": math.nan}
        scores, labels = self.label_scores(), np.array(self.task.labels)
        margins = scores[:, 1] - scores[:, 0]
        return dict(zip(("auroc", "auroc_se"), auroc(margins[labels == 1], margins[labels == 0]), strict=True))

    def row(self):
        """One row of the downstream table: task, n_examples, accuracy, f1, mcc, invalid of the model as it stands, and
        what `apart` gives; of a task of one's own also f1_chance and f1_constant, the F1 of `references`."""
        given, labels, form = self.answers(), self.task.labels, self.task.format
        to_beat = references(labels, len(form.labels)) if form.own else {}
        found = scores(given, labels) | {f"f1_{name}": score["f1"] for name, score in to_beat.items()}
        return {"task": self.task.name, "n_examples": len(given), **found, **apart(given, labels)}


def answer_length(lm, task):
    """Tokens of an answer to a task: N_NEW; of one of one's own, as many more as its longest answer word needs."""
    if not task.format.own:
        return N_NEW
    words = list(task.format.words)
    pairs = tokens.with_targets(lm.tokenizer, task.prompts[:1] * len(words), words)
    return max(N_NEW, *(len(target) for _, target in pairs))


def _check_length(lm, task, prompts, n_new):
    """Raise ValueError if a prompt with its answer is longer than the model reads; it says how many shots fit."""
    try:
        tokens.check_length(lm, _longest(prompts, n_new))
    except ValueError as error:
        each = [replace(task, demonstrations=task.demonstrations[:n]) for n in range(len(task.demonstrations))]
        lengths = [_longest(tokens.texts_ids(lm.tokenizer, of.prompts), n_new) for of in each]
        fitting = sum(length <= lm.model.config.max_position_embeddings for length in lengths) - 1
        advice = f"with shots {fitting} all prompts fit" if fitting >= 0 else "without any shot one is still too long"
        raise ValueError(f"{task.name} with {len(task.demonstrations)} shots: {error} ({advice})") from error


def _longest(prompts, n_new):
    """Most tokens that are read of a prompt and its answer."""
    return max(map(len, prompts), default=0) + n_new - 1


def scores(answers, labels):
    """Accuracy, weighted F1 and Matthews correlation of answers, and the share of invalid ones.

    An invalid answer is wrong, and a class of its own that is never the true one. F1 is the mean over true classes,
    weighted with how often each is true, of 2·hits / (true + answered); 0 where nothing was answered. The
    correlation is R_K of Gorodkin 2004, for two classes Matthews'; 0 where it is undefined. As in scikit-learn.
    """
    answers, labels = list(answers), list(labels)
    if not labels or len(answers) != len(labels):
        raise ValueError(f"{len(answers)} answers to {len(labels)} labels; one answer for each example is needed")
    n, true, answered = len(labels), Counter(labels), Counter(answers)
    hits = Counter(label for answer, label in zip(answers, labels, strict=True) if answer == label)
    n_hits = sum(hits.values())
    covariance = n_hits * n - sum(true[k] * answered[k] for k in true)
    variances = [n * n - sum(count * count for count in counts.values()) for counts in (true, answered)]
    return {
        "accuracy": n_hits / n,
        "f1": sum(true[k] * 2 * hits[k] / (true[k] + answered[k]) for k in true) / n,
        "mcc": covariance / (variances[0] * variances[1]) ** 0.5 if all(variances) else 0.0,
        "invalid": answered[glue.INVALID] / n,
    }


def references(labels, n_labels=2):
    """Scores to beat on these labels: `constant`, the best of always giving one label, and `chance`, a coin.

    The coin has n_labels sides. Its scores are those of all its answers together, each label once to each example.
    """
    labels, sides = list(labels), range(n_labels)
    constant = max((scores([k] * len(labels), labels) for k in sides), key=lambda row: row["f1"])
    return {"constant": constant, "chance": scores([k for k in sides for _ in labels], n_labels * labels)}


def apart(answers, labels):
    """The two things that accuracy mixes, with standard errors (`binomial_error`): valid_accuracy, the share of right
    answers among the valid ones, NaN without any, and its error; and the error of the share of invalid ones."""
    valid = [answer == label for answer, label in zip(answers, labels, strict=True) if answer != glue.INVALID]
    accuracy = sum(valid) / len(valid) if valid else math.nan
    invalid = 1 - len(valid) / len(answers)
    return {
        "valid_accuracy": accuracy,
        "valid_accuracy_se": binomial_error(accuracy, len(valid)),
        "invalid_se": binomial_error(invalid, len(answers)),
    }


def binomial_error(share, n):
    """Standard error of a share of n independent examples, √(p(1 − p) / n), 0 at a share of 0 or 1; NaN without any."""
    return math.sqrt(max(share * (1 - share), 0.0) / n) if n else math.nan


def auroc(high, low):
    """How often a score of the one kind exceeds one of the other, ties half, and the standard error of that.

    The area under the ROC curve, ½ without any signal, by midranks. The error is that of DeLong et al. 1988 (Biometrics
    44:837), which assumes no distribution; with midranks as in Sun and Xu 2014 (IEEE Signal Process. Lett. 21:1389).
    NaN, both, where a kind has no score or one is NaN; the error also where a kind has a single score. 0 where all of
    one kind are above all of the other.

    Args:
        high, low: scores of the kind that should be higher, (m,), and of the other, (n,).
    """
    high, low = np.asarray(high, dtype=float), np.asarray(low, dtype=float)
    m, n = len(high), len(low)
    if not m or not n or np.isnan(high).any() or np.isnan(low).any():
        return math.nan, math.nan
    ranks = _midranks(np.concatenate([high, low]))
    below = (ranks[:m] - _midranks(high)) / n  # of each high score the share of low ones below it
    above = 1 - (ranks[m:] - _midranks(low)) / m
    variance = below.var(ddof=1) / m + above.var(ddof=1) / n if min(m, n) > 1 else math.nan
    return float(below.mean()), math.sqrt(variance)


def _midranks(values):
    """Ranks from 1; equal values have the mean of theirs."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place]
