"""What single edits do, each made alone on the unedited model: one edit shown in its parts, and many measured.

What the measurements say of disabling edits: `analysis.disabling`.
"""

import math
from dataclasses import replace

import numpy as np
import pandas as pd

from editscale.columns import SOUND, method_label
from editscale.editing import editors, updates
from editscale.metrics import generation, scoring
from editscale.models import decoding, tokens
from editscale.sequences import sequence


def shown_edit(lm, fact, editing, *, n_new=8):
    """The parts of one edit, and what it does to the model: two tables, made with one edit that is taken back.

    Args:
        editing: see `editors.prepare`.
        n_new: tokens that the model writes after the rewrite prompt, the most probable ones.

    Returns:
        parts: a row per quantity, in words, and a column per edited layer. NaN where there is no such quantity; what is
            optimized once for all layers (δ, losses) stands with the last one.
        effect: a row before and a row after the edit, with what the model writes, and p(new) and p(true), geometric
            means of the probabilities of an object's tokens; no p(true) of a fact without a true object. An edit that
            is not finite or whose solve failed is not applied; the second row then says so.

    Weights are put back bit for bit, also after an error; nothing is drawn, and no CUDA graph is kept. Raises
    ValueError, naming the fact, if it cannot be edited.
    """
    sequence.check_facts(lm, [fact], editing.contexts)
    lm = replace(lm, graphs=None if lm.graphs is None else {})
    before = _effect(lm, fact, n_new)
    (edit,) = editors.edit_each(editing, lm, [fact])
    status = editors.status(edit)
    with updates.put_back(lm, editing.layers):
        made = edit.updates if status == "edited" else ()
        updates.apply(lm, made)
        with editors.looked_at([editing], lm, [editors.after(editing, editing.start, made)]):
            after = _effect(lm, fact, n_new)
    effect = pd.DataFrame([before, after], ["before the edit", "after the edit" if status == "edited" else status])
    return _parts(edit, editing), effect.rename_axis(f"{fact.rewrite_prompt} …")


def _parts(edit, editing):
    """The first table of `shown_edit`."""
    columns, made = {}, editors.summary(edit)
    for update in edit.updates:
        columns[f"layer {update.layer}"] = part = {}
        key, change = _key_and_change(edit.trace, update.layer)
        if key is not None:
            part |= {"entries of the key k*": len(key), "norm of the key k*": key.norm().item()}
            part["norm of the change asked for, v* − Wk"] = change.norm().item()
            part["denominator"] = _denominator(edit, editing, update.layer, key)
        part["norm of ΔW"] = update.norm()
        part["rank of ΔW, at most"] = min(update.left.shape if update.right is None else update.right.shape)
    columns.setdefault(f"layer {editing.layers[-1]}", {}).update(
        {
            "norm of the offset δ": made["delta_norm"],
            "norm of what δ is added to": made["init_norm"],
            "loss at the first forward": made["loss_first"],
            "loss at the last forward": made["loss_last"],
            "forwards": made["steps"],
        }
    )
    return pd.DataFrame(columns, dtype=float).dropna(how="all")


def _key_and_change(trace, layer):
    """The key an update of a layer is made for, and the change of the output asked for: vectors, or None."""
    if layer in trace:  # of several layers
        return trace[layer]["keys"][:, 0], trace[layer]["residual"][:, 0]
    if "key_mean" in trace:
        return trace["key_mean"], trace["init"] + trace["delta"] - trace["value"]
    return None, None


def _denominator(edit, editing, layer, key):
    """What an update is divided by: k·u (ROME variants), 1 + kᵀ(λC)⁻¹k (MEMIT), kᵀC⁻¹k (ROME over several layers)."""
    import torch

    if (found := edit.trace.get(layer, {}).get("denominator", edit.trace.get("denominator"))) is not None:
        return found.item()
    key = key.double()[:, None]
    weighed = (key.T @ torch.cholesky_solve(key, editing.factors[layer])).item()
    weight = getattr(editing.params, "mom2_update_weight", None)
    return weighed if weight is None else 1 + weighed / weight


def _effect(lm, fact, n_new):
    """A row of the second table of `shown_edit`, of the model as it stands."""
    (written,) = decoding.Greedy(lm, [tokens.prompt_ids(lm.tokenizer, fact.rewrite_prompt)], n_new)()
    (score,) = scoring.score_prompts(lm, [(fact.rewrite_prompt, fact.target_new, fact.target_true)])
    row = {
        "the model writes": generation.clean_text(lm.tokenizer, list(written)),
        f"p({fact.target_new})": math.exp(-score.nll_new),
    }
    return row if score.nll_true is None else row | {f"p({fact.target_true})": math.exp(-score.nll_true)}


def unedited(lm, facts, texts):
    """case_id ↦ {"word_entropy_unedited", "perplexity_unedited"} of the model as it stands; see `single_edits`."""
    perplexity = generation.perplexity(lm, texts)
    entropies = (generation.word_entropy(generation.teacher_forced_texts(lm, fact)) for fact in facts)
    return {
        fact.case_id: {"word_entropy_unedited": entropy, "perplexity_unedited": perplexity}
        for fact, entropy in zip(facts, entropies, strict=True)
    }


def single_edits(lm, facts, editing, texts):
    """What each fact's edit alone does to the model as it stands: a row per fact and edited layer, in order.

    Args:
        editing: see `editors.prepare`.
        texts: texts for the perplexity (`generation.fixed_texts()`).

    Returns:
        Dicts with case_id, method, status, layer, update_norm, normalised_l2, relative_drift (of that layer, as
        `drift` defines them), denominator (k·u; None for MEMIT), efficacy and efficacy_accuracy (`metrics`),
        word_entropy (of `generation.teacher_forced_texts`) and perplexity. An edit that is not finite or whose
        solve failed is not applied, as in `sequence.run`: status "non-finite" or "failed-solve", scores NaN. Of a fact
        that the method leaves out ("screened") scores are those of the model as it stands.

    Weights are put back bit for bit, also after an error.
    """
    weights = {layer: lm.weight(layer) for layer in editing.layers}
    sizes = {layer: (weight.numel(), weight.double().norm().item()) for layer, weight in weights.items()}

    def rows(fact, edit):
        status = editors.status(edit)
        scores = dict.fromkeys(("efficacy", "efficacy_accuracy", "word_entropy", "perplexity"), np.nan)
        if status in SOUND:
            scores = _scores(lm, fact, texts)
        norms = {u.layer: u.norm() for u in edit.updates} or dict.fromkeys(sizes, np.nan)
        return [
            {
                "case_id": fact.case_id,
                "method": method_label(editing.method),
                "status": status,
                "layer": layer,
                "update_norm": norm,
                "normalised_l2": norm / sizes[layer][0],
                "relative_drift": norm / sizes[layer][1],
                "denominator": editors.summary(edit)["denominator"],
                **scores,
            }
            for layer, norm in norms.items()
        ]

    return [row for of in editors.each_alone(editing, lm, facts, rows) for row in of]


def _scores(lm, fact, texts):
    """What `single_edits` measures on the edited model."""
    (score,) = scoring.score_prompts(lm, [(fact.rewrite_prompt, fact.target_new, fact.target_true)])
    return {
        "efficacy": np.nan if score.nll_true is None else float(score.nll_new < score.nll_true),
        "efficacy_accuracy": float(score.correct_new),
        "word_entropy": generation.word_entropy(generation.teacher_forced_texts(lm, fact)),
        "perplexity": generation.perplexity(lm, texts),
    }
