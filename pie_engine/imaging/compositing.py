"""A decoded frame over the patient's own picture: what lies outside the region of interest stays, bit for bit."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from pie_engine.imaging.regions.mask import Mask


def composite(
    decoded: np.ndarray,
    original: np.ndarray,
    mask: Mask | None,
    content_box: tuple[int, int, int, int] | None = None,
) -> np.ndarray:
    """w decoded + (1 - w) input: [N, H, W, 3] uint8, bit for bit the input where w is 0.

    Without a mask decoded frames stay as they are, but for the padding outside of `content_box`.
    """
    if mask is None and content_box is None:
        return decoded
    if mask is None:
        left, top, right, bottom = content_box or (0, 0, 0, 0)
        kept = np.broadcast_to(original, decoded.shape).copy()
        kept[:, top:bottom, left:right] = decoded[:, top:bottom, left:right]
        return kept
    weight = mask.weight[..., None]
    frames = np.empty_like(decoded)
    for target, frame in zip(frames, decoded, strict=True):  # all at once would need 8 times their memory
        target[...] = np.round(weight * frame + (1 - weight) * original)
    return frames
