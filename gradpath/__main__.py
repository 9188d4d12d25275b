"""`python -m gradpath` is the `gradpath` command."""

import sys

from gradpath.cli import main

if __name__ == "__main__":
    sys.exit(main())
