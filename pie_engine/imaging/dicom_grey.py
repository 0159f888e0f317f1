"""DICOM's greyscale pipeline: stored values -> modality LUT or rescale -> VOI LUT or window -> polarity -> padding."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np

from pie_engine.errors import InputError
from pie_engine.imaging.reading import Reading
from pie_engine.imaging.window import FUNCTIONS, check_finite, range_mapping, window_mapping

log = logging.getLogger(__name__)


def map_grey(
    dataset: Any, stored: np.ndarray, frame: int, what: str, reading: Reading
) -> tuple[np.ndarray, dict[str, Any]]:
    """[H, W] stored values -> [H, W] float64 in [0, 1], 0 is black; and the mapping as provenance states it.

    Args:
        dataset: a pydicom Dataset.
        frame: which frame this is, from 1, for settings that an enhanced object keeps per frame.
    """
    check_finite(stored, what)
    padding = _padding(dataset, stored)
    values, modality = _modality(dataset, stored, frame)
    grey, facts = _voi(dataset, values, padding, frame, what, reading)
    inverted = str(dataset.PhotometricInterpretation) == "MONOCHROME1"
    if inverted:
        grey = 1 - grey
    if padding.any():
        grey = np.where(padding, 0.0, grey)
    return grey, facts | {"modality": modality, "inverted": inverted, "padding_pixels": int(padding.sum())}


def _groups(dataset: Any, frame: int, sequence: str) -> list[Any]:
    """Where a setting may stand: the frame's functional group, the shared one, the object itself, in this order."""
    found = []
    for name, index in (("PerFrameFunctionalGroupsSequence", frame - 1), ("SharedFunctionalGroupsSequence", 0)):
        items = dataset.get(name) or []
        if index < len(items) and items[index].get(sequence):
            found.append(items[index][sequence].value[0])
    return [*found, dataset]


def _padding(dataset: Any, stored: np.ndarray) -> np.ndarray:
    """[H, W] bool: pixels that belong to no anatomy."""
    value = dataset.get("PixelPaddingValue")
    if value is None or not np.issubdtype(stored.dtype, np.integer):
        return np.zeros(stored.shape, bool)
    limit = dataset.get("PixelPaddingRangeLimit")
    low, high = sorted((int(value), int(value if limit is None else limit)))
    return np.asarray((stored >= low) & (stored <= high))


def _lut(item: Any, values: np.ndarray, big_endian: bool) -> tuple[np.ndarray, int]:
    """A lookup table's output for `values`, and its depth in bits (PS3.3 C.11.1.1 and C.11.2.1.1)."""
    entries, first, depth = (int(value) for value in item.LUTDescriptor)
    data = item.LUTData
    if isinstance(data, bytes):
        table = np.frombuffer(data, ">u2" if big_endian else "<u2").astype(np.int64)
    else:
        table = np.atleast_1d(np.asarray(data, np.int64))
    entries = min(entries or 65536, len(table))
    return table[np.clip(np.round(values).astype(np.int64) - first, 0, entries - 1)], depth


def _is_big_endian(dataset: Any) -> bool:
    return dataset.original_encoding[1] is False


def _modality(dataset: Any, stored: np.ndarray, frame: int) -> tuple[np.ndarray, str | dict[str, float]]:
    if dataset.get("ModalityLUTSequence"):
        return _lut(dataset.ModalityLUTSequence[0], stored, _is_big_endian(dataset))[0], "lookup table"
    for group in _groups(dataset, frame, "PixelValueTransformationSequence"):
        slope, intercept = group.get("RescaleSlope"), group.get("RescaleIntercept")
        if slope is not None and intercept is not None:
            slope, intercept = float(slope), float(intercept)
            return stored.astype(np.float64) * slope + intercept, {"slope": slope, "intercept": intercept}
    return stored, "none"


def _voi(
    dataset: Any, values: np.ndarray, padding: np.ndarray, frame: int, what: str, reading: Reading
) -> tuple[np.ndarray, dict[str, Any]]:
    groups = _groups(dataset, frame, "FrameVOILUTSequence")
    function = next((str(g.VOILUTFunction).upper() for g in groups if g.get("VOILUTFunction")), "LINEAR")
    if reading.window is not None:
        if function not in FUNCTIONS:
            function = "LINEAR"
        # Below a width of 1, LINEAR has no meaning (values such as SUV or density).
        exact = function == "LINEAR" and reading.window[1] < 1
        return window_mapping(values, reading.window, "LINEAR_EXACT" if exact else function, "option")
    if dataset.get("VOILUTSequence"):
        table, depth = _lut(dataset.VOILUTSequence[0], values, _is_big_endian(dataset))
        return table / (2**depth - 1), {"function": "VOI LUT", "bits": depth, "source": "file (first of its tables)"}
    for group in groups:
        center, width = (_first(group.get(name)) for name in ("WindowCenter", "WindowWidth"))
        if center is None or width is None:
            continue
        if function not in FUNCTIONS:
            raise InputError(
                f"{what} has a VOI LUT function that is none of {', '.join(FUNCTIONS)}; "
                "pass --window-center and --window-width"
            )
        if width <= 0 or (function == "LINEAR" and width < 1) or not np.isfinite((center, width)).all():
            raise InputError(
                f"{what} has a window of width {width:g} ({'at least 1' if function == 'LINEAR' else 'above 0'} needed "
                f"for {function}); pass --window-center and --window-width"
            )
        return window_mapping(values, (center, width), function, "file (first of its windows)")
    if int(dataset.get("BitsStored", 16)) <= 8 and np.issubdtype(values.dtype, np.integer):
        bits, signed = int(dataset.BitsStored), bool(dataset.get("PixelRepresentation", 0))
        low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
        if low <= values.min() and values.max() <= high:
            return range_mapping(values, low, high, "all values of its bits")
    seen = values[~padding] if not padding.all() else values
    log.warning(
        "%s has no window: %g..%g, all of its values, become black to white; pass --window-center and --window-width",
        what, seen.min(), seen.max(),
    )  # fmt: skip
    return range_mapping(values, seen.min(), seen.max(), "values of this frame")


def _first(value: Any) -> float | None:
    """The first of one or several numbers."""
    if value is None or value == "":
        return None
    if not isinstance(value, str | float | int) and hasattr(value, "__len__"):
        return float(value[0]) if len(value) else None
    return float(value)
