"""Edit all orders of a method in one batch, before notebook 02 makes each order's tables of it.

    python -m editscale together SCALE METHOD

What a scale's grid asks for under `together: true`: on a GPU ten orders in one batch take a fraction of the time that
they take one by one (`sequence.run_together`). Parameters are those of notebook 02 at that scale; each order gets the
ledger in its run's folder that the notebook would begin there, and the notebook goes on from it.
"""

import argparse
import sys
from pathlib import Path

from editscale import gpus, stopping
from editscale.parameters import batches, checked_scale, collect_parameters, notebook_parameters, read_grid

NOTEBOOK = "notebooks/02_sequential_editing.ipynb"


def edit(given, runs, hparams, folders):
    """Edit runs of one method together, from where their ledgers end.

    Args:
        given: values of notebook 02's parameters, `method` and `n_edits` among them.
        runs: lines of the grid, with `order` and `reverse`; hparams: their file of hyper-parameters.
        folders: where each run's ledger goes; their names are the ledgers' `together`.
    """
    import torch

    from editscale import editors, facts, ledger, models, moments, prefixes, sequence

    params = editors.read_params(given["method"], hparams)
    chosen = editors.method(given["method"])
    known_facts = facts.open_set(given["fact_set"])
    orders = [facts.in_order(known_facts, run["order"], given["n_edits"], reverse=run["reverse"]) for run in runs]
    lm = models.load(
        given["model"],
        revision=given["revision"],
        device=given["device"],
        dtype=given["dtype"],
        cache=given["model_cache"],
        tf32_steps=given["tf32"],
    )
    known = moments.load(given["moments"], lm, editors.moment_layers(given["method"], params))
    factors = editors.cholesky_factors(known.moments, lm.device)
    starts = prefixes.seed_starts(lm, given["prefix_seeds"])
    generator = torch.Generator().manual_seed(given["seed"])
    contexts = chosen.contexts(lm, starts, generator, given["n_short_prefixes"], given["n_long_prefixes"])
    names, layers = [Path(folder).name for folder in folders], editors.layers_of(params)
    made_under = sequence.fingerprint(lm, given["method"], params, contexts, known.identity, together=names)
    books = [ledger.Ledger(folder, made_under, sequence.weights_record(lm, layers)) for folder in folders]
    sequence.run_together(
        lm,
        orders,
        given["method"],
        params,
        contexts,
        factors,
        books,
        on_collapse=given["on_collapse"],
        batch_tokens=given["batch_tokens"],
    )


def main(arguments):
    """Exit status of `python -m editscale together SCALE METHOD`: 0 when the ledgers are complete, 1 when something
    stopped it on the way, 2 if it was not begun."""
    parser = argparse.ArgumentParser(prog="editscale together", description=__doc__.splitlines()[0])
    parser.add_argument("scale", metavar="SCALE", help="a folder of params/ whose grid.yaml says together: true")
    parser.add_argument("method", metavar="METHOD", help="its runs of one length are edited in one batch")
    parser.add_argument("--n-edits", type=int, help="of runs of this length only (default: that of notebook 02)")
    asked = parser.parse_args(arguments)
    try:
        values = f"params/{checked_scale(asked.scale)}/{Path(NOTEBOOK).stem}.yaml"
        given = {name: parameter.default for name, parameter in notebook_parameters(NOTEBOOK).items()}
        given |= collect_parameters(NOTEBOOK, [values], [("method", asked.method)])
        grid = read_grid(f"params/{asked.scale}/grid.yaml")
        by_length = batches(grid, given["n_edits"])
        given["n_edits"] = asked.n_edits or given["n_edits"]
        keys = by_length.get((asked.method, given["n_edits"]), [])
        files = {grid[key]["hparams"] for key in keys}
        if len(files) != 1:
            raise ValueError(
                f"the grid of {asked.scale} has {len(keys)} runs of {asked.method} with {given['n_edits']} edits and "
                f"hyper-parameters {sorted(files)}; a batch needs runs with one file of them"
            )
        folders = [f"runs/{asked.scale}/{method}/{sequence}" for method, sequence in keys]
        with gpus.lease(given["device"]):
            edit(given, [grid[key] for key in keys], files.pop(), folders)
    except (ValueError, OSError) as error:
        print(f"editscale together: {error}", file=sys.stderr)
        return 2
    except (stopping.Stopped, stopping.Interrupted) as error:
        print(f"editscale together: {error}", file=sys.stderr)
        return 1
    return 0
