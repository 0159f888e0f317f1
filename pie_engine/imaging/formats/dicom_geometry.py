"""Where a DICOM frame lies: its settings per frame, the size of its pixels, its place in the patient.

None of it reaches a log or provenance but for sizes and distances.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pie_engine.imaging.formats.dicom_grey import groups


def pixel_spacing(dataset: Any, frame: int) -> tuple[list[float], str] | None:
    """[row, column] spacing in mm, and whether it holds in the "patient" or at the "detector"; None if not said."""
    for group in groups(dataset, frame, "PixelMeasuresSequence"):
        spacing = _numbers(group, "PixelSpacing", 2)
        if spacing is not None and min(spacing) > 0:
            return spacing, "patient"
    spacing = _numbers(dataset, "ImagerPixelSpacing", 2)
    return (spacing, "detector") if spacing is not None and min(spacing) > 0 else None


def pixel_aspect(dataset: Any, frame: int) -> tuple[float, float]:
    """(height, width) of a pixel in any unit; square if the file does not say otherwise."""
    known = pixel_spacing(dataset, frame)
    ratio = _numbers(dataset, "PixelAspectRatio", 2) if known is None else known[0]
    return (ratio[0], ratio[1]) if ratio is not None and min(ratio) > 0 else (1.0, 1.0)


def corners(dataset: Any, frame: int) -> np.ndarray | None:
    """[3, 3]: where the first pixel of the first row, its last and the last row's first lie, in mm; None if not said.

    As PS3.3 C.7.6.2.1.1 computes it from position, orientation and spacing.
    """
    position = _first(groups(dataset, frame, "PlanePositionSequence"), "ImagePositionPatient", 3)
    turned = _first(groups(dataset, frame, "PlaneOrientationSequence"), "ImageOrientationPatient", 6)
    spacing = pixel_spacing(dataset, frame)
    if position is None or turned is None or spacing is None or spacing[1] != "patient":
        return None
    (down, right), origin = spacing[0], np.array(position)
    along_row = np.array(turned[:3]) * right * (int(dataset.Columns) - 1)
    along_column = np.array(turned[3:]) * down * (int(dataset.Rows) - 1)
    return np.stack([origin, origin + along_row, origin + along_column])


def _first(places: list[Any], name: str, count: int) -> list[float] | None:
    return next((value for value in (_numbers(group, name, count) for group in places) if value is not None), None)


def _numbers(group: Any, name: str, count: int) -> list[float] | None:
    value = group.get(name)
    if value is None or isinstance(value, str) or not hasattr(value, "__len__") or len(value) != count:
        return None
    numbers = [float(number) for number in value]
    return numbers if np.isfinite(numbers).all() else None
