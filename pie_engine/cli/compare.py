"""`pie-engine compare`: PIE against baselines, at the same similarity."""

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
        "compare",
        help="compare PIE with baselines at matched similarity",
        description="Group runs by their method (run --method), and compare PIE's confidence with every baseline's "
        "where their frames are equally similar to the input, and the reverse. Paired over patients, with bootstrap "
        "intervals.",
        allow_abbrev=False,
    )
    add_folders(parser)
    add_classifiers(parser, required=True)
    parser.add_argument(
        "--trust", action="store_true", help="load models in TorchScript too: they are programs (SECURITY.md)"
    )
    parser.add_argument(
        "--clip", type=Path, metavar="DIR", help="folder of a CLIP checkpoint: match at equal CLIP-I too"
    )
    add_structures(parser)
    parser.add_argument(
        "--by", action="append", default=[], metavar="SETTING",
        help="runs of one method that differ in this setting are several methods; may be given several times",
    )  # fmt: skip
    add_seed(parser)
    add_study_output(parser, "pie-comparison", formats=FORMATS)
    return parser


def main(arguments: argparse.Namespace) -> int:
    from pie_engine.evaluation import compare
    from pie_engine.evaluation.compare_tables import to_tables

    check_seed(arguments)
    summary = compare(
        arguments.folders,
        arguments.output,
        classifiers=arguments.classifier,
        clip=arguments.clip,
        structures=arguments.structures,
        by=[name.replace("-", "_") for name in arguments.by],
        figures=arguments.figures,
        trust=arguments.trust,
        seed=arguments.seed,
        on_run=progress(arguments),
    )
    return end(arguments, summary, to_tables(summary))
