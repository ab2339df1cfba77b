"""A model's answers to few-shot tasks, and their scores. The answers are greedy continuations of the prompts.

The beginning that all prompts share, the demonstrations, is run once; attention keys and values of it serve every
batch. The rests of the prompts run as trees of tokens (`states`). The answers are those of decoding each prompt alone,
as scalable-model-editing/gradual-catastrophic-forgetting `glue_eval/` does.
"""

import os
from collections import Counter
from itertools import takewhile

from editscale import anatomy, glue, states, tokens
from editscale.states import BATCH_TOKENS

N_NEW = 3  # tokens of an answer; all of them, since a later one can hold an answer word or another final marker
_NOTHING = -1  # where the logits hold NaN: no token


def evaluate(lm, task, *, batch_tokens=BATCH_TOKENS, kept=None):
    """One row of the downstream table: task, n_examples, accuracy, f1, mcc, invalid of the model as it stands."""
    given = answers(lm, task, batch_tokens=batch_tokens, kept=kept)
    return {"task": task.name, "n_examples": len(given), **scores(given, task.labels)}


def answers(lm, task, *, batch_tokens=BATCH_TOKENS, kept=None):
    """The model's label for each example of a `glue.Task`: 0, 1, or glue.INVALID. NaN weights give invalid answers.

    Args:
        batch_tokens: most tokens in one forward, without the shared beginning. Does not change the result. Halved where
            memory does not suffice.
        kept: a `states.Kept`, to run only what edits changed since the last call, or None.

    Raises ValueError if a prompt is too long for the model.
    """
    prompts = tokens.texts_ids(lm.tokenizer, task.prompts)
    new = greedy(lm, prompts, N_NEW, batch_tokens=batch_tokens, kept=kept)
    texts = [prompt + ids for prompt, ids in zip(prompts, new, strict=True)]
    return [task.format.parse(text) for text in lm.tokenizer.batch_decode(texts, skip_special_tokens=True)]


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


def references(labels):
    """Scores to beat on these labels: `constant`, the better of always giving one label, and `chance`, a coin.

    The coin's scores are those of all its answers together, each label once to each example.
    """
    labels = list(labels)
    constant = max((scores([k] * len(labels), labels) for k in range(2)), key=lambda row: row["f1"])
    return {"constant": constant, "chance": scores([0] * len(labels) + [1] * len(labels), 2 * labels)}


def greedy(lm, prompts, n_new, *, batch_tokens=BATCH_TOKENS, kept=None):
    """The n_new most probable next tokens of each prompt, one after the other: tuples of ids, in order.

    Fewer where the model ends its text (an end token is left out), and where its logits are NaN.

    Args:
        prompts: token ids, none empty.
        batch_tokens, kept: see `answers`.
    """
    import torch

    prompts = [tuple(prompt) for prompt in prompts]
    tokens.check_length(lm, max(map(len, prompts), default=0) + n_new - 1)
    shared = min(len(os.path.commonprefix(prompts)), min(map(len, prompts), default=1) - 1)
    new, beginning = [], anatomy.KeyValues()
    with torch.no_grad():
        if shared:
            ids, positions, mask = tokens.tree_inputs([tokens.tree([prompts[0][:shared]])], lm.device, lm.dtype)
            anatomy.segment(lm, 0)(ids, mask, positions, beginning)

        def answer(rows):
            growing = states.Growing(lm, len(rows), prompts[0][:shared], beginning.seen, kept=kept)
            return _greedy_batch(lm, rows, growing, n_new)

        batches = states.batches([prompt[shared:] for prompt in prompts], len, batch_tokens)
        for _, of_rows in states.in_forwards(answer, batches):
            new += of_rows
    ends = lm.model.generation_config.eos_token_id
    stops = {_NOTHING, *(ends if isinstance(ends, list) else [ends])}
    return [tuple(takewhile(lambda token: token not in stops, row)) for row in new]


def _greedy_batch(lm, rows, growing, n_new):
    """n_new tokens for each text of `rows`: of each row a tree, the token ids behind the shared beginning."""
    # A tree holds its texts at all lengths so far, so that tokens stay where they are when it grows. The mark keeps a
    # chosen token apart from the same one in a longer prompt.
    texts, chosen = [list(row) for row in rows], []
    while True:
        trees = [
            tokens.tree(of, [None] * len(row) + [len(text) for text in row] * len(chosen))
            for of, row in zip(texts, rows, strict=True)
        ]
        done, hidden = growing.done, growing(trees)
        last = [
            (i, place[-1] - done[i])
            for i, (packed, row) in enumerate(zip(trees, rows, strict=True))
            for place in packed.places[-len(row) :]
        ]
        logits = lm.logits(hidden[tuple(zip(*last, strict=True))])
        token = logits.argmax(dim=-1)
        chosen.append(token.where(~logits.isnan().any(dim=-1), _NOTHING).tolist())
        if len(chosen) == n_new:
            return list(zip(*chosen, strict=True))
        each = iter(token.tolist())
        for of, row in zip(texts, rows, strict=True):
            of += [(*text, next(each)) for text in of[-len(row) :]]
