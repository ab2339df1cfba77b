"""The value an edit writes: an offset δ at the output of one layer that makes the model say the new target.

Shared by ROME, where δ is added to the MLP output, and MEMIT, where it is added to the block output
(arXiv:2202.05262 eq. 4; arXiv:2210.07229 eq. 16). The steps: `descent`.

`suffix.cached_forward` runs once what δ cannot change. Tests compare it with full forwards at every step, as in the
released code (tests/tools/plain.py).

Facts that do not depend on each other (one per copy of a stack, a batch of MEMIT, edits each made alone) are optimized
together, one row of a batch each; each stops by itself. On a GPU a step is a CUDA graph (`cuda_graphs.py`).
"""

from dataclasses import dataclass

import numpy as np

from editscale.editing.descent import Descent, descend
from editscale.editing.suffix import SuffixSteps, cached_forward
from editscale.kernels import cuda_graphs
from editscale.models import anatomy, stacks, tokens

GROUP = 4  # facts of one batch on a CPU; facts of similar length go together, since all rows are as long as the longest
GROUP_ON_GPU = 16  # where launching a kernel costs as much as running it on a few facts
KL_PROMPT = "{} is a"  # the subject's "essence" is kept by a KL term at the subject's last token


@dataclass(frozen=True)
class Optimized:
    """The result of `optimize`, with what was seen on the way, in float32 where the model has 16 bits.

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


def up_to_subjects(lm, facts, contexts, *, multiple=1):
    """The prompts of each fact up to the subject, what follows not being able to change its key, one fact per row.

    Returns what `tokens.tree_inputs` does, and the subjects' last tokens, (facts, contexts).
    """
    import torch

    rows = [tokens.context_rows(lm.tokenizer, contexts, fact.prompt, fact.subject) for fact in facts]
    trees = [tokens.tree([row.ids[: row.subject_last + 1] for row in of]) for of in rows]
    at = torch.tensor([[place[-1] for place in packed.places] for packed in trees], device=lm.device)
    return *tokens.tree_inputs(trees, lm.device, lm.dtype, multiple=multiple), at


def optimize(lm, facts, contexts, layer, params, *, at, forward=None):
    """Optimize δ for each of some facts on the model as it stands, or of fact i on copy i of a stack.

    Args:
        contexts: context templates, the bare one "{}" first.
        layer: the layer to whose output δ is added, at the subject's last token of every row.
        at: "mlp" (output of the whole MLP, as ROME) or "block" (residual stream, as MEMIT).
        forward: another way to compute the same function of δ than `suffix.cached_forward`, for comparison.

    Returns:
        One `Optimized` per fact. Facts together give what each gives alone, up to rounding.
    """
    rows = [target_rows(lm, fact, contexts) for fact in facts]
    tokens.check(lm, [row.ids + row.targets[-1:] for of_fact in rows for row in of_fact])
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
    init = anatomy.in_full(init)
    descent = Descent(init, params, len(rows[0]) - 1, lm.n_vocabulary, [len(of[0].targets) for of in rows])
    if init.is_cuda and lm.graphs is not None and isinstance(step, SuffixSteps):
        descent = cuda_graphs.descend(lm, step, descent)
    else:
        descend(step, descent)
    return [
        Optimized(init[i], *result, anatomy.in_full(keys[i][:-1]), anatomy.in_full(outputs[i][:-1]))
        for i, result in enumerate(descent.results())
    ]
