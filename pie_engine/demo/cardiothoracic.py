"""The cardiothoracic ratio from pixels alone: no learning, and nothing known about how the picture was made.

As a radiologist reads it: the largest width of the heart over the largest inner width of the thorax. Each row of the
chest is walked from the lungs outwards to the chest wall, and inwards to the border of the heart.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, gaussian_filter1d, median_filter

from pie_engine.equality import ByContent
from pie_engine.errors import InputError

FLAT = 0.15  # pixels: a border that moves less than this over a few rows runs straight down


@dataclass(frozen=True)
class Cardiothoracic:
    """Widths in pixels, and their ratio."""

    heart: float
    thorax: float

    @property
    def ratio(self) -> float:
        return self.heart / self.thorax


@dataclass(frozen=True, eq=False)
class _Side(ByContent):
    """One lung, seen from the midline: distances in pixels per row, and where the lung is in the picture."""

    wall: NDArray[np.float64]  # [rows]
    heart: NDArray[np.float64]  # [rows]
    rows: NDArray[np.int64]  # [rows], strictly rising


def measure_ctr(image: NDArray[np.uint8]) -> Cardiothoracic:
    """Measure a frontal radiograph, dense = bright: uint8 [H, W] or [H, W, 3], made for about 128 pixels a side."""
    if image.dtype != np.uint8 or image.ndim not in (2, 3):
        raise InputError(f"expected uint8 [H, W] or [H, W, 3], got {image.dtype} {list(image.shape)}; convert it first")
    grey = image.mean(axis=2) if image.ndim == 3 else image.astype(np.float64)
    smooth = gaussian_filter(grey, (2.0, 0.7))
    middle = _midline(smooth)
    patient_right = _side(smooth[:, middle::-1])
    patient_left = _side(smooth[:, middle:])
    heart = max(patient_right.heart) + max(patient_left.heart)
    common = np.intersect1d(patient_right.rows, patient_left.rows, return_indices=True)
    if not len(common[0]):
        raise InputError("no row of the picture shows both lungs; pass a frontal chest radiograph, dense = bright")
    thorax = max(patient_right.wall[common[1]] + patient_left.wall[common[2]])
    return Cardiothoracic(float(heart), float(thorax))


def ratio_or_nan(image: NDArray[np.uint8]) -> float:
    """The ratio that `measure_ctr` finds, or NaN where the picture shows no two lungs."""
    try:
        return measure_ctr(image).ratio
    except InputError:
        return float("nan")


def _midline(smooth: NDArray[np.float64]) -> int:
    """The column of the spine: the brightest one near the middle, over the upper half of the chest."""
    height, width = smooth.shape
    profile = gaussian_filter1d(smooth[height // 4 : height // 2].mean(axis=0), width / 40)
    low, high = int(width * 0.38), int(width * 0.62)
    return low + int(np.argmax(profile[low:high]))


def _side(half: NDArray[np.float64]) -> _Side:
    """Walk the rows of one half, the midline first: float64 [H, W/2]."""
    height = len(half)
    rows, walls, hearts = [], [], []
    for row in range(int(height * 0.25), int(height * 0.85)):
        borders = _row_borders(half[row])
        if borders is not None:
            rows.append(row)
            hearts.append(borders[0])
            walls.append(borders[1])
    if len(rows) < height // 8:
        raise InputError("a lung is not visible as a dark region; pass a frontal chest radiograph, dense = bright")
    keep = _above_diaphragm(np.array(rows), median_filter(np.array(hearts), 5, mode="nearest"), height)
    wall = median_filter(np.array(walls), 7, mode="nearest")
    return _Side(wall[:keep], median_filter(np.array(hearts), 3, mode="nearest")[:keep], np.array(rows[:keep]))


def _row_borders(profile: NDArray[np.float64]) -> tuple[float, float] | None:
    """Heart border and chest wall of one row, from the midline outwards; None where no lung is between them."""
    width = len(profile)
    search = profile[: int(width * 0.90)]
    lung = _darkest_inside(search)
    if lung is None:
        return None
    inner, floor = profile[:4].mean(), profile[lung]
    outer = profile[lung : lung + width // 2].max()
    if inner - floor < 25 or outer - floor < 25:
        return None
    heart = _crossing(profile[: lung + 1][::-1], (inner + floor) / 2)
    wall = _crossing(profile[lung:], (outer + floor) / 2)
    if heart is None or wall is None:
        return None
    return lung - heart, lung + wall


def _darkest_inside(search: NDArray[np.float64]) -> int | None:
    """The darkest pixel that has something much brighter on either side (air outside the body has not)."""
    right = np.maximum.accumulate(search[::-1])[::-1]
    enclosed = right - search > 25
    enclosed[:3] = False
    if not enclosed.any():
        return None
    return int(np.argmin(np.where(enclosed, search, np.inf)))


def _crossing(values: NDArray[np.float64], level: float) -> float | None:
    """Where `values` first rises above `level`, to a fraction of a pixel."""
    above = np.flatnonzero(values >= level)
    if not len(above) or above[0] == 0:
        return None
    i = int(above[0])
    return float(i - 1 + (level - values[i - 1]) / (values[i] - values[i - 1]))


def _above_diaphragm(rows: NDArray[np.int64], border: NDArray[np.float64], height: int) -> int:
    """How many leading rows lie above the diaphragm: the heart's border turns back, the diaphragm's runs out fast."""
    border = gaussian_filter1d(border, 1.2, mode="nearest")
    span = max(2, height // 42)
    for i in range(len(rows) - span):
        if rows[i] < height * 0.52:
            continue
        turned = border[i] >= border[i + 1 : i + 1 + span].max() - FLAT
        if turned or border[i + span] - border[i] > 2.0 * (rows[i + span] - rows[i]):
            return i + 1
    return len(rows)
