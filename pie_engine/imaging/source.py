"""Where an item's image came from, so that it can be read again at its own geometry and bit depth."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pie_engine.errors import InputError
from pie_engine.imaging.image import read_stored
from pie_engine.imaging.reading import Reading
from pie_engine.imaging.regions.region import content_hash
from pie_engine.imaging.stored import Stored

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class ImageSource:
    """An image as it was given, and what it held when it was read.

    Attributes:
        image: path, PIL image or array.
        reading: which part of the file, with which window.
        sha256: of the file's bytes, or of the array; see `content_hash`.
    """

    image: str | Path | Image | np.ndarray = field(repr=False, compare=False)  # the hash stands for it
    reading: Reading
    sha256: str

    @classmethod
    def of(cls, image: str | Path | Image | np.ndarray, reading: Reading) -> ImageSource:
        """The source that `image` is now. Raises OSError: the file cannot be read."""
        return cls(image, reading, content_hash(image))

    def read(self) -> Stored:
        """Its stored values, again.

        Raises:
            InputError: it cannot be read any more, or is not what it was.
        """
        stored = read_stored(self.image, reading=self.reading)
        if content_hash(self.image) != self.sha256:
            what = f"image {self.image}" if isinstance(self.image, str | Path) else "the image"
            raise InputError(f"{what} has changed since it was simulated (another SHA-256); simulate it again")
        return stored
