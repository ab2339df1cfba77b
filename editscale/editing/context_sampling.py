"""Context templates: short texts, sampled from the unedited model, before which a fact's prompt is put.

A context template is a string with one `{}`, where the prompt goes; "{}" is the bare prompt. As in kmeng01/rome
`rome/rome_main.py` and kmeng01/memit `memit/memit_main.py`, texts are sampled from the five most probable tokens, and
sampled once, from the unedited model, for a whole run. The released code sets no seed; here a generator is passed.
Braces in sampled texts become spaces (as MEMIT does; ROME left them in, where they break).
"""

import unicodedata

from editscale.models import tokens

TOP_K = 5
MEMIT_SEEDS = ("The", "Therefore", "Because", "I", "You")


def sample(lm, starts, n_tokens, generator, *, top_k=TOP_K):
    """Continue each start by sampling, to `n_tokens` tokens in all.

    Args:
        starts: token ids, one tuple per text, all of one length.
        n_tokens: length of each text, start included.
        generator: CPU `torch.Generator`; probabilities go to the CPU in float64 before each draw.
        top_k: draw from the k most probable tokens, their probabilities renormalized.

    Returns:
        Token ids, (len(starts), n_tokens) on the CPU.

    Raises ValueError if n_tokens is more than the model reads.
    """
    import torch

    tokens.check_length(lm, n_tokens)
    ids = torch.tensor(starts)
    while ids.shape[1] < n_tokens:
        with torch.no_grad():
            hidden = lm.model.base_model(input_ids=ids.to(lm.device), use_cache=False).last_hidden_state[:, -1]
            top = lm.logits(hidden).double().cpu().topk(top_k, dim=-1)
        drawn = torch.multinomial(top.values.softmax(dim=-1), 1, generator=generator)
        ids = torch.cat([ids, top.indices.gather(1, drawn)], dim=1)
    return ids


def as_context(tokenizer, ids):
    """A context template from sampled ids: normalized text, one sentence end, then the prompt."""
    text = unicodedata.normalize("NFKD", tokenizer.decode(ids, skip_special_tokens=True)).replace("\n\n", " ")
    return text.replace("{", " ").replace("}", " ") + ". {}"


def seed_starts(lm, words):
    """What sampled texts continue: the ids of each seed word, or, without words, the model's document-start token.

    Raises ValueError for a word without tokens, and for one that the model cannot read.
    """
    from editscale.models import loading

    starts = tokens.texts_ids(lm.tokenizer, words)
    if () in starts:
        raise ValueError(f"the seed word {words[starts.index(())]!r} has no token to start a text from; give another")
    tokens.check(lm, starts)
    return starts or [(loading.start_token(lm),)]


def rome_contexts(lm, starts, generator, n_short=10, n_long=10):
    """ROME's context templates: the bare prompt, `n_short` texts of 5 and `n_long` of 10 tokens.

    Args:
        starts: ids that texts continue, used in turn; they count among the 5 or 10 tokens, but special tokens are not
            part of the text. ROME starts from GPT-2's `<|endoftext|>`; zjunlp/EasyEdit from the words of MEMIT_SEEDS,
            for models that do not generate from such a token.
    """
    contexts = ["{}"]
    for n, length in ((n_short, 5), (n_long, 10)):
        for i in range(n):
            text = sample(lm, [starts[i % len(starts)]], length, generator)[0]
            contexts.append(as_context(lm.tokenizer, text))
    return contexts


def memit_contexts(lm, starts, generator, n_short=0, n_long=0):
    """MEMIT's context templates in two groups: the bare prompt, and a text of 10 tokens from each of MEMIT_SEEDS.

    What is given besides the model and the generator is ignored.
    """
    texts = [sample(lm, [start], 10, generator)[0] for start in seed_starts(lm, MEMIT_SEEDS)]
    return [["{}"], [as_context(lm.tokenizer, text) for text in texts]]


def bare_context(*_):
    """The bare prompt alone, for methods that sample no contexts."""
    return ["{}"]
