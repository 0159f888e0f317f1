"""Reading images and fitting them to the model's square input, as the published implementation does."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pie_engine.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

# About 13,000 x 13,000; whole-slide images belong in a tiler, and a decompression bomb nowhere.
MAX_PIXELS = 178_956_970


def open_image(path: str | Path) -> Image:
    """Read an 8- or 16-bit image file.

    Returns:
        The image in mode L, LA, P, RGB or RGBA at its own size, 8 bits a channel, turned upright if its EXIF data
        says so. 16-bit greyscale is scaled to 8 bits over its full range.

    Raises:
        InputError: the file is missing, unreadable, not an image, truncated or larger than `MAX_PIXELS`.
    """
    from PIL import Image as PILImage
    from PIL import ImageOps, UnidentifiedImageError

    path = Path(path)
    try:
        with PILImage.open(path) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise InputError(f"image {path} is {width} x {height} (at most {MAX_PIXELS} pixels); crop or shrink it")
            image.load()
            return ImageOps.exif_transpose(_to_8_bits(image))
    except FileNotFoundError:
        raise InputError(f"image {path} does not exist; pass the path of a PNG, JPEG or TIFF file") from None
    except IsADirectoryError:
        raise InputError(f"image {path} is a folder; pass the path of a PNG, JPEG or TIFF file") from None
    except PermissionError:
        raise InputError(f"image {path} cannot be read (permission denied); make it readable") from None
    except (UnidentifiedImageError, PILImage.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        reason = (str(error).splitlines() or ["unknown format"])[0]
        raise InputError(f"image {path} cannot be decoded ({reason}); pass a PNG, JPEG or TIFF file") from None


def to_image(array: np.ndarray | Image) -> Image:
    """An image from an array.

    Args:
        array: [H, W] or [H, W, 1 | 3 | 4] uint8, bool (False black, True white) or uint16; or an image already.

    Raises:
        InputError: another shape or dtype.
    """
    from PIL import Image as PILImage

    if isinstance(array, PILImage.Image):
        return _to_8_bits(array)
    array = np.asarray(array)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    fits = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))
    if not fits or 0 in array.shape:
        raise InputError(f"image array of shape {array.shape} is not [H, W] or [H, W, 3]; pass one 2-D image")
    if array.dtype == bool:
        array = array.astype(np.uint8) * 255
    if array.dtype == np.uint16:
        array = np.round(array / 257).astype(np.uint8)
    if array.dtype != np.uint8:
        raise InputError(f"image array of dtype {array.dtype} is not uint8, uint16 or bool; scale it to 0..255 first")
    return PILImage.fromarray(array)


def _to_8_bits(image: Image) -> Image:
    from PIL import Image as PILImage

    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image)
        if image.mode == "F" or values.min() < 0 or values.max() > 65535:
            low, high = values.min(), values.max()
            raise InputError(f"image values {low:g}..{high:g} are not 8- or 16-bit; convert to 16-bit greyscale first")
        return PILImage.fromarray(np.round(values.astype(np.float64) / 257).astype(np.uint8))
    return image


def fit(image: Image, resolution: int) -> Image:
    """Resize the shorter side to `resolution` (bilinear, antialiased) and crop the centre square, in RGB.

    The longer side is truncated and the crop offset is rounded half to even, as torchvision does for the
    published code; an alpha channel is dropped.
    """
    from PIL import Image as PILImage

    image = image.convert("RGB")
    width, height = image.size
    if width <= height:
        size = (resolution, int(resolution * height / width))
    else:
        size = (int(resolution * width / height), resolution)
    if size != image.size:
        image = image.resize(size, PILImage.Resampling.BILINEAR)
    left, top = (round((side - resolution) / 2.0) for side in size)
    return image.crop((left, top, left + resolution, top + resolution))
