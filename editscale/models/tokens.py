"""Prompts as token ids: where the subject ends, where a target begins, padding and attention masks.

Texts that are run together form one row of tokens, a `Tree`: a beginning that several of them share is there once, and
a token attends to its own text only. So nothing is padded, and nothing is computed twice. "the cat sat" and "the cat
ran" are four tokens instead of six:

                               sees    the  cat  sat  ran
                ┌─ 2 sat        0 the   x
    0 the ─ 1 cat               1 cat   x    x
                └─ 3 ran        2 sat   x    x    x
                                3 ran   x    x         x       positions 0 1 2 2, places [0 1 2], [0 1 3]

Several trees are rows of one batch: for several copies of a model, or because attention grows with the square of a
tree.

Every text is tokenized once, as a whole, the way the model's tokenizer does it (with BOS where it adds one), and
positions are found from character offsets. For GPT-2's byte-level BPE this gives the same ids and positions as the
length arithmetic of the released code (kmeng01/rome `rome/repr_tools.py`); it also holds for tokenizers with BOS and
for SentencePiece, where that arithmetic miscounts.
"""

import unicodedata
from dataclasses import dataclass

import numpy as np

EXCERPT = 20  # tokens of a text before and after one that it is refused for, to name it by
_JOINED = ("Mn", "Mc", "Me", "Cf")  # Unicode categories of marks, and of what is not seen


@dataclass(frozen=True)
class Row:
    """One text for the model. Positions are token indices into `ids`.

    Attributes:
        ids: the tokens the model reads: the prompt and all target tokens but the last.
        subject_last: index of the subject's last token.
        targets: target token ids; token i is predicted at index len(ids) − len(targets) + i.
    """

    ids: tuple
    subject_last: int
    targets: tuple = ()

    @property
    def predicting(self):
        """Indices at which the targets are predicted."""
        return range(len(self.ids) - len(self.targets), len(self.ids))


def split_at_placeholder(template):
    """The text before and after the one `{}` of a template. Braces elsewhere are text.

    Raises ValueError unless there is exactly one `{}`.
    """
    if template.count("{}") != 1:
        raise ValueError(
            f"template {template!r} holds {template.count('{}')} placeholders {{}}; exactly one is "
            "needed, where the subject goes"
        )
    return template.split("{}")


def prompt_ids(tokenizer, text):
    """Token ids of a text as the model should read it, special tokens of the tokenizer included."""
    return texts_ids(tokenizer, [text])[0]


def texts_ids(tokenizer, texts):
    """`prompt_ids` of each of some texts, in one call of the tokenizer."""
    return [tuple(ids) for ids in tokenizer(list(texts))["input_ids"]] if texts else []


def target_ids(tokenizer, prompt, target):
    """Ids of `target` as the continuation of `prompt` after one space; see `with_targets`."""
    return with_targets(tokenizer, [prompt], [target])[0][1]


def with_targets(tokenizer, prompts, targets):
    """For each prompt with its target the ids of both, the target's as the continuation of the prompt after one space.

    The whole string is tokenized and the prompt's ids taken off its front, so that a tokenizer that writes spaces
    into words (SentencePiece) is read as it will be scored.

    Raises ValueError if a prompt and its target share a token.
    """
    texts = [p + (t if t.startswith(" ") else " " + t) for p, t in zip(prompts, targets, strict=True)]
    each = list(dict.fromkeys(prompts))  # most are there with several targets
    before_of = dict(zip(each, texts_ids(tokenizer, each), strict=True))
    pairs = [(before_of[p], ids) for p, ids in zip(prompts, texts_ids(tokenizer, texts), strict=True)]
    for prompt, text, (before, ids) in zip(prompts, texts, pairs, strict=True):
        if ids[: len(before)] != before or len(ids) == len(before):
            raise ValueError(
                f"{text!r} does not tokenize into the prompt {prompt!r} followed by a target: the two share "
                "a token; end the prompt with a whole word and no space"
            )
    return [(before, ids[len(before) :]) for before, ids in pairs]


def subject_last(tokenizer, before, subject, after):
    """Index of the subject's last token in `before + subject + after`; see `subjects_last`."""
    return subjects_last(tokenizer, [(before, subject, after)])[0]


def subjects_last(tokenizer, parts):
    """For each (before, subject, after) the index of the token that holds the subject's last character.

    For GPT-2 this is the index of kmeng01/rome `rome/repr_tools.py` ("subject_last"), also where that token holds
    punctuation after the subject ("Brentford F.C.'s": the token is ".'").

    A normalizer may join the subject's last character to a mark that follows it, or leave the mark out.

    Raises ValueError if such a token also holds letters or digits that follow the subject, or if the tokenizer leaves
    out a character that it has no token for, after which its offsets are not those of the text.
    """
    found = []
    texts = ["".join(of) for of in parts]
    offsets_of = tokenizer(texts, return_offsets_mapping=True)["offset_mapping"]
    for (before, subject, _), text, offsets in zip(parts, texts, offsets_of, strict=True):
        _check_kept(tokenizer, text)
        end = len(before) + len(subject.rstrip())
        last = max((i for i, (start, stop) in enumerate(offsets) if start < min(end, stop)), default=0)
        stop = offsets[last][1]
        inside = all(unicodedata.category(c) in _JOINED for c in text[stop:end])
        if not inside or any(map(str.isalnum, text[end:stop])):
            raise ValueError(
                f"subject {subject!r} not found in the tokenized prompt {text!r}: its last character does not "
                "end a token; put a space or punctuation after {} in the prompt"
            )
        found.append(last)
    return found


def _check_kept(tokenizer, text):
    """Raise ValueError, naming them, if there are characters of a text that the tokenizer leaves out without a word: as
    one of BPE does that has neither an unknown token, nor all bytes, nor a fallback to them."""
    from tokenizers.models import BPE

    backend, vocabulary = tokenizer.backend_tokenizer, tokenizer.backend_tokenizer.token_to_id
    model = backend.model
    if not isinstance(model, BPE) or model.unk_token or model.byte_fallback:
        return
    read = text
    for added in tokenizer.added_tokens_decoder.values():
        read = read.replace(added.content, " ")
    read = backend.normalizer.normalize_str(read) if backend.normalizer else read
    pieces = backend.pre_tokenizer.pre_tokenize_str(read) if backend.pre_tokenizer else [(read, None)]
    ways = ("", ""), (model.continuing_subword_prefix or "", ""), ("", model.end_of_word_suffix or "")
    characters = sorted({c for piece, _ in pieces for c in piece})
    dropped = [c for c in characters if all(vocabulary(left + c + right) is None for left, right in ways)]
    if dropped:
        raise ValueError(
            f"the tokenizer has no token for {', '.join(map(repr, dropped))} in {text!r}, and would leave it out; take "
            "another spelling, or a model whose tokenizer knows it"
        )


def context_rows(tokenizer, contexts, prompt, subject, target=None):
    """One `Row` for each context template: the context around the prompt, the subject inside, then the target.

    Args:
        contexts: templates with one `{}`, where the prompt goes; "{}" is the bare prompt.
        prompt: template with one `{}`, where the subject goes.
        target: the object text, or None for rows without targets.
    """
    before, after = split_at_placeholder(prompt)
    around = [split_at_placeholder(context) for context in contexts]
    parts = [(left + before, subject, after + right) for left, right in around]
    texts = ["".join(of) for of in parts]
    if target is None:
        read = [(ids, ()) for ids in texts_ids(tokenizer, texts)]
    else:
        _check_kept(tokenizer, f" {target}")
        read = with_targets(tokenizer, texts, [target] * len(texts))
    lasts = subjects_last(tokenizer, parts)
    return [Row(ids + targets[:-1], last, targets) for (ids, targets), last in zip(read, lasts, strict=True)]


@dataclass(frozen=True)
class Tree:
    """Texts as one row of tokens; each token attends to itself and to those before it in its own texts.

    Attributes:
        ids, positions: (tokens,) token ids, and their places within their texts.
        sees: (tokens, tokens) bool; [i, j] is true where j is i or one of the tokens before i in its text.
        places: for each text, the indices of its tokens in the row.
    """

    ids: np.ndarray
    positions: np.ndarray
    sees: np.ndarray
    places: list


def tree(texts, marks=None):
    """The `Tree` of some texts, given as token ids.

    Args:
        marks: one position per text, or None. A marked token is shared only where it is marked in both texts: it
            stands for a token that an edit will change.
    """
    nodes, ids, positions, parents, places = {}, [], [], [], []
    for text, mark in zip(texts, marks or [None] * len(texts), strict=True):
        node, place = -1, []
        for position, token in enumerate(text):
            key = (node, token, position == mark)
            if key not in nodes:
                nodes[key] = len(ids)
                ids.append(token)
                positions.append(position)
                parents.append(node)
            node = nodes[key]
            place.append(node)
        places.append(place)
    sees = np.eye(len(ids), dtype=bool)
    for i, parent in enumerate(parents):
        if parent >= 0:
            sees[i] |= sees[parent]
    return Tree(np.array(ids), np.array(positions), sees, places)


def tree_inputs(trees, device, dtype, *, multiple=1):
    """Trees as a model takes them, one per row: ids and position ids (trees, tokens), additive mask (trees, 1, tokens,
    tokens). Rows are padded to the longest, or to the next multiple; padding is id 0 at position 0 and sees itself."""
    import torch

    width = -(-max(len(packed.ids) for packed in trees) // multiple) * multiple
    ids, positions = (np.zeros((len(trees), width), dtype=np.int64) for _ in range(2))
    sees = np.repeat(np.eye(width, dtype=bool)[None], len(trees), axis=0)
    for i, packed in enumerate(trees):
        n = len(packed.ids)
        ids[i, :n], positions[i, :n], sees[i, :n, :n] = packed.ids, packed.positions, packed.sees
    ids, positions, sees = (torch.from_numpy(x).to(device) for x in (ids, positions, sees))
    return ids, positions, additive_mask(sees, dtype)


def pad(rows, device):
    """Right-padded ids (rows, tokens) and lengths (rows,) of a list of id sequences. Padding is id 0, always masked."""
    import torch

    lengths = torch.tensor([len(ids) for ids in rows])
    ids = torch.zeros(len(rows), int(lengths.max()), dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
    return ids.to(device), lengths.to(device)


def additive_mask(allowed, dtype):
    """Additive attention mask (rows, 1, queries, keys): 0 where `allowed` (rows, queries, keys) is true."""
    import torch

    mask = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device)
    return mask.masked_fill(~allowed, torch.finfo(dtype).min)[:, None]


def causal(lengths, width, dtype):
    """Position ids (rows, width) and causal additive mask of right-padded rows with these lengths."""
    import torch

    positions = torch.arange(width, device=lengths.device)
    allowed = (positions[None, :, None] >= positions[None, None, :]) & (positions < lengths[:, None])[:, None, :]
    return positions.expand(len(lengths), width), additive_mask(allowed, dtype)


def check_length(lm, n_tokens):
    """Raise ValueError if a text of n_tokens does not fit the model's positions."""
    limit = getattr(lm.model.config, "max_position_embeddings", None)
    if limit and n_tokens > limit:
        raise ValueError(
            f"a text of {n_tokens} tokens is longer than max_position_embeddings = {limit} of {lm.name}; shorten it"
        )


def check(lm, texts):
    """Raise ValueError, naming text and token, if the model cannot read some texts, given as token ids: one is too
    long, or holds a token that the tokenizer was given and the model has no row of embeddings for."""
    check_length(lm, max(map(len, texts), default=0))
    n_rows = lm.n_vocabulary
    for ids in texts:
        if (highest := max(ids, default=0)) >= n_rows:
            at = ids.index(highest)
            excerpt = lm.tokenizer.decode(ids[max(0, at - EXCERPT) : at + EXCERPT])
            raise ValueError(
                f"{excerpt!r} holds the token {lm.tokenizer.convert_ids_to_tokens(highest)!r}, number {highest}, but "
                f"{lm.name} has embeddings of {n_rows} tokens only; take it out of the text"
            )


def windowed(mask, window):
    """An additive mask (rows, 1, queries, keys) of which each query keeps the last `window` keys that it sees.

    The keys that a token sees are those of its text, in order: so it sees itself and the window − 1 tokens before.
    """
    seen = mask == 0
    later = seen.flip(-1).cumsum(-1).flip(-1)  # how many keys a query sees from each key on
    return additive_mask((seen & (later <= window))[:, 0], mask.dtype)
