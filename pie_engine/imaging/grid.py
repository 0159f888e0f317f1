"""The pixels of a patient's image: what every region is drawn on, and what a mask from a file has to fit."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pie_engine.imaging.reading import Reading

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image


@dataclass(frozen=True)
class Grid:
    """The pixels of a patient's image.

    Attributes:
        size: (width, height).
        path: the image's file, or None.
        facts: what `read_image` says of it.
        reading: which part of the file the image is.
    """

    size: tuple[int, int]
    path: Path | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    reading: Reading = field(default_factory=Reading)

    @classmethod
    def of(cls, source: str | Path | Image | np.ndarray, image: Image, facts: dict[str, Any], reading: Reading) -> Grid:
        """The grid of an image as `read_image` read it from `source`."""
        return cls(image.size, Path(source) if isinstance(source, str | Path) else None, facts, reading)

    @property
    def format(self) -> str:
        """Such as "DICOM", "NIfTI", "array", or Pillow's name for the file's format."""
        return str(self.facts.get("format", "array")).split("-")[0]

    @property
    def spacing(self) -> tuple[float, float] | None:
        """(row, column) spacing in mm, or None if the file does not say it."""
        rows, columns = self.facts.get("spacing_mm") or (None, None)
        return None if rows is None or columns is None else (rows, columns)
