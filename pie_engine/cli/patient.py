"""The options that name a patient's image and region of interest, for every command that takes them."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pie_engine.cli.options import add_settings
from pie_engine.config import RunConfig
from pie_engine.errors import ConfigError, quoted

if TYPE_CHECKING:
    from pie_engine.imaging import Reading, Region

# An option's kind and its text: regions are made of them once all options are read, in the order of the command line.
Words = list[tuple[str, str]]


def add_patient_options(group: Any, *, required: bool = True) -> None:
    """The options of `Item` but for its prompt and id, and how the image becomes a square."""
    group.add_argument(
        "--image", required=required, metavar="FILE", help="the patient's image: PNG, JPEG, TIFF, DICOM, NIfTI"
    )
    group.add_argument("--frame", type=int, metavar="N", help="DICOM frame, TIFF page or NIfTI volume, from 1")
    group.add_argument("--slice", type=int, metavar="N", help="NIfTI slice, from 1")
    group.add_argument("--axis", type=int, metavar="A", help="NIfTI: 0 sagittal, 1 coronal, 2 axial (2)")
    group.add_argument("--window-center", type=float, metavar="C", help="value that becomes middle grey")
    group.add_argument("--window-width", type=float, metavar="W", help="values between black and white")
    add_settings(group, RunConfig, only=("fit",))


def add_region_options(group: Any) -> None:
    """The options of the region of interest. Each may be given several times; the later region's beta holds."""
    _add_regions(
        group, "mask", "FILE[:BETA]", "region that may change, white: PNG, JPEG, TIFF, NIfTI, DICOM, DICOM SEG; with a "
        "beta2 of its own", label=True,
    )  # fmt: skip
    for kind, form in (("box", "x0,y0,x1,y1"), ("ellipse", "cx,cy,rx,ry"), ("polygon", "x,y,x,y,x,y...")):
        group.add_argument(
            f"--mask-{kind}", dest="mask", action="append", type=_word(kind), metavar=f"{form}[:BETA]",
            help=f"{kind} that may change, in the image's pixels",
        )  # fmt: skip
    _add_regions(group, "keep", "FILE", "what must never change: cut out of the region", label=False)
    group.add_argument(
        "--keep-box", dest="keep", action="append", type=_word("box"), metavar="x0,y0,x1,y1", help="the same, a box"
    )
    group.add_argument(
        "--dilate", type=int, default=0, metavar="PIXELS",
        help="grow the region by this many of the image's pixels, before --keep; negative: shrink it (0)",
    )  # fmt: skip
    group.add_argument(
        "--shift", action=_Pair, default=(0, 0), metavar="DX,DY",
        help="move the region right and down by this many of the image's pixels, before --dilate (0,0)",
    )  # fmt: skip
    group.add_argument(
        "--mask-components", type=int, metavar="N", help="refuse a region of more than N connected parts"
    )
    add_settings(group, RunConfig, only=("feather",))


def add_finding_option(group: Any) -> None:
    """`--finding`, which stands among the options of the region of interest."""
    group.add_argument(
        "--finding", dest="mask", action="append", type=_word("finding"), metavar="TEXT",
        help="a finding with regions of its own: every --mask after it, up to the next --finding, progresses towards "
        "TEXT instead of --prompt",
    )  # fmt: skip


def add_truth_options(group: Any) -> None:
    """A ground truth to hold the region against."""
    _add_regions(group, "truth", "FILE", "ground truth to score the region against, as --mask", label=True)


def _add_regions(group: Any, name: str, form: str, help: str, *, label: bool) -> None:
    group.add_argument(f"--{name}", dest=name, action="append", type=_word("file"), metavar=form, help=help)
    if label:
        group.add_argument(
            f"--{name}-label", dest=name, action="append", type=_word("label"), metavar="N",
            help=f"value of a NIfTI label map or segment of a DICOM SEG to take of the --{name} before it",
        )  # fmt: skip


def _word(kind: str) -> Callable[[str], tuple[str, str]]:
    return lambda text: (kind, text)


class _Pair(argparse.Action):
    """Two whole numbers. No `type`, for argparse has words of its own for a ValueError of that."""

    def __call__(
        self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: str | None = None
    ) -> None:
        setattr(namespace, self.dest, _pair(values))


def _pair(text: str) -> tuple[int, int]:
    try:
        first, second = (int(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"shift '{text}' is not two whole numbers; pass --shift 5,0 (pixels right, down)") from None
    return first, second


def reading_from(arguments: argparse.Namespace) -> Reading:
    """Which part of the image's file the options name, validated."""
    from pie_engine.imaging import Reading

    return Reading(arguments.frame, arguments.slice, arguments.axis, arguments.window_center, arguments.window_width)


def regions_from(words: Words | None, name: str) -> list[Region] | None:
    """The regions that the options of one name make up, in their order, validated; None without any.

    Args:
        name: the option, "mask", "keep" or "truth".

    Raises:
        ConfigError: a number or a beta cannot be read, or a label stands beside no file.
    """
    from pie_engine.imaging import Box, Ellipse, Polygon, Region

    shapes = {"box": Box, "ellipse": Ellipse, "polygon": Polygon}
    regions: list[Region] = []
    prompt, bare = None, False  # the finding that regions belong to, and whether it has none yet
    for kind, text in words or []:
        if kind == "label":
            if not regions or not isinstance(regions[-1].source, str) or regions[-1].label is not None:
                raise ConfigError(f"{name}-label {text} follows no --{name} FILE of its own; put it after one")
            regions[-1] = replace(regions[-1], label=_label(text, name))
        elif kind == "finding":
            if bare:
                break
            prompt, bare = text, True
        elif kind == "file" and name != "mask":
            regions.append(Region(text))
        else:
            regions.append(replace(Region.parse(text, shapes.get(kind)), prompt=prompt))
            bare = False
        if name != "mask" and regions[-1].beta is not None:
            raise ConfigError(f"{name} '{text}' has a beta, which belongs to --mask; leave it out")
    if bare and prompt is not None:
        raise ConfigError(
            f"finding {quoted(prompt)} has no region; put its --mask after it, or pass the text as --prompt"
        )
    return regions or None


def _label(text: str, name: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ConfigError(f"{name}-label '{text}' is not a whole number; pass --{name}-label 1") from None
