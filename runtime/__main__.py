"""`python -m runtime`: embed and rerank with a package, plan and measure what that takes, check it."""

import sys

from runtime.commands.cli import main

if __name__ == "__main__":
    sys.exit(main())
