"""Make the tables and plots of the documents again from benchmarks/results.

    python benchmarks/report.py            fill the documents' blocks, draw docs/plots/*.svg
    python benchmarks/report.py --check    change nothing; show what differs, and exit with 5 if anything does

A block is a line `<!-- [[[cog print(table("progression", model="demo")) ]]] -->` and what cog puts below it, by
`table` (report_tables), `plot` (report_plots) or `study` (simulation_tables). Only plots need matplotlib.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from cogapp import Cog

from pie_engine.benchmarks.report_plots import ROOT

DOCUMENTS = ("docs/performance.md", "docs/evaluation.md", "docs/demo-domains.md")
CALLS = (
    "from pie_engine.benchmarks.report_tables import table; from pie_engine.benchmarks.report_plots import plot; "
    "from pie_engine.benchmarks.simulation_tables import study"
)


def main(words: Sequence[str] | None = None, root: Path = ROOT) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 5 if a block or plot is stale")
    check = parser.parse_args(words).check
    how = ["--check", "--diff", "--check-fail-msg", "run python benchmarks/report.py"] if check else ["-r"]
    calls = f"{CALLS}; from functools import partial; plot = partial(plot, check={check})"
    files = [str(root / name) for name in DOCUMENTS]
    return Cog().main(["cog", "-e", "-P", "-U", "-n", "utf-8", "--verbosity", "1", "-p", calls, *how, *files])


if __name__ == "__main__":
    sys.exit(main())
