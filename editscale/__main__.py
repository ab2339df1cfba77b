"""The command line: `python -m editscale COMMAND …`."""

import importlib
import sys

# Name ↦ module, the function in it that takes arguments and returns an exit status, one line of help.
COMMANDS = {
    "run": ("editscale.run", "main", "execute a notebook with checked parameters"),
    "replay": ("editscale.replay", "main", "check a recorded run, and save its model after any number of edits"),
    "together": ("editscale.together", "main", "edit all orders of a method in one batch"),
    "record": ("editscale.record", "main", "record the result tables of a scale that needs a GPU"),
    "study-cost": ("editscale.study_cost", "main", "what a recorded scale took on its GPU"),
    "full-cost": ("editscale.full_cost", "main", "what a full study costs on one GPU, from a dry run of it"),
    "rerun": ("editscale.rerun", "main", "whether runs made again agree with the recorded ones"),
    "report": ("editscale.report", "main", "write the executed notebooks and figures of a scale as one HTML report"),
    "compare": ("editscale.compare", "main", "what differs between two executed runs or notebooks"),
    "gallery": ("editscale.gallery", "main", "write figures/README.md from the figures of a scale"),
    "counterfact": ("editscale.facts", "download_main", "download CounterFact, checked by size and sha256"),
    "orders": ("editscale.facts", "orders_main", "write the ten published orders of a CounterFact file"),
    "known": ("editscale.known", "main", "how often the unedited model prefers the true object, per relation"),
    "sweep": ("editscale.sweep", "main", "try hyper-parameters on single edits"),
    "shape": ("editscale.shapes", "main", "write a model of a published shape with random weights"),
    "bench": ("editscale.bench", "main", "what edits, scores and checkpoints cost, beside the plain path"),
    "verify": ("editscale.verify", "main", "compare with recorded numbers of the reference implementations"),
}


def main(arguments: list[str]) -> int:
    """Exit status of the command named first; its module is the only one that is imported."""
    if arguments and arguments[0] in COMMANDS:
        module, function, _ = COMMANDS[arguments[0]]
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


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
