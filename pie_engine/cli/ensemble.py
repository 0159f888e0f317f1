"""`pie-engine ensemble`: runs that differ in their seed, as one mean and one map of how far they are apart."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any


def add_parser(commands: Any) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "ensemble",
        help="mean and standard deviation of runs that differ in their seed",
        description="Average the frames of runs of one image, region and prompt that differ in --seed, and map their "
        "standard deviation in grey levels: where the simulation depends on the noise that it was started from.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "folders", type=Path, nargs="+", metavar="DIR", help="folders that pie-engine run wrote, or one that holds them"
    )
    parser.add_argument("--output", type=Path, default=Path("ensemble"), metavar="DIR", help="folder (ensemble)")
    parser.add_argument("--json", action="store_true", help="print the findings as one JSON object")
    return parser


def main(arguments: argparse.Namespace) -> int:
    from pie_engine.evaluation.ensemble import MARKER, gather
    from pie_engine.evaluation.runs import find_runs
    from pie_engine.files import check_folder

    check_folder(arguments.output, replaceable=MARKER)
    ensemble = gather(find_runs(arguments.folders))
    written = ensemble.save(arguments.output)
    if arguments.json:
        sys.stdout.write(json.dumps({**ensemble.facts, **written}) + "\n")
        return 0
    found = ensemble.facts["deviation"]
    lines = ["round   mean deviation inside   largest, in grey levels"]
    for number, (inside, largest) in enumerate(zip(found["mean_inside"], found["largest"], strict=True), start=1):
        lines.append(f"{number:>5}   {inside:>21.2f}   {largest:>23.1f}")
    lines.append(
        f"{len(ensemble.facts['members'])} runs; look at {written['deviation.png']} and {written['sheet.png']}"
    )
    sys.stdout.write("\n".join(lines) + "\n")
    return 0
