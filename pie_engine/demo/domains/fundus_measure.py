"""Lesions of a fundus photograph from pixels alone: no learning, and nothing known about how the picture was made.

As a reader sees it: exudates are small and brighter than the retina around them, haemorrhages small and darker. Vessels
are dark too but long: a line fits into them (closings by lines: the usual way to tell microaneurysms from vessels). The
macula is dark but wide and faint; the optic disc is bright but wide. All is compared as ratios: exposure scales them.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import (
    binary_erosion,
    binary_fill_holes,
    center_of_mass,
    gaussian_filter,
    grey_closing,
    label,
    sum_labels,
    uniform_filter,
)

from pie_engine.errors import InputError

Mask = NDArray[np.bool_]

# Lengths in pixels of a picture of 128 a side.
LINE = 13  # longer than a lesion is wide, short enough to lie in a bent vessel
SURROUND = 9.0  # standard deviation of what counts as around a pixel
DISC_CORE = 17  # a square as large as the optic disc: no cluster of exudates fills one as well
DISC_DENSITY = 0.3  # the share of that square that must be bright: less is no disc
DISC_REACH = 11.5  # from the disc's middle: parts of the disc are centred in it, exudates beside it are not

# Ratios to the surroundings. A vessel lets about half of the green light back, a pool of blood about a fifth.
DARK_GREEN, DARK_RED = 0.66, 0.76
BRIGHT_GREEN = 1.35
SMALLEST = 3  # pixels: less is noise


def measure_lesions(image: NDArray[np.uint8], mask: NDArray[np.uint8]) -> float:
    """The share of the region that lesions cover: RGB uint8 [H, W, 3] and a mask [H, W], above 0 inside; 0 to 1."""
    if mask.shape != image.shape[:2] or not (mask > 0).any():
        raise InputError(f"the region {list(mask.shape)} is empty or no match for {list(image.shape)}; pass its mask")
    blood, exudate = find_lesions(image)
    return float((blood | exudate)[mask > 0].mean())


def find_lesions(image: NDArray[np.uint8]) -> tuple[Mask, Mask]:
    """Where haemorrhages and exudates are: RGB uint8 [H, W, 3], made for about 128 pixels a side; two masks [H, W]."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise InputError(f"expected RGB uint8 [H, W, 3], got {image.dtype} {list(image.shape)}; convert it first")
    smooth = gaussian_filter(image.astype(np.float32), (0.6, 0.6, 0))
    lit = gaussian_filter(smooth[..., 0], 1.5)
    field = binary_erosion(binary_fill_holes(lit > 0.25 * np.percentile(lit, 90)), iterations=3)
    ratio = _to_surroundings(smooth, field)
    red, green = ratio[..., 0], ratio[..., 1]
    spot = green / np.maximum(_without_spots(green), 1e-3)
    blood = (spot < DARK_GREEN) & (red < DARK_RED)
    return _of_size(blood & field), _of_size(_without_disc((green > BRIGHT_GREEN) & field))


def _to_surroundings(smooth: NDArray[np.float32], field: Mask) -> NDArray[np.float32]:
    """Each channel over the ordinary retina around it, 1 outside the field; [H, W, 3]."""
    ordinary = field
    for _ in range(3):  # each round leaves out what the last one showed to be no ordinary retina
        weight = gaussian_filter(ordinary.astype(np.float32), SURROUND)[..., None]
        around = gaussian_filter(smooth * ordinary[..., None], (SURROUND, SURROUND, 0)) / np.maximum(weight, 1e-3)
        ratio = np.where(field[..., None], smooth / np.maximum(around, 1), 1)
        ordinary = field & (ratio[..., 1] > 0.8) & (ratio[..., 1] < 1.2)
    return ratio


def _without_spots(green: NDArray[np.float32]) -> NDArray[np.float32]:
    """The picture with small dark spots filled and dark lines left: the darkest of closings by lines; [H, W]."""
    reach = np.arange(LINE) - LINE // 2
    filled = []
    for angle in np.arange(12) * np.pi / 12:
        line = np.zeros((LINE, LINE), bool)
        rows, columns = (np.rint(reach * part).astype(int) + LINE // 2 for part in (np.sin(angle), np.cos(angle)))
        line[rows, columns] = True
        filled.append(grey_closing(green, footprint=line))
    return np.min(filled, axis=0)


def _without_disc(bright: Mask) -> Mask:
    """The bright parts that are not of the optic disc, which the vessels over it cut into pieces; [H, W]."""
    dense = gaussian_filter(uniform_filter(bright.astype(np.float32), DISC_CORE), 1.0)
    if dense.max() < DISC_DENSITY:
        return bright  # the disc is not in the picture
    y, x = np.unravel_index(int(dense.argmax()), dense.shape)
    parts, count = label(bright)
    centres = np.array(center_of_mass(bright, parts, np.arange(1, count + 1)))
    of_disc = np.hypot(*(centres - (y, x)).T) < DISC_REACH
    return bright & ~np.isin(parts, 1 + np.flatnonzero(of_disc))


def _of_size(spots: Mask) -> Mask:
    """The spots without those of fewer than `SMALLEST` pixels; [H, W]."""
    parts, count = label(spots)
    sizes = sum_labels(spots, parts, np.arange(count + 1))
    return spots & (sizes[parts] >= SMALLEST)
