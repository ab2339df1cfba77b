"""Scores of an edited model on one fact: efficacy, paraphrase, neighborhood, their magnitudes and accuracy variants.

As in kmeng01/memit `experiments/py/eval_utils_counterfact.py`: a prompt x and an object o are scored by the mean
negative log-likelihood, in nats, of the tokens of " " + o behind x; lower is more probable.

| score | prompts | counts when |
|---|---|---|
| efficacy (ES) | the rewrite prompt | NLL(new) < NLL(true) |
| paraphrase (PS) | paraphrase prompts | NLL(new) < NLL(true) |
| neighborhood (NS) | neighborhood prompts | NLL(true) < NLL(new) |

`*_magnitude` is the mean of exp(−NLL) of the wanted object minus that of the other (EM, PM, NM); `*_accuracy` asks that
every token of the wanted object be the model's first choice given the ones before it. Ties and NaN count as failure.
"""

from dataclasses import dataclass

from editscale import tokens

KINDS = ("efficacy", "paraphrase", "neighborhood")  # also the order of columns
COLUMNS = tuple(kind + suffix for suffix in ("", "_magnitude", "_accuracy") for kind in KINDS)


@dataclass(frozen=True)
class PromptScore:
    """NLL of both objects behind one prompt (nats per token), and whether each is the model's greedy continuation."""

    nll_new: float
    nll_true: float
    correct_new: bool
    correct_true: bool


def prompts_of(fact):
    """The prompts that score a fact, by kind."""
    return {
        "efficacy": (fact.rewrite_prompt,),
        "paraphrase": fact.paraphrase_prompts,
        "neighborhood": fact.neighborhood_prompts,
    }


def fact_scores(by_kind):
    """One row of COLUMNS for a fact, from `{kind: [PromptScore, …]}`: means over its prompts, NaN where it has none."""
    import math

    row = {}
    for kind in KINDS:
        scores = by_kind[kind]
        pairs = [(s.nll_true, s.nll_new) if kind == "neighborhood" else (s.nll_new, s.nll_true) for s in scores]
        correct = [s.correct_true if kind == "neighborhood" else s.correct_new for s in scores]

        def mean(x):
            return sum(x) / len(x) if x else math.nan

        row[kind] = mean([float(wanted < other) for wanted, other in pairs])
        row[kind + "_magnitude"] = mean([math.exp(-wanted) - math.exp(-other) for wanted, other in pairs])
        row[kind + "_accuracy"] = mean([float(c) for c in correct])
    return {column: row[column] for column in COLUMNS}


def harmonic_score(efficacy, paraphrase, neighborhood):
    """S, the harmonic mean of the three scores, in their unit; 0 if one of them is 0.

    kmeng01/memit rounds the percentages to two decimals before taking the mean; here nothing is rounded.
    """
    scores = (efficacy, paraphrase, neighborhood)
    return 0.0 if min(scores) == 0 else len(scores) / sum(1 / s for s in scores)


def score_facts(lm, facts, *, batch_tokens=4096):
    """Prompt scores of facts on the model as it stands: a list of `{kind: [PromptScore, …]}`.

    Args:
        batch_tokens: most tokens, padding included, in one forward. Does not change the result.
    """
    prompts = [
        (i, kind, prompt, fact.target_new, fact.target_true)
        for i, fact in enumerate(facts)
        for kind, of_kind in prompts_of(fact).items()
        for prompt in of_kind
    ]
    scores = score_prompts(lm, [prompt[2:] for prompt in prompts], batch_tokens=batch_tokens)
    by_fact = [{kind: [] for kind in KINDS} for _ in facts]
    for (i, kind, *_), score in zip(prompts, scores, strict=True):
        by_fact[i][kind].append(score)
    return by_fact


def score_prompts(lm, prompts, *, batch_tokens=4096):
    """`PromptScore` of each (prompt, new object, true object), in order.

    Both objects share one row, prompt + new + true without their last tokens, in which the second object sees the
    prompt but not the first: the prompt runs once, and an object of one token costs nothing.
    """
    packed = []
    for prompt, new, true in prompts:
        packed.append(
            (
                tokens.prompt_ids(lm.tokenizer, prompt),
                tokens.target_ids(lm.tokenizer, prompt, new),
                tokens.target_ids(lm.tokenizer, prompt, true),
            )
        )
    width = [len(p) + len(new) + len(true) - 2 for p, new, true in packed]
    tokens.check_length(lm, max(width, default=0))
    scores = [None] * len(prompts)
    by_length = sorted(range(len(prompts)), key=lambda i: (-width[i], i))
    while by_length:
        n = max(1, batch_tokens // width[by_length[0]])
        batch, by_length = by_length[:n], by_length[n:]
        for i, score in zip(batch, _score_batch(lm, [packed[i] for i in batch]), strict=True):
            scores[i] = score
    return scores


def _score_batch(lm, packed):
    import torch

    ids, lengths = tokens.pad([p + new[:-1] + true[:-1] for p, new, true in packed], lm.device)
    n_prompt, n_new = (torch.tensor([len(row[k]) for row in packed], device=lm.device)[:, None] for k in (0, 1))
    n_new = n_new - 1
    index = torch.arange(ids.shape[1], device=lm.device)[None]
    in_true = index >= n_prompt + n_new
    in_new = (index >= n_prompt) & ~in_true
    positions = torch.where(in_true, index - n_new, index)
    allowed = (
        (index[0][:, None] >= index[0][None, :])
        & (index < lengths[:, None])[:, None, :]
        & ~(in_true[:, :, None] & in_new[:, None, :])
    )
    mask = tokens.additive_mask(allowed, lm.dtype)

    places = []  # row, index that predicts the token, token
    for r, (p, new, true) in enumerate(packed):
        start = len(p) - 1
        places += [(r, start + i, t) for i, t in enumerate(new)]
        places += [(r, start if i == 0 else start + len(new) - 1 + i, t) for i, t in enumerate(true)]
    row, index, target = (torch.tensor(x, device=lm.device) for x in zip(*places, strict=True))
    with torch.no_grad():
        hidden = lm.model.base_model(
            input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False
        ).last_hidden_state
        log_p = lm.logits(hidden[row, index]).log_softmax(dim=-1)
    nll = (-log_p.gather(1, target[:, None])[:, 0]).tolist()
    first = (log_p.argmax(dim=-1) == target).tolist()

    scores, at = [], 0
    for _, new, true in packed:
        split = slice(at, at + len(new)), slice(at + len(new), at + len(new) + len(true))
        at = split[1].stop
        scores.append(PromptScore(*(sum(nll[s]) / len(nll[s]) for s in split), *(all(first[s]) for s in split)))
    return scores
