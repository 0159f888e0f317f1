"""Fitting images to the model's square input, as the published implementation does, and what was fitted back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image as PILImage

from pie_engine.errors import InputError
from pie_engine.imaging.limits import MAX_PIXELS

if TYPE_CHECKING:
    from PIL.Image import Image


def fit(image: Image, resolution: int, how: str = "crop") -> Image:
    """Bring an image to a square of `resolution` in RGB (bilinear, antialiased); an alpha channel is dropped.

    Args:
        how: "crop": resize the shorter side and take the centre square. The longer side is truncated and the crop
            offset is rounded half to even, as torchvision does for the published code. "pad": resize the longer side
            and add black on both sides of the shorter. "stretch": resize both sides, each by its own factor.

    Raises:
        InputError: so long and thin that the resized image would be larger than `MAX_PIXELS`.
    """
    image = image.convert("RGB")
    size, (left, top) = placement(image.size, resolution, how)
    if size[0] * size[1] > MAX_PIXELS:
        raise InputError(
            f"image of {image.width} x {image.height} would be {size[0]} x {size[1]} at resolution {resolution} "
            f"(at most {MAX_PIXELS} pixels); crop it"
        )
    if size != image.size:
        image = image.resize(size, PILImage.Resampling.BILINEAR)
    return image.crop((left, top, left + resolution, top + resolution))  # black where it lies outside


def placement(size: tuple[int, int], resolution: int, how: str) -> tuple[tuple[int, int], tuple[int, int]]:
    """To what (width, height) `fit` resizes all of an image of `size`, and where (left, top) the square begins in it.

    A negative offset is padding.
    """
    if how == "stretch":
        return (resolution, resolution), (0, 0)
    width, height = size
    if how == "pad":
        longer = max(size)
        scaled = (max(1, round(width * resolution / longer)), max(1, round(height * resolution / longer)))
        return scaled, (-((resolution - scaled[0]) // 2), -((resolution - scaled[1]) // 2))
    if width <= height:
        scaled = (resolution, int(resolution * height / width))
    else:
        scaled = (int(resolution * width / height), resolution)
    return scaled, (round((scaled[0] - resolution) / 2.0), round((scaled[1] - resolution) / 2.0))


def find_content_box(size: tuple[int, int], resolution: int) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of an image of (width, height) in the square that "pad" makes of it."""
    (width, height), (left, top) = placement(size, resolution, "pad")
    return -left, -top, width - left, height - top


def crop_box(size: tuple[int, int], resolution: int) -> tuple[float, float, float, float]:
    """(left, top, right, bottom), in the source's pixels, of the square that "crop" takes of a (width, height)."""
    (width, height), (left, top) = placement(size, resolution, "crop")
    across, down = size[0] / width, size[1] / height
    return left * across, top * down, (left + resolution) * across, (top + resolution) * down


def kept(size: tuple[int, int], resolution: int, how: str) -> np.ndarray:
    """[H, W] bool: which pixels of an image of (width, height) have their centre in the square."""
    if how != "crop":
        return np.ones(size[::-1], bool)
    left, top, right, bottom = crop_box(size, resolution)
    x, y = (np.arange(side) + 0.5 for side in size)
    return np.asarray(((y >= top) & (y < bottom))[:, None] & ((x >= left) & (x < right)))


def unfit(square: np.ndarray, size: tuple[int, int], how: str) -> np.ndarray:
    """Values on the square back on the source's pixels: [R, R] or [R, R, C] -> [H, W] or [H, W, C], float32.

    The geometry of `fit` the other way round: padding is cut off, and what the crop left out takes the values at its
    edge (`kept` tells the two apart). Bilinear, antialiased where the source is the smaller of the two.

    Args:
        size: (width, height) of the source.
    """
    if square.ndim == 3:
        return np.stack([unfit(channel, size, how) for channel in np.moveaxis(square, -1, 0)], axis=-1)
    resolution = len(square)
    (width, height), (left, top) = placement(size, resolution, how)
    columns = np.clip(np.arange(width) - left, 0, resolution - 1)
    rows = np.clip(np.arange(height) - top, 0, resolution - 1)
    whole = np.ascontiguousarray(square.astype(np.float32)[np.ix_(rows, columns)])
    return np.asarray(PILImage.fromarray(whole).resize(size, PILImage.Resampling.BILINEAR))
