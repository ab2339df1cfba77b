"""The command line: `editscale COMMAND …`, or `python -m editscale COMMAND …`."""

import sys

from editscale.workflow.cli import main


def script():
    """What the installed command `editscale` calls."""
    return main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(script())
