"""Two ways of editing one picture against each other where they have come equally far.

Each gives a curve: what is gained (a classifier's confidence) over what it costs (similarity to the input), one point
per frame. At the same similarity the one of greater confidence is the better; at the end of two runs it may only have
gone further.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pie_engine.errors import InputError


@dataclass(frozen=True)
class Matched:
    """One curve's y minus the other's at equal x, over the range of x that both reach.

    Attributes:
        mean: over the range, every x counting the same.
        end: where the range ends, as far from the input as both come.
        start_x, end_x: the range, from where both have a frame to where the first of them ends.
    """

    mean: float
    end: float
    start_x: float
    end_x: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def match_curves(
    first: Sequence[tuple[float, float]], second: Sequence[tuple[float, float]], *, falling: bool
) -> Matched | None:
    """Compare two curves at equal x.

    A curve is read as its records: the points whose x is beyond that of all points before, in order, with straight
    lines between. So a run that comes back towards the input counts by the first time that it got so far, and y is a
    continuous function of x. The mean is exact for these lines (trapezoids between the points of both curves). Straight
    lines are kind to a curve of few points that bends upwards, which is why the input is no point of it: from there to
    the first frame, where most of a run may happen, there is nothing to compare.

    Args:
        first, second: (x, y) per frame after the input, in order; finite.
        falling: whether x falls away from the input (a similarity) or rises (a confidence).

    Returns:
        None where no range of x is common to both.

    Raises:
        InputError: a curve without a point, or a value that is not finite.
    """
    sign = -1.0 if falling else 1.0
    a, b = _records(first, sign), _records(second, sign)
    start, end = max(a[0, 0], b[0, 0]), min(a[-1, 0], b[-1, 0])
    if not start < end:
        return None
    inner = np.concatenate([a[:, 0], b[:, 0]])
    x = np.unique(np.concatenate([[start, end], inner[(start < inner) & (inner < end)]]))
    difference = np.interp(x, a[:, 0], a[:, 1]) - np.interp(x, b[:, 0], b[:, 1])
    mean = float(np.sum((difference[1:] + difference[:-1]) / 2 * np.diff(x)) / (end - start))
    return Matched(mean, float(difference[-1]), float(sign * start), float(sign * end))


def _records(points: Sequence[tuple[float, float]], sign: float) -> np.ndarray:
    """[R, 2] float64: the points that go beyond all before, with x rising."""
    values = np.asarray(points, np.float64)
    if values.ndim != 2 or values.shape[1:] != (2,) or not len(values) or not np.isfinite(values).all():
        raise InputError(f"a curve of {len(values)} points is empty or not finite; pass finite (x, y)")
    values = values * [sign, 1.0]
    beyond = np.concatenate([[True], values[1:, 0] > np.maximum.accumulate(values[:, 0])[:-1]])
    found: np.ndarray = values[beyond]
    return found
