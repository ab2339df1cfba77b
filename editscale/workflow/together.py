"""Edit several runs in one batch, before notebook 02a makes each run's tables of it.

    python -m editscale together SCALE BATCH

What a scale's grid asks for under `together: true`: on a GPU ten orders in one batch take a fraction of the time that
they take one by one (`sequence.run_together`). A batch is all runs of a method or label, unless lines of the grid name
another one (`batch: …`); variants of ROME may share one, and runs of different lengths. Parameters are those of
notebook 02a at that scale; each run gets the ledger in its folder that notebook 02a would begin there and continues.
"""

from dataclasses import replace
from pathlib import Path

from editscale.workflow import gpus
from editscale.workflow.parameters import batches, checked_scale, collect_parameters, notebook_parameters, read_grid

NOTEBOOK = "notebooks/02a_sequential_editing.ipynb"


def edit(given, runs, folders):
    """Edit runs together, from where their ledgers end.

    Args:
        given: values of notebook 02a's parameters.
        runs: lines of the grid, all with one file of hyper-parameters.
        folders: where each run's ledger goes, …/method or label/sequence; these names are the ledgers' `together`.

    Raises ValueError for runs that cannot share a batch, and as `sequence.run_together` does.
    """
    from editscale.data.orders import in_order, open_set
    from editscale.editing import editors
    from editscale.models import loading
    from editscale.sequences import ledger, sequence

    methods, files = [run["method"] for run in runs], sorted({run["hparams"] for run in runs})
    if len(files) != 1 or not editors.same_kind(methods):
        raise ValueError(
            f"runs of {', '.join(dict.fromkeys(methods))} with hyper-parameters {', '.join(files)} are no batch, which "
            "holds runs of one method or of variants of ROME, with one file of hyper-parameters"
        )
    lengths = [run.get("n_edits", given["n_edits"]) for run in runs]
    steps = sorted({run.get("facts_per_step", given["facts_per_step"]) for run in runs})
    if len(steps) > 1:
        raise ValueError(
            f"runs of {', '.join(dict.fromkeys(methods))} with facts_per_step {', '.join(map(str, steps))} are no "
            "batch, whose runs all edit as many facts in a step; give their lines batches of their own (batch: …)"
        )
    for method, n_edits in zip(methods, lengths, strict=True):
        editors.check_steps(method, n_edits, steps[0])
    known = open_set(given["fact_set"])
    orders = [in_order(known, run["order"], n, reverse=run["reverse"]) for run, n in zip(runs, lengths, strict=True)]
    lm = loading.load(
        given["model"],
        revision=given["revision"],
        device=given["device"],
        dtype=given["dtype"],
        cache=given["model_cache"],
        tf32_steps=given["tf32"],
    )
    editing = editors.prepare(
        lm,
        methods[0],
        files[0],
        given["moments"],
        facts_per_step=steps[0],
        prefix_seeds=given["prefix_seeds"],
        n_short=given["n_short_prefixes"],
        n_long=given["n_long_prefixes"],
        seed=given["seed"],
    )
    editings = [replace(editing, method=method) for method in methods]
    names, collapse = ["/".join(Path(folder).parts[-2:]) for folder in folders], given["on_collapse"]
    books = [
        ledger.Ledger(folder, sequence.fingerprint(lm, of, names, collapse), sequence.weights_record(lm, of.layers))
        for of, folder in zip(editings, folders, strict=True)
    ]
    options = {name: given[name] for name in ("on_collapse", "batch_tokens")}
    sequence.run_together(lm, orders, editings, books, **options)


def together(scale, batch):
    """Edit the runs of a batch of a scale. ValueError, before a model is loaded, if its grid has no such batch."""
    values = f"params/{checked_scale(scale)}/{Path(NOTEBOOK).stem}.yaml"
    given = {name: parameter.default for name, parameter in notebook_parameters(NOTEBOOK).items()}
    given |= collect_parameters(NOTEBOOK, [values], [])
    grid = read_grid(f"params/{scale}/grid.yaml")
    keys = batches(grid).get(batch)
    if keys is None:
        raise ValueError(f"{batch} is no batch of {scale}; its grid has {', '.join(batches(grid))}")
    folders = [f"runs/{scale}/{method}/{sequence}" for method, sequence in keys]
    with gpus.lease(given["device"]):
        edit(given, [grid[key] for key in keys], folders)
