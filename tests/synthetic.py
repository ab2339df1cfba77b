"""A recorded study made up from a seed: one folder with the rows of all runs, in which the truth is known.

Every fact has an exponential lifetime; a run's forgetting is the course of its hazard. Planted are disabling edits of
ROME (an update twenty times as large, most facts and the tasks' scores lost at once, the same facts forwards and
backwards), one order of ROME without any, a bend of MEMIT without a large update, and gradual courses of the others."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from editscale.files import sealed, sha256_file, write_json

TASKS = {"sst2": 0.86, "mrpc": 0.40, "cola": 0.46, "rte": 0.62}  # F1 of the unedited model
TASK_SPEED = {"sst2": 0.3, "mrpc": 0.1, "cola": 0.6, "rte": 2.0}  # lost by gradual hazard: rte first
NEIGHBORHOOD, WEIGHT_NORM, JUMP = 0.8, 30.0, 20.0


@dataclass(frozen=True)
class Course:
    """How a method behaves: `hazard` per 1,000 edits; `bend` multiplies it after the bend; `disables`: has them."""

    layers: tuple
    update: float  # median ‖ΔW‖
    hazard: float
    bend: float = 1.0
    disables: bool = False
    learned: float = 0.99


COURSES = {
    "rome": Course((5,), 1.0, 0.3, disables=True),
    "r-rome": Course((5,), 0.8, 0.4),
    "memit": Course((3, 4, 5, 6, 7), 0.4, 0.15, bend=20.0),
    "ft-c": Course((5,), 0.3, 6.0, learned=0.9),
    "rome-multi": Course((3, 4, 5, 6, 7), 0.4, 0.2),
}


def disabling_places(order, n_edits, n_orders):
    """1-based places of the facts that disable in a forward run of an order; the first has two, the last order none."""
    first = round(n_edits * (0.3 + 0.4 * order / n_orders)) + 3
    return [] if order == n_orders - 1 else [first, first + n_edits // 4] if order == 0 else [first]


def bend_place(order, n_edits):
    """Edits after which MEMIT forgets faster."""
    return round(n_edits * (0.45 + 0.02 * order))


def runs(n_orders=10, n_edits=1000, longer=2000, n_few=3):
    """(method, order, reversed, number of edits) of every run."""
    found = [(m, o, False, n_edits) for m in ("rome", "r-rome", "memit", "ft-c") for o in range(n_orders)]
    found = [(m, o, r, longer if m == "memit" and o < n_few else n) for m, o, r, n in found]
    found += [(m, o, True, n_edits) for m in ("rome", "memit") for o in range(n_few)]
    return found + [("rome-multi", o, False, n_edits) for o in range(n_few)]


def write(folder, *, seed=0, n_orders=10, n_edits=1000, longer=2000, n_few=3, every=20, rare=100, n_singular=576):
    """Write the tables of a made-up study into `folder` and return its disabling edits.

    Args:
        n_edits: edits of a run; MEMIT's first `n_few` orders have `longer`. Reversed and rome-multi: `n_few` orders.
        every, rare: edits between checkpoints of recall and tasks, and of spectra and written texts.

    Returns:
        method, order, reversed, edits, case_id of every planted disabling edit.
    """
    parts = {}
    for method, order, backward, n in runs(n_orders, n_edits, longer, n_few):
        sequence = np.random.default_rng([seed, order]).permutation(20_000)[: max(longer, n_edits)]
        places = disabling_places(order, n_edits, n_orders) if COURSES[method].disables else []
        bad = set(sequence[np.array(places, dtype=int) - 1].tolist())
        cases = sequence[:n_edits][::-1] if backward else sequence[:n]
        rng = np.random.default_rng([seed, order, backward, list(COURSES).index(method)])
        bend = bend_place(order, n_edits)
        for name, table in _run(COURSES[method], cases, bad, bend, rng, every, rare, n_singular).items():
            key = {"method": method, "order": order, "reversed": backward}
            parts.setdefault(name, []).append(pd.DataFrame({**key, **table}))
    for name, tables in parts.items():
        path = Path(folder) / f"{name}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        if name != "truth":
            pd.concat(tables, ignore_index=True).to_parquet(path, index=False)
    vouch(folder)
    return pd.concat(parts["truth"], ignore_index=True)


def vouch(folder, name="record.json"):
    """Write the record that names the tables in a folder, as they now are."""
    files = {path.relative_to(folder).as_posix(): sha256_file(path) for path in Path(folder).rglob("*.parquet")}
    write_json(Path(folder) / name, sealed({"files": files}))


def _run(course, cases, bad, bend, rng, every, rare, n_singular):
    """Columns of each table of one run, by the table's name."""
    n = len(cases)
    edit, disables = np.arange(1, n + 1), np.isin(cases, list(bad))
    smooth = np.cumsum(course.hazard / 1000 * np.where(edit > bend, course.bend, 1.0))
    hazard = smooth + 1.6 * disables.cumsum()  # four of five facts are lost with a disabling edit
    learned, life = rng.random(n) < course.learned, rng.exponential(size=n)
    health = np.exp(-0.5 * smooth - 1.5 * disables.cumsum())
    # A model with a second disabling edit gives no numbers any more.
    perplexity = np.where(np.insert(disables.cumsum(), 0, 0) > 1, np.inf, 20 / np.insert(health, 0, 1.0))
    checkpoints = np.arange(every, n + 1, every)
    at = np.repeat(checkpoints, checkpoints)
    fact = np.concatenate([np.arange(c) for c in checkpoints])
    recalled = (learned[fact] & (hazard[at - 1] - hazard[fact] <= life[fact])).astype(float)
    drift = [_drift(course, layer, disables, rng) for layer in course.layers]
    spectra = [
        {"edits": e, "layer": layer, "index": np.arange(n_singular), "singular_value": values + 0.01 * e * (values > 6)}
        for e in range(0, n + 1, rare)
        for layer in course.layers
        for values in (8 / (1 + np.arange(n_singular)) ** 0.3,)
    ]
    neighborhood = rng.random(n) < NEIGHBORHOOD * health
    scored = {"paraphrase": (rng.random(n) < 0.9).astype(float), "neighborhood": neighborhood.astype(float)}
    scored |= {"efficacy": 1.0, "efficacy_accuracy": learned.astype(float), "relation_id": "P17", "status": "edited"}
    before = {"efficacy": 0.2, "paraphrase": 0.2, "neighborhood": (rng.random(n) < NEIGHBORHOOD).astype(float)}
    noise = rng.normal(0, 0.02, size=(len(checkpoints) + 1, len(TASKS)))
    return {
        "edits": {"edits": edit, "case_id": cases, "denominator": rng.lognormal(size=n), **scored},
        "unedited": {"edits": edit, "case_id": cases, **before},
        "drift": _joined(drift),
        "recall/history": {"edits": at, "edit": fact + 1, "case_id": cases[fact], "efficacy_accuracy": recalled},
        "recall/perplexity": {"edits": np.arange(n + 1), "perplexity": perplexity},
        "recall/spectra": _joined(spectra),
        "downstream/downstream": _tasks(smooth, disables, checkpoints, noise),
        "downstream/generation": {
            "edits": (places := np.arange(0, n + 1, rare)),
            "ngram_entropy": 6.0 * np.concatenate([[1.0], health])[places],
            "word_entropy": 0.9 * np.concatenate([[1.0], health])[places],
            "reference_score": np.nan,
        },
        "truth": {"edits": edit[disables], "case_id": cases[disables]},
    }


def _drift(course, layer, disables, rng):
    """Orthogonal updates: squared norms add up."""
    n = len(disables)
    norm = course.update * rng.lognormal(0, 0.15, size=n) * np.where(disables, JUMP, 1.0)
    distance = np.sqrt(np.cumsum(norm**2))
    columns = {"update_norm": norm, "distance": distance, "normalised_l2": distance / 884_736}
    return {"layer": layer, "edits": np.arange(1, n + 1), **columns, "relative_drift": distance / WEIGHT_NORM}


def _tasks(smooth, disables, checkpoints, noise):
    """F1 falls from its start to the 1/3 of a constant answer with the hazard, and to 0 with a disabling edit."""
    places, rows = np.concatenate([[0], checkpoints]), []
    hazard, broken = (np.concatenate([[0], x])[places] for x in (smooth, disables.cumsum() > 0))
    for i, (task, start) in enumerate(TASKS.items()):
        f1 = 1 / 3 + (start - 1 / 3) * np.exp(-TASK_SPEED[task] * hazard) + noise[:, i] * (places > 0)
        f1 = np.where(broken, 0.05, np.clip(f1, 0, 1))
        columns = {"accuracy": f1, "f1": f1, "mcc": 0.0, "invalid": np.where(broken, 0.9, 0.0)}
        rows.append({"edits": places, "task": task, "n_examples": 200, **columns})
    return _joined(rows)


def _joined(rows):
    return pd.concat([pd.DataFrame(row) for row in rows], ignore_index=True).to_dict("list")


def to_record(fact):
    """The fact as a record of CounterFact's own format; `parse` of it gives an equal fact."""
    later = ("neighborhood_answers", "portability_prompts", "portability_answers")
    return {
        "case_id": fact.case_id,
        "requested_rewrite": {
            "prompt": fact.prompt,
            "relation_id": fact.relation_id,
            "target_new": {"str": fact.target_new, "id": fact.target_new_id},
            "target_true": {"str": fact.target_true, "id": fact.target_true_id},
            "subject": fact.subject,
        },
        "paraphrase_prompts": list(fact.paraphrase_prompts),
        "neighborhood_prompts": list(fact.neighborhood_prompts),
        "attribute_prompts": list(fact.attribute_prompts),
        "generation_prompts": list(fact.generation_prompts),
        **{name: list(getattr(fact, name)) for name in later if getattr(fact, name)},
    }
