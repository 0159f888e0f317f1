"""Pictures that Pillow decodes: of the formats that the docs list alone, within limits that are checked before.

Pillow opens far more, some of it by starting other programs (EPS by Ghostscript), whatever a file is called.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image as PILImage
from PIL import ImageOps, PngImagePlugin, UnidentifiedImageError

from pie_engine.errors import InputError, argument
from pie_engine.imaging.limits import (
    MAX_ANIMATED_PIXELS,
    MAX_PAGES,
    MAX_PIXELS,
    MAX_SCANS,
    check_regular,
    check_size,
    quiet,
)
from pie_engine.imaging.mapping import Mapping, Range, Window
from pie_engine.imaging.reading import Reading, choose
from pie_engine.imaging.stored import Stored

if TYPE_CHECKING:
    from PIL.Image import Image

log = logging.getLogger(__name__)

# Pillow's names. A JPEG file with previews beside its picture (MPO) counts as JPEG: the picture is its first.
FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP")
_REMEDY = "pass the path of a PNG, JPEG, TIFF, BMP, GIF or WebP file"
# What a file's pictures are called: pages of equal rank, or moments of an animation.
_PARTS = {"TIFF": "page", "PNG": "frame", "GIF": "frame", "WEBP": "frame"}
# A 12-bit image stored as it is in 16 bits stays below this, and would be almost black.
_DIM = 8192
_TIFF_BITS, _TIFF_TILE = 258, (322, 323)


def read_raster(source: str | Path, kind: str, reading: Reading) -> Stored:
    """Read one picture of a file; see `read_stored`.

    Raises:
        InputError: no file of these formats, damaged, beyond a limit, or `reading` names none of its pictures.
    """
    if not str(source):
        raise InputError(f"{kind} '' is not a path; {_REMEDY}")
    path = Path(source)
    what = f"{kind} {path}"
    check_regular(path, kind, _REMEDY)
    try:
        with quiet("PIL"), PILImage.open(path, formats=FORMATS) as image:
            facts: dict[str, Any] = {"format": image.format}
            _choose_page(image, what, reading, facts)
            _check_cost(image, path, what)
            deep = _is_deep_colour(image, path)
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
            stored = from_picture(image, what, reading)
    except FileNotFoundError:
        raise InputError(f"{what} does not exist; {_REMEDY}") from None
    except PermissionError:
        raise InputError(f"{what} cannot be read (permission denied); make it readable") from None
    except (InputError, MemoryError):
        raise
    except PILImage.DecompressionBombError:
        raise InputError(f"{what} has more than {MAX_PIXELS} pixels; crop or shrink it") from None
    except UnidentifiedImageError:
        raise InputError(f"{what} is not an image in a known format; {_REMEDY}") from None
    except Exception as error:  # Pillow's decoders raise what a damaged file leads them to
        if "MAX_TEXT" in str(error):
            raise InputError(
                f"{what} has texts of more than {PngImagePlugin.MAX_TEXT_CHUNK} bytes, or "
                f"{PngImagePlugin.MAX_TEXT_MEMORY} in all, once unpacked; save it anew without them"
            ) from None
        raise InputError(f"{what} cannot be decoded ({_reason(error)}); {_REMEDY}") from None
    facts |= stored.facts
    if deep:
        log.warning("%s has 16 bits a channel; the upper 8 of each are used", what)
        facts |= {"bits": 16, "mapping": {"function": "upper 8 of 16 bits"}}
    return replace(stored, facts=facts)


def _reason(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _choose_page(image: Image, what: str, reading: Reading, facts: dict[str, Any]) -> None:
    """Go to the picture that `reading` names: a TIFF file's page, or a frame of an animation."""
    refuse_parts(replace(reading, frame=None), f"{what} is {image.format}")
    part = _PARTS.get(image.format or "")
    pages = _count_pages(image, what) if part else 1
    holds = f"{what} has {pages} {part or 'page'}{'s' * (pages > 1)}"
    frame = choose("frame", reading.frame, pages, holds, f", or save one {part} alone")
    if pages > 1:
        if part == "frame" and frame * image.width * image.height > MAX_ANIMATED_PIXELS:
            raise InputError(
                f"{what} has {frame} frames of {image.width} x {image.height} up to the chosen one, more than "
                f"{MAX_ANIMATED_PIXELS} pixels in all; save that frame alone",
                field="frame", value=frame,
            )  # fmt: skip
        image.seek(frame - 1)
        facts |= {"frame": frame, "frames": pages}


def _count_pages(image: Image, what: str) -> int:
    if image.format != "TIFF":
        return int(getattr(image, "n_frames", 1))
    pages = 1
    try:
        while pages <= MAX_PAGES:  # Pillow's own count compares each page with all before it
            image.seek(pages)
            pages += 1
    except EOFError:
        image.seek(0)
        return pages
    raise InputError(f"{what} has more than {MAX_PAGES} pages; save one page alone")


def _check_cost(image: Image, path: Path, what: str) -> None:
    """Refuse what would take too much memory or time to decode, by what its header declares. Raises InputError."""
    check_size(image.width, image.height, what)
    tags = getattr(image, "tag_v2", {})
    if all(tag in tags for tag in _TIFF_TILE):  # a tile is unpacked whole, however small the picture is
        width, height = (int(tags[tag]) for tag in _TIFF_TILE)
        check_size(width, height, what, "tile")
    if image.format in ("JPEG", "MPO"):
        scans = path.read_bytes().count(b"\xff\xda")
        if scans > MAX_SCANS:
            raise InputError(f"{what} has {scans} scans (at most {MAX_SCANS}); save it anew")


def _is_deep_colour(image: Image, path: Path) -> bool:
    """Whether a file stores 16 bits a channel in several channels, of which Pillow keeps 8."""
    if image.mode.startswith("I") or image.mode == "F":
        return False
    if image.format == "PNG":
        with path.open("rb") as file:
            return file.read(25)[24:25] == b"\x10"
    bits = getattr(image, "tag_v2", {}).get(_TIFF_BITS, 8)
    return max(bits if isinstance(bits, tuple) else (bits,)) > 8


def refuse_parts(reading: Reading, what: str) -> None:
    """Refuse a frame, slice or axis of what has none. Raises InputError."""
    for name in ("frame", "slice", "axis"):
        if getattr(reading, name) is not None:
            raise InputError(f"{what}, to which {argument(name)} does not apply; leave it out", field=name)


def from_array(array: np.ndarray | Image, kind: str, reading: Reading) -> Stored:
    """What `to_image` takes, as stored values; see there."""
    if isinstance(array, PILImage.Image):
        check_size(array.width, array.height, kind)
        try:
            array.load()  # an opened file is decoded only now
        except MemoryError:
            raise
        except Exception as error:  # as in `read_raster`
            raise InputError(
                f"{kind} cannot be decoded ({_reason(error)}); pass one that image.load() accepts"
            ) from None
        if 0 in array.size:
            raise InputError(f"{kind} of {array.width} x {array.height} is empty; pass one with pixels")
        return from_picture(array, kind, reading)
    array = np.asarray(array)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    fits = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))
    if not fits or 0 in array.shape:
        raise InputError(f"{kind} array of shape {array.shape} is not [H, W] or [H, W, 3]; pass one 2-D image")
    check_size(array.shape[1], array.shape[0], f"{kind} array")
    if array.dtype == bool:
        array = array.astype(np.uint8) * 255
    if array.dtype.newbyteorder("=") == np.uint16:
        return _of_16_bits(array, kind, reading)
    if array.dtype != np.uint8:
        raise InputError(f"{kind} array of dtype {array.dtype} is not uint8, uint16 or bool; scale it to 0..255 first")
    return _of_8_bits(PILImage.fromarray(array), kind, reading)


def from_picture(image: Image, what: str, reading: Reading) -> Stored:
    """A decoded picture of 8 bits a channel, or of 16 in grey. Raises InputError: another depth, or no window fits."""
    if not image.mode.startswith("I") and image.mode != "F":
        return _of_8_bits(image, what, reading)
    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > 65535:
        low, high = values.min(), values.max()
        raise InputError(f"{what} has values {low:g}..{high:g}, not 8- or 16-bit; convert it to 16-bit greyscale")
    return _of_16_bits(values.astype(np.uint16, copy=False), what, reading)


def _of_8_bits(image: Image, what: str, reading: Reading) -> Stored:
    if reading.window is not None:
        raise InputError(
            f"{what} is not a 16-bit greyscale image, and a window belongs to those, DICOM and NIfTI; "
            f"leave out {argument('window_center')} and {argument('window_width')}",
            field="window_center",
        )
    mapping = Mapping(Range(0, 255), facts={"function": "as stored"})
    mode = "L" if image.mode in ("1", "L", "LA") else "RGB"
    values = np.asarray(image if image.mode == mode else image.convert(mode))
    return Stored(values, mapping, {"bits": 8, "mapping": mapping.facts}, (0, 255), shown=image)


def _of_16_bits(values: np.ndarray, what: str, reading: Reading) -> Stored:
    shown: Range | Window = Range(0, 65535)
    facts = shown.describe("all values of its bits")
    if reading.window is not None:
        if values.ndim != 2:
            raise InputError(
                f"{what} is in colour, and a window belongs to greyscale; leave out {argument('window_center')} and "
                f"{argument('window_width')}",
                field="window_center",
            )
        shown = Window(*reading.window, "LINEAR_EXACT")
        facts = shown.describe("option")
    elif 255 < values.max() < _DIM:
        log.warning("%s uses 0..%d of 0..65535 and is almost black; scale it to the full range", what, values.max())
    values = values[..., :3] if values.ndim == 3 else values  # without alpha, which nothing uses
    return Stored(values, Mapping(shown, facts=facts), {"bits": 16, "mapping": facts}, (0, 65535))
