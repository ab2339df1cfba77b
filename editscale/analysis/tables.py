"""Result tables of runs: tidy, one row per measurement, every column named here. No torch.

A run is one method on one order of facts, forwards or reversed. Its folder holds `edits.parquet`, `unedited.parquet`
and `drift.parquet`, written from its ledger by notebook 02; `recall/` and `downstream/` in it hold what notebooks 03
and 04 measured along the run. The other notebooks read only these.
"""

from pathlib import Path

import pandas as pd

from editscale.analysis import drift
from editscale.metrics import scoring
from editscale.sequences.ledger import read_timing

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
    "steps": "forwards of the value optimisation",
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
    "perplexity": "of fixed English sentences; infinite where the model gives no numbers any more",
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
    "contexts": "single edits: those of the run, of another seed, behind other words, or the bare prompt alone",
    "seed": "single edits: seed of the contexts; NaN for the bare prompt",
    "word_entropy_unedited": "the same of the unedited model on the fact's prompts",
    "perplexity_unedited": "perplexity of the unedited model",
    "times_ordinary": "single edits: ‖ΔW‖ over its median among facts no run flagged, method and contexts being equal",
    "reference_score": "TF-IDF cosine of written texts and texts about the new object; NaN without such texts",
}

RUN = ("method", "order", "reversed")
NOTEBOOKS = {".": "02", "recall": "03", "downstream": "04"}  # what writes each folder of a run
_HIDDEN = ("edit", "fact_sha256", "factors_sha256")  # the ledger's own bookkeeping


def of_run(rows, key):
    """Measurements along a run as a table: the run's key (method, order, reversed) before each row's own columns."""
    return numeric(pd.DataFrame([{**key, **row} for row in rows]))


def edits_table(ledger, method, order, reverse):
    """One row per edit: what was edited, how the optimisation went, scores right after the edit."""
    rows = [
        {
            "method": method,
            "order": order,
            "reversed": reverse,
            "edits": row["edit"],
            **{k: v for k, v in row.items() if k not in _HIDDEN},
        }
        for row in ledger.rows
    ]
    return numeric(pd.DataFrame(rows))


def unedited_table(ledger, method, order, reverse):
    """One row per fact of the sequence: its scores on the unedited model, in the order of the edits."""
    rows = [
        {"method": method, "order": order, "reversed": reverse, "edits": i, **row}
        for i, row in enumerate(ledger.unedited(), start=1)
    ]
    return numeric(pd.DataFrame(rows))


def drift_table(ledger, method, order, reverse):
    """One row per edit and edited layer: norms of `drift.of_ledger`."""
    rows = [{"method": method, "order": order, "reversed": reverse, **row} for row in drift.of_ledger(ledger)]
    return numeric(pd.DataFrame(rows))


def timing_table(folder, method, order, reverse):
    """One row per edit with its seconds, from a run's timing.jsonl; without rows if the run has none.

    Torn lines have no row, nor have edits of which no time was kept.
    """
    rows = [{"edits": row["edit"], "seconds": row["seconds"]} for row in read_timing(folder)]
    return of_run(rows, {"method": method, "order": order, "reversed": reverse})


def numeric(table):
    """null scores, which JSON rows use for NaN, as NaN; unknown columns are an error, so that none goes undescribed."""
    unknown = [name for name in table if name not in COLUMNS]
    if unknown:
        raise ValueError(f"columns {', '.join(unknown)} are not described in tables.COLUMNS")
    text = ("method", "relation_id", "status", "reversed", "task", "flagged", "contexts")
    return table.assign(**{name: pd.to_numeric(table[name]) for name in table if name not in text})


def summary(table, by=RUN):
    """ES, PS, NS and S of each run in percent: means over facts, and the harmonic mean of these three."""
    means = 100 * table.groupby(list(by), sort=False)[list(scoring.KINDS)].mean()
    means["S"] = [scoring.harmonic_score(*row) for row in means.itertuples(index=False)]
    return means.rename(columns={"efficacy": "ES", "paraphrase": "PS", "neighborhood": "NS"})


def gather(folders, name):
    """The table `name` of several runs, one below the other: "edits", "recall/history", "downstream/generation", ….

    Raises FileNotFoundError that names the run that is missing, ValueError if there are no folders.
    """
    if not folders:
        raise ValueError("no runs given; parameter 'runs' lists the folders that notebook 02 wrote")
    tables = []
    for folder in folders:
        path = Path(folder) / f"{name}.parquet"
        if not path.is_file():
            notebook, out = NOTEBOOKS[str(Path(name).parent)], path.parent
            raise FileNotFoundError(f"no {path.name} in {out}; run notebook {notebook} with out={out} first")
        tables.append(pd.read_parquet(path))
    gathered = pd.concat(tables, ignore_index=True)
    return gathered.astype({name: "float64" for name in gathered.select_dtypes("float32")})  # recorded ones


def check_same_facts(edits):
    """Raise ValueError unless the runs of each order go through one sequence of facts, so that they may be compared.

    A run may be shorter than another: its facts are then the first of the same sequence. Reversed, it edits them last
    to first. A run that stopped at its collapse edited the first of its facts.
    """
    for order, rows in edits.groupby("order"):
        runs = {key: run.sort_values("edits") for key, run in rows.groupby(list(RUN))}
        longest = max(runs, key=lambda key: (len(runs[key]), not key[RUN.index("reversed")]))
        sequence = runs[longest]["case_id"].tolist()[:: -1 if longest[RUN.index("reversed")] else 1]
        for key, run in runs.items():
            cases, collapsed = frozenset(run["case_id"]), run["status"].iloc[-1] != "edited"
            if cases != frozenset(sequence[: len(run)]) and not (collapsed and cases < frozenset(sequence)):
                raise ValueError(
                    f"runs {longest} and {key} of order {order} edited different facts ({len(sequence)} and "
                    f"{len(cases)}, {len(cases & frozenset(sequence))} in common); give runs on one fact set, the "
                    "shorter ones on its order's first facts"
                )


def shared_end(table, edits):
    """The last number of edits at which all runs have rows in the table, those aside that ended in a collapse.

    Args:
        table: measurements along runs, with columns method, order, reversed, edits.
        edits: the edits table of the same runs; it says which ended with a non-finite edit.

    Raises ValueError if there is no such number.
    """
    last = edits.sort_values("edits").groupby(list(RUN))["status"].last()
    whole = set(last.index[last == "edited"]) or set(last.index)
    places = [set(run["edits"]) for key, run in table.groupby(list(RUN)) if key in whole]
    if not places or not (shared := set.intersection(*places)):
        raise ValueError("the runs have no number of edits in common at which all were measured; use one schedule")
    return int(max(shared))
