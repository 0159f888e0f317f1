"""One region of an image: where it comes from, and how strongly the image may change in it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pie_engine.config.checks import integer, number
from pie_engine.equality import ByContent
from pie_engine.errors import ConfigError, mention, use
from pie_engine.files import sha256_file
from pie_engine.imaging.regions.shapes import Shape

if TYPE_CHECKING:
    from PIL.Image import Image

    Source = str | Path | Image | np.ndarray | Shape


@dataclass(frozen=True, eq=False)
class Region(ByContent):
    """One region of an image.

    Attributes:
        source: path (PNG, JPEG, TIFF, NIfTI, DICOM, DICOM SEG), PIL image or array, white = inside; or a `Box`,
            `Ellipse` or `Polygon`.
        beta: blend inside this region, in [0, 1]; None means the run's beta2.
        label: which value of a NIfTI label map, or which segment of a DICOM SEG; None means all that is not 0, or the
            only segment.
        prompt: the finding that this region progresses towards; None means the item's. Regions with one prompt are
            one finding.

    Raises:
        ConfigError: a value is out of range, or a label that the source cannot have.
    """

    source: Source
    beta: float | None = None
    label: int | None = None
    prompt: str | None = None

    def __post_init__(self) -> None:
        if self.beta is not None:
            number("mask's beta", self.beta, 0.0, 1.0, "write FILE:0.75")
        if self.label is not None:
            integer(mention("label"), self.label, 1, 2**31 - 1, f"pass {use('label', 1)}")
            if not isinstance(self.source, str | Path):
                raise ConfigError(
                    f"{mention('label')} {self.label} picks a part of a NIfTI or DICOM SEG file, and this mask is "
                    f"{self.source if isinstance(self.source, Shape) else 'an array'}; leave it out",
                    field="label",
                    value=self.label,
                )

    @classmethod
    def parse(cls, text: str, shape: type[Shape] | None = None) -> Region:
        """Read "FILE" or "FILE:BETA"; with a shape its numbers, or "NUMBERS:BETA". Raises ConfigError."""
        what, colon, beta = text.rpartition(":")
        if shape is None:
            # A colon may belong to the path ("C:\\roi.png", or a file that is really called "a:1").
            if not colon or (len(what) == 1 and beta.startswith(("/", "\\"))) or _exists(text):
                return cls(text)
            return cls(what, _beta(text, what, beta))
        return cls(shape.parse(what), _beta(text, what, beta)) if colon else cls(shape.parse(text))

    def describe(self) -> dict[str, Any]:
        """What provenance says of it: coordinates, or the content's SHA-256; and what it has of its own."""
        if isinstance(self.source, Shape):
            facts: dict[str, Any] = {"kind": self.source.name, "numbers": [float(n) for n in self.source.numbers]}
        else:
            facts = {"kind": "picture", "sha256": content_hash(self.source)}
        for name in ("beta", "label", "prompt"):
            if getattr(self, name) is not None:
                facts[name] = getattr(self, name)
        return facts


def _beta(text: str, what: str, beta: str) -> float:
    try:
        return float(beta)
    except ValueError:
        raise ConfigError(f"mask's beta '{beta}' in '{text}' is not a number; write one such as {what}:0.75") from None


def _exists(text: str) -> bool:
    try:
        return Path(text).exists()
    except (OSError, ValueError):  # no name that a file can have; it is refused where it is opened
        return False


if TYPE_CHECKING:
    # What `Item.mask` and `Item.keep` may be.
    Regions = Source | Region | Sequence[Source | Region] | None


def as_regions(value: Regions) -> tuple[Region, ...]:
    """What `Item.mask` and `Item.keep` take: one source or region, or a list or tuple of them. None holds none."""
    if value is None:
        return ()
    many: Sequence[Any] = value if isinstance(value, list | tuple) else (value,)
    return tuple(one if isinstance(one, Region) else Region(one) for one in many)


def content_hash(source: str | Path | Image | np.ndarray) -> str:
    """SHA-256 of a file's bytes, or of an array's type, shape and bytes, in hex."""
    if isinstance(source, str | Path):
        return sha256_file(Path(source))
    array = np.asarray(source)
    return hashlib.sha256(f"{array.dtype} {array.shape} ".encode() + array.tobytes()).hexdigest()
