"""`pie-engine eval`: what runs have simulated, in figures."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any


def add_parser(commands: Any) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "eval",
        help="measure what runs have simulated",
        description="Measure runs against their inputs: similarity and change inside and outside the region of "
        "interest, with --clip CLIP-I, with --classifier confidence. Means over patients with bootstrap intervals, as "
        "a table and a plot.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "folders", nargs="+", type=Path, metavar="DIR", help="folder that pie-engine run wrote, or one that holds such"
    )
    parser.add_argument("--clip", type=Path, metavar="DIR", help="folder of a CLIP checkpoint, for CLIP-I")
    parser.add_argument(
        "--classifier", type=Path, action="append", default=[], metavar="JSON",
        help="file that declares a classifier (docs/evaluation.md); may be given several times",
    )  # fmt: skip
    parser.add_argument(
        "--distance", type=Path, action="append", default=[], metavar="JSON",
        help="file that declares a distance of two pictures, such as LPIPS; may be given several times",
    )  # fmt: skip
    parser.add_argument(
        "--trust", action="store_true", help="load models in TorchScript too: they are programs (SECURITY.md)"
    )
    parser.add_argument(
        "--reference", type=Path, metavar="DIR",
        help="folder of real pictures to compare inputs and last frames with: KID and FID over CLIP's features",
    )  # fmt: skip
    parser.add_argument(
        "--structures", type=Path, metavar="DIR",
        help="folder of a map per run, ITEM_ID.png: features that the disease leaves alone (docs/evaluation.md)",
    )  # fmt: skip
    parser.add_argument(
        "--update-reports", action="store_true", help="write confidence, CLIP-I and SSIM into each run's report too"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap (0)")
    parser.add_argument(
        "--output", type=Path, default=Path("pie-evaluation"), metavar="DIR", help="folder (pie-evaluation)"
    )
    parser.add_argument("--json", action="store_true", help="print the summary as one JSON object")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    return parser


def main(arguments: argparse.Namespace) -> int:
    from pie_engine.cli.progress import say
    from pie_engine.errors import ConfigError
    from pie_engine.evaluation import evaluate
    from pie_engine.evaluation.real_pictures import to_lines
    from pie_engine.evaluation.summary import to_table

    if arguments.seed < 0:
        raise ConfigError(f"seed {arguments.seed} is below 0; pass --seed 0")
    summary = evaluate(
        arguments.folders,
        arguments.output,
        clip=arguments.clip,
        classifiers=arguments.classifier,
        distances=arguments.distance,
        reference=arguments.reference,
        structures=arguments.structures,
        update_reports=arguments.update_reports,
        trust=arguments.trust,
        seed=arguments.seed,
        on_run=(lambda name: None) if arguments.quiet else say,
    )
    if arguments.json:
        sys.stdout.write(json.dumps({"output": str(arguments.output), **summary}) + "\n")
        return 0
    lines = [to_table(summary), *(to_lines(summary["reference"]) if summary["reference"] else [])]
    sys.stdout.write("\n".join([*lines, f"{arguments.output}: {', '.join(summary['files'])}"]) + "\n")
    return 0
