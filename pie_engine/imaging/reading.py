"""Which part of a file is the image, and how its values become grey: what an item's options say."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pie_engine.errors import ConfigError, InputError, mention, use


@dataclass(frozen=True)
class Reading:
    """How one image file is read. None leaves it to the file; what the file cannot answer is refused.

    Attributes:
        frame: frame of a DICOM file, page of a TIFF file, volume of a 4-D NIfTI file; counts from 1.
        slice: slice of a NIfTI volume along `axis`; counts from 1, from the patient's left, posterior or inferior end.
        axis: 0 sagittal, 1 coronal, 2 axial (NIfTI; None means 2).
        window_center: the value, after the file's own rescaling, that becomes middle grey; goes with window_width.
        window_width: how many values lie between black and white; greater than 0.

    Raises:
        ConfigError: a value is out of range, or one half of a window is missing.
    """

    frame: int | None = None
    slice: int | None = None
    axis: int | None = None
    window_center: float | None = None
    window_width: float | None = None

    def __post_init__(self) -> None:
        for name, value in (("frame", self.frame), ("slice", self.slice)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ConfigError(
                    f"{name} {value!r} is not a whole number of at least 1; pass {use(name, 1)} for the first",
                    field=name,
                    value=value,
                    limit="at least 1",
                )
        if self.axis is not None and (isinstance(self.axis, bool) or self.axis not in (0, 1, 2)):
            raise ConfigError(
                f"axis {self.axis!r} is not 0, 1 or 2; pass {use('axis', 2)} for axial slices",
                field="axis", value=self.axis, limit="0, 1 or 2",
            )  # fmt: skip
        for name, number in (("window_center", self.window_center), ("window_width", self.window_width)):
            if number is None:
                continue
            if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
                raise ConfigError(
                    f"{mention(name)} {number!r} is not a finite number; pass {use(name, 400)}",
                    field=name,
                    value=number,
                )
        if (self.window_center is None) != (self.window_width is None):
            names = ("window_center", "window_width")
            given, missing = names if self.window_width is None else names[::-1]
            raise ConfigError(
                f"{mention(given)} is given without {mention(missing)}; pass both, or neither", field=missing
            )
        if self.window_width is not None and self.window_width <= 0:
            raise ConfigError(
                f"{mention('window_width')} {self.window_width:g} is not greater than 0; "
                f"pass {use('window_width', 400)}",
                field="window_width", value=self.window_width, limit="greater than 0",
            )  # fmt: skip

    @property
    def window(self) -> tuple[float, float] | None:
        """(centre, width), or None."""
        if self.window_center is None or self.window_width is None:
            return None
        return self.window_center, self.window_width


def choose(name: str, chosen: int | None, count: int, holds: str, also: str = "") -> int:
    """The number, from 1, of what is read of several: frames, pages, volumes, slices.

    Args:
        name: of the option that chooses.
        holds: the file and what it has, for messages.
        also: what else can be done where none is chosen.

    Raises:
        InputError: none is chosen of several, or one that there is not.
    """
    remedy, limit = f"pass {use(name, 1)} to {count}", f"1 to {count}"
    if chosen is None and count > 1:
        raise InputError(f"{holds}; {remedy}{also}", field=name, limit=limit)
    if chosen is not None and chosen > count:
        raise InputError(f"{holds}, none of them {chosen}; {remedy}", field=name, value=chosen, limit=limit)
    return chosen or 1
