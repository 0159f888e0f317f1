"""The region of interest (ROI): white may change, black is held to the patient's anatomy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pie_engine.errors import InputError
from pie_engine.imaging.image import fit

if TYPE_CHECKING:
    from PIL.Image import Image

FEATHER_PIXELS = 8
# A mask drawn on a rescaled copy differs by rounding; another patient's or view's mask by more.
_ASPECT_TOLERANCE = 0.05


@dataclass(frozen=True)
class Mask:
    """One ROI in the forms that the engine needs.

    Attributes:
        pixels: [H, W] bool, True = may change, at output resolution.
        latent: float32 in [0, 1], [1, H/8, W/8] (engine semantics) or [4, H/8, W/8] (official).
        weight: [H, W] float32 in [0, 1], share of the decoded frame in the composited one; 0 outside the ROI.
        source: [height, width] bool, the ROI in the image's own pixels, before fitting; None in official semantics.
    """

    pixels: np.ndarray
    latent: np.ndarray
    weight: np.ndarray
    source: np.ndarray | None = None


def prepare_mask(
    mask: Image, image_size: tuple[int, int], resolution: int, *, official: bool, scale: int = 8, how: str = "crop"
) -> Mask:
    """Check a mask against its image and bring it to output and latent resolution.

    Args:
        mask: any size with the image's aspect ratio; white = may change.
        image_size: (width, height) of the image it belongs to, before fitting.
        official: as the published code reduces it (soft, four channels) instead of by area average.
        scale: pixels per latent along one side.
        how: as the image is fitted; see `fit`.

    Raises:
        InputError: another aspect ratio than the image's, or nothing may change.
    """
    from PIL import Image as PILImage

    (width, height), (mask_width, mask_height) = image_size, mask.size
    # The published code fits image and mask each on their own, so in its semantics any pair is accepted.
    stretch = (mask_width * height) / (mask_height * width)
    if not official and abs(stretch - 1) > _ASPECT_TOLERANCE:
        raise InputError(
            f"mask of {mask_width} x {mask_height} does not have the aspect ratio of the image, {width} x {height} "
            f"({abs(stretch - 1):.0%} apart, at most {_ASPECT_TOLERANCE:.0%}); pass the mask drawn on this image"
        )
    if not official and mask.size != image_size:
        # Onto the image's own grid first, or rounding in the aspect ratio would shift it in the crop.
        mask = mask.convert("RGB").resize(image_size, PILImage.Resampling.BILINEAR)
    fitted = fit(mask, resolution, how)
    pixels = binary_mask(fitted)
    latent = official_latent_mask(fitted, scale) if official else latent_mask(pixels, scale)
    # Engine masks are binary, official ones soft: any grey counts there.
    if not (np.asarray(fitted).any() if official else pixels.any()):
        raise InputError(
            f"mask is black at {resolution} x {resolution} (brightest grey {np.asarray(fitted).max()}, "
            f"{'above 0' if official else 'at least 128'} needed); "
            "paint the region that may change white (255), or leave the mask out"
        )
    return Mask(pixels, latent, feather(pixels), None if official else binary_mask(mask))


def binary_mask(fitted: Image) -> np.ndarray:
    """[H, W] bool: at least half white after fitting."""
    return np.asarray(fitted.convert("L")) >= 128


def latent_mask(pixels: np.ndarray, scale: int = 8) -> np.ndarray:
    """Area average of the binary mask at 1/scale: [H, W] bool -> [1, H/8, W/8] float32."""
    height, width = pixels.shape
    blocks = pixels.reshape(height // scale, scale, width // scale, scale)
    return blocks.mean(axis=(1, 3), dtype=np.float32)[None]


def official_latent_mask(fitted: Image, scale: int = 8) -> np.ndarray:
    """What the published code's OpenCV INTER_LINEAR reduction to 1/8 gives on 8-bit values.

    It samples between the two middle pixels of each block: (sum of the 4 centre pixels + 2) >> 2. The four
    channels are R, G, B and R again. Returns [4, H/8, W/8] float32 in [0, 1].
    """
    values = np.asarray(fitted.convert("RGB")).astype(np.uint16)
    before, after = values[(scale - 1) // 2 :: scale], values[scale // 2 :: scale]
    middle = ((scale - 1) // 2, scale // 2)
    centre = np.stack([rows[:, start::scale] for rows in (before, after) for start in middle]).sum(axis=0)
    reduced = ((centre + 2) >> 2).astype(np.float32) / 255.0
    return np.ascontiguousarray(reduced.transpose(2, 0, 1)[[0, 1, 2, 0]])


def feather(pixels: np.ndarray, width: int = FEATHER_PIXELS) -> np.ndarray:
    """Ramp from the ROI's edge inward over `width` pixels: [H, W] bool -> [H, W] float32, 0 outside the ROI.

    Inward only, so that no pixel outside the ROI can change; the image's own border is not an edge.
    """
    from scipy.ndimage import distance_transform_edt

    if pixels.all():
        return np.ones(pixels.shape, np.float32)
    distance = distance_transform_edt(pixels)
    return np.clip(distance / (width + 1), 0, 1).astype(np.float32)
