"""The options that say what of a progression is written."""

from __future__ import annotations

import argparse
from typing import Any

from pie_engine.config import OutputConfig


def add_output_options(group: Any) -> None:
    """The options of `OutputConfig`, and `--interpolate`."""
    group.add_argument(
        "--report", action=argparse.BooleanOptionalAction, default=True, help="report.html, a page to look at (on)"
    )
    group.add_argument("--mp4", action="store_true", help="write progression.mp4 too (needs pie-engine[video])")
    group.add_argument(
        "--interpolate", type=int, default=0, metavar="K",
        help="pictures between two frames in progression.gif and .mp4, decoded from latents between theirs (0)",
    )  # fmt: skip
    group.add_argument("--mark", action="store_true", help='draw "SIMULATED" into every simulated frame')
    group.add_argument(
        "--native-size", action="store_true",
        help="write frames at the source's size and bit depth too, changed in the region alone",
    )  # fmt: skip
    group.add_argument("--dicom", action="store_true", help="write a DICOM series too, of a new pseudonymous patient")
    group.add_argument(
        "--dicom-same-study", action="store_true", help="keep the DICOM source's patient and study in that series"
    )
    group.add_argument("--save-latents", action="store_true", help="write latents.safetensors too")


def outputs_from(arguments: argparse.Namespace) -> OutputConfig:
    """What the options ask for, validated."""
    return OutputConfig(
        report=arguments.report,
        mp4=arguments.mp4,
        native_size=arguments.native_size,
        dicom=arguments.dicom,
        dicom_same_study=arguments.dicom_same_study,
        mark=arguments.mark,
        latents=arguments.save_latents,
    )
