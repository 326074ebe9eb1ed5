"""``python -m aioxarray``: the command line."""

import sys

from aioxarray.cli import main

if __name__ == "__main__":
    sys.exit(main())
