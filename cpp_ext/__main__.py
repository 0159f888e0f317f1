"""`python -m pie_engine.cpp_ext` builds the C++ operations for the installed torch, beside this file."""

from __future__ import annotations

import sys
from pathlib import Path

from pie_engine.cpp_ext.build import Unavailable, build


def main() -> int:
    try:
        built = build(Path(__file__).parent)
    except Unavailable as reason:
        sys.stderr.write(f"error: {reason}\n")
        return 2
    sys.stdout.write(f"built {built}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
