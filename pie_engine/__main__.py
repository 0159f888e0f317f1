"""`python -m pie_engine`: the command line."""

import sys

from pie_engine.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
