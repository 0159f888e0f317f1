"""The options that say whether PIE or a baseline gives the frames, for every command that runs one."""

from __future__ import annotations

import argparse
from typing import Any

from pie_engine.config import METHODS, MethodConfig


def add_method_options(group: Any) -> None:
    """The options of `MethodConfig`."""
    group.add_argument(
        "--method",
        choices=METHODS,
        default="pie",
        help="what gives the frames: PIE or a baseline, docs/baselines.md (pie)",
    )
    add_baseline_options(group)


def add_baseline_options(group: Any) -> None:
    """What single baselines need to know."""
    group.add_argument("--start-prompt", metavar="TEXT", help="walk: where its embeddings begin (the empty prompt)")
    group.add_argument(
        "--total-strength", type=float, metavar="S",
        help="walk and one-shot: share of the schedule that the last frame runs (1; one-shot: what N rounds amount to)",
    )  # fmt: skip
    group.add_argument("--healthy-prompt", metavar="TEXT", help="control: what PIE moves towards instead of --prompt")


def method_from(arguments: argparse.Namespace) -> MethodConfig:
    """The method that the options ask for, validated."""
    return MethodConfig(
        arguments.method,
        start_prompt=arguments.start_prompt,
        total_strength=arguments.total_strength,
        healthy_prompt=arguments.healthy_prompt,
    )
