"""How well a region agrees with a ground truth: overlap, and the distance between the two outlines."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.ndimage import binary_erosion, distance_transform_edt


@dataclass(frozen=True)
class Overlap:
    """Agreement of two regions.

    Attributes:
        iou: intersection over union. dice: twice the intersection over the sum of both.
        hd95: the greater of the two 95th percentiles of distances from one outline to the other, in pixels; infinite
            where one region is empty.
        hd95_mm: the same in mm, or None where the pixels' size is not known.
    """

    iou: float
    dice: float
    hd95: float
    hd95_mm: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """For JSON, which has no infinity: None in its place."""
        return {
            "iou": self.iou,
            "dice": self.dice,
            "hd95_pixels": self.hd95 if math.isfinite(self.hd95) else None,
            "hd95_mm": None if self.hd95_mm is None or not math.isfinite(self.hd95_mm) else self.hd95_mm,
        }


def measure_overlap(region: np.ndarray, truth: np.ndarray, spacing: tuple[float, float] | None = None) -> Overlap:
    """Every measure of two regions, [H, W] bool each.

    Args:
        spacing: (row, column) spacing in mm, if it is known.
    """
    in_mm = None if spacing is None else hd95(region, truth, spacing)
    return Overlap(iou(region, truth), dice(region, truth), hd95(region, truth), in_mm)


def iou(region: np.ndarray, truth: np.ndarray) -> float:
    """Intersection over union of two regions of one shape, bool; two empty ones agree (1)."""
    union = np.count_nonzero(region | truth)
    return np.count_nonzero(region & truth) / union if union else 1.0


def dice(region: np.ndarray, truth: np.ndarray) -> float:
    """2 |A and B| / (|A| + |B|) of two regions of one shape, bool; two empty ones agree (1)."""
    both = np.count_nonzero(region) + np.count_nonzero(truth)
    return 2 * np.count_nonzero(region & truth) / both if both else 1.0


def hd95(region: np.ndarray, truth: np.ndarray, spacing: tuple[float, float] = (1.0, 1.0)) -> float:
    """Hausdorff distance at the 95th percentile: the greater of both directions, as MONAI takes it.

    An outline is the pixels that have a neighbour across an edge which is outside, or beyond the image. Distances are
    Euclidean, between centres, in the unit of `spacing` = (row, column); percentiles are interpolated linearly.

    Args:
        region, truth: [H, W] bool.

    Returns:
        0 for two empty regions, infinity where one is empty.
    """
    if not region.any() or not truth.any():
        return 0.0 if not region.any() and not truth.any() else math.inf
    # Distances are only asked for on the outlines: the rest of a large image need not be transformed.
    rows, columns = (np.flatnonzero((region | truth).any(axis=axis)) for axis in (1, 0))
    box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    first, second = _outline(region[box]), _outline(truth[box])
    return max(_percentile(first, second, spacing), _percentile(second, first, spacing))


def _outline(region: np.ndarray) -> np.ndarray:
    return np.asarray(region & ~binary_erosion(region))


def _percentile(start: np.ndarray, goal: np.ndarray, spacing: tuple[float, float]) -> float:
    """95th percentile of the distances from each pixel of `start` to the nearest of `goal`."""
    return float(np.percentile(distance_transform_edt(~goal, sampling=spacing)[start], 95))
