"""Images in: what a file is, its content says; what is in it comes as stored values, or as a picture of 8 bits."""

from __future__ import annotations

import contextlib
import logging
import struct
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pie_engine.errors import InputError, argument, use
from pie_engine.imaging.formats.dicom import read_dicom, sniff_dicom
from pie_engine.imaging.formats.nifti import read_nifti, sniff_nifti
from pie_engine.imaging.limits import MAX_PIXELS
from pie_engine.imaging.mapping import Mapping, Range, Window
from pie_engine.imaging.reading import Reading
from pie_engine.imaging.stored import Stored

if TYPE_CHECKING:
    from PIL.Image import Image

log = logging.getLogger(__name__)

# A 12-bit image stored as it is in 16 bits stays below this, and would be almost black.
_DIM = 8192


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
        InputError: missing, unreadable, not an image, truncated, larger than `MAX_PIXELS`, or without the part that
            `reading` names.
    """
    reading = reading or Reading()
    if not isinstance(source, str | Path):
        _refuse_parts(reading, f"{kind} is an array")
        stored = _from_array(source, kind, reading)
        stored = replace(stored, facts={"format": "array"} | stored.facts)
    else:
        magic, dicom = sniff(source)
        if magic is not None:
            stored = read_nifti(Path(source), magic, reading)
        elif dicom:
            stored = read_dicom(Path(source), reading, kind)
        else:
            stored = _read_picture(source, kind, reading)
    return replace(stored, facts=stored.facts | {"size": list(stored.size)})


def sniff(source: str | Path) -> tuple[bytes | None, bool]:
    """What a file's content says it is: (NIfTI's magic number or None, whether it is DICOM).

    Folders, missing files and the like are neither: they are refused where an ordinary image would be.
    """
    if str(source):
        with contextlib.suppress(OSError, ValueError):
            magic = sniff_nifti(Path(source))
            return magic, magic is None and sniff_dicom(Path(source))
    return None, False


def _read_picture(source: str | Path, kind: str, reading: Reading) -> Stored:
    from PIL import Image as PILImage
    from PIL import ImageOps, UnidentifiedImageError

    remedy = "pass the path of a PNG, JPEG or TIFF file"
    if not str(source):
        raise InputError(f"{kind} '' is no path; {remedy}")
    path = Path(source)
    try:
        with PILImage.open(path) as image:
            what = f"{kind} {path}"
            facts: dict[str, Any] = {"format": image.format}
            _choose_page(image, what, reading, facts)
            deep = _is_deep_colour(image, path)
            image.load()
            stored = _from_picture(ImageOps.exif_transpose(image), what, reading)
            facts |= stored.facts
            if deep:
                log.warning("%s has 16 bits a channel; the upper 8 of each are used", what)
                facts |= {"bits": 16, "mapping": {"function": "upper 8 of 16 bits"}}
            return replace(stored, facts=facts)
    except FileNotFoundError:
        raise InputError(f"{kind} {path} does not exist; {remedy}") from None
    except IsADirectoryError:
        raise InputError(f"{kind} {path} is a folder; {remedy}") from None
    except PermissionError:
        raise InputError(f"{kind} {path} cannot be read (permission denied); make it readable") from None
    except InputError:
        raise
    except PILImage.DecompressionBombError:
        raise InputError(f"{kind} {path} has more than {MAX_PIXELS} pixels; crop or shrink it") from None
    except UnidentifiedImageError:
        raise InputError(f"{kind} {path} is not an image in a known format; {remedy}") from None
    except (OSError, SyntaxError, ValueError, struct.error) as error:
        reason = (str(error).splitlines() or ["unknown format"])[0]
        raise InputError(f"{kind} {path} cannot be decoded ({reason}); {remedy}") from None


def _refuse_parts(reading: Reading, what: str) -> None:
    for name in ("frame", "slice", "axis"):
        if getattr(reading, name) is not None:
            raise InputError(f"{what}, to which {argument(name)} does not apply; leave it out", field=name)


def _choose_page(image: Image, what: str, reading: Reading, facts: dict[str, Any]) -> None:
    """Go to the page that `reading` names. Only a TIFF file's pages are images of equal rank."""
    _refuse_parts(replace(reading, frame=None), f"{what} is {image.format}")
    pages = getattr(image, "n_frames", 1)
    if reading.frame is None and pages > 1 and image.format == "TIFF":
        raise InputError(
            f"{what} has {pages} pages; pass {use('frame', 1)} to {pages}, or save one page alone",
            field="frame", limit=f"1 to {pages}",
        )  # fmt: skip
    if reading.frame is not None and reading.frame > pages:
        raise InputError(
            f"{what} has {pages} page{'s' * (pages > 1)}, none of them {reading.frame}; "
            f"pass {use('frame', 1)} to {pages}",
            field="frame",
            value=reading.frame,
            limit=f"1 to {pages}",
        )
    frame = reading.frame or 1
    if pages > 1:
        image.seek(frame - 1)
        facts |= {"frame": frame, "frames": pages}


def _is_deep_colour(image: Image, path: Path) -> bool:
    """Whether a file stores 16 bits a channel in several channels, of which Pillow keeps 8."""
    if image.mode.startswith("I") or image.mode == "F":
        return False
    if image.format == "PNG":
        with path.open("rb") as file:
            return file.read(25)[24:25] == b"\x10"
    bits = getattr(image, "tag_v2", {}).get(258, 8)
    return max(bits if isinstance(bits, tuple) else (bits,)) > 8


def to_image(array: np.ndarray | Image, kind: str = "image", reading: Reading | None = None) -> Image:
    """An image from an array.

    Args:
        array: [H, W] or [H, W, 1 | 3 | 4] uint8, bool (False black, True white) or uint16; or an image already.
        kind: what it is to the user, for messages: "image" or "mask".
        reading: its window, for 16-bit greyscale.

    Raises:
        InputError: another shape or dtype.
    """
    return _from_array(array, kind, reading or Reading()).picture()


def _from_array(array: np.ndarray | Image, kind: str, reading: Reading) -> Stored:
    from PIL import Image as PILImage

    if isinstance(array, PILImage.Image):
        try:
            array.load()  # an opened file is decoded only now
        except (OSError, SyntaxError, ValueError, struct.error) as error:
            raise InputError(f"{kind} cannot be decoded ({error}); pass one that image.load() accepts") from None
        if 0 in array.size:
            raise InputError(f"{kind} of {array.width} x {array.height} is empty; pass one with pixels")
        return _from_picture(array, kind, reading)
    array = np.asarray(array)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    fits = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))
    if not fits or 0 in array.shape:
        raise InputError(f"{kind} array of shape {array.shape} is not [H, W] or [H, W, 3]; pass one 2-D image")
    if array.dtype == bool:
        array = array.astype(np.uint8) * 255
    if array.dtype.newbyteorder("=") == np.uint16:
        return _of_16_bits(array, kind, reading)
    if array.dtype != np.uint8:
        raise InputError(f"{kind} array of dtype {array.dtype} is not uint8, uint16 or bool; scale it to 0..255 first")
    return _of_8_bits(PILImage.fromarray(array), kind, reading)


def _from_picture(image: Image, what: str, reading: Reading) -> Stored:
    if not image.mode.startswith("I") and image.mode != "F":
        return _of_8_bits(image, what, reading)
    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > 65535:
        low, high = values.min(), values.max()
        raise InputError(f"{what} has values {low:g}..{high:g}, not 8- or 16-bit; convert it to 16-bit greyscale")
    return _of_16_bits(values.astype(np.uint16), what, reading)


def _of_8_bits(image: Image, what: str, reading: Reading) -> Stored:
    if reading.window is not None:
        raise InputError(
            f"{what} is no 16-bit greyscale image, and a window belongs to those, DICOM and NIfTI; "
            f"leave out {argument('window_center')} and {argument('window_width')}",
            field="window_center",
        )
    mapping = Mapping(Range(0, 255), facts={"function": "as stored"})
    values = np.asarray(image.convert("L" if image.mode in ("1", "L", "LA") else "RGB"))
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
