"""Look at a run straight from its ledger, without notebooks: `python -m editscale slice SCALE --straight`.

Notebooks 02a and 03a take minutes for a run of thousands of edits: they draw, they check all facts again, and they read
sentences after every edit. This asks the facts and reads the long text at checkpoints alone, and leaves of that what
the two notebooks leave, for `record --partly`: edits, unedited, recall/history and recall/held_out. Drift, spectra and
the sentences' perplexity are not measured.
"""

from pathlib import Path

from editscale import dependencies
from editscale.analysis import tables
from editscale.editing import modules
from editscale.workflow import provenance


def write_edits(given):
    """Write what a ledger says of each edit, and done.json, so that the run counts as finished.

    Args:
        given: values of notebook 02a's parameters.

    Raises ValueError if edits are missing.
    """
    from editscale.sequences import ledger

    book, record = ledger.Ledger(given["out"]), _record("02a_sequential_editing", given)
    if len(book) < given["n_edits"]:
        raise ValueError(f"{given['out']} has {len(book)} of {given['n_edits']} edits; make the others first")
    key = modules.called(given["method"], given["label"]), given["order"], given["reverse"]
    record.parquet(edits=tables.edits_table(book, *key), unedited=tables.unedited_table(book, *key))
    record.finish(*book.files)


def write_recall(given):
    """Ask all facts edited so far at every checkpoint, and read the long text there.

    Args:
        given: values of notebook 03a's parameters, with a long text.
    """
    from editscale.metrics import text_loss
    from editscale.sequences import past_runs

    record, size = _record("03a_recall_history", given), given["batch_tokens"]
    run = past_runs.reopen(given["run"], device=given["device"], model_cache=given["model_cache"])
    text = (given["held_out"], given["held_out_tokens"], given["held_out_window"], run.parameters["moments"])
    texts, recall, losses = text_loss.windows(run.lm, *text), [], {}
    places = past_runs.checkpoints(len(run.ledger), given["every"], run.facts_per_step)
    for edits in past_runs.replayed(run, [0, *places]):
        losses[edits] = text_loss.losses(run.lm, texts, batch_tokens=size)
        recall += past_runs.recall_rows(run, edits, batch_tokens=size) if edits else []
    predicted = [{"edits": edits, **text_loss.summary(of, losses[0])} for edits, of in losses.items()]
    record.parquet(history=tables.of_run(recall, run.key), held_out=tables.of_run(predicted, run.key))
    record.finish(given["held_out"])


def _record(notebook, given):
    path = Path(f"notebooks/{notebook}.ipynb")
    return provenance.Record(provenance.made_with(given, dependencies.of_notebook(path, provenance.used_by(given))))


INSTEAD_OF = {
    "notebooks/02a_sequential_editing.ipynb": write_edits,
    "notebooks/03a_recall_history.ipynb": write_recall,
}
