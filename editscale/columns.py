"""The words of all tables: what each column means, which columns name a run, and the scores a fact has."""

import math

import yaml

from editscale.files import bundled

KINDS = ("efficacy", "paraphrase", "neighborhood")  # of prompts that score a fact, in the order of columns
PORTABILITY = "portability"  # one more kind, of facts that have such prompts
RUN = ("method", "order", "reversed")  # what names a run in every table
SOUND = ("edited", "screened")  # statuses of an edit that did not fail: made, or left out on purpose

_MEANINGS = yaml.safe_load(bundled("columns.yaml", counts=False).read_text(encoding="utf-8"))
COLUMNS = _MEANINGS["runs"]  # column of the tables of runs ↦ what it means
ACCEPTANCE = _MEANINGS["acceptance"]  # the same of measurements that are compared with published ones
OVERLAP = _MEANINGS["overlap"]  # the same of what edits would do at the keys of earlier ones
ACCEPTANCE_KEY = ["part", "method", "metric", "layer", "edits"]


def harmonic_score(efficacy, paraphrase, neighborhood):
    """S, the harmonic mean of the three scores, in their unit; 0 if one of them is 0, NaN if one is missing.

    kmeng01/memit rounds the percentages to two decimals before taking the mean; here nothing is rounded.
    """
    scores = (efficacy, paraphrase, neighborhood)
    if any(map(math.isnan, scores)):
        return math.nan
    return 0.0 if min(scores) == 0 else len(scores) / sum(1 / s for s in scores)


def harmonic_half_width(scores, half_widths):
    """Half-width of the harmonic mean of independent scores, to first order: hypot of ∂S/∂xᵢ = S² / (n xᵢ²) times hᵢ.

    0 if a score is 0, as the mean then is; NaN if one is missing.
    """
    if any(map(math.isnan, scores)):
        return math.nan
    if min(scores) == 0:
        return 0.0
    s = harmonic_score(*scores)
    return math.hypot(*(s**2 / len(scores) * half / score**2 for score, half in zip(scores, half_widths, strict=True)))


def method_label(name):
    """What tables, figures and folders call a method: its name; of one's own, "my_module:rome_clip", rome-clip."""
    return name.rpartition(":")[2].replace("_", "-").lower() if ":" in name else name
