"""The number k·u that ROME divides an edit by, of all facts at all layers, and what the key k looks like where it is
small. No edit is made.

k is the key of the bare prompt at the subject's last token, u = C⁻¹k̄ / ‖C⁻¹k̄‖ with the mean key k̄ over the contexts
(`rome.directions`). No edit of a layer changes what enters it, so k·u is that of the fact's edit wherever in a sequence
of edits of that layer it is made. Models attend to the first position of whatever they read without need, and its
hidden state is unlike all others: an attention sink (arXiv:2309.17453). A subject that ends there has a sink's key in
the bare prompt, and after contexts it has not.

What is read is each prompt up to the subject's last token, since nothing later changes a key. One forward gives the
keys of all layers; of keys only numbers are kept.
"""

from collections import Counter
from contextlib import ExitStack

import numpy as np
import pandas as pd

from editscale.editing import editors, moments, rome
from editscale.models import anatomy, hidden_states, tokens
from editscale.models.hidden_states import BATCH_TOKENS

NUMBERS = ("denominator", "key_norm", "key_norm_contexts", "sink_cosine")  # of a fact at a layer
PLACES = ("0", "1", "2", "3+")  # of a subject's last token, as tables name them


def factors(lm, path, layers=()):
    """layer ↦ lower Cholesky factor of its second moment, (d_key, d_key) float64, on the model's device.

    Args:
        path: file of notebook 01.
        layers: some of those that it holds; none: all of them.

    Raises what `moments.load` and `editors.cholesky_factors` raise.
    """
    from safetensors import safe_open

    moments.load(path, lm, layers)  # says what is wrong with the file, before any factor is made
    with safe_open(path, "pt") as file:
        held = sorted(int(name.removeprefix("layer.")) for name in file.keys())
    found = {}
    for layer in layers or held:
        found |= editors.cholesky_factors(moments.load(path, lm, [layer]).moments, lm.device)
    return found


def up_to_subject(lm, fact, contexts):
    """Token ids of a fact's prompt after each context, up to the subject's last token: a list of tuples.

    Raises ValueError, naming the fact, if its subject ends inside a token or the model cannot read it.
    """
    try:
        rows = tokens.context_rows(lm.tokenizer, contexts, fact.prompt, fact.subject)
        texts = [row.ids[: row.subject_last + 1] for row in rows]
        tokens.check(lm, texts)
    except ValueError as error:
        raise ValueError(f"case {fact.case_id}: {error}") from error
    return texts


def last_keys(lm, rows, layers):
    """layer ↦ keys at the last token of each text, (texts, d_key), from one forward, in float32 or more.

    Args:
        rows: lists of texts, given as token ids; those of a list share a row of the batch (`tokens.tree`).
        layers: ascending.
    """
    import torch

    trees, keys = [tokens.tree(row) for row in rows], {}
    ends = [(i, place[-1]) for i, packed in enumerate(trees) for place in packed.places]
    row, end = torch.tensor(ends, device=lm.device).T
    ids, positions, mask = tokens.tree_inputs(trees, lm.device, lm.dtype)

    def noting(layer):
        return lambda entering, _: keys.update({layer: anatomy.in_full(entering[row, end])})

    with torch.no_grad(), ExitStack() as watched:
        for layer in layers:
            watched.enter_context(anatomy.watching(lm.projection(layer), noting(layer)))
        anatomy.segment(lm, 0, layers[-1] + 1)(ids, mask, positions)
    return keys


def first_keys(lm, firsts, layers, batch_tokens=BATCH_TOKENS):
    """layer ↦ the mean key of position 0, (d_key,) float64, over texts that begin with some tokens.

    Args:
        firsts: first token of each text. Position 0 sees nothing else, so each different one runs once.
    """
    counts, total = Counter(firsts), dict.fromkeys(layers, 0)

    def forward(rows):
        return last_keys(lm, [[(token,) for token in row] for row in rows], layers)

    batches = hidden_states.batches(sorted(counts), lambda _: 1, batch_tokens)
    for rows, keys in hidden_states.in_forwards(forward, batches):
        weights = [counts[token] / len(firsts) for row in rows for token in row]
        for layer, of in keys.items():
            total[layer] = total[layer] + (wide := of.double()).new_tensor(weights) @ wide
    return total


def measure(lm, facts, contexts, factors, *, batch_tokens=BATCH_TOKENS, progress=True):
    """k·u and what k looks like, of each fact at each layer, on the model as it stands: one row each, facts in order.

    Args:
        contexts: templates of ROME, the bare one "{}" first (`editors.sample_contexts`).
        factors: layer ↦ lower Cholesky factor of the second moment of its keys, of the unedited model.
        batch_tokens: most tokens in one forward; changes memory and time, and results only by rounding.

    Returns case_id, layer, denominator (k·u as ROME records it), key_norm ‖k‖, key_norm_contexts ‖k̄‖, sink_cosine
    (of k and the mean key of position 0, see `first_keys`, over the bare prompts of these facts) and subject_place.

    Raises ValueError without facts or layers, for contexts that do not begin with the bare one, and as `up_to_subject`
    does, before anything runs.
    """
    from tqdm import tqdm

    if not facts or not factors or list(contexts[:1]) != ["{}"]:
        raise ValueError(
            f"{len(facts)} facts, {len(factors)} layers and contexts {list(contexts[:2])} …: expected one fact and one "
            "layer or more, and the bare prompt {} as first context"
        )
    for layer in (layers := sorted(factors)):
        lm.check_layer(layer)
    texts = [up_to_subject(lm, fact, contexts) for fact in tqdm(facts, desc="read facts", disable=not progress)]
    sinks = first_keys(lm, [of[0][0] for of in texts], layers, batch_tokens)
    found = np.empty((len(facts), len(layers), len(NUMBERS)))

    def forward(rows):
        keys = last_keys(lm, [[text for i in row for text in texts[i]] for row in rows], layers)
        return [_numbers(of.unflatten(0, (-1, len(contexts))), factors[at], sinks[at]) for at, of in keys.items()]

    batches = hidden_states.batches(range(len(facts)), lambda i: sum(map(len, texts[i])), batch_tokens)
    with tqdm(total=len(facts), desc="keys of facts", unit="fact", disable=not progress) as bar:
        for rows, numbers in hidden_states.in_forwards(forward, batches):
            found[which := [i for row in rows for i in row]] = np.stack(numbers, axis=1)
            bar.update(len(which))
    of_facts = {"case_id": [fact.case_id for fact in facts], "subject_place": [len(of[0]) - 1 for of in texts]}
    table = pd.DataFrame(found.reshape(-1, len(NUMBERS)), columns=NUMBERS)
    table = table.assign(**{name: np.repeat(of, len(layers)) for name, of in of_facts.items()})
    return table.assign(layer=layers * len(facts))[["case_id", "layer", *NUMBERS, "subject_place"]]


def _numbers(keys, factor, sink):
    """NUMBERS of some facts, (facts, 4), from keys (facts, contexts, d_key) and the mean key of position 0."""
    import torch

    bare, mean = keys[:, 0], keys.mean(1)
    denominators = (bare * rome.direction(mean, factor)).sum(-1)
    cosines = torch.cosine_similarity(bare.double(), sink, dim=-1)
    return torch.stack([denominators, bare.norm(dim=-1), mean.norm(dim=-1), cosines], dim=-1).cpu().numpy()


def by_layer(table, n_layers, low):
    """How often |k·u| is small at each layer, and what it goes with: one row per layer of `measure`'s table.

    Args:
        n_layers: of the model.
        low: |k·u| below it is small.

    Returns layer, depth (layer / (n_layers − 1), 0–1), facts, small (their share with |k·u| < low, 0–1), denominator
    (median |k·u|), and Spearman's rank correlations of |k·u| with sink_cosine (`with_sink`) and with key_norm
    (`with_norm`); NaN without spread.
    """
    rows = []
    for layer, of in table.groupby("layer"):
        size = of["denominator"].abs()
        ranks = [size.rank().corr(of[name].rank()) for name in ("sink_cosine", "key_norm")]
        depth = layer / max(n_layers - 1, 1)
        rows.append((layer, depth, len(of), (size < low).mean(), size.median(), *ranks))
    return pd.DataFrame(rows, columns=["layer", "depth", "facts", "small", "denominator", "with_sink", "with_norm"])


def by_place(table, layer, low):
    """How often |k·u| is small at a layer by where the subject ends, one row per place of PLACES that a fact has.

    Returns place, facts, small (share with |k·u| < low, 0–1) and medians of |k·u|, sink_cosine, key_norm and
    key_norm_contexts.
    """
    of = table[table["layer"] == layer]
    of = of.assign(denominator=of["denominator"].abs(), place=np.array(PLACES)[of["subject_place"].clip(upper=3)])
    of["small"] = of["denominator"] < low
    groups = of.groupby("place")
    shares = groups.agg(facts=("small", "size"), small=("small", "mean"))
    medians = groups[["denominator", "sink_cosine", "key_norm", "key_norm_contexts"]].median()
    return shares.join(medians).reset_index()
