"""What the demo checkpoints simulate: the commands of the documents, run, and their figures in the tables.

    python benchmarks/simulation.py                  run all studies, keep their figures, fill the documents
    python benchmarks/simulation.py --only align     one study
    python benchmarks/simulation.py --fill           run nothing: fill the documents from results/simulation.json
    python benchmarks/simulation.py --check          change nothing; exit with 1 if a document is stale

Studies are ordinary commands, run in the repository and written to build/simulation; a study that was stopped goes on
where it was as far as its commands do. The phantoms are held out of every training.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pie_engine.benchmarks.harness.machine import revision
from pie_engine.benchmarks.report_markers import Block, differing, fill
from pie_engine.benchmarks.report_rows import ReportError
from pie_engine.benchmarks.simulation_studies import STUDIES, WORK, Study
from pie_engine.benchmarks.simulation_tables import TABLES
from pie_engine.files import write_file

ROOT = Path(__file__).parents[1]
DOCUMENTS = Path("docs/evaluation.md"), Path("docs/demo-domains.md")
RESULTS = Path("benchmarks/results/simulation.json")
AGAIN = "run python benchmarks/simulation.py --fill"


def run(study: Study) -> dict[str, Any]:
    """Run a study's commands; their lines, and the figures to be kept."""
    for words in study.commands:
        print("$ " + shlex.join(words), flush=True)
        program = [sys.executable, "-m"] if words[0] == "python" else [sys.executable, "-m", "pie_engine.cli.main"]
        subprocess.run([*program, *(words[2:] if words[0] == "python" else words[1:])], cwd=ROOT, check=True)
    return {"commands": [shlex.join(words) for words in study.commands], **study.collect(ROOT / WORK)}


def filled(text: str, results: dict[str, Any]) -> str:
    """The document with every block of a study made anew.

    Raises:
        ReportError: a block asks for what is not there.
    """

    def content(block: Block) -> str:
        name = block.request.strip()
        if block.kind != "table" or name not in TABLES:
            raise ReportError(f"{block.name} is unknown; pass one of {', '.join(TABLES)}")
        study, table = TABLES[name]
        if study not in results["studies"]:
            return f"*Not measured yet; run `python benchmarks/simulation.py --only {study}`.*"
        own = results["studies"][study]
        commands = "; ".join(f"`{line}`" for line in own["commands"])
        return table(own) + f"\n\n<sub>{commands}; revision {own['revision']}</sub>"

    return fill(text, content)


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=sorted(STUDIES), help="a study; may be given several times")
    parser.add_argument("--fill", action="store_true", help="run nothing")
    parser.add_argument("--check", action="store_true", help="run and change nothing; exit with 1 if stale")
    parser.add_argument("--root", type=Path, default=ROOT, help="folder of docs and benchmarks/results")
    arguments = parser.parse_args(words)
    results_file = arguments.root / RESULTS
    results: dict[str, Any] = json.loads(results_file.read_text()) if results_file.exists() else {"studies": {}}
    if not (arguments.fill or arguments.check):
        (ROOT / WORK).mkdir(parents=True, exist_ok=True)
        for name in arguments.only or STUDIES:
            results["studies"][name] = {"revision": revision(), **run(STUDIES[name])}
            write_file(results_file, json.dumps(results, indent=1) + "\n")
    status = 0
    for document in DOCUMENTS:
        text = (arguments.root / document).read_text(encoding="utf-8")
        try:
            made = filled(text, results)
        except ReportError as error:
            sys.stderr.write(f"simulation: {document}: {error}\n")
            return 1
        stale = differing(text, made)
        if arguments.check:
            for name in stale:
                sys.stderr.write(f"{document}: {name} is stale; {AGAIN}\n")
                status = 1
        elif stale:
            write_file(arguments.root / document, made)
            print(f"changed {document}: {', '.join(stale)}")
    return status


if __name__ == "__main__":
    sys.exit(main())
