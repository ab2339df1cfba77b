"""What single edits do, each made alone on the unedited model. The tables: `analysis.disabling`."""

import numpy as np

from editscale.editing import editors, updates
from editscale.metrics import generation, scoring


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
        solve failed is not applied, as in `sequence.run`: status "non-finite" or "failed-solve", scores NaN.

    Weights are put back bit for bit, also after an error.
    """
    from tqdm import tqdm

    original = updates.saved_weights(lm, editing.layers)
    edits, rows = editors.alone(editing, lm, facts), []
    for fact, edit in zip(tqdm(facts, desc=f"single edits, {editing.method}", unit="edit"), edits, strict=True):
        status = editors.status(edit)
        norms = {u.layer: u.norm() for u in edit.updates} or dict.fromkeys(original, np.nan)
        scores = dict.fromkeys(("efficacy", "efficacy_accuracy", "word_entropy", "perplexity"), np.nan)
        try:
            if status == "edited":
                updates.apply(lm, edit.updates)
                scores = _scores(lm, fact, texts)
        finally:
            updates.restore(lm, original)
        for layer, norm in norms.items():
            weight = original[layer]
            rows.append(
                {
                    "case_id": fact.case_id,
                    "method": editing.method,
                    "status": status,
                    "layer": layer,
                    "update_norm": norm,
                    "normalised_l2": norm / weight.numel(),
                    "relative_drift": norm / weight.double().norm().item(),
                    "denominator": editors.summary(edit)["denominator"],
                    **scores,
                }
            )
    return rows


def _scores(lm, fact, texts):
    """What `single_edits` measures on the edited model."""
    (score,) = scoring.score_prompts(lm, [(fact.rewrite_prompt, fact.target_new, fact.target_true)])
    return {
        "efficacy": float(score.nll_new < score.nll_true),
        "efficacy_accuracy": float(score.correct_new),
        "word_entropy": generation.word_entropy(generation.teacher_forced_texts(lm, fact)),
        "perplexity": generation.perplexity(lm, texts),
    }
