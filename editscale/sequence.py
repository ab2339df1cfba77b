"""Edit facts one after another, score each right after its edit, and record everything in a ledger.

The protocol of arXiv:2401.07453 (its code: scalable-model-editing/gradual-catastrophic-forgetting
`experiments/evaluate_glue.py`): weights are never restored, one fact at a time, contexts and second moments of the
unedited model throughout. There, resuming skipped finished edits but started from unedited weights; here a run that
finds edits in its ledger replays them first and goes on from the same bits.
"""

import hashlib
import json
import time
from dataclasses import asdict
from pathlib import Path

from editscale import editors, metrics, tokens, updates, values


def sha256_json(value):
    """sha256 of a JSON value in canonical form."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


# The modules whose code determines edits and scores; a change in another one does not void a ledger.
CODE = ("anatomy", "tokens", "values", "rome", "memit", "updates", "editors", "metrics", "sequence")


def fingerprint(lm, method, params, contexts, moments_identity):
    """Everything besides the facts that determines the edits of a run, as JSON values."""
    import torch

    sources = [(Path(__file__).parent / f"{name}.py").read_bytes() for name in CODE]

    return {
        "method": method,
        "params": asdict(params),
        "model": lm.name,
        "weights_sha256": lm.identity["weights_sha256"],
        "dtype": str(lm.dtype).removeprefix("torch."),
        "device": lm.device.type,
        "torch": torch.__version__,
        "contexts_sha256": sha256_json(contexts),
        "moments_sha256": sha256_json(moments_identity),
        "code_sha256": hashlib.sha256(b"".join(sources)).hexdigest(),
    }


def weights_record(lm, layers):
    """layer ↦ shape and norm of the projections of the unedited model, for the ledger's head."""
    return {
        str(layer): {"shape": list(lm.weight(layer).shape), "norm": lm.weight(layer).double().norm().item()}
        for layer in layers
    }


def replay(lm, ledger, upto=None):
    """Apply the recorded edits 1 … upto (default all) to the unedited model."""
    for edit in range(1, (len(ledger) if upto is None else upto) + 1):
        updates.apply(
            lm, [updates.Update(u.layer, u.left.to(lm.device), u.right.to(lm.device)) for u in ledger.updates(edit)]
        )


def check_facts(lm, facts, contexts):
    """Raise ValueError, naming the fact, if one cannot be edited or scored: its subject ends inside a token, it shares
    a token with a target, or a text is longer than the model reads. Takes milliseconds per fact."""
    flat = [c for group in contexts for c in ([group] if isinstance(group, str) else group)]
    for fact in facts:
        try:
            rows = values.target_rows(lm, fact, flat)
            tokens.check_length(lm, max(len(row.ids) for row in rows))
            for prompts in metrics.prompts_of(fact).values():
                for prompt in prompts:
                    for target in (fact.target_new, fact.target_true):
                        tokens.target_ids(lm.tokenizer, prompt, target)
        except ValueError as error:
            raise ValueError(f"case {fact.case_id}: {error}") from error


def run(lm, facts, method, params, contexts, factors, ledger, *, on_collapse="stop", batch_tokens=metrics.BATCH_TOKENS):
    """Edit `facts` in order on the unedited model `lm`, from where `ledger` ends.

    Args:
        method, params, contexts, factors: see `editors`.
        ledger: a `Ledger` opened with this run's fingerprint. Edits it already holds are replayed, not redone.
        on_collapse: what follows an edit with non-finite factors, which is recorded and never applied: "stop" ends the
            sequence there, "skip" goes on with the next fact.
        batch_tokens: see `metrics.score_facts`.

    Raises ValueError, before anything is edited, if a fact cannot be (see `check_facts`), or if the ledger holds edits
    of other facts.
    """
    from tqdm import tqdm

    if on_collapse not in ("stop", "skip"):
        raise ValueError(f"on_collapse is {on_collapse!r}; expected 'stop' or 'skip'")
    check_facts(lm, facts, contexts)
    identities = [sha256_json(asdict(fact)) for fact in facts]
    for i, row in enumerate(ledger.rows[: len(facts)]):
        if row["fact_sha256"] != identities[i]:
            raise ValueError(
                f"edit {i + 1} of the ledger at {ledger.folder} is case {row['case_id']}, not case "
                f"{facts[i].case_id} as in this sequence; choose another out folder"
            )
    if len(ledger.unedited()) < len(facts):
        rows = []
        for fact in tqdm(facts, desc="score unedited model", unit="fact"):
            rows.append({"case_id": fact.case_id, **_scores(lm, fact, batch_tokens)})
        ledger.write_unedited(rows)
    replay(lm, ledger, upto=min(len(ledger), len(facts)))

    edit = editors.method(method).edit
    for i, fact in enumerate(tqdm(facts, desc=f"edit with {method}", unit="edit")):
        if i < len(ledger):
            if ledger.rows[i]["status"] != "edited" and on_collapse == "stop":
                break
            continue
        start = time.perf_counter()
        done = edit(lm, fact, params, contexts, factors)
        finite = all(update.is_finite() for update in done.updates)
        if finite:
            updates.apply(lm, done.updates)
        row = {
            "case_id": fact.case_id,
            "fact_sha256": identities[i],
            "relation_id": fact.relation_id,
            "status": "edited" if finite else "non-finite",
            **editors.summary(done),
            **_scores(lm, fact, batch_tokens),
        }
        ledger.append(row, done.updates if finite else [], time.perf_counter() - start)
        if not finite and on_collapse == "stop":
            break


def _scores(lm, fact, batch_tokens):
    return metrics.fact_scores(metrics.score_facts(lm, [fact], batch_tokens=batch_tokens)[0])
