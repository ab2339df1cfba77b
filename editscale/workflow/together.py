"""Edit several runs in one batch, before notebook 02a makes each run's tables of it.

    python -m editscale together SCALE BATCH

What a scale's grid asks for under `together: true`: on a GPU ten orders in one batch take a fraction of the time that
they take one by one (`sequence.run_together`). A batch is all runs of a method or label, unless lines of the grid name
another one (`batch: …`); methods that optimize the same values may share one (`editors.alike`), and runs of different
lengths. Parameters are those of notebook 02a at that scale; each run gets the ledger in its folder that notebook 02a
would begin there and continues.
"""

from pathlib import Path

from editscale.workflow import gpus
from editscale.workflow.parameters import batches, checked_scale, collect_parameters, notebook_parameters, read_grid

NOTEBOOK = "notebooks/02a_sequential_editing.ipynb"


def edit(given, runs, folders):
    """Edit runs together, from where their ledgers end.

    Args:
        given: values of notebook 02a's parameters.
        runs: lines of the grid, of methods and hyper-parameters that are `editors.alike`.
        folders: where each run's ledger goes, …/method or label/sequence; these names are the ledgers' `together`.

    Raises ValueError for runs that cannot share a batch, and as `sequence.run_together` does.
    """
    from editscale.data.orders import in_order, open_set
    from editscale.editing import editors
    from editscale.models import loading
    from editscale.sequences import ledger, sequence

    lengths = [run.get("n_edits", given["n_edits"]) for run in runs]
    steps = [run.get("facts_per_step", given["facts_per_step"]) for run in runs]
    alike = []
    for run, n_edits, step in zip(runs, lengths, steps, strict=True):
        editors.check_steps(run["method"], n_edits, step)
        alike.append(editors.alike(run["method"], editors.read_params(run["method"], run["hparams"]), step))
    if any(one != alike[0] for one in alike):
        raise ValueError(editors.no_batch(run["method"] for run in runs))
    known = open_set(given["fact_set"])
    orders = [in_order(known, run["order"], n, reverse=run["reverse"]) for run, n in zip(runs, lengths, strict=True)]
    lm = loading.load(
        given["model"],
        revision=given["revision"],
        device=given["device"],
        dtype=given["dtype"],
        cache=given["model_cache"],
        tf32_steps=given["tf32"],
        start_token=given["start_token"],
        accept_license=given["accept_license"],
    )
    factors, made, contexts = {}, {}, None
    sampling = {"n_short": given["n_short_prefixes"], "n_long": given["n_long_prefixes"]}
    sampling |= {name: given[name] for name in ("prefix_seeds", "seed")}
    for of in dict.fromkeys((run["method"], run["hparams"]) for run in runs):
        shared = {"factors": factors, "contexts": contexts, "facts_per_step": steps[0]}
        made[of] = editors.prepare(lm, *of, given["moments"], **shared, **sampling)
        contexts = made[of].contexts
    editings = [made[run["method"], run["hparams"]] for run in runs]
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
