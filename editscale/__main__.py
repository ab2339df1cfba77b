"""The command line, `python -m editscale COMMAND …`: a command is a module with `main(arguments) -> exit
status`."""

import importlib
import sys

COMMANDS = {
    "run": ("editscale.run", "execute a notebook with checked parameters"),
    "orders": ("editscale.facts", "write the ten published orders of a CounterFact file"),
    "verify": ("editscale.verify", "compare with recorded numbers of the reference implementation"),
    "sweep": ("editscale.sweep", "try hyper-parameters on single edits"),
    "known": ("editscale.known", "how often the unedited model prefers the true object"),
}


def main(arguments: list[str]) -> int:
    """Exit status of the command named first; its module is the only one that is imported."""
    if arguments and arguments[0] in COMMANDS:
        return importlib.import_module(COMMANDS[arguments[0]][0]).main(arguments[1:])
    lines = [f"  {name:8}{text}" for name, (_, text) in COMMANDS.items()]
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
