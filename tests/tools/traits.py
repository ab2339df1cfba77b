"""What the recorded tables of a scale do not know of its facts: `python -m editscale traits SCALE --facts FILE …`.

Recorded tables name facts by case id alone. Notebook 03b asks which of them go first, and for that needs, without a
run: the relation, the new object and the tokens of each (`traits`), and what the edits of an interval do to the keys of
the facts recalled at its start (`interference`), from keys of the unedited model.
"""

from pathlib import Path

import click

from editscale import dependencies
from editscale.analysis.going_first import INTERFERENCE, TRAITS
from editscale.files import sha256_file, whole_file
from editscale.workflow import provenance
from editscale.workflow.parameters import checked_scale, collect_parameters, notebook_parameters

EDIT = "notebooks/02a_sequential_editing.ipynb"
CODE = "import editscale.sequences.overlap, editscale.analysis.going_first, editscale.data.relations"
AGREE = 0.05  # largest median distance from the recorded |k·u|, as a share of it; other text of the corpus makes 0.01


def traits(lm, facts, known=()):
    """case_id, relation_id, new_object, subject_tokens, target_tokens of facts, as in `going_first.TRAITS`.

    Args:
        lm: its tokenizer counts; a subject is counted after a space, a new object as the continuation of the prompt.
        known: see `relations.relations`.
    """
    import pandas as pd

    from editscale.data.relations import relations
    from editscale.models import tokens

    relation = relations(facts, known)
    objects, _ = pd.factorize(pd.Series([fact.target_new_id or fact.target_new for fact in facts]))
    bare = len(tokens.prompt_ids(lm.tokenizer, ""))
    subjects = tokens.texts_ids(lm.tokenizer, [f" {fact.subject}" for fact in facts])
    targets = tokens.with_targets(lm.tokenizer, *zip(*((f.rewrite_prompt, f.target_new) for f in facts), strict=True))
    rows = [
        (fact.case_id, relation[fact.case_id], one, len(subject) - bare, len(target))
        for fact, one, subject, (_, target) in zip(facts, objects, subjects, targets, strict=True)
    ]
    return pd.DataFrame(rows, columns=list(TRAITS)).sort_values("case_id", ignore_index=True)


def interference(lm, facts, editing, recorded):
    """`going_first.interference` of runs that edited the same facts in one order.

    Args:
        facts: in the order in which they were edited.
        editing: method ↦ `Editing`, of `overlap.prepare`.
        recorded: edits, history, perplexity and drift of these runs, one of each method.

    Only runs of one direction. Raises ValueError for other facts than were edited, where |k·u| is not the recorded one
    (AGREE), and where no fact is at risk.
    """
    import numpy as np
    import pandas as pd

    from editscale.analysis import collapse, going_first
    from editscale.analysis.rows import rows_of
    from editscale.sequences import overlap

    edits, history, perplexity, drift = recorded
    risk, made = going_first.at_risk(history, edits, collapse.where(perplexity)), []
    for method, of in editing.items():
        own = rows_of(risk, method=method)
        n = int(own["stop"].max()) if len(own) else 0  # what is edited after the collapse is not asked for
        run = rows_of(edits, method=method).sort_values("edits")[:n]
        if run["case_id"].tolist() != [fact.case_id for fact in facts[:n]]:
            raise ValueError(f"the recorded edits of {method} are of other facts; give the file of facts of these runs")
        if not n:
            continue
        products, denominators = overlap.unit_products(lm, facts[:n], of)
        told = run["denominator"].abs().to_numpy()
        off = np.abs(denominators - told) / told
        print(f"{method}: |k·u| is off the recorded by {np.median(off):.2g} (median), {off.max():.2g} (largest)")
        if np.median(off) > AGREE:
            raise ValueError(
                f"{method}: |k·u| of {(off > AGREE).sum()} of {n} facts is off the recorded one by more than {AGREE:g} "
                "of it; give the second moments and the parameters that the runs were made with"
            )
        norms = rows_of(drift, method=method).sort_values("edits")["update_norm"].to_numpy()[:n]
        made.append(going_first.interference(own, products, norms))
    if not made:
        raise ValueError(
            "no fact is at risk in these runs before they collapse; name methods or orders that last longer"
        )
    return pd.concat(made, ignore_index=True)[list(INTERFERENCE)]


def _write(table, scale, name, **given):
    """Write a table into runs/<scale>/<name>, with a done.json that says from what it was made."""
    folder = Path("runs") / scale / name
    with whole_file(folder / f"{name}.parquet") as part:
        table.astype({column: "float32" for column in table.select_dtypes("float64")}).to_parquet(part, index=False)
    provenance.finish(folder, [folder / f"{name}.parquet"], provenance.made_with(given, dependencies.identity(CODE)))


@click.command()
@click.argument("scale")
@click.option("--facts", "fact_set", required=True, help="File of facts of the scale's runs.")
@click.option("--known", help="CounterFact in its original form, for facts whose file names no relations.")
@click.option("--moments", help="Second moments of notebook 01: interference is measured too.")
@click.option("--method", "methods", multiple=True, default=["r-rome"], help="Methods of that, of one layer.")
@click.option("--order", "chosen", multiple=True, type=int, default=[0], help="Forward orders of that.")
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda, cuda:1 or auto.")
@click.option("--model-cache", default="runs/models", show_default=True)
def main(scale, fact_set, known, moments, methods, chosen, device, model_cache):
    """Write what recorded tables of SCALE do not know of its facts into runs/SCALE, for `record`."""
    import pandas as pd

    from editscale.analysis import tables
    from editscale.analysis.rows import rows_of
    from editscale.data import facts as fact_sets
    from editscale.data import orders
    from editscale.editing import editors
    from editscale.models import loading
    from editscale.sequences import overlap
    from editscale.workflow.parameters import read_grid

    given = {name: parameter.default for name, parameter in notebook_parameters(EDIT).items()}
    given |= collect_parameters(EDIT, [f"params/{checked_scale(scale)}/{Path(EDIT).stem}.yaml"], [])
    runs, everything = [f"figures/{scale}/tables"], fact_sets.load(fact_set)
    of = {"revision": given["revision"], "dtype": given["dtype"], "cache": model_cache}
    lm = loading.load(given["model"], device=device, **of)
    cases = set(tables.gather(runs, "edits")["case_id"])
    edited = [fact for fact in everything if fact.case_id in cases]
    table = traits(lm, edited, fact_sets.load(known) if known else ())
    _write(table, scale, "traits", fact_set=fact_set, known=known, model=given["model"])
    if not moments:
        return
    grid = read_grid(f"params/{scale}/grid.yaml")
    hparams = {method: grid[method, f"order-{chosen[0]}"]["hparams"] for method in methods}
    (layer,) = {layer for method, path in hparams.items() for layer in editors.read_params(method, path).layers}
    sampling = {"prefix_seeds": given["prefix_seeds"], "seed": given["seed"]}
    sampling |= {"n_short": given["n_short_prefixes"], "n_long": given["n_long_prefixes"]}
    editing = overlap.prepare(lm, hparams, moments, layer, **sampling)
    names = ("edits", "recall/history", "recall/perplexity", "drift")
    whole, found = [tables.gather(runs, name) for name in names], []
    for order in chosen:
        recorded = [rows_of(table[table["method"].isin(methods)], order=order, reversed=False) for table in whole]
        sequence = orders.in_order(everything, order, int(recorded[0]["edits"].max()))
        found.append(interference(lm, sequence, editing, recorded))
        print(f"order {order}: {len(found[-1]):,} rows", flush=True)
        made_of = {"fact_set": fact_set, "moments_sha256": sha256_file(moments), "hparams": hparams, "orders": chosen}
        _write(pd.concat(found, ignore_index=True), scale, "interference", **made_of)
