"""Run what is missing of a scale for some minutes, on all GPUs of a machine: `python -m editscale slice SCALE`.

For GPUs that are lent for minutes, where the graph of all notebooks has no time to end: second moments first, then
edits in batches, the largest first, each on a GPU of its own in one process that goes on to the next batch; then, of
every run whose edits are all there, notebooks 02a, 03a and 04a, and 09a once, several at a time on each GPU; and last,
`record --partly`. With --straight, a run is looked at without notebooks 02a and 03a, and more coarsely (`straight`).
What the time cuts off continues in the next slice on the same machine, where it ended. Recorded tables outlive the
machine.
"""

import multiprocessing
import os
import queue
import signal
import sys
import time
from functools import partial
from pathlib import Path

import click

from editscale.workflow import gpus
from editscale.workflow.parameters import batches, checked_scale, collect_parameters, notebook_parameters, read_grid

EDIT = "notebooks/02a_sequential_editing.ipynb"
ALONG = {"": EDIT, "recall": "notebooks/03a_recall_history.ipynb", "downstream": "notebooks/04a_glue_eval.ipynb"}
MOMENTS, KEYS = "notebooks/01_covariance_stats.ipynb", "notebooks/09a_key_overlap.ipynb"


def values(scale, notebook):
    """Values of all parameters of a notebook at a scale."""
    given = {name: parameter.default for name, parameter in notebook_parameters(notebook).items()}
    return given | collect_parameters(notebook, [f"params/{scale}/{Path(notebook).stem}.yaml"], [])


def n_edits(scale, run):
    """How many edits a line of a grid asks for."""
    return run.get("n_edits", values(scale, EDIT)["n_edits"])


def edit_jobs(scale, chosen=()):
    """(scale, batch) of every batch of a scale's grid that has an edit to make.

    Those with most edits come first; of `chosen` batches only these, in their order.
    """
    grid, found = read_grid(f"params/{scale}/grid.yaml"), []
    for batch, keys in batches(grid).items():
        missing = sum(n_edits(scale, grid[key]) - edits_in(folder(scale, key)) for key in keys)
        if missing and (not chosen or batch in chosen):
            found.append((chosen.index(batch) if chosen else -missing, (scale, batch)))
    return [job for _, job in sorted(found)]


def look_jobs(scale, parts):
    """(notebook, its parameters) for all that is to be looked at: whole runs, and what no run is needed for."""
    grid, found = read_grid(f"params/{scale}/grid.yaml"), []
    if Path(f"params/{scale}/{Path(KEYS).stem}.yaml").is_file() and not done(out := f"runs/{scale}/overlap"):
        found.append([(KEYS, scale, {"out": out})])
    for key, run in grid.items():
        out = folder(scale, key)
        if edits_in(out) < n_edits(scale, run):
            continue
        names = ["/".join(of) for of in batches(grid)[run.get("batch", key[0])]]
        own = {name: run[name] for name in ("n_edits", "facts_per_step", "label") if name in run}
        own |= {name: run[name] for name in ("method", "hparams", "order", "reverse")} | {"together": names, "out": out}
        given = {"": own, **{part: {"run": out, "out": f"{out}/{part}"} for part in parts if part}}
        todo = [(ALONG[part], scale, of) for part, of in given.items() if not done(of["out"])]
        found += [todo] if todo else []
    return found


def folder(scale, key):
    return "/".join(("runs", scale, *key))


def done(out):
    return (Path(out) / "done.json").is_file()


def edits_in(out):
    """How many edits the ledger in a folder holds."""
    from editscale.sequences.ledger import Ledger

    return len(Ledger(out)) if (Path(out) / "ledger.json").is_file() else 0


def edit(job):
    from editscale.workflow.together import together

    together(*job)


def look(job, straight=False):
    from editscale.workflow.execute import run_notebook
    from tools.straight import INSTEAD_OF

    for notebook, scale, given in job:
        if straight and notebook in INSTEAD_OF:
            INSTEAD_OF[notebook](values(scale, notebook) | given)
            continue
        executed = f"runs/{scale}/notebooks/{Path(notebook).stem}/{given['out'].replace('/', '-')}.ipynb"
        run_notebook(notebook, executed, values(scale, notebook) | given, threads=2)


def worker(gpu, jobs, said, do):
    """Take jobs until there are none; say of each what became of it, and after how many seconds."""
    os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # with one for each core, small decompositions take a second
    while True:
        try:
            job = jobs.get_nowait()
        except queue.Empty:
            return
        began = time.monotonic()
        try:
            do(job)
            error = ""
        except Exception as failed:  # said, and the other jobs go on
            error = f"{type(failed).__name__}: {failed}"
        said.put((job, time.monotonic() - began, error))


def share(jobs, names, do, until):
    """Let one process for each name (of a GPU) do jobs until a time (`time.monotonic`); rows of (job, seconds, error).

    Processes at work when the time is up get SIGTERM, as from a scheduler: what they write resumes from its ledger.
    """
    context = multiprocessing.get_context("spawn")
    todo, said = context.Queue(), context.Queue()
    for job in jobs:
        todo.put(job)
    time.sleep(0.2)  # a queue is filled by a thread
    working = [context.Process(target=worker, args=(name, todo, said, do)) for name in names[: len(jobs)]]
    for process in working:
        process.start()
    rows = []
    while any(process.is_alive() for process in working) or not said.empty():
        try:
            rows.append(said.get(timeout=0.5))
            print(_words(*rows[-1]), flush=True)
        except queue.Empty:
            pass
        if time.monotonic() > until:
            for process in working:
                if process.is_alive():
                    os.kill(process.pid, signal.SIGTERM)
            until = float("inf")
    return rows


def _words(job, seconds, error):
    first = job[0] if isinstance(job, list) else job
    name = " ".join(map(str, first[:2] if isinstance(job, tuple) else (Path(first[0]).stem, first[2]["out"])))
    return f"{seconds:7.1f} s  {name}  {error or 'done'}"


@click.command()
@click.argument("scales", nargs=-1, required=True)
@click.option("--minutes", default=8.0, show_default=True, help="For edits; what is looked at comes after.")
@click.option("--looks-minutes", default=4.0, show_default=True, help="For notebooks 02a, 03a, 04a and 09a.")
@click.option("--looks", default=6, show_default=True, help="Notebooks at a time on each GPU.")
@click.option(
    "--parts", default="recall,downstream", show_default=True, help="What is looked at, of recall, downstream."
)
@click.option("--only", default="", help="Batches to edit, in this order (a,b); all of them unless given.")
@click.option("--straight", is_flag=True, help="Without notebooks 02a and 03a (tests/tools/straight.py).")
def main(scales, minutes, looks_minutes, looks, parts, only, straight):
    """Run what is missing of SCALES for some minutes, on all GPUs of this machine, and record what is finished."""
    from editscale.workflow.execute import run_notebook
    from tools import record

    names = gpus.visible() or [""]
    for scale in map(checked_scale, scales):
        if not done(out := f"runs/{scale}/moments"):
            given = values(scale, MOMENTS) | {"out": out}
            run_notebook(MOMENTS, f"runs/{scale}/notebooks/{Path(MOMENTS).stem}.ipynb", given, threads=4)
    chosen = [batch for batch in only.split(",") if batch]
    if unknown := set(chosen).difference(*(batches(read_grid(f"params/{scale}/grid.yaml")) for scale in scales)):
        raise click.BadParameter(f"{', '.join(sorted(unknown))}: no batch of {', '.join(scales)}")
    rows = share(
        [job for scale in scales for job in edit_jobs(scale, chosen)], names, edit, time.monotonic() + 60 * minutes
    )
    looked = [part for part in parts.split(",") if part in ALONG]
    todo = [job for scale in scales for job in look_jobs(scale, looked)]
    rows += share(todo, names * looks, partial(look, straight=straight), time.monotonic() + 60 * looks_minutes)
    for scale in scales:
        left = [job[1] for job in edit_jobs(scale)]
        print(f"{scale}: {len(left)} batches have edits left ({', '.join(left) or 'none'})")
        try:
            print(f"{len(record.record(scale, partly=True))} files in figures/{scale}/tables")
        except FileNotFoundError as error:
            print(error, file=sys.stderr)
    if failed := [error for _, _, error in rows if error]:
        raise click.ClickException(f"{len(failed)} jobs failed; the first said: {failed[0]}")
