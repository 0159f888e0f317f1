"""One image as its file stores it: values, and how they become a picture."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image as PILImage

from pie_engine.equality import ByContent
from pie_engine.imaging.blocks import row_blocks
from pie_engine.imaging.mapping import Mapping
from pie_engine.imaging.window import to_bytes

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, eq=False)
class Stored(ByContent):
    """Stored values, upright, before they become 8 bits.

    Attributes:
        values: [H, W], or [H, W, 3] in RGB, of the file's own type. Palettes and YBR are RGB already.
        mapping: between them and grey.
        facts: what provenance says: format, bits, which part of the file, the mapping.
        limits: the least and the greatest value that may be stored; None for floating point.
        padding: the least and the greatest of the values that belong to no anatomy and are shown black, or None.
        aspect: (height, width) of a pixel in any unit.
        header: what its own format needs to write it again: a pydicom Dataset, a `NiftiSlice`, or None. It may name
            the patient.
        shown: the picture, where a library made it (mode L, LA, P, RGB, ...); None: it is made from the values.
    """

    values: np.ndarray = field(repr=False)
    mapping: Mapping
    facts: dict[str, Any]
    limits: tuple[int, int] | None = None
    padding: tuple[int, int] | None = None
    aspect: tuple[float, float] = (1.0, 1.0)
    header: Any = field(default=None, repr=False)
    shown: Image | None = None

    @property
    def size(self) -> tuple[int, int]:
        """(width, height)."""
        return self.values.shape[1], self.values.shape[0]

    @property
    def colour(self) -> bool:
        return self.values.ndim == 3

    @property
    def spacing(self) -> tuple[float, float] | None:
        """(row, column) distance of pixels in the patient in mm, or None if the file does not say it."""
        known = self.facts.get("spacing_mm")
        if not known or self.facts.get("spacing_plane") == "detector":
            return None
        return known[0], known[1]

    @property
    def padded(self) -> np.ndarray:
        """[H, W] bool: which pixels are padding."""
        return within(self.values[..., 0] if self.colour else self.values, self.padding)

    def grey(self) -> np.ndarray:
        """What is shown of every value, in float64: [H, W] or [H, W, 3] in [0, 1]."""
        return self._grey_of(self.values)

    def _grey_of(self, values: np.ndarray) -> np.ndarray:
        grey = self.mapping.forward(values)
        if self.padding is None:
            return grey
        return np.where(within(values[..., 0] if self.colour else values, self.padding), 0.0, grey)

    def picture(self) -> Image:
        """The picture with 8 bits a channel."""
        if self.shown is not None:
            return self.shown
        pixels = np.empty(self.values.shape, np.uint8)
        for rows in row_blocks(self.values):  # all at once would need eight times the picture's memory, several times
            pixels[rows] = to_bytes(self._grey_of(self.values[rows]))
        return PILImage.fromarray(pixels)


def within(values: np.ndarray, limits: tuple[int, int] | None) -> np.ndarray:
    """Which values lie between two limits, both included; None holds none. Bool, of the values' shape."""
    if limits is None:
        return np.zeros(values.shape, bool)
    return np.asarray((values >= limits[0]) & (values <= limits[1]))
