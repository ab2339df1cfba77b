"""Acceptance: measure what is published of a model; `targets` holds it against the published numbers.

Scores of the unedited model and after single edits (arXiv:2202.05262, table 4), and how far a sequence of MEMIT edits
moves weights and a task's answers (logs in scalable-model-editing/gradual-catastrophic-forgetting). Left out:
generation entropy and reference score, which need the released text snippets.
"""

import math
import random

import numpy as np
import pandas as pd

from editscale.columns import ACCEPTANCE, KINDS, SOUND, harmonic_half_width, harmonic_score, method_label
from editscale.data.orders import ORDER_SEED
from editscale.editing import editors, updates
from editscale.metrics import drift, scoring
from editscale.sequences.sequence import check_facts

SCORES = {
    letter + suffix: kind + column
    for suffix, column in (("S", ""), ("M", "_magnitude"), ("Acc", "_accuracy"))
    for letter, kind in zip("EPN", KINDS, strict=True)
}


def prepare(lm, methods, moments, **sampling):
    """What each method edits with: method ↦ `editors.Editing`.

    Args:
        methods: method ↦ its YAML file.
        moments: file of notebook 01 with all layers that the methods edit.
        sampling: see `editors.sample_contexts`; notebook 02a samples the same contexts from the same seed.

    Raises what `editors.prepare` raises, before anything is edited.
    """
    factors = {}  # of all methods: several edit the same layers
    return {
        name: editors.prepare(lm, name, path, moments, factors=factors, **sampling) for name, path in methods.items()
    }


def measure(lm, facts, editing, *, n_facts, n_edits, sequence="memit", at=(), task=None, batch_tokens=512):
    """All measurements as one table, columns as in `columns.ACCEPTANCE`; the model is left as it was, bit for bit.

    Args:
        facts: CounterFact's in the file's order.
        editing: what `prepare` returned.
        n_facts: scored on the unedited model, the first ones.
        n_edits: edited alone by each method, the first ones.
        sequence: the method that edits `sequence_facts` one after another; it must be in `editing` if `at` has places.
        at: ascending numbers of edits of the sequence to measure at.
        task: a `glue.Task`, asked of the unedited model and at each of these places; or None.

    Raises ValueError for numbers that the facts or methods do not allow, before anything is measured.
    """
    at = list(at)
    if not editing:
        raise ValueError("no methods are given; 'methods' maps at least one to its file of hyper-parameters")
    if not 1 <= n_edits <= n_facts <= len(facts):
        raise ValueError(
            f"n_facts {n_facts} and n_edits {n_edits}: expected 1 ≤ n_edits ≤ n_facts ≤ {len(facts)}, the facts given"
        )
    if at != sorted(set(at)) or not 0 < min(at, default=1) <= max(at, default=1) <= len(facts):
        raise ValueError(f"the sequence is measured at {at}; expected ascending numbers from 1 to {len(facts)}")
    if at and sequence not in editing:
        raise ValueError(f"the sequence is edited by {sequence!r}, which is not among the methods {', '.join(editing)}")
    followed = sequence_facts(facts, max(at, default=0))
    for name, given in editing.items():
        check_facts(lm, [*facts[:n_edits], *(followed if name == sequence else ())], given.contexts)
    rows = unedited_rows(lm, facts[:n_facts], batch_tokens) + task_rows(lm, task, "none", 0, batch_tokens)
    for given in editing.values():
        rows += single_rows(lm, facts[:n_edits], given)
    if at:
        rows += sequence_rows(lm, followed, editing[sequence], at, task, batch_tokens)
    return pd.DataFrame([{"model": lm.name, "case_id": -1, "layer": -1, "half_width": 0.0, **row} for row in rows])[
        list(ACCEPTANCE)
    ]


def sequence_facts(facts, n):
    """The first n facts of all of them shuffled with seed 37, subjects not unique.

    On CounterFact these begin order 0 of the published logs: an order older than those of `orders.published_orders`.
    """
    positions = list(range(len(facts)))
    random.Random(ORDER_SEED).shuffle(positions)
    return [facts[position] for position in positions[:n]]


def unedited_rows(lm, facts, batch_tokens):
    """Scores of facts on the model as it stands."""
    from tqdm import tqdm

    scored = []
    for first in tqdm(range(0, len(facts), editors.TOGETHER), desc="score unedited model", unit="batch"):
        part = facts[first : first + editors.TOGETHER]
        scored += [scoring.fact_scores(scores) for scores in scoring.score_facts(lm, part, batch_tokens=batch_tokens)]
    return score_rows(scored, part="unedited", method="none", edits=0)


def single_rows(lm, facts, editing):
    """Scores of facts right after the edit of each alone. An edit that failed is not applied: all its scores are 0."""

    def scores(fact, edit):
        found = scoring.fact_scores(scoring.score_facts(lm, [fact])[0])
        return found if editors.status(edit) in SOUND else scoring.failed_scores(found)

    scored = editors.each_alone(editing, lm, facts, scores)
    return score_rows(scored, part="single edits", method=method_label(editing.method), edits=1)


def sequence_rows(lm, facts, editing, at, task, batch_tokens):
    """Distances of the edited layers and answers to a task at places `at` of a sequence; how the distances grow."""
    from tqdm import tqdm

    method, distances, rows = editing.method, {layer: [] for layer in editing.layers}, []
    state = editing.start
    with updates.put_back(lm, editing.layers) as original:
        for edits, fact in enumerate(tqdm(facts, desc=f"sequence, {method}", unit="edit"), start=1):
            (edit,) = editors.edit_each(editing, lm, [fact], states=[state])
            made = edit.updates if editors.status(edit) == "edited" else ()
            updates.apply(lm, made)
            state = editors.after(editing, state, made)
            here = {"method": method_label(method), "edits": edits, "n": edits}
            for layer, weight in original.items():
                distance = (lm.weight(layer) - weight).double().norm().item() / weight.numel()
                distances[layer].append(distance)
                if edits in at:
                    of = {"layer": layer, "case_id": fact.case_id, "value": distance}
                    rows.append({"part": "sequence", "metric": "distance", **of, **here})
            if edits in at:
                with editors.looked_at([editing], lm, [state]):
                    rows += task_rows(lm, task, method, edits, batch_tokens)
    for layer, values in distances.items():
        for metric, value in growth(values).items():
            rows.append({"part": "growth", "metric": metric, "layer": layer, "value": value, **here})
    return rows


def task_rows(lm, task, method, edits, batch_tokens):
    """How many examples of a task the model as it stands answers rightly, and how many without an answer word."""
    from editscale.metrics import downstream

    if task is None:
        return []
    found, n = downstream.TaskPrompts(lm, task, batch_tokens=batch_tokens).row(), len(task.examples)
    here = {"part": "task", "method": method_label(method), "edits": edits, "n": n}
    counts = {"correct": round(n * found["accuracy"]), "invalid": round(n * found["invalid"])}
    return [{**here, "metric": f"{task.name} {name}", "value": float(count)} for name, count in counts.items()]


def score_rows(scored, **here):
    """Rows of S and all SCORES in percent from `scoring.fact_scores` of several facts: means and half-widths.

    A half-width is 1.96 standard deviations over facts (population, as published) over √n; that of S follows from
    those of the three scores in it, taken as independent. Facts without prompts of a kind do not count for it.
    """
    table = 100 * pd.DataFrame(scored)[list(SCORES.values())]
    n = table.count()
    mean, half = table.mean(), 1.96 * table.std(ddof=0) / np.sqrt(n)
    rows = [
        {**here, "metric": metric, "value": float(mean[column]), "half_width": float(half[column]), "n": int(n[column])}
        for metric, column in SCORES.items()
    ]
    means, halves = ([x[kind] for kind in KINDS] for x in (mean, half))
    s = {"value": harmonic_score(*means), "half_width": harmonic_half_width(means, halves)}
    return [{**here, "metric": "S", **s, "n": len(scored)}, *rows]


def growth(distances):
    """How a distance grows over edits 1 … n: `exponent`, the slope of its logarithm over that of the number of edits in
    the last decade (n/10 to n), and `coefficient`, the distance after n edits over √n.

    The exponent is NaN where there are not two positive distances.
    """
    distances = np.asarray(distances, dtype=float)
    edits = np.arange(1, len(distances) + 1)
    late = edits >= len(distances) / 10
    return {
        "exponent": drift.exponent(edits[late], distances[late]),
        "coefficient": float(distances[-1] / math.sqrt(len(distances))),
    }
