"""How much each round changed, inside and outside the region of interest (ROI)."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np


@dataclass(frozen=True)
class Change:
    """One number per round, N of each.

    Attributes:
        increment_inside: root mean square of latent_n - latent_(n-1) where the latent mask is at least 0.5.
        displacement_inside: the same of latent_n - original latent.
        displacement_outside: root mean square of latent_n - original latent where the mask is 0; None without a mask
            or where the mask leaves nothing out. Bounded by beta1 / (1 - beta1) times the edit (design, section 2).
        decoded_outside: mean absolute grey levels between decoded frame n, before compositing, and the decoded
            original, outside the ROI. Against the decoded original, so that the VAE's own error is left out.
        frame_outside: mean absolute grey levels between written frame n and the input outside the ROI.
        frame_inside: the same inside the ROI; without a mask, of the whole image.
    """

    increment_inside: list[float]
    displacement_inside: list[float]
    displacement_outside: list[float] | None
    decoded_outside: list[float] | None
    frame_outside: list[float] | None
    frame_inside: list[float]

    def to_dict(self) -> dict[str, list[float] | None]:
        return asdict(self)


def measure_change(
    latents: np.ndarray,
    original_latent: np.ndarray,
    decoded: np.ndarray,
    decoded_original: np.ndarray | None,
    frames: np.ndarray,
    latent_mask: np.ndarray | None,
    mask: np.ndarray | None,
) -> Change:
    """Measure one progression.

    Args:
        latents: [N, 4, h, w]; original_latent: [4, h, w].
        decoded: [N, H, W, 3] uint8, frames before compositing.
        decoded_original: [H, W, 3] uint8, or None without a mask.
        frames: [N + 1, H, W, 3] uint8 as written, frame 0 the input.
        latent_mask: [1 or 4, h, w] in [0, 1], or None; mask: [H, W] bool, or None.
    """
    shape = latents.shape[1:]
    soft = np.ones(shape) if latent_mask is None else np.broadcast_to(latent_mask, shape)
    inside, outside = soft >= 0.5, soft == 0
    if not inside.any():
        inside = soft == soft.max()  # a ROI smaller than half a latent
    previous = np.concatenate([original_latent[None], latents[:-1]])
    pixels_outside = np.zeros(frames.shape[1:3], bool) if mask is None else ~mask
    # In official semantics any grey counts, and none of it need be half white.
    pixels_inside = np.ones(frames.shape[1:3], bool) if mask is None or not mask.any() else mask

    def grey(images: np.ndarray, reference: np.ndarray | None) -> list[float] | None:
        if reference is None or not pixels_outside.any():
            return None
        return [float(d[pixels_outside].mean()) for d in grey_levels_apart(images, reference)]

    return Change(
        increment_inside=[_rms((z - before)[inside]) for z, before in zip(latents, previous, strict=True)],
        displacement_inside=[_rms((z - original_latent)[inside]) for z in latents],
        displacement_outside=[_rms((z - original_latent)[outside]) for z in latents] if outside.any() else None,
        decoded_outside=grey(decoded, decoded_original),
        frame_outside=grey(frames[1:], frames[0]),
        frame_inside=[float(d[pixels_inside].mean()) for d in grey_levels_apart(frames[1:], frames[0])],
    )


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))


def grey_levels_apart(images: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Absolute differences in grey levels, int16 [..., H, W, 3], of uint8 images and a reference [H, W, 3]."""
    return np.abs(images.astype(np.int16) - reference.astype(np.int16))
