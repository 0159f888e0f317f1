"""Run the studies of the documents again, and keep what they measure.

    python benchmarks/simulation.py            all studies
    python benchmarks/simulation.py align      one study

A study is the commands that results/simulation.json lists for it; change them there. They run in the repository and
write to build/simulation; a study that was stopped goes on where it was as far as its commands do. The phantoms are
held out of every training. `report.py` then fills the documents.
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

from pie_engine.benchmarks.harness import results
from pie_engine.benchmarks.harness.machine import revision
from pie_engine.evaluation.measures import CONFIDENCE, STRUCTURE
from pie_engine.files import write_file

ROOT = Path(__file__).parents[1]
RESULTS = results.FOLDER / "simulation.json"
SSIM = "ssim_inside"
Values = dict[str, Any]


def run(name: str, commands: Sequence[str]) -> Values:
    """Run a study's commands, `pie-engine ...` or `python ...`; what is kept of it."""
    for line in commands:
        print(f"$ {line}", flush=True)
        program, *words = shlex.split(line)
        start = [] if program == "python" else ["-m", "pie_engine"]
        subprocess.run([sys.executable, *start, *words], cwd=ROOT, check=True)
    outputs = [ROOT / words[words.index("--output") + 1] for words in map(shlex.split, commands)]
    return {"revision": revision(), "commands": list(commands), **collect(name.partition("-")[0], outputs)}


def collect(kind: str, outputs: Sequence[Path]) -> Values:
    """What is kept of a study: of the last of its commands' folders, or of both comparisons for "tuning"."""
    if kind == "tuning":
        return {way: _kept_of_compare(outputs[i])["methods"] for way, i in (("tuning", 3), ("tuning-back", 7))}
    if kind in ("methods", "settings"):
        return _kept_of_compare(outputs[-1])
    if kind == "pacing":
        return _read(outputs[-1] / "pacing.json")
    if kind == "regional":
        return _read(outputs[-1] / "boxes.json")
    if kind == "regression":
        return _read(outputs[-1] / "regression.json")
    summary = _read(outputs[-1] / "summary.json")
    if kind == "align":
        return {name: summary[name] for name in ("runs", "patients", "prompts", "test", "rises", "matrix", "interval")}
    for cell in summary["cells"]:
        kept = (confidence_of(cell["final"]), SSIM, "decoded_leakage")
        cell["final"] = {measure: cell["final"][measure] for measure in kept}
        del cell["by_round"]
    return {
        name: summary[name] for name in ("grid", "patients", "stable", "verdict", "cells", "similarity", "interval")
    }


def _kept_of_compare(folder: Path) -> Values:
    summary = _read(folder / "summary.json")
    for row in summary["matched"]:
        del row["by_patient"]
    for method in summary["methods"].values():
        shown = [name for name in method["final"] if name.startswith(CONFIDENCE) or name in (SSIM, STRUCTURE)]
        shown.append("change_inside")
        method["final"] = {name: method["final"][name] for name in (*shown, "decoded_leakage")}
        method["rounds"] = {name: method["rounds"][name] for name in shown}
    return {name: summary[name] for name in ("methods", "matched", "interval", "models")}


def _read(path: Path) -> Values:
    return json.loads(path.read_text(encoding="utf-8"))


def confidence_of(measures: Values) -> str:
    """The classifier's measure; these studies have one."""
    return next(name for name in measures if name.startswith(CONFIDENCE))


def main(words: Sequence[str] | None = None) -> int:
    measured = _read(RESULTS)
    studies = measured["studies"]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", nargs="*", metavar="STUDY", help=f"of {', '.join(studies)}; all unless given")
    names = parser.parse_args(words).studies or [*studies]
    if unknown := set(names) - set(studies):
        parser.error(f"no study is called {', '.join(sorted(unknown))}; pass some of {', '.join(studies)}")
    for name in names:
        studies[name] = run(name, studies[name]["commands"])
        write_file(RESULTS, json.dumps(measured, indent=1) + "\n")
    print("now run python benchmarks/report.py")
    return 0


if __name__ == "__main__":
    sys.exit(main())
