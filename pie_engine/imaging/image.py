"""Reading images and fitting them to the model's square input, as the published implementation does."""

from __future__ import annotations

import contextlib
import logging
import struct
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pie_engine.errors import InputError
from pie_engine.imaging.dicom import read_dicom, sniff_dicom
from pie_engine.imaging.limits import MAX_PIXELS
from pie_engine.imaging.nifti import read_nifti, sniff_nifti
from pie_engine.imaging.reading import Reading
from pie_engine.imaging.window import range_mapping, to_bytes, window_mapping

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
    """Read an image from a file or an array; what a file is, its content says.

    Args:
        kind: what it is to the user, for messages: "image" or "mask".
        reading: which part of a file, and with which window.

    Returns:
        The image in mode L, LA, P, RGB or RGBA at its own size, 8 bits a channel, turned upright if its EXIF data
        says so; and what provenance says of it: format, size, bits, how stored values became grey.

    Raises:
        InputError: missing, unreadable, not an image, truncated, larger than `MAX_PIXELS`, or without the part that
            `reading` names.
    """
    from PIL import Image as PILImage

    reading = reading or Reading()
    if not isinstance(source, str | Path):
        _refuse_parts(reading, f"{kind} is an array")
        facts: dict[str, Any] = {"format": "array"}
        image = to_image(source, kind, reading, facts)
        return image, facts | {"size": list(image.size)}
    path = Path(source)
    # Folders, missing files and the like are refused where an ordinary image would be.
    magic, dicom = None, False
    if str(source):
        with contextlib.suppress(OSError):
            magic = sniff_nifti(path)
            dicom = magic is None and sniff_dicom(path)
    if magic is None and not dicom:
        return _read_picture(source, kind, reading)
    if kind == "mask":
        name = "DICOM" if dicom else "NIfTI"
        raise InputError(f"mask {path} is {name}; pass the mask as a PNG or TIFF file, drawn on the image")
    pixels, facts = read_dicom(path, reading) if magic is None else read_nifti(path, magic, reading)
    image = PILImage.fromarray(pixels)
    return image, facts | {"size": list(image.size)}


def _read_picture(source: str | Path, kind: str, reading: Reading) -> tuple[Image, dict[str, Any]]:
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
            upright = ImageOps.exif_transpose(_to_8_bits(image, what, reading, facts))
            if deep:
                log.warning("%s has 16 bits a channel; the upper 8 of each are used", what)
                facts |= {"bits": 16, "mapping": {"function": "upper 8 of 16 bits"}}
            return upright, facts | {"size": list(upright.size)}
    except FileNotFoundError:
        raise InputError(f"{kind} {path} does not exist; {remedy}") from None
    except IsADirectoryError:
        raise InputError(f"{kind} {path} is a folder; {remedy}") from None
    except PermissionError:
        raise InputError(f"{kind} {path} cannot be read (permission denied); make it readable") from None
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
            raise InputError(f"{what}, to which --{name} does not apply; leave it out")


def _choose_page(image: Image, what: str, reading: Reading, facts: dict[str, Any]) -> None:
    """Go to the page that `reading` names. Only a TIFF file's pages are images of equal rank."""
    _refuse_parts(replace(reading, frame=None), f"{what} is {image.format}")
    pages = getattr(image, "n_frames", 1)
    if reading.frame is None and pages > 1 and image.format == "TIFF":
        raise InputError(f"{what} has {pages} pages; pass --frame 1 to {pages}, or save one page alone")
    if reading.frame is not None and reading.frame > pages:
        raise InputError(
            f"{what} has {pages} page{'s' * (pages > 1)}, none of them {reading.frame}; pass --frame 1 to {pages}"
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


def to_image(
    array: np.ndarray | Image,
    kind: str = "image",
    reading: Reading | None = None,
    facts: dict[str, Any] | None = None,
) -> Image:
    """An image from an array.

    Args:
        array: [H, W] or [H, W, 1 | 3 | 4] uint8, bool (False black, True white) or uint16; or an image already.
        kind: what it is to the user, for messages: "image" or "mask".
        reading: its window, for 16-bit greyscale.
        facts: how the values became grey is added here.

    Raises:
        InputError: another shape or dtype.
    """
    from PIL import Image as PILImage

    reading, facts = reading or Reading(), {} if facts is None else facts
    if isinstance(array, PILImage.Image):
        try:
            array.load()  # an opened file is decoded only now
        except (OSError, SyntaxError, ValueError, struct.error) as error:
            raise InputError(f"{kind} cannot be decoded ({error}); pass one that image.load() accepts") from None
        if 0 in array.size:
            raise InputError(f"{kind} of {array.width} x {array.height} is empty; pass one with pixels")
        return _to_8_bits(array, kind, reading, facts)
    array = np.asarray(array)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    fits = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))
    if not fits or 0 in array.shape:
        raise InputError(f"{kind} array of shape {array.shape} is not [H, W] or [H, W, 3]; pass one 2-D image")
    if array.dtype == bool:
        array = array.astype(np.uint8) * 255
    if array.dtype.newbyteorder("=") == np.uint16:
        return PILImage.fromarray(_scale_16_bits(array, kind, reading, facts))
    if array.dtype != np.uint8:
        raise InputError(f"{kind} array of dtype {array.dtype} is not uint8, uint16 or bool; scale it to 0..255 first")
    _keep_8_bits(kind, reading, facts)
    return PILImage.fromarray(array)


def _keep_8_bits(what: str, reading: Reading, facts: dict[str, Any]) -> None:
    if reading.window is not None:
        raise InputError(
            f"{what} is no 16-bit greyscale image, and a window belongs to those, DICOM and NIfTI; "
            "leave out --window-center and --window-width"
        )
    facts |= {"bits": 8, "mapping": {"function": "as stored"}}


def _to_8_bits(image: Image, what: str, reading: Reading, facts: dict[str, Any]) -> Image:
    from PIL import Image as PILImage

    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image)
        if image.mode == "F" or values.min() < 0 or values.max() > 65535:
            low, high = values.min(), values.max()
            raise InputError(f"{what} has values {low:g}..{high:g}, not 8- or 16-bit; convert it to 16-bit greyscale")
        return PILImage.fromarray(_scale_16_bits(values, what, reading, facts))
    _keep_8_bits(what, reading, facts)
    return image


def _scale_16_bits(values: np.ndarray, what: str, reading: Reading, facts: dict[str, Any]) -> np.ndarray:
    facts["bits"] = 16
    if reading.window is not None:
        if values.ndim != 2:
            raise InputError(f"{what} is in colour, and a window belongs to greyscale; leave out --window-center")
        grey, facts["mapping"] = window_mapping(values, reading.window, "LINEAR_EXACT", "option")
        return to_bytes(grey)
    facts["mapping"] = range_mapping(values, 0, 65535, "all values of its bits")[1]
    if 255 < values.max() < _DIM:
        log.warning("%s uses 0..%d of 0..65535 and is almost black; scale it to the full range", what, values.max())
    return np.round(values.astype(np.float64) / 257).astype(np.uint8)


def fit(image: Image, resolution: int, how: str = "crop") -> Image:
    """Bring an image to a square of `resolution` in RGB (bilinear, antialiased); an alpha channel is dropped.

    Args:
        how: "crop": resize the shorter side and take the centre square. The longer side is truncated and the crop
            offset is rounded half to even, as torchvision does for the published code. "pad": resize the longer side
            and add black on both sides of the shorter. "stretch": resize both sides, each by its own factor.

    Raises:
        InputError: so long and thin that the resized image would be larger than `MAX_PIXELS`.
    """
    from PIL import Image as PILImage

    image = image.convert("RGB")
    width, height = image.size
    if how == "stretch":
        return image.resize((resolution, resolution), PILImage.Resampling.BILINEAR)
    if how == "pad":
        left, top, right, bottom = inside_box(image.size, resolution)
        square = PILImage.new("RGB", (resolution, resolution))
        square.paste(image.resize((right - left, bottom - top), PILImage.Resampling.BILINEAR), (left, top))
        return square
    if width <= height:
        size = (resolution, int(resolution * height / width))
    else:
        size = (int(resolution * width / height), resolution)
    if size[0] * size[1] > MAX_PIXELS:
        raise InputError(
            f"image of {width} x {height} would be {size[0]} x {size[1]} at resolution {resolution} "
            f"(at most {MAX_PIXELS} pixels); crop it"
        )
    if size != image.size:
        image = image.resize(size, PILImage.Resampling.BILINEAR)
    left, top = (round((side - resolution) / 2.0) for side in size)
    return image.crop((left, top, left + resolution, top + resolution))


def inside_box(size: tuple[int, int], resolution: int) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of an image of (width, height) in the square that "pad" makes of it."""
    longer = max(size)
    width, height = (max(1, round(side * resolution / longer)) for side in size)
    left, top = (resolution - width) // 2, (resolution - height) // 2
    return left, top, left + width, top + height
