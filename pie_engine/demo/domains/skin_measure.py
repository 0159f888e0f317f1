"""A skin lesion's size from pixels alone: no learning, nothing known of how the picture was made.

As software for dermoscopy reads it: dark lines are closed over first (DullRazor, Lee et al. 1997,
doi:10.1016/S0010-4825(97)00020-6), the skin around the region says what bare skin would look like inside it, and what
differs from that is lesion.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_fill_holes, binary_opening, gaussian_filter, grey_closing, label

from pie_engine.errors import InputError

HAIR = 9  # pixels: what is darker and narrower is hair; room for two that touch, at a slant, a little blurred
UNLIT = 8.0  # grey levels: skin as dark as this shows no lesion
DIFFERENT = 0.45  # length of the logarithm of (colour / skin's colour) from which on it is lesion; a naevus has 1


def measure_lesion(image: NDArray[np.uint8], mask: NDArray[np.uint8]) -> float:
    """The share of the region that its largest lesion covers, 0 to 1; 0 where there is none, or no light.

    Args:
        image: RGB uint8 [H, W, 3], made for about 128 pixels a side.
        mask: uint8 [H, W], above 127 inside the region.

    Raises:
        InputError: another shape or dtype, or a mask that is empty or leaves no skin outside.
    """
    inside = _inside(image, mask)
    smooth = gaussian_filter(grey_closing(image.astype(np.float64), (HAIR, HAIR, 1)), (1.0, 1.0, 0.0))
    if smooth[~inside].mean() < UNLIT:
        return 0.0
    relative = smooth / _bare_skin(smooth, ~inside)
    # A red patch on dark skin is darker in green alone, a grey one in red alone: so all channels count.
    different = np.linalg.norm(np.log(np.maximum(relative, 1e-2)), axis=2) > DIFFERENT
    return float(_largest(different & inside).sum() / inside.sum())


def _inside(image: NDArray[np.uint8], mask: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """The region as booleans, once both pictures are known to be usable."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise InputError(f"expected uint8 [H, W, 3], got {image.dtype} {list(image.shape)}; convert the picture to RGB")
    if mask.dtype != np.uint8 or mask.shape != image.shape[:2]:
        raise InputError(
            f"expected a mask of uint8 {list(image.shape[:2])}, got {mask.dtype} {list(mask.shape)}; "
            "pass one of the picture's size"
        )
    inside = mask > 127
    if not 0 < inside.mean() < 0.95:
        raise InputError(
            f"the mask covers {inside.mean():.0%} of the picture, not between 0% and 95%; "
            "pass one that leaves skin around the lesion"
        )
    return inside


def _bare_skin(smooth: NDArray[np.float64], outside: NDArray[np.bool_]) -> NDArray[np.float64]:
    """What skin would look like everywhere: a surface of second order through the skin outside; [H, W, 3], above 0."""
    y, x = (np.linspace(-1, 1, n) for n in smooth.shape[:2])
    yy, xx = np.meshgrid(y, x, indexing="ij")
    terms = np.stack([np.ones_like(xx), xx, yy, xx * xx, xx * yy, yy * yy], axis=-1)
    use = outside.copy()
    for _ in range(3):  # what is left of hairs is dropped: it is far from the surface
        weights = np.linalg.lstsq(terms[use], smooth[use], rcond=None)[0]
        error = np.abs(smooth - terms @ weights).max(axis=2)
        use = outside & (error < 2.5 * np.median(error[use]))
    return np.maximum(terms @ weights, 1.0)


def _largest(lesion: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The largest connected part of `found` without spurs as thin as a hair, its holes filled."""
    half = HAIR // 2
    y, x = np.mgrid[-half : half + 1, -half : half + 1]
    parts, count = label(binary_opening(lesion, x * x + y * y <= half * half + half))
    if not count:
        return np.zeros_like(lesion)
    return binary_fill_holes(parts == 1 + np.argmax(np.bincount(parts.ravel())[1:]))
