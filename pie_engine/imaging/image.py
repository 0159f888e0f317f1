"""Images in: what a file is, its content says; what is in it comes as stored values, or as a picture of 8 bits."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pie_engine.imaging.formats.dicom import read_dicom, sniff_dicom
from pie_engine.imaging.formats.nifti import read_nifti, sniff_nifti
from pie_engine.imaging.formats.raster import from_array, read_raster, refuse_parts
from pie_engine.imaging.limits import file_type
from pie_engine.imaging.reading import Reading
from pie_engine.imaging.stored import Stored

if TYPE_CHECKING:
    from PIL.Image import Image


def open_image(path: str | Path, kind: str = "image") -> Image:
    """`read_image` of a path, without the facts."""
    return read_image(path, kind)[0]


def read_image(
    source: str | Path | Image | np.ndarray, kind: str = "image", reading: Reading | None = None
) -> tuple[Image, dict[str, Any]]:
    """`read_stored` as a picture.

    Returns:
        The image in mode L, LA, P, RGB or RGBA at its own size, 8 bits a channel, turned upright if its EXIF data
        says so; and what provenance says of it: format, size, bits, how stored values became grey.

    Raises:
        InputError: see `read_stored`.
    """
    stored = read_stored(source, kind, reading)
    return stored.picture(), stored.facts


def read_stored(source: str | Path | Image | np.ndarray, kind: str = "image", reading: Reading | None = None) -> Stored:
    """Read an image from a file or an array; what a file is, its content says.

    Args:
        kind: what it is to the user, for messages: "image" or "mask".
        reading: which part of a file, and with which window.

    Returns:
        Its stored values, upright, and how they become grey.

    Raises:
        InputError: missing, no regular file, unreadable, of another format than `formats` reads, truncated, beyond one
            of `limits`, or without the part that `reading` names.
    """
    reading = reading or Reading()
    if not isinstance(source, str | Path):
        refuse_parts(reading, f"{kind} is an array")
        stored = from_array(source, kind, reading)
        stored = replace(stored, facts={"format": "array"} | stored.facts)
    else:
        magic, dicom = sniff(source)
        if magic is not None:
            stored = read_nifti(Path(source), magic, reading)
        elif dicom:
            stored = read_dicom(Path(source), reading, kind)
        else:
            stored = read_raster(source, kind, reading)
    return replace(stored, facts=stored.facts | {"size": list(stored.size)})


def sniff(source: str | Path) -> tuple[bytes | None, bool]:
    """What a file's content says it is: (NIfTI's magic number or None, whether it is DICOM).

    Folders, pipes, missing files and the like are neither: they are refused where an ordinary image would be.
    """
    path = Path(source)
    if str(source) and file_type(path) == "file":
        with contextlib.suppress(OSError):
            magic = sniff_nifti(path)
            return magic, magic is None and sniff_dicom(path)
    return None, False


def to_image(array: np.ndarray | Image, kind: str = "image", reading: Reading | None = None) -> Image:
    """An image from an array.

    Args:
        array: [H, W] or [H, W, 1 | 3 | 4] uint8, bool (False black, True white) or uint16; or an image already.
        kind: what it is to the user, for messages: "image" or "mask".
        reading: its window, for 16-bit greyscale.

    Raises:
        InputError: another shape or dtype.
    """
    return from_array(array, kind, reading or Reading()).picture()
