"""DICOM's greyscale pipeline: stored values -> modality LUT or rescale -> VOI LUT or window -> polarity -> padding."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np

from pie_engine.errors import InputError, Notice, argument
from pie_engine.imaging.blocks import extremes
from pie_engine.imaging.mapping import Lookup, Mapping, Range, Rescale, VoiLookup, Window
from pie_engine.imaging.reading import Reading
from pie_engine.imaging.rules import broken_rescale
from pie_engine.imaging.stored import within
from pie_engine.imaging.window import FUNCTIONS, check_finite

log = logging.getLogger(__name__)


def grey_mapping(
    dataset: Any, stored: np.ndarray, frame: int, what: str, reading: Reading
) -> tuple[Mapping, tuple[int, int] | None]:
    """How [H, W] stored values become grey, and which of them are padding: the least and the greatest, or None.

    Args:
        dataset: a pydicom Dataset.
        frame: which frame this is, from 1, for settings that an enhanced object keeps per frame.
    """
    check_finite(stored, what)
    padding = _padding(dataset, stored)
    padded = within(stored, padding)
    modality, said = _modality(dataset, frame, what)
    wrong = broken_rescale(modality)
    if wrong is not None:  # before anything is computed with it
        raise InputError(f"{what} {wrong}")
    shown, facts = _voi(dataset, stored, padded, modality, frame, what, reading)
    inverted = str(dataset.PhotometricInterpretation) == "MONOCHROME1"
    facts |= {"modality": said, "inverted": inverted, "padding_pixels": int(padded.sum())}
    return Mapping(shown, modality, inverted, facts), padding


def groups(dataset: Any, frame: int, sequence: str) -> list[Any]:
    """Where a setting may stand: the frame's functional group, the shared one, the object itself, in this order.

    Args:
        frame: counts from 1.
        sequence: the sequence that holds the setting in a group; its first item is given.
    """
    places = []
    for name, index in (("PerFrameFunctionalGroupsSequence", frame - 1), ("SharedFunctionalGroupsSequence", 0)):
        items = dataset.get(name) or []
        if index < len(items) and items[index].get(sequence):
            places.append(items[index][sequence].value[0])
    return [*places, dataset]


def _padding(dataset: Any, stored: np.ndarray) -> tuple[int, int] | None:
    """The least and the greatest of the values that belong to no anatomy, or None."""
    value = dataset.get("PixelPaddingValue")
    if value is None or not np.issubdtype(stored.dtype, np.integer):
        return None
    limit = dataset.get("PixelPaddingRangeLimit")
    first, last = int(value), int(value if limit is None else limit)
    return min(first, last), max(first, last)


def _table(item: Any, big_endian: bool, what: str) -> tuple[np.ndarray, int, int]:
    """A lookup table's entries, the first value that it maps, and its depth in bits (PS3.3 C.11.1.1, C.11.2.1.1).

    Raises:
        InputError: it has none, or a depth that 16 bits do not hold.
    """
    entries, first, depth = (int(value) for value in item.LUTDescriptor)
    data = item.LUTData
    if isinstance(data, bytes):
        table = np.frombuffer(data, ">u2" if big_endian else "<u2").astype(np.int64)
    else:
        table = np.atleast_1d(np.asarray(data, np.int64))
    if not len(table) or not 0 < depth <= 16:
        raise InputError(
            f"{what} has a lookup table of {len(table)} entries of {depth} bits (at least 1 of 1 to 16); export it anew"
        )
    return table[: entries or 65536], first, depth


def _is_big_endian(dataset: Any) -> bool:
    return dataset.original_encoding[1] is False


def _modality(dataset: Any, frame: int, what: str) -> tuple[Rescale | Lookup | None, str | dict[str, float]]:
    if dataset.get("ModalityLUTSequence"):
        return Lookup(*_table(dataset.ModalityLUTSequence[0], _is_big_endian(dataset), what)), "lookup table"
    for group in groups(dataset, frame, "PixelValueTransformationSequence"):
        slope, intercept = group.get("RescaleSlope"), group.get("RescaleIntercept")
        if slope is not None and intercept is not None:
            slope, intercept = float(slope), float(intercept)
            return Rescale(slope, intercept), {"slope": slope, "intercept": intercept}
    return None, "none"


def _voi(
    dataset: Any,
    stored: np.ndarray,
    padded: np.ndarray,
    modality: Rescale | Lookup | None,
    frame: int,
    what: str,
    reading: Reading,
) -> tuple[Window | Range | VoiLookup, dict[str, Any]]:
    places = groups(dataset, frame, "FrameVOILUTSequence")
    function = next((str(g.VOILUTFunction).upper() for g in places if g.get("VOILUTFunction")), "LINEAR")
    if reading.window is not None:
        if function not in FUNCTIONS:
            function = "LINEAR"
        # Below a width of 1, LINEAR has no meaning (values such as SUV or density).
        exact = function == "LINEAR" and reading.window[1] < 1
        window = Window(*reading.window, "LINEAR_EXACT" if exact else function)
        return window, window.describe("option")
    if dataset.get("VOILUTSequence"):
        table = VoiLookup(*_table(dataset.VOILUTSequence[0], _is_big_endian(dataset), what))
        return table, {"function": "VOI LUT", "bits": table.bits, "source": "file (first of its tables)"}
    for group in places:
        center, width = (_first(group.get(name)) for name in ("WindowCenter", "WindowWidth"))
        if center is None or width is None:
            continue
        if function not in FUNCTIONS:
            raise InputError(
                f"{what} has a VOI LUT function other than {', '.join(FUNCTIONS)}; "
                f"pass {argument('window_center')} and {argument('window_width')}",
                field="window_center",
            )
        if width <= 0 or (function == "LINEAR" and width < 1) or not np.isfinite((center, width)).all():
            raise InputError(
                f"{what} has a window of width {width:g} ({'at least 1' if function == 'LINEAR' else 'above 0'} needed "
                f"for {function}); pass {argument('window_center')} and {argument('window_width')}",
                field="window_center",
            )
        window = Window(center, width, function)
        return window, window.describe("file (first of its windows)")
    forward = None if modality is None else modality.forward
    whole = not isinstance(modality, Rescale) and np.issubdtype(stored.dtype, np.integer)
    if int(dataset.get("BitsStored", 16)) <= 8 and whole:
        bits, signed = int(dataset.BitsStored), bool(dataset.get("PixelRepresentation", 0))
        low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
        least, greatest = extremes(stored, forward)
        if low <= least and greatest <= high:
            everything = Range(low, high)
            return everything, everything.describe("all values of its bits")
    least, greatest = extremes(stored, forward, padded)
    log.warning(
        Notice(
            "%s has no window: %g..%g, all of its values, become black to white; "
            f"pass {argument('window_center')} and {argument('window_width')}"
        ),
        what, least, greatest,
    )  # fmt: skip
    everything = Range(float(least), float(greatest))
    return everything, everything.describe("values of this frame")


def _first(value: Any) -> float | None:
    """The first of one or several numbers."""
    if value is None or value == "":
        return None
    if not isinstance(value, str | float | int) and hasattr(value, "__len__"):
        return float(value[0]) if len(value) else None
    return float(value)
