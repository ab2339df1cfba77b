"""Texts that a model writes, and numbers that say whether it still writes well: entropies, reference score, perplexity.

n-gram entropy (GE) falls when a model repeats itself, the reference score (RS) when it leaves the topic; both are of
sampled continuations, as in kmeng01/rome `experiments/py/eval_utils_counterfact.py` (`test_generation`), which samples
as `context_sampling` does. Word entropy is that of scalable-model-editing/gradual-catastrophic-forgetting
`downstream_eval/generation_entropy.py`. Perplexity of a few fixed texts is the cheap alarm, taken after every edit.

A collapsed model is a result, not an error: where logits hold NaN or infinity a sampled text ends and is marked, and
perplexity is infinite.
"""

import json
import math
import re
import unicodedata
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from editscale.editing.context_sampling import TOP_K
from editscale.files import bundled
from editscale.metrics import scoring
from editscale.models import hidden_states, tokens

BATCH_ROWS = 32  # texts sampled together; their attention keys and values are in memory at once


@dataclass(frozen=True)
class Sample:
    """A prompt with its continuation, and whether the model could finish it.

    Attributes:
        text: prompt and continuation, cleaned as `clean_text` says.
        finite: False if the logits became NaN or infinite; the text then ends before that token.
    """

    text: str
    finite: bool


def generate(lm, prompts, n_tokens, generator, *, top_k=TOP_K, batch_rows=BATCH_ROWS):
    """A sampled continuation of each prompt on the model as it stands: a list of `Sample`, in order.

    Args:
        n_tokens: length of each text in tokens, prompt and BOS included; sampling continues after an EOS.
        generator: CPU `torch.Generator`. Each prompt in turn takes n_tokens uniform numbers from it, one for each
            place in its text, so that neither `batch_rows` nor later prompts determine what is drawn for it.
        top_k: draw from the k most probable tokens, their probabilities renormalized in float64.
        batch_rows: texts per forward. Does not change the result, unless rounding tips a draw.

    Raises ValueError if a prompt is empty or leaves no token to draw, or if n_tokens is more than the model reads.
    """
    import torch

    rows = [tokens.prompt_ids(lm.tokenizer, prompt) for prompt in prompts]
    for prompt, row in zip(prompts, rows, strict=True):
        if not 0 < len(row) < n_tokens:
            raise ValueError(
                f"prompt {prompt!r} has {len(row)} tokens; n_tokens is {n_tokens}, prompt included: every "
                "prompt needs at least one token and must leave one to draw"
            )
    tokens.check_length(lm, n_tokens)
    tokens.check(lm, rows)
    uniforms = [torch.rand(n_tokens, generator=generator, dtype=torch.float64) for _ in rows]
    samples = []
    for i in range(0, len(rows), batch_rows):
        batch = slice(i, i + batch_rows)
        samples += _sample_batch(lm, rows[batch], n_tokens, torch.stack(uniforms[batch]), top_k)
    return samples


def _sample_batch(lm, rows, n_tokens, uniforms, top_k):
    """One `Sample` per row of ids. All rows grow together from the shortest prompt's end, longer prompts along their
    own tokens, so that nothing is padded; each token runs once, with the attention keys and values of those before it.
    """
    import torch
    from transformers import DynamicCache

    ids = torch.zeros(len(rows), n_tokens, dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
    lengths = torch.tensor([len(row) for row in rows])
    ends = torch.full((len(rows),), n_tokens)
    cache, done = DynamicCache(), 0
    for t in range(int(lengths.min()), n_tokens):
        with torch.no_grad():
            new = ids[:, done:t].to(lm.device)
            hidden = lm.model.base_model(input_ids=new, past_key_values=cache, use_cache=True).last_hidden_state
            logits, candidates = (x.cpu() for x in lm.logits(hidden[:, -1]).topk(top_k, dim=-1))  # NaN counts as top
        done, drawing = t, lengths <= t
        ends[drawing & ~logits.isfinite().all(dim=-1) & (ends == n_tokens)] = t
        if (ends < n_tokens).all():
            break
        cumulative = logits.double().softmax(dim=-1).cumsum(dim=-1)
        drawn = (uniforms[:, t, None] > cumulative[:, :-1]).sum(dim=-1, keepdim=True)
        ids[drawing, t] = candidates.gather(1, drawn)[drawing, 0]
    return [
        Sample(clean_text(lm.tokenizer, row[:end].tolist()), end == n_tokens)
        for row, end in zip(ids, ends.tolist(), strict=True)
    ]


def clean_text(tokenizer, ids):
    """The text of some ids as the released code cleans it: without special tokens, NFKD, "\\n\\n" as one space."""
    text = tokenizer.decode(ids, skip_special_tokens=True)
    return unicodedata.normalize("NFKD", text).replace("\n\n", " ")


def _entropy(counts):
    """Base-2 entropy of frequencies, 0 without any."""
    p = np.array(list(counts), dtype=float)
    p /= p.sum()
    return float((p * np.log2(1 / p)).sum())


def words(text):
    """The words and signs of a text: letters and digits, joined inside by - ' ’ , or a full stop; other signs alone.

    Stands in for nltk's `word_tokenize`, whose rules have to be downloaded. That also splits contractions (do n't)
    and keeps the full stop of an abbreviation.
    """
    return re.findall(r"\w+(?:[-'’.,]\w+)*|[^\w\s]", text)


def ngram_entropy(texts):
    """GE: mean over texts of (H₂ + 2 H₃) / 3, with H₂ and H₃ the entropies (bits) of a text's bi- and trigrams.

    A text of fewer than n words has Hₙ = 0; NaN without texts. Published tables show it times 100, about 620 for
    healthy models at 100 tokens. `words` takes the place of nltk's word_tokenize.
    """
    if not texts:
        return math.nan
    values = []
    for text in texts:
        split = words(text)
        h2, h3 = (_entropy(Counter(zip(*(split[i:] for i in range(n)), strict=False)).values()) for n in (2, 3))
        values.append((h2 + 2 * h3) / 3)
    return float(np.mean(values))


def word_entropy(texts):
    """Entropy of the words of all texts together over the log of how many are distinct: 0–1, healthy about 0.8–0.93.

    Lower case, without full stops, split at white space (the released code splits at each space, so that two in a row
    count as a word). 0 for one distinct word, where the released code divides by zero, or for none. Some collapsed
    models still score above 0.8: it says how even the words are, not whether they mean anything.
    """
    counts = Counter(word for text in texts for word in text.lower().replace(".", "").split())
    return _entropy(counts.values()) / math.log2(len(counts)) if len(counts) > 1 else 0.0


def _terms(text):
    """Lower-case words of two or more letters or digits, as scikit-learn's vectorizers find them."""
    return re.findall(r"\b\w\w+\b", text.lower())


def inverse_document_frequency(documents):
    """word ↦ ln((1 + n) / (1 + documents with the word)) + 1 over n documents: scikit-learn's smoothed idf."""
    counts = Counter(word for text in documents for word in set(_terms(text)))
    return {word: math.log((1 + len(documents)) / (1 + count)) + 1 for word, count in counts.items()}


def reference_score(texts, attribute_texts, idf):
    """RS: cosine of the TF-IDF vectors of all texts joined and of all attribute texts joined, 0–1.

    Args:
        texts: samples of a fact's generation prompts.
        attribute_texts: texts about subjects that have the new target, those of the same relation. NaN without any.
        idf: word ↦ inverse document frequency; other words do not count. The released code downloads one counted
            over its Wikipedia snippets (43 MB). Here it is `inverse_document_frequency` of the attribute texts of all
            facts, so only scores with the same idf can be compared.

    0 where either side has no word of `idf`.
    """
    if not attribute_texts:
        return math.nan
    a, b = (
        {word: count * idf[word] for word, count in Counter(_terms(" ".join(side))).items() if word in idf}
        for side in (texts, attribute_texts)
    )
    norms = math.hypot(*a.values()) * math.hypot(*b.values())
    return sum(value * b.get(word, 0.0) for word, value in a.items()) / norms if norms else 0.0


def read_attribute_texts(path, facts):
    """For each fact the texts about subjects that have its new object, from CounterFact's attribute_snippets.json.

    The file is a list of {"relation_id", "target_id", "samples": [{"text", …}]}; a fact without an entry has no text.

    Raises FileNotFoundError without the file, ValueError if it holds something else.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no attribute texts at {path}; they are CounterFact's attribute_snippets.json")
    try:
        of = {
            (entry["relation_id"], entry["target_id"]): [sample["text"] for sample in entry["samples"]]
            for entry in json.loads(path.read_text(encoding="utf-8"))
        }
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a list of relation_id, target_id and samples with text: {error!r}") from error
    return [of.get((fact.relation_id, fact.target_new_id), []) for fact in facts]


def scores(texts, attribute_texts=()):
    """ngram_entropy, word_entropy and reference_score of written texts, the last as a mean over texts.

    Args:
        attribute_texts: for each text, in order, the texts it is compared with; none at all gives NaN.
    """
    idf = inverse_document_frequency([text for of_one in attribute_texts for text in of_one])
    alike = [reference_score([a], b, idf) for a, b in zip(texts, attribute_texts, strict=False) if b]
    return {
        "ngram_entropy": ngram_entropy(texts),
        "word_entropy": word_entropy(texts),
        "reference_score": sum(alike) / len(alike) if alike else math.nan,
    }


def teacher_forced_texts(lm, fact):
    """What the model would say next at every token of a fact's scored prompts: one text per prompt, for `word_entropy`.

    The prompts are those of `scoring.prompts_of` (1 + 2 + 10 in CounterFact), and a text holds the
    most probable next token at each of their places. One forward, in which attention carries a NaN from any token to
    all: if a logit is NaN or infinite, all texts are empty. As in scalable-model-editing/rebuilding-rome
    `experiments/disable_edits_plots.py`.
    """
    import torch

    rows = [
        tokens.prompt_ids(lm.tokenizer, prompt) for of_kind in scoring.prompts_of(fact).values() for prompt in of_kind
    ]
    tokens.check(lm, rows)
    packed = tokens.tree(rows)
    with torch.no_grad():
        highest, first = lm.logits(hidden_states.final(lm, [packed])[0]).max(dim=-1)  # the maximum with a NaN is NaN
    if not highest.isfinite().all():
        return [""] * len(rows)
    first = first.cpu().numpy()
    return [clean_text(lm.tokenizer, first[place].tolist()) for place in packed.places]


def perplexity(lm, texts, *, kept=None):
    """exp of the mean NLL per predicted token over all texts; infinite if a logit is NaN or the mean overflows.

    Every token but a text's first is predicted, the first word too where the tokenizer puts a BOS before it. One
    forward; with `kept`, a `hidden_states.StateCache`, of what edits changed since the last call. Raises ValueError
    if no text has two tokens.
    """
    import torch

    rows = [tokens.prompt_ids(lm.tokenizer, text) for text in texts]
    if max(map(len, rows), default=0) < 2:
        raise ValueError(f"none of the {len(rows)} texts has two tokens: there is nothing to predict; give longer ones")
    tokens.check(lm, rows)
    packed = tokens.tree(rows)
    index = [p for place in packed.places for p in place[:-1]]
    targets = torch.tensor([token for row in rows for token in row[1:]], device=lm.device)
    with torch.no_grad():
        log_p = lm.logits(hidden_states.final(lm, [packed], kept)[0, index]).log_softmax(dim=-1)
        value = (-log_p.gather(1, targets[:, None])).double().mean().exp().item()
    return math.inf if math.isnan(value) else value


def fixed_texts():
    """Six English sentences written for this project (editscale/data/sentences.txt), whose perplexity is followed."""
    return bundled("sentences.txt").read_text(encoding="utf-8").splitlines()
