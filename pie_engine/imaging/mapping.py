"""How stored values become grey, and grey becomes stored values again.

A mapping is DICOM's chain, which serves every format: modality (rescale or lookup table), then what is shown of it
(window, range or lookup table), then polarity. `forward` is what reading does. `inverse` undoes it for values that
were changed; what a window clips comes back at its edge.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pie_engine.equality import ByContent
from pie_engine.imaging.window import apply_window

# A sigmoid reaches neither black nor white: half a grey level before them is as far as it is followed back.
_SIGMOID_EDGE = 0.5 / 255


@dataclass(frozen=True)
class Rescale:
    """values * slope + intercept."""

    slope: float
    intercept: float

    def forward(self, values: np.ndarray) -> np.ndarray:
        scaled = values.astype(np.float64)
        scaled *= self.slope
        scaled += self.intercept
        return scaled

    def inverse(self, values: np.ndarray) -> np.ndarray:
        return (values - self.intercept) / self.slope

    @property
    def invertible(self) -> bool:
        return self.slope != 0


@dataclass(frozen=True, eq=False)
class Lookup(ByContent):
    """A lookup table (PS3.3 C.11.1.1 and C.11.2.1.1): whole numbers from `first` on -> `entries`.

    Attributes:
        entries: [n] int64.
        bits: depth of the entries.
    """

    entries: np.ndarray
    first: int
    bits: int

    def forward(self, values: np.ndarray) -> np.ndarray:
        index = np.round(values).astype(np.int64) - self.first
        return self.entries[np.clip(index, 0, len(self.entries) - 1)]

    def inverse(self, values: np.ndarray) -> np.ndarray:
        """Between two entries by interpolation; on a plateau, any place of it."""
        index = np.arange(len(self.entries), dtype=np.float64)
        if self.entries[0] > self.entries[-1]:
            return self.first + np.interp(values, self.entries[::-1], index[::-1])
        return self.first + np.interp(values, self.entries, index)

    @property
    def invertible(self) -> bool:
        steps = np.diff(self.entries)
        return bool(((steps >= 0).all() or (steps <= 0).all()) and steps.any())


@dataclass(frozen=True, eq=False)
class VoiLookup(Lookup):
    """A lookup table whose entries are grey: 0 is black, 2**bits - 1 is white."""

    def forward(self, values: np.ndarray) -> np.ndarray:
        return super().forward(values) / (2**self.bits - 1)

    def inverse(self, grey: np.ndarray) -> np.ndarray:
        return super().inverse(grey * (2**self.bits - 1))


@dataclass(frozen=True)
class Window:
    """A window; see `apply_window`."""

    center: float
    width: float
    function: str

    def forward(self, values: np.ndarray) -> np.ndarray:
        return apply_window(values, self.center, self.width, self.function)

    def inverse(self, grey: np.ndarray) -> np.ndarray:
        if self.function == "SIGMOID":
            grey = np.clip(grey, _SIGMOID_EDGE, 1 - _SIGMOID_EDGE)
            return self.center - self.width / 4 * np.log(1 / grey - 1)
        center, width = self.center, self.width
        if self.function == "LINEAR":
            center, width = center - 0.5, width - 1
        if width == 0:  # a threshold: the nearest whole numbers on both sides
            return np.where(grey > 0.5, np.floor(center) + 1, np.floor(center))
        return (grey - 0.5) * width + center

    @property
    def invertible(self) -> bool:
        return True

    def describe(self, source: str) -> dict[str, Any]:
        """As provenance states it."""
        return {
            "function": self.function,
            "window_center": self.center,
            "window_width": self.width,
            "source": source,
        }


@dataclass(frozen=True)
class Range:
    """low -> black, high -> white; where they are equal there is nothing to see, and all is black."""

    low: float
    high: float

    def forward(self, values: np.ndarray) -> np.ndarray:
        scale = self.high - self.low
        if scale <= 0:
            return np.zeros(values.shape)
        return np.clip((values.astype(np.float64) - self.low) / scale, 0, 1)

    def inverse(self, grey: np.ndarray) -> np.ndarray:
        return self.low + grey * (self.high - self.low)

    @property
    def invertible(self) -> bool:
        return self.high > self.low

    def describe(self, source: str) -> dict[str, Any]:
        """As provenance states it."""
        return {"function": "full range", "low": float(self.low), "high": float(self.high), "source": source}


@dataclass(frozen=True)
class Mapping:
    """Stored values <-> grey in [0, 1], 0 is black.

    Attributes:
        shown: what is shown of the values, or of what `modality` makes of them.
        inverted: whether low values are bright (MONOCHROME1).
        facts: as provenance states it.
    """

    shown: Window | Range | VoiLookup
    modality: Rescale | Lookup | None = None
    inverted: bool = False
    facts: dict[str, Any] = field(default_factory=dict)

    def forward(self, values: np.ndarray) -> np.ndarray:
        """Stored values of any shape -> float64 in [0, 1]."""
        grey = self.shown.forward(values if self.modality is None else self.modality.forward(values))
        return 1 - grey if self.inverted else grey

    def inverse(self, grey: np.ndarray) -> np.ndarray:
        """[0, 1] of any shape -> float64, values to be stored, neither rounded nor limited to what can be stored."""
        values = self.shown.inverse(1 - grey if self.inverted else grey)
        return values if self.modality is None else self.modality.inverse(values)

    @property
    def invertible(self) -> bool:
        """Whether every grey belongs to stored values: no slope of 0, no empty range, no table that turns back."""
        return self.shown.invertible and (self.modality is None or self.modality.invertible)
