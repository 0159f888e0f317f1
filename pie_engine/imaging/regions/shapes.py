"""Regions drawn with numbers: boxes, ellipses and polygons in the pixels of the source image.

The image's left top corner is 0,0 and its first pixel's centre 0.5,0.5. A pixel belongs to a shape if its centre does,
so that a box from 10 to 20 is ten pixels wide, and shapes that share an edge share no pixel.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from numbers import Real
from typing import ClassVar, Self

import numpy as np

from pie_engine.errors import ConfigError, InputError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Shape:
    """What boxes, ellipses and polygons have in common.

    Attributes:
        name: what it is to the user.
        form: how it is written on the command line.
    """

    name: ClassVar[str]
    form: ClassVar[str]

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read numbers with commas between them. Raises ConfigError."""
        numbers = []
        for word in text.split(","):
            try:
                numbers.append(float(word))
            except ValueError:
                raise ConfigError(
                    f"{cls.name} '{text}' holds '{word}', which is not a number; write {cls.form}"
                ) from None
        if numbers and all(0 <= number <= 1 for number in numbers):
            raise ConfigError(
                f"{cls.name} '{text}' lies within one pixel; coordinates are pixels of the image, not shares of it: "
                "multiply them by its width and height"
            )
        return cls._of(text, numbers)

    @classmethod
    def _of(cls, text: str, numbers: list[float]) -> Self:
        raise NotImplementedError

    @classmethod
    def _four(cls, text: str, numbers: list[float]) -> list[float]:
        if len(numbers) != 4:
            raise ConfigError(f"{cls.name} '{text}' has {len(numbers)} numbers, not 4; write {cls.form}")
        return numbers

    @property
    def numbers(self) -> list[float]:
        """As they are written on the command line."""
        raise NotImplementedError

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """(left, top, right, bottom)."""
        raise NotImplementedError

    def __str__(self) -> str:
        return f"{self.name} {','.join(f'{number:g}' for number in self.numbers)}"

    def draw(self, size: tuple[int, int]) -> np.ndarray:
        """[H, W] bool in an image of `size` = (width, height). What lies beyond the image is clipped with a warning.

        Raises:
            InputError: it holds no pixel of the image.
        """
        width, height = size
        left, top, right, bottom = self.bounds
        where = f"the image of {width} x {height}"
        if right <= 0 or bottom <= 0 or left >= width or top >= height:
            raise InputError(f"{self} lies outside {where}; pass coordinates in its pixels")
        pixels = np.zeros((height, width), bool)
        # Pixels whose centres lie within the bounds: the rest need not be looked at.
        columns = slice(max(0, math.ceil(left - 0.5)), min(width, math.floor(right - 0.5) + 1))
        rows = slice(max(0, math.ceil(top - 0.5)), min(height, math.floor(bottom - 0.5) + 1))
        x, y = np.arange(width)[columns] + 0.5, np.arange(height)[rows] + 0.5
        pixels[rows, columns] = self._inside(x, y)
        if not pixels.any():
            raise InputError(f"{self} contains no pixel centre of {where}; make it larger")
        if left < 0 or top < 0 or right > width or bottom > height:
            log.warning("%s reaches beyond %s and is clipped", self, where)
        return pixels

    def _inside(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """x: [w], y: [h], the centres of columns and rows -> [h, w] bool."""
        raise NotImplementedError

    def _check_finite(self) -> None:
        for number in self.numbers:
            if isinstance(number, bool) or not isinstance(number, Real) or not math.isfinite(number):
                raise ConfigError(f"{self.name} holds {number!r}, which is not a finite number; write {self.form}")


@dataclass(frozen=True)
class Box(Shape):
    """A rectangle from (x0, y0) to (x1, y1). Raises ConfigError: x1 is not above x0, or y1 not above y0."""

    name: ClassVar[str] = "box"
    form: ClassVar[str] = "x0,y0,x1,y1"
    x0: float
    y0: float
    x1: float
    y1: float

    def __post_init__(self) -> None:
        self._check_finite()
        for axis, low, high in (("x", self.x0, self.x1), ("y", self.y0, self.y1)):
            if low >= high:
                raise ConfigError(
                    f"{self} has {axis}1 {high:g}, which is not above {axis}0 {low:g}; "
                    "write the left top corner first: x0,y0,x1,y1"
                )

    @property
    def numbers(self) -> list[float]:
        return [self.x0, self.y0, self.x1, self.y1]

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        return self.x0, self.y0, self.x1, self.y1

    @classmethod
    def _of(cls, text: str, numbers: list[float]) -> Self:
        return cls(*cls._four(text, numbers))

    def _inside(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return ((y >= self.y0) & (y < self.y1))[:, None] & ((x >= self.x0) & (x < self.x1))


@dataclass(frozen=True)
class Ellipse(Shape):
    """An ellipse around (cx, cy) with radii rx and ry. Raises ConfigError: a radius is not greater than 0."""

    name: ClassVar[str] = "ellipse"
    form: ClassVar[str] = "cx,cy,rx,ry"
    cx: float
    cy: float
    rx: float
    ry: float

    def __post_init__(self) -> None:
        self._check_finite()
        for name, radius in (("rx", self.rx), ("ry", self.ry)):
            if radius <= 0:
                raise ConfigError(f"{self} has {name} {radius:g}, which is not greater than 0; write {self.form}")

    @property
    def numbers(self) -> list[float]:
        return [self.cx, self.cy, self.rx, self.ry]

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        return self.cx - self.rx, self.cy - self.ry, self.cx + self.rx, self.cy + self.ry

    @classmethod
    def _of(cls, text: str, numbers: list[float]) -> Self:
        return cls(*cls._four(text, numbers))

    def _inside(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return (((y - self.cy) / self.ry) ** 2)[:, None] + ((x - self.cx) / self.rx) ** 2 <= 1


@dataclass(frozen=True)
class Polygon(Shape):
    """What a closed line through `points`, [(x, y), ...], surrounds; where it crosses itself, by the even-odd rule.

    Raises ConfigError: fewer than three points.
    """

    name: ClassVar[str] = "polygon"
    form: ClassVar[str] = "x,y,x,y,x,y,..."
    points: tuple[tuple[float, float], ...]

    def __post_init__(self) -> None:
        try:
            points = tuple((x, y) for x, y in self.points)
        except (TypeError, ValueError):
            raise ConfigError(f"polygon {self.points!r} is not a sequence of (x, y); pass three or more") from None
        object.__setattr__(self, "points", points)
        self._check_finite()
        if len(points) < 3:
            raise ConfigError(f"{self} has {len(points)} points (at least 3 needed); write {self.form}")

    @classmethod
    def _of(cls, text: str, numbers: list[float]) -> Self:
        if len(numbers) % 2:
            raise ConfigError(f"polygon '{text}' has {len(numbers)} numbers, not pairs of x,y; write {cls.form}")
        return cls(tuple(zip(numbers[::2], numbers[1::2], strict=True)))

    def __str__(self) -> str:
        if len(self.points) <= 6:
            return super().__str__()
        return f"polygon of {len(self.points)} points"

    @property
    def numbers(self) -> list[float]:
        return [number for point in self.points for number in point]

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        xs, ys = zip(*self.points, strict=True)
        return min(xs), min(ys), max(xs), max(ys)

    def _inside(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        start = np.array(self.points, np.float64)
        end = np.roll(start, -1, axis=0)
        pixels = np.zeros((len(y), len(x)), bool)
        for row, centre in zip(pixels, y, strict=True):
            crossing = (start[:, 1] <= centre) != (end[:, 1] <= centre)
            (x0, y0), (x1, y1) = start[crossing].T, end[crossing].T
            # Left of a pixel's centre lies an odd number of crossings if the centre is inside.
            crossings = np.sort(x0 + (centre - y0) * (x1 - x0) / (y1 - y0))
            row[:] = np.searchsorted(crossings, x, side="right") % 2 == 1
        return pixels
