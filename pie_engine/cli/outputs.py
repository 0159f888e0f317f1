"""The options that say what of a progression is written."""

from __future__ import annotations

import argparse
from typing import Any

from pie_engine.cli.options import add_settings, settings_from
from pie_engine.config import OutputConfig


def add_output_options(group: Any) -> None:
    """The options of `OutputConfig`, and `--interpolate`."""
    add_settings(group, OutputConfig)
    group.add_argument(
        "--interpolate", type=int, default=0, metavar="K",
        help="pictures between two frames in progression.gif and .mp4, decoded from latents between theirs (0)",
    )  # fmt: skip


def outputs_from(arguments: argparse.Namespace) -> OutputConfig:
    """What the options ask for, validated."""
    return settings_from(arguments, OutputConfig)
