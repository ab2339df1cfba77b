"""The words of all tables: what each column means, which columns name a run, and the scores a fact has."""

import math

KINDS = ("efficacy", "paraphrase", "neighborhood")  # of prompts that score a fact, in the order of columns
RUN = ("method", "order", "reversed")  # what names a run in every table

# Columns of the tables of runs.
COLUMNS = {
    "method": "editing method",
    "order": "which of the ten unique-subject orders, 0–9",
    "reversed": "true if the order's first facts were edited last to first",
    "edits": "edits applied so far, 0 for the unedited model; in `edits` scores are of the last edit's own fact",
    "edit": "place of the scored fact among the edits, from 1",
    "case_id": "the fact's number in its data set",
    "relation_id": "the fact's relation (Wikidata property)",
    "status": "edited; non-finite (NaN, infinity or overflow) or failed-solve: recorded, not applied",
    "efficacy": "share of rewrite prompts with NLL(new) < NLL(true), 0–1",
    "paraphrase": "share of paraphrase prompts with NLL(new) < NLL(true), 0–1",
    "neighborhood": "share of neighborhood prompts with NLL(true) < NLL(new), 0–1",
    "efficacy_magnitude": "mean exp(−NLL(new)) − exp(−NLL(true)), −1–1",
    "paraphrase_magnitude": "the same on paraphrase prompts",
    "neighborhood_magnitude": "mean exp(−NLL(true)) − exp(−NLL(new)), −1–1",
    "efficacy_accuracy": "share of rewrite prompts whose greedy continuation is the new target, 0–1",
    "paraphrase_accuracy": "the same on paraphrase prompts",
    "neighborhood_accuracy": "share of neighborhood prompts whose greedy continuation is the true target, 0–1",
    "steps": "forwards of the value optimization",
    "loss_first": "its loss at δ = 0, nats",
    "loss_last": "its loss at the last forward, nats",
    "nll_last": "the NLL part of the last loss, nats per token",
    "kl_last": "the KL part of the last loss",
    "delta_norm": "‖δ‖",
    "init_norm": "‖m₀‖ (ROME variants) or ‖h₀‖ (MEMIT)",
    "denominator": "k·u of ROME variants; small ones make large updates",
    "layer": "edited layer, 0-indexed",
    "update_norm": "‖ΔW‖ of one edit (Frobenius)",
    "distance": "‖W − W₀‖ (Frobenius)",
    "normalised_l2": "‖W − W₀‖ / number of entries, as the paper plots it",
    "relative_drift": "‖W − W₀‖ / ‖W₀‖",
    "index": "place of a singular value, 0 for the largest",
    "singular_value": "singular value of the edited W",
    "perplexity": "of fixed English sentences; infinite where the model no longer gives finite numbers",
    "task": "few-shot task (editscale/data/glue.py)",
    "n_examples": "examples asked, balanced over the labels",
    "accuracy": "share answered rightly, 0–1; an answer without a label word is wrong",
    "f1": "F1 averaged over the labels by their frequency, 0–1",
    "mcc": "Matthews correlation coefficient, −1–1",
    "invalid": "share of answers without a label word, 0–1",
    "ngram_entropy": "H₂/3 + 2H₃/3 of written texts, bits (bigrams and trigrams)",
    "word_entropy": "entropy of the words of all texts over its largest possible value, 0–1",
    "seconds": "wall-clock time of an edit and the scores right after it; of a batch, shared evenly by its runs",
    "flagged": "single edits: true if a run flagged an edit of the fact (disabling.detect), whatever its method",
    "contexts": "single edits: those of the run, of another seed, after other words, or the bare prompt alone",
    "seed": "single edits: seed of the contexts; NaN for the bare prompt",
    "word_entropy_unedited": "the same of the unedited model on the fact's prompts",
    "perplexity_unedited": "perplexity of the unedited model",
    "times_ordinary": "single edits: ‖ΔW‖ over its median among facts no run flagged, method and contexts being equal",
    "reference_score": "TF-IDF cosine of written texts and texts about the new object; NaN without such texts",
}

# Columns of the table of measurements that are compared with published ones, and those that name a row.
ACCEPTANCE = {
    "model": "name of the model",
    "part": "unedited, single edits, sequence, growth or task",
    "method": "editing method; none for the unedited model",
    "metric": "ES, PS, NS, their harmonic mean S, magnitudes EM, PM, NM and accuracies EAcc, PAcc, NAcc, in percent; "
    "distance, ‖W − W₀‖ / number of entries; exponent and coefficient of its growth; a task's correct and invalid ones",
    "layer": "0-indexed layer of a distance, -1 for what has none",
    "edits": "edits on the model: 0, 1 (each fact alone), or the number of facts edited one after another",
    "case_id": "the last fact of a sequence, -1 elsewhere",
    "value": "what was measured",
    "half_width": "of its 95 % interval over facts; 0 where nothing was drawn",
    "n": "facts, edits or examples that it was measured on",
}
ACCEPTANCE_KEY = ["part", "method", "metric", "layer", "edits"]


def harmonic_score(efficacy, paraphrase, neighborhood):
    """S, the harmonic mean of the three scores, in their unit; 0 if one of them is 0.

    kmeng01/memit rounds the percentages to two decimals before taking the mean; here nothing is rounded.
    """
    scores = (efficacy, paraphrase, neighborhood)
    return 0.0 if min(scores) == 0 else len(scores) / sum(1 / s for s in scores)


def harmonic_half_width(scores, half_widths):
    """Half-width of the harmonic mean of independent scores, to first order: hypot of ∂S/∂xᵢ = S² / (n xᵢ²) times hᵢ.

    0 if a score is 0, as the mean then is.
    """
    if min(scores) == 0:
        return 0.0
    s = harmonic_score(*scores)
    return math.hypot(*(s**2 / len(scores) * half / score**2 for score, half in zip(scores, half_widths, strict=True)))
