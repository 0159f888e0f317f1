"""Reading images and fitting them to the model's square input, as the published implementation does."""

from __future__ import annotations

import logging
import struct
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pie_engine.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

log = logging.getLogger(__name__)

# About 13,000 x 13,000, Pillow's own limit; whole-slide images belong in a tiler, and a decompression bomb nowhere.
MAX_PIXELS = 178_956_970
# A 12-bit image stored as it is in 16 bits stays below this, and would be almost black.
_DIM = 8192


def open_image(path: str | Path, kind: str = "image") -> Image:
    """Read an 8- or 16-bit image file.

    Args:
        kind: what the file is to the user, for messages: "image" or "mask".

    Returns:
        The image in mode L, LA, P, RGB or RGBA at its own size, 8 bits a channel, turned upright if its EXIF data
        says so. 16-bit greyscale is scaled to 8 bits over its full range.

    Raises:
        InputError: the file is missing, unreadable, not an image, truncated or larger than `MAX_PIXELS`.
    """
    from PIL import Image as PILImage
    from PIL import ImageOps, UnidentifiedImageError

    remedy = "pass the path of a PNG, JPEG or TIFF file"
    if not str(path):
        raise InputError(f"{kind} '' is no path; {remedy}")
    path = Path(path)
    try:
        with PILImage.open(path) as image:
            image.load()
            return ImageOps.exif_transpose(_to_8_bits(image, f"{kind} {path}"))
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


def to_image(array: np.ndarray | Image, kind: str = "image") -> Image:
    """An image from an array.

    Args:
        array: [H, W] or [H, W, 1 | 3 | 4] uint8, bool (False black, True white) or uint16; or an image already.
        kind: what it is to the user, for messages: "image" or "mask".

    Raises:
        InputError: another shape or dtype.
    """
    from PIL import Image as PILImage

    if isinstance(array, PILImage.Image):
        try:
            array.load()  # an opened file is decoded only now
        except (OSError, SyntaxError, ValueError, struct.error) as error:
            raise InputError(f"{kind} cannot be decoded ({error}); pass one that image.load() accepts") from None
        if 0 in array.size:
            raise InputError(f"{kind} of {array.width} x {array.height} is empty; pass one with pixels")
        return _to_8_bits(array, kind)
    array = np.asarray(array)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    fits = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))
    if not fits or 0 in array.shape:
        raise InputError(f"{kind} array of shape {array.shape} is not [H, W] or [H, W, 3]; pass one 2-D image")
    if array.dtype == bool:
        array = array.astype(np.uint8) * 255
    if array.dtype.newbyteorder("=") == np.uint16:
        array = _scale_16_bits(array, kind)
    if array.dtype != np.uint8:
        raise InputError(f"{kind} array of dtype {array.dtype} is not uint8, uint16 or bool; scale it to 0..255 first")
    return PILImage.fromarray(array)


def _to_8_bits(image: Image, what: str) -> Image:
    from PIL import Image as PILImage

    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image)
        if image.mode == "F" or values.min() < 0 or values.max() > 65535:
            low, high = values.min(), values.max()
            raise InputError(f"{what} has values {low:g}..{high:g}, not 8- or 16-bit; convert it to 16-bit greyscale")
        return PILImage.fromarray(_scale_16_bits(values, what))
    return image


def _scale_16_bits(values: np.ndarray, what: str) -> np.ndarray:
    if 255 < values.max() < _DIM:
        log.warning("%s uses 0..%d of 0..65535 and is almost black; scale it to the full range", what, values.max())
    return np.round(values.astype(np.float64) / 257).astype(np.uint8)


def fit(image: Image, resolution: int) -> Image:
    """Resize the shorter side to `resolution` (bilinear, antialiased) and crop the centre square, in RGB.

    The longer side is truncated and the crop offset is rounded half to even, as torchvision does for the
    published code; an alpha channel is dropped.

    Raises:
        InputError: so long and thin that the resized image would be larger than `MAX_PIXELS`.
    """
    from PIL import Image as PILImage

    image = image.convert("RGB")
    width, height = image.size
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
