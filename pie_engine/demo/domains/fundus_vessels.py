"""The courses of a retina's vessels: arcades that leave the optic disc and pass the macula, with side branches.

Points are in the eye's own frame (see `fundus.py`): u towards the temple, v down, from the disc, in half pictures.
"""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]
STEP = 0.011  # half pictures from point to point, at most about: 0.7 pixels of 128


def courses(
    rng: np.random.Generator, arcades: tuple[float, float], vein: float, artery: float
) -> list[tuple[Array, Array, float]]:
    """Every vessel of an eye: its path [N, 2], its width in pixels [N] and its strength, 0 to 1.

    `arcades` are the heights of the upper and the lower one, `vein` and `artery` the largest widths, in pixels.
    """
    u = rng.uniform
    vessels = []
    for sign, height in zip((-1.0, 1.0), arcades, strict=True):
        outer = _arcade(rng, sign, height + u(0.05, 0.12), u(0.6, 1.1))
        inner = _arcade(rng, sign, height - u(0.10, 0.18), u(0.2, 0.7))
        swap = rng.random() < 0.5  # either of the two may be the artery
        for path, is_artery in ((outer, swap), (inner, not swap)):
            vessels.append((path, artery, 0.82) if is_artery else (path, vein, 1.0))
        for trunk, side, longest, width in ((outer, sign, 0.55, 2.7), (inner, -sign, 0.40, 2.5)):
            starts = one_in_each_part(rng, int(rng.integers(1, 4)), 0.25, 0.82)
            branches = [_branch(rng, trunk, start, side * u(0.4, 0.9), longest * u(0.55, 1.0)) for start in starts]
            vessels += [(branch, width, 0.85) for branch in branches]
        nasal = np.array([(0, 0.02), (-0.2, u(0.1, 0.3)), (-0.6, u(0.2, 0.6))]) * (1, sign)
        vessels.append((_course(rng, nasal), artery, 0.9))
    return [(path, np.linspace(width, 2.1, len(path)), strength) for path, width, strength in vessels]


def _course(rng: np.random.Generator, control: Array) -> Array:
    """The Bezier curve of control points [K, 2], with two slow waves across it, none at its start; [N, 2]."""
    length = np.hypot(*np.diff(control, axis=0).T).sum()  # of the control polygon: the curve is no longer
    t = np.linspace(0, 1, 2 + int(1.1 * length / (STEP)))
    points = control[:, None, :] * np.ones((len(t), 1))
    while len(points) > 1:
        points = points[:-1] + (points[1:] - points[:-1]) * t[:, None]
    path = points[0]
    along = np.gradient(path, axis=0)
    across = np.stack([-along[:, 1], along[:, 0]], axis=1) / np.maximum(np.hypot(*along.T), 1e-9)[:, None]
    wave = sum(0.016 * np.sin(2 * np.pi * k * length * t + rng.uniform(0, 6.28)) for k in (0.9, 2.0))
    return path + (wave * np.minimum(4 * t, 1))[:, None] * across


def _arcade(rng: np.random.Generator, sign: float, height: float, end: float) -> Array:
    """From the disc around the macula, up (-1) or down (1); `end` is where it ends, of its height; [N, 2]."""
    control = [(0, 0.03), (rng.uniform(-0.10, 0.12), rng.uniform(0.7, 1.0) * height)]
    control += [(rng.uniform(0.25, 0.65), rng.uniform(1.35, 1.6) * height), (rng.uniform(1.0, 1.35), end * height)]
    return _course(rng, np.array(control) * (1, sign))


def one_in_each_part(rng: np.random.Generator, count: int, low: float, high: float) -> Array:
    """`count` rising numbers in `low` to `high`, one at random in each of as many equal parts; [count]."""
    return low + (high - low) * (np.arange(count) + rng.uniform(0.1, 0.9, count)) / count


def _branch(rng: np.random.Generator, trunk: Array, start: float, turn: float, length: float) -> Array:
    """A branch that leaves `trunk` at a fraction of its course, turned by `turn` (radians), and bends on; [N, 2]."""
    i = 4 + int(start * (len(trunk) - 9))
    along = trunk[i + 4] - trunk[i - 4]
    angle = np.arctan2(along[1], along[0])
    steps = [(np.cos(a), np.sin(a)) for a in (angle + turn, angle + turn * rng.uniform(0.8, 1.8))]
    return _course(rng, trunk[i] + length / 2 * np.cumsum([(0, 0), *steps], axis=0))
