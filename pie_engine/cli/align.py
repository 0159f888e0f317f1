"""`pie-engine align`: do frames move towards the prompt that they were made with?"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from pie_engine.cli.studies import add_folders, add_seed, add_study_output, check_seed, end, progress
from pie_engine.errors import ConfigError


def add_parser(commands: Any) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "align",
        help="compare frames with the prompts that they were made with",
        description="Similarity (CLIP) of every frame with its run's prompt, with the prompts of the other runs, and "
        "with controls: the prompt's words shuffled, the prompt negated, an empty text. A permutation test says "
        "whether frames move towards the right prompt; prompts that were cut off are listed.",
        allow_abbrev=False,
    )
    add_folders(parser)
    parser.add_argument(
        "--clip", type=Path, required=True, metavar="DIR", help="folder of a CLIP checkpoint with its tokenizer"
    )
    parser.add_argument("--prompts", type=Path, metavar="FILE", help="further texts to compare with, one per line")
    parser.add_argument("--permutations", type=int, default=10_000, metavar="N", help="of the test (10000)")
    add_seed(parser, "the test, the bootstrap and the orders of words")
    add_study_output(parser, "pie-align")
    return parser


def main(arguments: argparse.Namespace) -> int:
    from pie_engine.evaluation import align, read_prompts
    from pie_engine.evaluation.align_summary import to_table

    check_seed(arguments)
    if arguments.permutations < 1:
        raise ConfigError(f"permutations {arguments.permutations} are below 1; pass --permutations 10000")
    summary = align(
        arguments.folders,
        arguments.output,
        clip=arguments.clip,
        prompts=[] if arguments.prompts is None else read_prompts(arguments.prompts),
        permutations=arguments.permutations,
        figures=arguments.figures,
        seed=arguments.seed,
        on_run=progress(arguments),
    )
    return end(arguments, summary, [to_table(summary)])
