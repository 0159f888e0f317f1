"""How much each round changed, inside and outside the region of interest (ROI)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np


@dataclass(frozen=True)
class Change:
    """One number per round, N of each.

    Attributes:
        increment_inside: root mean square of latent_n - latent_(n-1) where the latent mask is at least 0.5.
        displacement_inside: the same of latent_n - original latent.
        displacement_outside: root mean square of latent_n - original latent where the mask is 0; None without a mask
            or where the mask leaves nothing out. Bounded by beta1 / (1 - beta1) times the edit (docs/convergence.md).
        decoded_outside: mean absolute grey levels between decoded frame n, before compositing, and the decoded
            original, outside the ROI. Against the decoded original, so that the VAE's own error is left out. None
            where it is not asked for (`RunConfig.leakage`), as it takes one more decoding.
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


class ChangeMeter:
    """Measures one progression round by round, as its frames come.

    Args:
        original_latent: [4, h, w].
        decoded_original: [H, W, 3] uint8, or None where leakage before compositing is not measured.
        input_frame: [H, W, 3] uint8, frame 0.
        latent_mask: [1 or 4, h, w] in [0, 1], or None; mask: [H, W] bool, or None.
    """

    def __init__(
        self,
        original_latent: np.ndarray,
        decoded_original: np.ndarray | None,
        input_frame: np.ndarray,
        latent_mask: np.ndarray | None,
        mask: np.ndarray | None,
    ):
        shape, size = original_latent.shape, input_frame.shape[:2]
        soft = np.ones(shape) if latent_mask is None else np.broadcast_to(latent_mask, shape)
        self._inside, self._outside = inside_region(shape, latent_mask), soft == 0
        self._pixels_outside = np.zeros(size, bool) if mask is None else ~mask
        # In official semantics any grey counts, and none of it need be half white.
        self._pixels_inside = np.ones(size, bool) if mask is None or not mask.any() else mask
        self._original, self._previous = original_latent, original_latent
        self._decoded_original, self._input = decoded_original, input_frame
        self._increments: list[float] = []
        self._inside_from_original: list[float] = []
        self._outside_from_original: list[float] = []
        self._decoded_outside: list[float] = []
        self._frame_outside: list[float] = []
        self._frame_inside: list[float] = []

    def add(self, latent: np.ndarray, decoded: np.ndarray, frame: np.ndarray) -> None:
        """The next round: its latent [4, h, w], its frame [H, W, 3] uint8 before compositing, and as written."""
        self._increments.append(root_mean_square((latent - self._previous)[self._inside]))
        self._inside_from_original.append(root_mean_square((latent - self._original)[self._inside]))
        if self._outside.any():
            self._outside_from_original.append(root_mean_square((latent - self._original)[self._outside]))
        differences = grey_differences(frame, self._input)
        if self._pixels_outside.any():
            self._frame_outside.append(float(differences[self._pixels_outside].mean()))
            if self._decoded_original is not None:
                leaked = grey_differences(decoded, self._decoded_original)
                self._decoded_outside.append(float(leaked[self._pixels_outside].mean()))
        self._frame_inside.append(float(differences[self._pixels_inside].mean()))
        self._previous = latent

    @property
    def change(self) -> Change:
        """Of the rounds so far."""
        return Change(
            increment_inside=self._increments,
            displacement_inside=self._inside_from_original,
            displacement_outside=self._outside_from_original if self._outside.any() else None,
            decoded_outside=self._decoded_outside if self._leaks and self._decoded_original is not None else None,
            frame_outside=self._frame_outside if self._leaks else None,
            frame_inside=self._frame_inside,
        )

    @property
    def _leaks(self) -> bool:
        return bool(self._pixels_outside.any())


def measure_change(
    latents: np.ndarray,
    original_latent: np.ndarray,
    decoded: np.ndarray,
    decoded_original: np.ndarray | None,
    frames: np.ndarray,
    latent_mask: np.ndarray | None,
    mask: np.ndarray | None,
) -> Change:
    """Measure a complete progression.

    Args:
        latents: [N, 4, h, w]; decoded: [N, H, W, 3] uint8, frames before compositing.
        frames: [N + 1, H, W, 3] uint8 as written, frame 0 the input.
        original_latent, decoded_original, latent_mask, mask: see `ChangeMeter`.
    """
    meter = ChangeMeter(original_latent, decoded_original, frames[0], latent_mask, mask)
    for latent, decoded_frame, frame in zip(latents, decoded, frames[1:], strict=True):
        meter.add(latent, decoded_frame, frame)
    return meter.change


def unevenness(displacements: Sequence[float]) -> float | None:
    """How far frames lie from an even way: the largest |d_n / d_N - n/N|, 0 for an even pace.

    Args:
        displacements: d_1 to d_N, `Change.displacement_inside`.

    Returns:
        A share of the whole way; None without any, or where the last frame lies where the first one began.
    """
    values = np.asarray(displacements, np.float64)
    if not len(values) or not values[-1]:
        return None
    return float(np.abs(values / values[-1] - np.arange(1, len(values) + 1) / len(values)).max())


def late_change(frames: np.ndarray, mask: np.ndarray | None) -> float:
    """Mean absolute grey levels inside the region between the last frame and the one half-way.

    Args:
        frames: [N + 1, H, W, 3] uint8, the input first.
        mask: [H, W] bool with at least one True, or None for all of the picture.
    """
    differences = grey_differences(frames[-1], frames[(len(frames) - 1) // 2])
    return float((differences if mask is None else differences[mask]).mean())


def inside_region(shape: tuple[int, ...], latent_mask: np.ndarray | None) -> np.ndarray:
    """The latents that are at least half inside, bool of `shape`; of a region smaller than that those most inside.

    Args:
        shape: (4, h, w).
        latent_mask: [1 or 4, h, w] in [0, 1], or None for all.
    """
    soft = np.ones(shape) if latent_mask is None else np.broadcast_to(latent_mask, shape)
    inside: np.ndarray = soft >= 0.5
    return inside if inside.any() else soft == soft.max()


def root_mean_square(values: np.ndarray) -> float:
    """Computed in double precision."""
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))


def grey_differences(images: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Absolute differences in grey levels, int16 [..., H, W, 3], of uint8 images and a reference [H, W, 3]."""
    return np.abs(images.astype(np.int16) - reference.astype(np.int16))
