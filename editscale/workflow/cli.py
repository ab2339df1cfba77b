"""The command line: `python -m editscale COMMAND …`."""

import importlib
import sys
from pathlib import Path

# Name ↦ module, the function in it that takes arguments and returns an exit status, one line of help.
COMMANDS = {
    "run": ("editscale.workflow.execute", "main", "execute a notebook with checked parameters"),
    "replay": (
        "editscale.sequences.replay",
        "main",
        "check a recorded run, and save its model after any number of edits",
    ),
    "together": ("editscale.workflow.together", "main", "edit all orders of a method in one batch"),
    "record": ("editscale.workflow.record", "main", "record the result tables of a scale that needs a GPU"),
    "study-cost": ("tools.study_cost", "main", "what a recorded scale took on its GPU"),
    "full-cost": ("tools.full_cost", "main", "what a full study costs on one GPU, from a dry run of it"),
    "rerun": ("tools.rerun", "main", "whether runs made again agree with the recorded ones"),
    "report": (
        "editscale.workflow.report",
        "main",
        "write the executed notebooks and figures of a scale as one HTML report",
    ),
    "compare": ("editscale.workflow.compare", "main", "what differs between two executed runs or notebooks"),
    "gallery": ("editscale.workflow.gallery", "main", "write figures/README.md from the figures of a scale"),
    "counterfact": ("editscale.data.facts", "download_main", "download CounterFact, checked by size and sha256"),
    "orders": ("editscale.data.facts", "orders_main", "write the ten published orders of a CounterFact file"),
    "known": ("tools.known", "main", "how often the unedited model prefers the true object, per relation"),
    "sweep": ("tools.sweep", "main", "try hyper-parameters on single edits"),
    "shape": ("editscale.models.shapes", "main", "write a model of a published shape with random weights"),
    "bench": ("tools.bench", "main", "what edits, scores and checkpoints cost, beside the plain path"),
    "verify": ("tools.verify", "main", "compare with recorded numbers of the reference implementations"),
}


def main(arguments: list[str]) -> int:
    """Exit status of the command named first; its module is the only one that is imported."""
    if arguments and arguments[0] in COMMANDS:
        module, function, _ = COMMANDS[arguments[0]]
        if module.startswith("tools."):
            sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
        return getattr(importlib.import_module(module), function)(arguments[1:])
    lines = [f"  {name:12}{text}" for name, (_, _, text) in COMMANDS.items()]
    usage = "\n".join(["usage: python -m editscale COMMAND …  (COMMAND --help says more)", *lines])
    if arguments in (["-h"], ["--help"]):
        print(usage)
        return 0
    if arguments:
        usage = f"editscale: unknown command {arguments[0]}\n{usage}"
    print(usage, file=sys.stderr)
    return 2
