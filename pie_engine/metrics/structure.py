"""How much is left of features that are the patient's own and that a disease leaves alone: vessels, hairs, markings.

A map says where they lie. How much darker (or brighter) than its surroundings a frame is at these very places is fitted
by least squares; features that are redrawn elsewhere, however well, do not count. It needs no learning, and knows
nothing of the disease.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from pie_engine.errors import InputError

# Shading wider than this share of the longer side is no structure: 4 pixels of 128.
SCALE = 1 / 32
# Grey levels: what fades below this in the input cannot be followed.
LEAST = 2.0
# A map that is nowhere brighter is one of 0 and 1 in a file of 0 to 255, or empty.
BRIGHT = 0.5
# Where the surroundings hold less than this share of pixels off the structure, they are taken as they are.
_BARE = 0.02
# Grey levels: surroundings are taken as no darker, so that noise in the black is not counted as depth.
_DARK = 8.0


def structure_kept(
    frames: NDArray[np.uint8], structure: NDArray[np.floating], inside: NDArray[np.bool_] | None = None
) -> NDArray[np.float64]:
    """The depth of a structure in every frame, as a share of the input's.

    A frame's luma (ITU-R BT.601) is taken as b (1 - c s): the map s, the surroundings b (a Gaussian mean of what the
    map leaves free), and the depth c, the share of its surroundings' light that the structure takes (below 0 where it
    is brighter). Luma / b and s lose what a Gaussian of `SCALE` would keep; c is the slope of the one, d, over the
    other, t, within the region, c = -sum(d t) / sum(t t), and the result c(frame) / c(input). A share of light and not
    grey levels, so that a hair on a lesion that has become darker is as deep as before.

    Args:
        frames: [N + 1, H, W, 3], the input first.
        structure: [H, W], 0 where there is none, 1 where it is fully seen; darker or brighter than its surroundings.
        inside: [H, W], where to look; None for everywhere.

    Returns:
        [N + 1], the input's 1 first. 0 = nothing of it at these places; below 0 where they have become the brighter
        ones (features that moved aside), above 1 where they stand out more than in the input.

    Raises:
        InputError: the shapes do not fit, the map is empty inside or nowhere bright, or the input hardly shows it.
    """
    inside = np.ones(structure.shape, bool) if inside is None else inside
    if frames.ndim != 4 or structure.shape != frames.shape[1:3] or inside.shape != structure.shape:
        raise InputError(
            f"a map of {' x '.join(map(str, structure.shape[::-1]))} does not fit frames of "
            f"{' x '.join(map(str, frames.shape[2:0:-1]))}; pass one of their size"
        )
    if 0 < structure.max() < BRIGHT:
        raise InputError(
            f"the map's brightest value is {255 * structure.max():.3g} of 255; pass one that is white where the "
            "structure is fully seen"
        )
    sigma = SCALE * max(structure.shape)

    def detail(picture: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.where(inside, picture - gaussian_filter(picture, sigma), 0)

    present = structure.astype(np.float64)
    template = detail(present)
    power = float(np.sum(template**2))
    if power < 1e-6 * structure.size:
        raise InputError(
            "the map is the same everywhere inside the region: nothing stands out; pass one that is white where the "
            "structure is, and black elsewhere"
        )
    bare = 1 - present
    weight = gaussian_filter(bare, sigma)
    depth = np.empty(len(frames))
    for index, luma in enumerate(frames @ np.array([0.299, 0.587, 0.114])):
        free = gaussian_filter(bare * luma, sigma) / np.maximum(weight, _BARE)
        around = np.maximum(np.where(weight < _BARE, gaussian_filter(luma, sigma), free), _DARK)
        depth[index] = -np.sum(detail(luma / around) * template) / power
        if index == 0:
            shown = abs(depth[0]) * float(np.average(around, weights=template**2))
            if shown < LEAST:
                raise InputError(
                    f"the input shows the map's structure by {shown:.2g} grey levels, below {LEAST:g}: too little to "
                    "follow; pass a map of what is seen in it"
                )
    kept: NDArray[np.float64] = depth / depth[0]
    return kept
