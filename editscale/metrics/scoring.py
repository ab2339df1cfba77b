"""Scores of an edited model on one fact: efficacy, paraphrase, neighborhood, their magnitudes and accuracy variants.

As in kmeng01/memit `experiments/py/eval_utils_counterfact.py`: a prompt x and an object o are scored by the mean
negative log-likelihood, in nats, of the tokens of " " + o after x; lower is more probable.

| score | prompts | counts when |
|---|---|---|
| efficacy (ES) | the rewrite prompt | NLL(new) < NLL(true) |
| paraphrase (PS) | paraphrase prompts | NLL(new) < NLL(true) |
| neighborhood (NS) | neighborhood prompts | NLL(true) < NLL(new) |

`*_magnitude` is the mean of exp(−NLL) of the wanted object minus that of the other (EM, PM, NM); `*_accuracy` asks that
every token of the wanted object be the model's first choice given the ones before it. Ties and NaN count as failure.

The true object of a neighborhood prompt is its own answer where the fact has one. A fact may have no true object: what
compares with it is then missing (NaN), and no failure. Portability prompts have an answer of their own and no other
object: their accuracy, and the mean of exp(−NLL) as their magnitude.
"""

import itertools
import math
from dataclasses import dataclass

import numpy as np

from editscale.columns import KINDS, PORTABILITY
from editscale.models import hidden_states, tokens
from editscale.models.hidden_states import BATCH_TOKENS

COLUMNS = tuple(kind + suffix for suffix in ("", "_magnitude", "_accuracy") for kind in KINDS)


@dataclass(frozen=True)
class PromptScore:
    """NLL of both objects after one prompt (nats per token), and whether each is the model's greedy continuation.

    None for an object that there is not; of a portability prompt the answer is the new object.
    """

    nll_new: float | None
    nll_true: float | None
    correct_new: bool | None
    correct_true: bool | None


def prompts_of(fact):
    """The prompts that score a fact, by kind; portability only where it has such prompts."""
    by_kind = {
        "efficacy": (fact.rewrite_prompt,),
        "paraphrase": fact.paraphrase_prompts,
        "neighborhood": fact.neighborhood_prompts,
    }
    return by_kind | ({PORTABILITY: fact.portability_prompts} if fact.portability_prompts else {})


def without_true(facts):
    """A sentence on which scores are missing because facts have no true object, or "" if all have one."""
    n = sum(not fact.target_true for fact in facts)
    words = (
        f"{n} of {len(facts)} facts have no true answer: what compares with it is missing for them (efficacy and "
        "paraphrase, neighborhood without answers of its own, and their magnitudes); efficacy_accuracy is there"
    )
    return words if n else ""


def fact_scores(by_kind):
    """One row of COLUMNS for a fact, from `{kind: [PromptScore, …]}`: means over its prompts, NaN where it has none.

    Prompts without one of the objects are left out of what needs it. Portability adds two columns where it was asked.
    """

    def mean(x):
        return sum(x) / len(x) if x else math.nan

    row = {}
    for kind in KINDS:
        scores = by_kind[kind]
        pairs = [(s.nll_true, s.nll_new) if kind == "neighborhood" else (s.nll_new, s.nll_true) for s in scores]
        pairs = [pair for pair in pairs if None not in pair]
        correct = [s.correct_true if kind == "neighborhood" else s.correct_new for s in scores]
        row[kind] = mean([float(wanted < other) for wanted, other in pairs])
        row[kind + "_magnitude"] = mean([math.exp(-wanted) - math.exp(-other) for wanted, other in pairs])
        row[kind + "_accuracy"] = mean([float(c) for c in correct if c is not None])
    row = {column: row[column] for column in COLUMNS}
    if asked := by_kind.get(PORTABILITY):
        row[PORTABILITY + "_magnitude"] = mean([math.exp(-score.nll_new) for score in asked])
        row[PORTABILITY + "_accuracy"] = mean([float(score.correct_new) for score in asked])
    return row


def failed_scores(scores):
    """What `fact_scores` gives for an edit that failed: 0, and NaN where the fact has no such score anyway."""
    return {name: math.nan if math.isnan(score) else 0.0 for name, score in scores.items()}


def check_prompts(lm, facts):
    """Raise ValueError if a prompt of the facts cannot be scored: it shares a token with an object, or is too long."""
    _pairs(lm, [prompt[2:] for prompt in _asked(facts)])


def score_facts(lm, facts, *, batch_tokens=BATCH_TOKENS):
    """Prompt scores of facts on the model as it stands: a list of `{kind: [PromptScore, …]}`.

    Args:
        batch_tokens: most tokens in one forward. Does not change the result.
    """
    asked = _asked(facts)
    scores = score_prompts(lm, [prompt[2:] for prompt in asked], batch_tokens=batch_tokens)
    return _by_kind(asked, scores, facts)


def score_each(lm, facts):
    """`score_facts` with each fact in a row of its own, in one forward: fact i is scored on copy i of a stack."""
    asked = _asked(facts)
    pairs = _pairs(lm, [prompt[2:] for prompt in asked])
    rows = [[j for j, (of, *_) in enumerate(asked) if of == i] for i in range(len(facts))]
    scores = _score(lm, pairs, rows)()
    return _by_kind(asked, [scores[j] for j in range(len(asked))], facts)


def score_prompts(lm, prompts, *, batch_tokens=BATCH_TOKENS, kept=None):
    """`PromptScore` of each (prompt, new object, true object), in order. An object may be "": there is none.

    What prompts share, and the prompt that both objects share, runs once (`tokens.tree`).

    Args:
        batch_tokens: most tokens in one forward. Does not change the result. Halved where memory does not suffice.
        kept: a `hidden_states.StateCache`, to run only what edits changed since the last call, or None.
    """
    pairs, scores = _pairs(lm, prompts), {}
    neighbors_share_most = sorted(range(len(pairs)), key=lambda i: pairs[i])
    batches = hidden_states.batches(neighbors_share_most, lambda i: sum(map(len, pairs[i])), batch_tokens)
    before = dict
    for _, found in hidden_states.in_forwards(lambda rows: _score(lm, pairs, rows, kept), batches):
        scores |= before()  # once a GPU has the next forward to do
        before = found
    scores |= before()
    return [scores[i] for i in range(len(pairs))]


def _asked(facts):
    """All that is scored of some facts: the fact's number, the kind, the prompt, both objects."""
    return [
        (i, kind, prompt, *objects)
        for i, fact in enumerate(facts)
        for kind, of_kind in prompts_of(fact).items()
        for prompt, objects in zip(of_kind, _objects(fact, kind), strict=False)
    ]


def _objects(fact, kind):
    """New and true object of each prompt of a kind."""
    if kind == PORTABILITY:
        return [(answer, "") for answer in fact.portability_answers]
    if kind == "neighborhood" and fact.neighborhood_answers:  # an answer that is the new object cannot lose against it
        return [("" if answer == fact.target_new else fact.target_new, answer) for answer in fact.neighborhood_answers]
    return itertools.repeat((fact.target_new, fact.target_true))


def _by_kind(asked, scores, facts):
    by_fact = [{kind: [] for kind in (*KINDS, *prompts_of(fact))} for fact in facts]
    for (i, kind, *_), score in zip(asked, scores, strict=True):
        by_fact[i][kind].append(score)
    return by_fact


def _pairs(lm, prompts):
    """Token ids of each prompt and of its two objects, () for one that there is not."""
    given = [(prompt, target) for prompt, *objects in prompts for target in objects if target]
    found = iter(tokens.with_targets(lm.tokenizer, *zip(*given, strict=True)) if given else ())
    pairs = []
    for prompt, *objects in prompts:
        of = [next(found) if target else ((), ()) for target in objects]
        before = max(before for before, _ in of)
        if not before or not prompt.strip():
            raise ValueError(f"prompt {prompt!r} is empty, so nothing can be scored after it; give it a text")
        pairs.append((before, *(ids for _, ids in of)))
    tokens.check(lm, [before + target for before, *both in pairs for target in both])
    return pairs


def _score(lm, pairs, rows, kept=None):
    """One forward, the pairs numbered in each of `rows` as one tree: a function that waits for it and returns
    {i: PromptScore}."""
    import torch

    texts = [[(pairs[i][0], target) for i in row for target in pairs[i][1:] if target] for row in rows]
    trees = [tokens.tree([before + target[:-1] for before, target in row]) for row in texts]
    index = [
        (r, p)
        for r, (row, packed) in enumerate(zip(texts, trees, strict=True))
        for (_, target), place in zip(row, packed.places, strict=True)
        for p in place[-len(target) :]
    ]
    targets = torch.tensor([t for row in texts for _, target in row for t in target], device=lm.device)
    with torch.no_grad():
        log_p = lm.logits(hidden_states.final(lm, trees, kept)[tuple(zip(*index, strict=True))]).log_softmax(dim=-1)
    on_device = -log_p.gather(1, targets[:, None])[:, 0], log_p.argmax(dim=-1) == targets
    sizes = np.array([len(target) for row in texts for _, target in row])

    def scores():
        nlls, firsts = (of.cpu() for of in on_device)
        starts, mean, all_first = np.cumsum(sizes) - sizes, nlls.new_empty(len(sizes)), firsts.new_empty(len(sizes))
        for size in np.unique(sizes):  # all targets of a length at once
            of = np.flatnonzero(sizes == size)
            at = torch.from_numpy(starts[of, None] + np.arange(size))
            mean[of], all_first[of] = nlls[at].mean(dim=1), firsts[at].all(dim=1)
        scored, found = zip(mean.tolist(), all_first.tolist(), strict=True), {}
        for i in (i for row in rows for i in row):
            (nll_new, new), (nll_true, true) = (next(scored) if target else (None, None) for target in pairs[i][1:])
            found[i] = PromptScore(nll_new, nll_true, new, true)
        return found

    return scores
