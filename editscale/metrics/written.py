"""What a model writes after a prompt, and whether it is the answer that was wanted: greedy, nothing given away.

`*_accuracy` of `scoring` is teacher-forced: it shows the model the wanted answer token by token, and stops where that
ends. That gives away what to say and when to stop (Yang et al. 2025, "The Mirage of Model Editing", arXiv:2502.11177).
Here the model writes and stops by itself, as in that paper's code (WanliYoung/Revisit-Editing-Evaluation
`easyeditor/evaluate/evaluate_utils.py`, `test_prediction_acc_real`): the answer ends at a new line, at the end of a
sentence or at an end-of-text token. That paper has a language model judge the answer; here it is compared by text:

| measure | counts when |
|---|---|
| exact | the answer, ended by the model itself, is the target |
| begins | the line that it writes begins with the target's words: base models often go on after an object |

Both after the normalization of SQuAD (Rajpurkar et al. 2016, arXiv:1606.05250, `normalize_answer`): lower case, no
punctuation, no articles, single spaces. For text that is not ASCII it is widened: see `normalized`.
"""

import re
import unicodedata
from dataclasses import dataclass
from itertools import takewhile

from editscale.data import words
from editscale.models import decoding, tokens
from editscale.models.hidden_states import BATCH_TOKENS

# A full stop after one capital letter or a title ends no sentence: "J. R.", "Washington, D.C. is", "St. Petersburg".
_SHORT = r"(?<!\b[^\W\d_a-z])(?<!\b(?:St|Mt|Ft|Dr|Mr|Ms|Jr|Sr|No|vs))(?<!\b(?:Mrs|Gen|Col|Rev|Hon))"
_CLOSING = r"[\"'”’»)\]]*"
_END = re.compile(rf"(?:{_SHORT}\.|[!?…])(?={_CLOSING}\s)|[.!?…](?={_CLOSING}$)|[。！？।؟]")


@dataclass(frozen=True)
class Written:
    """What a model wrote after a prompt.

    Attributes:
        text: all of it, up to an end-of-text token or the most tokens that it was given.
        answer: the part up to the first new line or the end of the first sentence, without it.
        exact, begins: see the module.
    """

    text: str
    answer: str
    exact: bool
    begins: bool


def answers(lm, pairs, n_new, *, batch_tokens=BATCH_TOKENS):
    """What the model as it stands writes after the prompts of some (prompt, target) pairs: `Written` of each, in order.

    Args:
        n_new: most tokens that it writes. More do not change what has ended before.
        batch_tokens: most tokens in one forward. Does not change the result.

    NaN logits end it, so that NaN weights write nothing, which is no match. Raises ValueError as `check` does.
    """
    if not pairs:
        return []
    check(lm, pairs, n_new)
    prompts = tokens.texts_ids(lm.tokenizer, [prompt for prompt, _ in pairs])
    special = set(lm.tokenizer.all_special_ids)
    found = decoding.Greedy(lm, prompts, n_new, batch_tokens=batch_tokens)()
    found = [tuple(takewhile(lambda token: token not in special, ids)) for ids in found]
    texts = lm.tokenizer.batch_decode(found)
    whole = [len(ids) < n_new for ids in found]
    return [judged(*each, target) for *each, (_, target) in zip(texts, whole, pairs, strict=True)]


def check(lm, pairs, n_new):
    """Raise ValueError unless n_new tokens let each target be written, and ended after it; or if a prompt is empty or
    too long for the model."""
    wanted = [target for _, target in pairs]
    sizes = lm.tokenizer([f" {target.strip()}" for target in wanted], add_special_tokens=False)["input_ids"]
    for target, ids in zip(wanted, sizes, strict=True):
        if (n := len(ids)) >= n_new:
            raise ValueError(
                f"{n_new} written tokens do not show whether a model writes {target!r}, {n} tokens, and then stops; "
                f"let it write {n + 1} or more"
            )
    reads = [len(ids) for ids in tokens.texts_ids(lm.tokenizer, [prompt for prompt, _ in pairs])]
    if 0 in reads:
        raise ValueError(f"the prompt before {wanted[reads.index(0)]!r} has no token to go on from; give it words")
    tokens.check_length(lm, max(reads) + n_new - 1)


def judged(text, whole, target):
    """`Written` of a text.

    Args:
        whole: whether the text ended at an end-of-text token, and not because no more tokens were written.
    """
    line, new_line, _ = text.lstrip(" \t").partition("\n")
    end = _END.search(line)
    answer = line[: end.start()] if end else line
    wanted, ended = normalized(target), bool(new_line or end or whole)
    exact = ended and bool(wanted) and normalized(answer) == wanted
    return Written(text, answer.strip(), exact, exact or words.place(normalized(line), wanted) == 0)


def normalized(text):
    """A text as answers are compared: lower case, no punctuation, no articles (a, an, the), single spaces.

    Of ASCII text this is SQuAD's; beyond, Unicode's compatibility form (NFKC) and case folding make equal what looks
    equal, and all of Unicode's punctuation goes. A text that would lose all its words ("The The", "A", "?!") keeps
    articles, and then punctuation, so that it is not equal to an empty answer.
    """
    spaced = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    bare = "".join(c for c in spaced if unicodedata.category(c)[0] != "P" and c not in "$+<=>^`|~")
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split()) or " ".join(bare.split()) or spaced
