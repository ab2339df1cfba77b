"""The value an edit writes: an offset δ at the output of one layer that makes the model say the new target.

Shared by ROME, where δ is added to the MLP output, and MEMIT, where it is added to the block output
(arXiv:2202.05262 eq. 4; arXiv:2210.07229 eq. 16). The steps: `descent`.

Two ways compute the same function of δ. `plain_forward` runs the whole unmodified model at every step, as the released
code does; it is what tests compare with. `suffix.cached_forward` runs once what δ cannot change.

Facts that do not depend on each other (one per copy of a stack, a batch of MEMIT, edits each made alone) are optimized
together, one row of a batch each; each stops by itself. On a GPU a step is a CUDA graph (`cuda_graphs.py`).
"""

from dataclasses import dataclass

import numpy as np

from editscale.editing.descent import Descent, descend
from editscale.editing.suffix import SuffixSteps, cached_forward, mean_weights, scored_positions
from editscale.kernels import cuda_graphs
from editscale.models import anatomy, stacks, tokens

GROUP = 4  # facts of one batch on a CPU; facts of similar length go together, since all rows are as long as the longest
GROUP_ON_GPU = 16  # where launching a kernel costs as much as running it on a few facts
KL_PROMPT = "{} is a"  # the subject's "essence" is kept by a KL term at the subject's last token


@dataclass(frozen=True)
class Optimized:
    """The result of `optimize`, with what was seen on the way.

    Attributes:
        init: (d_model,) what δ is added to: m₀ (ROME) or h₀ (MEMIT), at the bare prompt's subject-last token.
        delta: (d_model,) the optimized offset; v* or z is `init + delta`.
        losses: (steps, 5) per forward: total, NLL, KL and decay parts, ‖δ‖ before that step's update.
        nll_per_prompt: (steps, contexts) NLL of the target after each context, mean over its tokens, nats.
        keys: (contexts, d_key) inputs of the projection at the subject-last token before the edit.
        outputs: (contexts, d_model) outputs of the projection there.
    """

    init: object
    delta: object
    losses: object
    nll_per_prompt: object
    keys: object
    outputs: object


def target_rows(lm, fact, contexts):
    """The rows of an optimization: the target after every context, and last the KL prompt without target."""
    rows = tokens.context_rows(lm.tokenizer, contexts, fact.prompt, fact.subject, fact.target_new)
    return rows + tokens.context_rows(lm.tokenizer, ["{}"], KL_PROMPT, fact.subject)


def optimize(lm, facts, contexts, layer, params, *, at, forward=None):
    """Optimize δ for each of some facts on the model as it stands, or of fact i on copy i of a stack.

    Args:
        contexts: context templates, the bare one "{}" first.
        layer: the layer to whose output δ is added, at the subject's last token of every row.
        at: "mlp" (output of the whole MLP, as ROME) or "block" (residual stream, as MEMIT).
        forward: `cached_forward` (default) or `plain_forward`.

    Returns:
        One `Optimized` per fact. Facts together give what each gives alone, up to rounding.
    """
    rows = [target_rows(lm, fact, contexts) for fact in facts]
    tokens.check_length(lm, max(len(row.ids) for of_fact in rows for row in of_fact))
    lengths, found = [sum(len(row.ids) - row.subject_last for row in of) for of in rows], [None] * len(facts)
    most = GROUP_ON_GPU if lm.device.type == "cuda" else GROUP
    for group in np.array_split(np.argsort(lengths, kind="stable"), -(-len(facts) // most)):
        part = stacks.subset(lm, group) if len(facts) > 1 else lm
        together = _optimize(part, [rows[i] for i in group], layer, params, at, forward or cached_forward)
        for i, one in zip(group, together, strict=True):
            found[i] = one
    return found


def _optimize(lm, rows, layer, params, at, forward):
    """One `Optimized` for the rows of each fact, all in one batch."""
    init, keys, outputs, step = forward(lm, rows, layer, at)
    descent = Descent(init, params, len(rows[0]) - 1, lm.n_vocabulary)
    if init.is_cuda and lm.graphs is not None and isinstance(step, SuffixSteps):
        descent = cuda_graphs.descend(lm, step, descent)
    else:
        descend(step, descent)
    return [Optimized(init[i], *result, keys[i][:-1], outputs[i][:-1]) for i, result in enumerate(descent.results())]


def plain_forward(lm, rows, layer, at):
    """The same function by full forwards through the unmodified model, one fact after another, as the released code
    computes it."""
    import torch

    of_facts = [_plain_forward(lm, of_fact, layer, at) for of_fact in rows]

    def forward(delta):
        return [
            torch.stack(x) for x in zip(*(step(d) for (*_, step), d in zip(of_facts, delta, strict=True)), strict=True)
        ]

    return torch.stack([init for init, *_ in of_facts]), *([of[i] for of in of_facts] for i in (1, 2)), forward


def _plain_forward(lm, rows, layer, at):
    """`plain_forward` for one fact, of one δ (d_model,)."""
    import torch

    ids, lengths = tokens.pad([row.ids for row in rows], lm.device)
    each = torch.arange(len(rows), device=lm.device)
    last = torch.tensor([row.subject_last for row in rows], device=lm.device)
    attended = (torch.arange(ids.shape[1], device=lm.device) < lengths[:, None]).long()
    place = lm.mlp(layer) if at == "mlp" else lm.block(layer)
    scored = scored_positions(rows)
    row, position, target = (torch.tensor(x, device=lm.device) for x in list(zip(*scored, strict=True))[:3])
    seen = {}

    with (
        torch.no_grad(),
        anatomy.watching(lm.projection(layer), lambda k, v: seen.update(key=k[each, last], value=v[each, last])),
        anatomy.watching(place, lambda _, out: seen.update(init=out[0, last[0]])),
    ):
        lm.model(input_ids=ids, attention_mask=attended, use_cache=False)

    def forward(delta):
        def insert(_, __, output):
            states = (output[0] if isinstance(output, tuple) else output).clone()
            states[each, last] = states[each, last] + delta
            return (states, *output[1:]) if isinstance(output, tuple) else states

        handle = place.register_forward_hook(insert)
        try:
            logits = lm.model(input_ids=ids, attention_mask=attended, use_cache=False).logits
        finally:
            handle.remove()
        log_p = logits.log_softmax(dim=-1)
        weights = mean_weights(scored, len(rows) - 1, log_p)
        return weights @ -log_p[row, position, target], log_p[-1, last[-1]]

    return seen["init"].clone(), seen["key"], seen["value"], forward
