"""The options that say what of a progression is written."""

from __future__ import annotations

import argparse
from typing import Any

from pie_engine.config import OutputConfig


def add_output_options(group: Any) -> None:
    """The options of `OutputConfig`."""
    group.add_argument("--save-latents", action="store_true", help="write latents.safetensors too")


def outputs_from(arguments: argparse.Namespace) -> OutputConfig:
    """What the options ask for, validated."""
    return OutputConfig(latents=arguments.save_latents)
