"""`pie-engine align`: do frames move towards the prompt that they were made with?"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any


def add_parser(commands: Any) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "align",
        help="compare frames with the prompts that they were made with",
        description="Similarity (CLIP) of every frame with its run's prompt, with the prompts of the other runs, and "
        "with controls: the prompt's words shuffled, the prompt negated, an empty text. A permutation test says "
        "whether frames move towards the right prompt; prompts that were not read whole are listed.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "folders", nargs="+", type=Path, metavar="DIR", help="folder that pie-engine run wrote, or one that holds such"
    )
    parser.add_argument(
        "--clip", type=Path, required=True, metavar="DIR", help="folder of a CLIP checkpoint with its tokenizer"
    )
    parser.add_argument("--prompts", type=Path, metavar="FILE", help="further texts to compare with, one per line")
    parser.add_argument("--permutations", type=int, default=10_000, metavar="N", help="of the test (10000)")
    parser.add_argument("--seed", type=int, default=0, help="of the test, the bootstrap and the orders of words (0)")
    parser.add_argument("--output", type=Path, default=Path("pie-align"), metavar="DIR", help="folder (pie-align)")
    parser.add_argument("--json", action="store_true", help="print the summary as one JSON object")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    return parser


def main(arguments: argparse.Namespace) -> int:
    from pie_engine.cli.progress import say
    from pie_engine.errors import ConfigError
    from pie_engine.evaluation import align, read_prompts
    from pie_engine.evaluation.align_summary import to_table

    if arguments.seed < 0:
        raise ConfigError(f"seed {arguments.seed} is below 0; pass --seed 0")
    if arguments.permutations < 1:
        raise ConfigError(f"permutations {arguments.permutations} are below 1; pass --permutations 10000")
    summary = align(
        arguments.folders,
        arguments.output,
        clip=arguments.clip,
        prompts=[] if arguments.prompts is None else read_prompts(arguments.prompts),
        permutations=arguments.permutations,
        seed=arguments.seed,
        on_run=(lambda name: None) if arguments.quiet else say,
    )
    if arguments.json:
        sys.stdout.write(json.dumps({"output": str(arguments.output), **summary}) + "\n")
        return 0
    sys.stdout.write(f"{to_table(summary)}\n{arguments.output}: {', '.join(summary['files'])}\n")
    return 0
