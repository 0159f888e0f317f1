"""`pie-engine ensemble`: runs that differ in their seed, as one mean and one map of how much they differ."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from pie_engine.cli.studies import add_folders
from pie_engine.cli.terminal import print_json


def add_parser(commands: Any) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "ensemble",
        help="mean and standard deviation of runs that differ in their seed",
        description="Average the frames of runs of one image, region and prompt that differ in --seed, and map their "
        "standard deviation in grey levels: where the simulation depends on the noise that it was started from.",
        allow_abbrev=False,
    )
    add_folders(parser)
    parser.add_argument("--output", type=Path, default=Path("ensemble"), metavar="DIR", help="folder (ensemble)")
    parser.add_argument("--json", action="store_true", help="print the findings as one JSON object")
    return parser


def main(arguments: argparse.Namespace) -> int:
    from pie_engine.cli.tables import show
    from pie_engine.evaluation.ensemble import MARKER, gather
    from pie_engine.evaluation.runs import find_runs
    from pie_engine.evaluation.tables import Table
    from pie_engine.files import check_folder

    check_folder(arguments.output, replaceable=MARKER)
    ensemble = gather(find_runs(arguments.folders))
    written = ensemble.save(arguments.output)
    if arguments.json:
        print_json({**ensemble.facts, **written})
        return 0
    deviation = ensemble.facts["deviation"]
    rows = [
        [str(number), f"{inside:.2f}", f"{largest:.1f}"]
        for number, (inside, largest) in enumerate(zip(deviation["mean_inside"], deviation["largest"], strict=True), 1)
    ]
    table = Table(["round", "mean deviation inside, in grey levels", "largest"], rows)
    count = len(ensemble.facts["members"])
    show([table], f"{count} runs; look at {written['deviation.png']} and {written['sheet.png']}")
    return 0
