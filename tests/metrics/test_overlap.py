"""Overlap and distance of two regions, against brute force and values worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pie_engine.metrics import measure_overlap
from pie_engine.metrics.overlap import dice, hd95, iou


def region(*rows: str) -> np.ndarray:
    return np.array([[char == "#" for char in row] for row in rows])


def slow_hd95(first: np.ndarray, second: np.ndarray, spacing: tuple[float, float] = (1, 1)) -> float:
    """Every pixel of one outline against every pixel of the other, in plain Python."""

    def outline(mask: np.ndarray) -> list[tuple[int, int]]:
        height, width = mask.shape
        points = []
        for y in range(height):
            for x in range(width):
                around = [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
                inner = all(0 <= v < height and 0 <= u < width and mask[v, u] for v, u in around)
                if mask[y, x] and not inner:
                    points.append((y, x))
        return points

    def percentile(start: list[tuple[int, int]], goal: list[tuple[int, int]]) -> float:
        distances = sorted(
            min(math.hypot((y - v) * spacing[0], (x - u) * spacing[1]) for v, u in goal) for y, x in start
        )
        place = 0.95 * (len(distances) - 1)
        low = int(place)
        high = min(low + 1, len(distances) - 1)
        return distances[low] + (place - low) * (distances[high] - distances[low])

    one, two = outline(first), outline(second)
    return max(percentile(one, two), percentile(two, one))


def test_by_hand() -> None:
    first = region("####....", "####....", "####....")
    second = region("..####..", "..####..", "..####..")
    assert iou(first, second) == 6 / 18
    assert dice(first, second) == 12 / 24
    # The outlines are all but the two middle pixels. From one to the other it is 2, 1, 0, 0 in the rows above and
    # below, and in the middle 2 and (to the pixel above) 1: three twos of ten.
    assert hd95(first, second) == 2.0
    assert hd95(first, second, (5.0, 0.5)) == 1.0  # along a row, half a millimetre each
    far = region("#.......", "........", "........")
    near = region("......#.", "........", "........")
    assert hd95(far, near) == 6.0
    assert measure_overlap(far, near, (1.0, 0.25)).hd95_mm == 1.5
    assert measure_overlap(far, near).hd95_mm is None


@pytest.mark.parametrize("seed", range(6))
def test_hd95_against_brute_force(seed: int) -> None:
    rng = np.random.default_rng(seed)
    masks = []
    for _ in range(2):
        mask = rng.random((23, 31)) < 0.02
        for _ in range(3):  # grow the seeds into blobs, some at the border
            mask |= np.roll(mask, 1, axis=int(rng.integers(2))) | np.roll(mask, -1, axis=int(rng.integers(2)))
        masks.append(mask)
    for spacing in ((1.0, 1.0), (0.7, 2.5)):
        assert hd95(*masks, spacing) == pytest.approx(slow_hd95(*masks, spacing), abs=1e-9)
        assert hd95(*masks, spacing) == hd95(*masks[::-1], spacing)


def test_one_outlier_is_not_the_maximum() -> None:
    """Of 100 outline pixels the farthest five hardly count: that is what the percentile is for."""
    line, other = np.zeros((1, 200), bool), np.zeros((1, 200), bool)
    line[0, :100] = other[0, :100] = True
    other[0, 199] = True
    assert hd95(line, other) == 0.0


def test_the_same_and_the_empty() -> None:
    some, empty = region(".##.", ".##."), np.zeros((2, 4), bool)
    same = measure_overlap(some, some, (1.0, 1.0))
    assert (same.iou, same.dice, same.hd95, same.hd95_mm) == (1.0, 1.0, 0.0, 0.0)
    both = measure_overlap(empty, empty)
    assert (both.iou, both.dice, both.hd95) == (1.0, 1.0, 0.0)
    for pair in ((some, empty), (empty, some)):
        one = measure_overlap(*pair, (1.0, 1.0))
        assert (one.iou, one.dice, one.hd95) == (0.0, 0.0, math.inf)
        assert one.to_dict() == {"iou": 0.0, "dice": 0.0, "hd95_pixels": None, "hd95_mm": None}
