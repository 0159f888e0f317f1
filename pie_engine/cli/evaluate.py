"""`pie-engine eval`: what runs have simulated, in numbers."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from pie_engine.cli.studies import (
    FORMATS,
    add_classifiers,
    add_folders,
    add_seed,
    add_structures,
    add_study_output,
    check_seed,
    end,
    progress,
)


def add_parser(commands: Any) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "eval",
        help="measure what runs have simulated",
        description="Measure runs against their inputs: similarity and change inside and outside the region of "
        "interest, with --clip CLIP-I, with --classifier confidence. Means over patients with bootstrap intervals, as "
        "tables and a plot.",
        allow_abbrev=False,
    )
    add_folders(parser)
    parser.add_argument("--clip", type=Path, metavar="DIR", help="folder of a CLIP checkpoint, for CLIP-I")
    add_classifiers(parser)
    parser.add_argument(
        "--distance", type=Path, action="append", default=[], metavar="JSON",
        help="file that declares a distance of two pictures, such as LPIPS; may be given several times",
    )  # fmt: skip
    parser.add_argument(
        "--trust", action="store_true", help="load models in TorchScript too: they are programs (SECURITY.md)"
    )
    parser.add_argument(
        "--real-pictures", type=Path, metavar="DIR",
        help="folder of pictures to compare inputs and last frames with: KID and FID over CLIP's features",
    )  # fmt: skip
    add_structures(parser)
    parser.add_argument(
        "--update-reports", action="store_true", help="write confidence, CLIP-I and SSIM into each run's report too"
    )
    add_seed(parser)
    add_study_output(parser, "pie-evaluation", formats=FORMATS)
    return parser


def main(arguments: argparse.Namespace) -> int:
    from pie_engine.evaluation import evaluate
    from pie_engine.evaluation.real_pictures import to_lines
    from pie_engine.evaluation.summary import to_table

    check_seed(arguments)
    summary = evaluate(
        arguments.folders,
        arguments.output,
        clip=arguments.clip,
        classifiers=arguments.classifier,
        distances=arguments.distance,
        real_pictures=arguments.real_pictures,
        structures=arguments.structures,
        update_reports=arguments.update_reports,
        figures=arguments.figures,
        trust=arguments.trust,
        seed=arguments.seed,
        on_run=progress(arguments),
    )
    notes = to_lines(summary["real_pictures"]) if summary["real_pictures"] else []
    return end(arguments, summary, [to_table(summary)], *notes)
