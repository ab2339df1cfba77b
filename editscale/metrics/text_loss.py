"""How well a model predicts a text that no edit is about: mean negative log-likelihood (NLL) of its tokens, in nats.

The text is cut into windows of equally many tokens, one after another and without overlap. Each is read from position 0
on, after the tokens that the tokenizer puts before every text, and all of its tokens but the first are predicted: with
no token of context at a window's beginning, NLL is a little higher than with windows that overlap.

Standard errors are over windows. The tokens of a window share their topic, and each is context of the next, so they are
no independent draws; their own standard error would be too small. What an edited model loses against the unedited one
is compared window by window: most of the spread is that some windows are harder, for both models.
"""

import hashlib
import math
from itertools import islice
from pathlib import Path

import numpy as np

from editscale.editing import corpora, moments
from editscale.models import hidden_states, tokens
from editscale.models.hidden_states import BATCH_TOKENS


def windows(lm, path, n_tokens, size, moments_path):
    """The first windows of a UTF-8 text file, as many as predict `n_tokens` tokens or more: tuples of token ids.

    Args:
        size: tokens of a window, those that the tokenizer puts before every text among them.
        moments_path: the second moments that edits are made with, which must be of another text.

    Raises FileNotFoundError without one of the files; ValueError for a text that is too short or that second moments
    were collected on, for windows that predict nothing or that the model cannot read, and for fewer than two, which
    have no standard error.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no held-out text {path}; it is a UTF-8 text file, or empty: not measured")
    before = tokens.prompt_ids(lm.tokenizer, "")
    if size < len(before) + 2:
        raise ValueError(f"a window of {size} tokens predicts nothing; give {len(before) + 2} or more, such as 512")
    tokens.check_length(lm, size)
    wanted, step = -(-n_tokens // (size - 1)), size - len(before)
    if wanted < 2:
        raise ValueError(
            f"{n_tokens} tokens are {max(wanted, 0)} windows of {size}, and a standard error needs two; ask for more "
            "tokens, or shorter windows"
        )
    text = Path(path).read_text(encoding="utf-8")
    ids = tuple(lm.tokenizer(text, verbose=False)["input_ids"][len(before) :])  # not verbose: longer than a model reads
    if len(ids) < wanted * step:
        raise ValueError(
            f"{path} has {len(ids):,} tokens, and {wanted} windows of {size} need {wanted * step:,}; give a longer "
            "text, or ask for fewer tokens"
        )
    _check_apart(lm, path, moments_path)
    found = [before + ids[i * step : (i + 1) * step] for i in range(wanted)]
    tokens.check(lm, found)
    return found


def _check_apart(lm, path, moments_path):
    """Raise ValueError if a text is the one that second moments were collected on.

    By content, whatever the files are called: their header has the sha256 of the tokens that notebook 01 read.
    """
    identity = moments.load(moments_path, lm, []).identity
    documents = corpora.documents_from_file(lm.tokenizer, path, int(identity["longest_document"]))
    digest = hashlib.sha256()
    for document in islice(documents, int(identity["n_documents"])):
        digest.update((" ".join(map(str, document)) + "\n").encode())  # as `moments.collect` does
    if digest.hexdigest() == identity["tokens_sha256"]:
        raise ValueError(
            f"{path} is the text that the second moments in {moments_path} were collected on, which edits are made to "
            "spare; give another one as held-out text"
        )


def losses(lm, texts, *, batch_tokens=BATCH_TOKENS):
    """Mean NLL of the predicted tokens of each window on the model as it stands, nats, (windows,) float64.

    Infinite where a logit is NaN. `batch_tokens` is the most tokens in one forward, and does not change the result.
    """
    batches = hidden_states.batches(range(len(texts)), lambda i: len(texts[i]), batch_tokens)
    found = np.empty(len(texts))
    for rows, values in hidden_states.in_forwards(lambda rows: _losses(lm, texts, rows), batches):
        found[[i for row in rows for i in row]] = values
    return np.where(np.isnan(found), math.inf, found)


def _losses(lm, texts, rows):
    """`losses` of the windows numbered in each of `rows`, in order; logits are made for one window at a time."""
    import torch

    trees, values = [tokens.tree([texts[i] for i in row]) for row in rows], []
    with torch.no_grad():
        for hidden, row, packed in zip(hidden_states.final(lm, trees), rows, trees, strict=False):
            for i, place in zip(row, packed.places, strict=True):
                targets = torch.tensor(texts[i][1:], device=lm.device)
                log_p = lm.logits(hidden[place[:-1]]).log_softmax(dim=-1)
                values.append(-log_p.gather(1, targets[:, None]).double().mean().item())
    return values


def summary(of_windows, unedited):
    """The columns held_out_… of what `losses` gives for a model and for the unedited one.

    The standard errors, over windows, are those of the mean and of its difference from the unedited model's; NaN where
    a loss is infinite.
    """

    def standard_error(x):
        return float(np.std(x, ddof=1) / math.sqrt(len(x))) if np.isfinite(x).all() else math.nan

    with np.errstate(invalid="ignore"):  # infinite before and after
        errors = {"held_out_nll_se": of_windows, "held_out_rise_se": of_windows - unedited}
        errors = {name: standard_error(x) for name, x in errors.items()}
    return {"held_out_nll": float(of_windows.mean()), **errors, "held_out_windows": len(of_windows)}
