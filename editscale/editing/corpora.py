"""Texts on which second moments are collected: sampled from the model itself, a text file, or a data set.

A document is a sequence of token ids, as the model reads the text from position 0 on; of a long text the
first `max_length` tokens, as in kmeng01/rome `rome/tok_dataset.py`. Documents come one by one, in an order
that does not depend on how many are taken.
"""

import random
import re
from itertools import islice
from pathlib import Path

from editscale.data.hub import open_dataset
from editscale.models import tokens


def sampled_documents(lm, n_documents, length, generator, *, batch_size=128, progress=True):
    """Documents of `length` tokens, sampled from the model at temperature 1 from its document-start token.

    This corpus needs no file and no network. Sampling is from the whole
    vocabulary, with the model's key-value cache. The start token is left off unless the tokenizer puts it
    before every text.

    Args:
        generator: CPU `torch.Generator`; probabilities go to the CPU in float64 before each draw.
        batch_size: documents sampled at once. Another size gives other documents.

    Yields lists of token ids.
    """
    import torch
    from tqdm import tqdm

    from editscale.models import loading

    tokens.check_length(lm, length + 1)
    start = loading.start_token(lm)
    before = list(tokens.prompt_ids(lm.tokenizer, ""))
    with tqdm(total=n_documents * length, desc="sampled text", unit="token", disable=not progress) as bar:
        for first in range(0, n_documents, batch_size):
            step = torch.full((min(batch_size, n_documents - first), 1), start)
            ids, cache = step, None
            while ids.shape[1] <= length - len(before):
                with torch.no_grad():
                    output = lm.model.base_model(
                        step.to(lm.device),
                        past_key_values=cache,
                        use_cache=True,
                        attention_mask=torch.ones_like(ids, device=lm.device),
                    )
                    logits = lm.logits(output.last_hidden_state[:, -1]).double().cpu()
                cache = output.past_key_values
                # Each draw is where a uniform number falls among the cumulated probabilities.
                cumulated = logits.softmax(dim=-1).cumsum(dim=-1)
                uniform = torch.rand(len(step), 1, dtype=torch.float64, generator=generator)
                step = torch.searchsorted(cumulated, uniform * cumulated[:, -1:], right=True)
                ids = torch.cat([ids, step], dim=1)
                bar.update(len(step))
            for document in ids[:, 1:].tolist():
                yield before + document


def documents_from_texts(tokenizer, texts, max_length):
    """The first `max_length` token ids of each text that is not blank, special tokens included."""
    texts = iter(texts)
    while group := list(islice(texts, 256)):
        group = [text for text in group if text.strip()]
        if group:
            yield from (list(ids[:max_length]) for ids in tokens.texts_ids(tokenizer, group))


def documents_from_file(tokenizer, path, max_length):
    """The documents of a UTF-8 text file, in which blank lines separate documents.

    Raises FileNotFoundError without the file, ValueError if it holds no text.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"there is no text file {path}; the corpus is a UTF-8 file with blank lines between documents"
        )
    texts = re.split(r"\n\s*\n", Path(path).read_text(encoding="utf-8"))
    if not any(text.strip() for text in texts):
        raise ValueError(f"{path} holds no text to collect second moments on")
    return documents_from_texts(tokenizer, texts, max_length)


def documents_from_dataset(
    tokenizer, name, max_length, *, config="", split="train", revision="", field="text", n_documents=100_000
):
    """Documents of a Hugging Face data set, shuffled with seed 1, at most `n_documents` of them.

    The order is that of the ROME code, `random.Random(1).shuffle` of all indices; for the papers' corpus give
    name "wikimedia/wikipedia", config "20231101.en" (the "20200501.en" they name is no longer served).

    Args:
        name: a hub id, or a local folder of data files.
        revision: commit of a hub id, 40 hexadecimal digits; empty for a folder.
    """
    name = str(name)
    if not Path(name).is_dir() and not re.fullmatch(r"[0-9a-f]{40}", revision):
        raise ValueError(
            f"{name!r} is no folder here, and as a hub data set it needs a pinned revision: the "
            f"40 hexadecimal digits of a commit, not {revision!r}"
        )
    rows = open_dataset(name, config, split, revision)
    if field not in rows.column_names:
        raise ValueError(f"data set {name!r} has no column {field!r}, only {', '.join(rows.column_names)}")
    order = list(range(len(rows)))
    random.Random(1).shuffle(order)
    return documents_from_texts(tokenizer, (rows[i][field] for i in order[:n_documents]), max_length)
