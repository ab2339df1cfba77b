"""The command line: `python -m editscale COMMAND …`."""

import sys

from editscale.workflow.cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
