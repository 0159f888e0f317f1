"""How much is left of features that are the patient's own and that a disease leaves alone: vessels, hairs, markings.

A map says where they lie. Their contrast at these very places is fitted in every frame by least squares; features that
are redrawn elsewhere, however well, do not count. It needs no learning, and knows nothing of the disease.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pie_engine.errors import InputError

# Shading wider than this share of the longer side is no structure: 4 pixels of 128.
SCALE = 1 / 32
# Grey levels: what fades below this in the input cannot be followed.
LEAST = 2.0


def structure_kept(
    frames: NDArray[np.uint8], structure: NDArray[np.floating], inside: NDArray[np.bool_] | None = None
) -> NDArray[np.float64]:
    """Contrast of a structure in every frame, as a share of the input's.

    Both pictures lose what a Gaussian of `SCALE` would keep (luma, ITU-R BT.601); c is then the slope of the frame over
    the map within the region, c(frame) = sum(d s) / sum(s s), and the result c(frame) / c(input). 1 = as in the input,
    0 = nothing of it at these places. What the disease adds counts only as far as it happens to lie along the map.

    Args:
        frames: [N + 1, H, W, 3], the input first.
        structure: [H, W], 0 where there is none, 1 where it is fully seen; darker or brighter than its surroundings.
        inside: [H, W], where to look; None for everywhere.

    Returns:
        [N + 1], the input's 1 first.

    Raises:
        InputError: the shapes do not fit, the map is empty inside, or the input hardly shows it.
    """
    from scipy.ndimage import gaussian_filter

    inside = np.ones(structure.shape, bool) if inside is None else inside
    if frames.ndim != 4 or structure.shape != frames.shape[1:3] or inside.shape != structure.shape:
        raise InputError(
            f"a map of {' x '.join(map(str, structure.shape[::-1]))} does not fit frames of "
            f"{' x '.join(map(str, frames.shape[2:0:-1]))}; pass one of their size"
        )
    sigma = SCALE * max(structure.shape)
    template = structure.astype(np.float64)
    template = np.where(inside, template - gaussian_filter(template, sigma), 0)
    power = float(np.sum(template**2))
    if power < 1e-6 * structure.size:
        raise InputError("the map shows nothing inside the region; pass one that does, or run without a region")
    luma = frames @ np.array([0.299, 0.587, 0.114])  # [N + 1, H, W]
    detail = luma - gaussian_filter(luma, (0, sigma, sigma))
    contrast = np.tensordot(detail, template, axes=([1, 2], [0, 1])) / power
    if abs(contrast[0]) < LEAST:
        raise InputError(
            f"the input shows the map's structure by {abs(contrast[0]):.2g} grey levels, below {LEAST:g}: too little "
            "to follow; pass a map of what is seen in it"
        )
    kept: NDArray[np.float64] = contrast / contrast[0]
    return kept
