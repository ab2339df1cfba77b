"""The command line: `editscale COMMAND …`, or `python -m editscale COMMAND …`."""

import signal
import sys

from editscale.sequences import stopping
from editscale.workflow.cli import main


def script():
    """What the installed command `editscale` calls. A signal does not disturb how it ends."""
    with stopping.signals_raise():
        status = main(sys.argv[1:])
    for number in stopping.STOPS:
        signal.signal(number, signal.SIG_IGN)
    return status


if __name__ == "__main__":
    sys.exit(script())
