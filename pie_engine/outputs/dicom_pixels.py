"""A picture's pixels in a DICOM object: how they are stored, and how they become what the source looked like."""

from __future__ import annotations

from math import gcd
from typing import Any

import numpy as np

from pie_engine.imaging import Stored, placement
from pie_engine.imaging.mapping import Lookup, Range, VoiLookup, Window
from pie_engine.outputs.native import LUMA

_RESCALE_TYPES = ("HU", "OD", "US")  # of the source; others are free text


def add_frame(dataset: Any, frame: np.ndarray, stored: Stored, fit: str) -> None:
    """Add a frame at output resolution: [R, R, 3] uint8 as RGB, or as its luma where the source is greyscale."""
    if not stored.colour:
        frame = np.round(frame @ np.array(LUMA)).astype(np.uint8)
        _add_window(dataset, Window(128, 256, "LINEAR"))  # 0 is black, 255 is white
    _add_pixels(dataset, frame, (0, 255), "RGB" if stored.colour else "MONOCHROME2")
    (width, height), _ = placement(stored.size, len(frame), fit)
    down, right = stored.size[1] / height, stored.size[0] / width
    aspect = stored.aspect[0] * down, stored.aspect[1] * right
    spacing = None if stored.spacing is None else (stored.spacing[0] * down, stored.spacing[1] * right)
    _add_spacing(dataset, spacing, aspect)


def add_native(dataset: Any, values: np.ndarray, stored: Stored) -> None:
    """Add values at the source's geometry, [H, W] or [H, W, 3], stored and shown as the source's are."""
    assert stored.limits is not None
    grey = "MONOCHROME1" if stored.mapping.inverted else "MONOCHROME2"
    _add_pixels(dataset, values, stored.limits, "RGB" if stored.colour else grey)
    _add_spacing(dataset, stored.spacing, stored.aspect)
    if stored.colour:
        return
    _add_modality(dataset, stored)
    shown = stored.mapping.shown
    if isinstance(shown, VoiLookup):
        dataset.VOILUTSequence = [_table(shown)]
    elif isinstance(shown, Range):
        _add_window(dataset, Window((shown.low + shown.high) / 2, shown.high - shown.low, "LINEAR_EXACT"))
    else:
        _add_window(dataset, shown)
    if stored.padding is not None:
        low, high = stored.padding
        vr = "SS" if stored.limits[0] < 0 else "US"
        dataset.add_new("PixelPaddingValue", vr, low)
        if high > low:
            dataset.add_new("PixelPaddingRangeLimit", vr, high)


def _add_pixels(dataset: Any, values: np.ndarray, limits: tuple[int, int], photometric: str) -> None:
    signed = limits[0] < 0
    dataset.SamplesPerPixel = 3 if photometric == "RGB" else 1
    dataset.PhotometricInterpretation = photometric
    if photometric == "RGB":
        dataset.PlanarConfiguration = 0
    dataset.Rows, dataset.Columns = values.shape[:2]
    dataset.BitsAllocated = 8 * values.dtype.itemsize
    dataset.BitsStored = int(limits[1]).bit_length() + signed
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(signed)
    data = np.ascontiguousarray(values.astype(values.dtype.newbyteorder("<"))).tobytes()
    dataset.add_new("PixelData", "OW" if values.dtype.itemsize > 1 else "OB", data + b"\0" * (len(data) % 2))


def _add_spacing(dataset: Any, spacing: tuple[float, float] | None, aspect: tuple[float, float]) -> None:
    if spacing is not None:
        dataset.PixelSpacing = [_decimal(side) for side in spacing]
    elif abs(aspect[0] / aspect[1] - 1) > 1e-3:
        height, width = (round(1000 * side / min(aspect)) for side in aspect)
        dataset.PixelAspectRatio = [height // gcd(height, width), width // gcd(height, width)]


def _add_modality(dataset: Any, stored: Stored) -> None:
    modality = stored.mapping.modality
    if isinstance(modality, Lookup):
        dataset.ModalityLUTSequence = [_table(modality)]
        dataset.ModalityLUTSequence[0].ModalityLUTType = "US"
    elif modality is not None:
        dataset.RescaleSlope, dataset.RescaleIntercept = _decimal(modality.slope), _decimal(modality.intercept)
        said = str(stored.header.get("RescaleType", "")) if stored.facts["format"] == "DICOM" else ""
        dataset.RescaleType = said if said in _RESCALE_TYPES else "US"


def _add_window(dataset: Any, window: Window) -> None:
    dataset.WindowCenter, dataset.WindowWidth = _decimal(window.center), _decimal(window.width)
    if window.function != "LINEAR":
        dataset.VOILUTFunction = window.function


def _table(lookup: Lookup) -> Any:
    from pydicom.dataset import Dataset

    entries, bits = lookup.entries, lookup.bits
    if bits not in (8, 16):  # what an image may hold (C.11.2.1.1); others are read
        if isinstance(lookup, VoiLookup):
            entries = np.round(entries * (65535 / (2**bits - 1)))
        bits = 16
    item = Dataset()
    count = len(entries) % 65536  # 0 stands for 65536
    item.add_new("LUTDescriptor", "SS" if lookup.first < 0 else "US", [count, lookup.first, bits])
    item.add_new("LUTData", "OW", entries.astype("<u2").tobytes())
    return item


def _decimal(value: float) -> Any:
    """A number in the sixteen characters that DICOM has for it."""
    from pydicom.valuerep import DSfloat

    return DSfloat(float(value), auto_format=True)
