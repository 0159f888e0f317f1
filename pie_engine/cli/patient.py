"""The options that name a patient's image and region of interest, for every command that takes them."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from pie_engine.config import FITS

if TYPE_CHECKING:
    from pie_engine.imaging import Reading


def add_patient_options(group: Any) -> None:
    """The options of `Item` but for its prompt and id, and how the image becomes a square."""
    group.add_argument(
        "--image", required=True, metavar="FILE", help="the patient's image: PNG, JPEG, TIFF, DICOM, NIfTI"
    )
    group.add_argument("--frame", type=int, metavar="N", help="DICOM frame, TIFF page or NIfTI volume, from 1")
    group.add_argument("--slice", type=int, metavar="N", help="NIfTI slice, from 1")
    group.add_argument("--axis", type=int, metavar="A", help="NIfTI: 0 sagittal, 1 coronal, 2 axial (2)")
    group.add_argument("--window-center", type=float, metavar="C", help="value that becomes middle grey")
    group.add_argument("--window-width", type=float, metavar="W", help="values between black and white")
    group.add_argument("--fit", choices=FITS, default="crop", help="how the image becomes a square (crop)")
    group.add_argument("--mask", metavar="FILE", help="region of interest: white may change")


def reading_from(arguments: argparse.Namespace) -> Reading:
    """Which part of the image's file the options name, validated."""
    from pie_engine.imaging import Reading

    return Reading(arguments.frame, arguments.slice, arguments.axis, arguments.window_center, arguments.window_width)
