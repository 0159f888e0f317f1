"""Masks from DICOM Segmentation objects (PS3.3 A.51 and C.8.20): the frame of one segment that belongs to an image.

Read with pydicom alone, so that files which bend the standard in places that do not matter here can be used. Segments
are named by their numbers: labels and descriptions are somebody's text, and stay where they are.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np

from pie_engine.equality import ByContent
from pie_engine.errors import InputError, argument, use
from pie_engine.imaging.formats.dicom import check_pixels, decode_frame, open_dicom
from pie_engine.imaging.formats.dicom_geometry import corners
from pie_engine.imaging.grid import Grid

log = logging.getLogger(__name__)

# Segmentation Storage, Label Map Segmentation Storage
CLASSES = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
_SHOWN = 12


@dataclass(frozen=True, eq=False)
class _Subject(ByContent):
    """What a segmentation may say of the image that it was drawn on.

    Attributes:
        uid: its SOP instance UID. frame: of a multi-frame object, else 1.
        space: its frame of reference's UID. corners: see `dicom_geometry.corners`.
    """

    uid: str
    frame: int
    space: str
    corners: np.ndarray | None


def read_segmentation(dataset: Any, what: str, grid: Grid, label: int | None) -> tuple[np.ndarray, dict[str, Any]]:
    """One segment on one image.

    The frame is the one that refers to the image; where a segmentation refers to none, the one that lies in its place;
    where that cannot be told either, the segment's only one.

    Args:
        dataset: a pydicom Dataset of one of `CLASSES`.
        label: the segment's number; None for the only one.

    Returns:
        [H, W] bool, and what provenance says of it.

    Raises:
        InputError: no such segment, of another image, of another geometry, empty here, or it cannot be decoded.
    """
    check_pixels(dataset, what)
    number = _choose_segment(dataset, what, label)
    size = (int(dataset.Columns), int(dataset.Rows))
    if size != grid.size:
        raise InputError(
            f"{what} is a segmentation of {size[0]} x {size[1]} and the image has {grid.size[0]} x {grid.size[1]} "
            "pixels; pass the one that was drawn on this image"
        )
    count = max(1, int(dataset.get("NumberOfFrames") or 1))
    segment_frames = [frame for frame in range(1, count + 1) if _segment(dataset, frame) in (None, number)]
    subject = _read_subject(grid)
    frames, matched = _match(dataset, segment_frames, what, subject, number)
    pixels = np.zeros(size[::-1], bool)
    for frame in frames:
        _check_place(dataset, frame, what, subject)
        pixels |= _decode(dataset, frame, what, number)
    if not pixels.any():
        raise InputError(f"segment {number} of {what} is empty on this image; choose another with {argument('label')}")
    return pixels, {"kind": "DICOM SEG", "segment": number, "matched_by": matched}


def _choose_segment(dataset: Any, what: str, label: int | None) -> int:
    # In a label map, 0 is the background.
    numbers = sorted({int(item.SegmentNumber) for item in dataset.get("SegmentSequence") or []} - {0})
    if not numbers:
        raise InputError(f"{what} is a DICOM SEG without segments; export it anew")
    listed = ", ".join(map(str, numbers[:_SHOWN])) + (", ..." if len(numbers) > _SHOWN else "")
    if label is None and len(numbers) > 1:
        raise InputError(
            f"{what} has {len(numbers)} segments ({listed}); pass {use('label', numbers[0])} or another",
            field="label", limit=listed,
        )  # fmt: skip
    if label is not None and label not in numbers:
        raise InputError(
            f"{what} has no segment {label} (it has {listed}); pass {use('label', numbers[0])}",
            field="label", value=label, limit=listed,
        )  # fmt: skip
    return numbers[0] if label is None else label


def _items(dataset: Any, frame: int, sequence: str) -> list[Any]:
    """The items of a sequence in a frame's functional group and in the shared one."""
    items = []
    for name, index in (("PerFrameFunctionalGroupsSequence", frame - 1), ("SharedFunctionalGroupsSequence", 0)):
        groups = dataset.get(name) or []
        if index < len(groups):
            items += list(groups[index].get(sequence) or [])
    return items


def _segment(dataset: Any, frame: int) -> int | None:
    """Which segment a frame shows; None in a label map, whose frames show all."""
    for item in _items(dataset, frame, "SegmentIdentificationSequence"):
        if item.get("ReferencedSegmentNumber") is not None:
            return int(item.ReferencedSegmentNumber)
    return None


def _references(dataset: Any, frame: int) -> set[tuple[str, int | None]]:
    """(SOP instance UID, frame or None) of the images that a frame was drawn on."""
    images: set[tuple[str, int | None]] = set()
    for derivation in _items(dataset, frame, "DerivationImageSequence"):
        for source in derivation.get("SourceImageSequence") or []:
            value = source.get("ReferencedFrameNumber")
            numbers = [None] if value is None else [value] if isinstance(value, str | int) else list(value)
            uid = str(source.get("ReferencedSOPInstanceUID", ""))
            images |= {(uid, None if number is None else int(number)) for number in numbers}
    return images


def _read_subject(grid: Grid) -> _Subject | None:
    if grid.format != "DICOM" or grid.path is None:
        return None
    frame = int(grid.facts.get("frame", 1))
    with open_dicom(grid.path, f"image {grid.path}") as dataset:
        uid, space = (str(dataset.get(name) or "") for name in ("SOPInstanceUID", "FrameOfReferenceUID"))
        return _Subject(uid, frame, space, corners(dataset, frame))


def _match(
    dataset: Any, segment_frames: list[int], what: str, subject: _Subject | None, number: int
) -> tuple[list[int], str]:
    """The segment's frames that belong to the image, and how that was found out."""
    remedy = "pass the segmentation that was drawn on it"
    empty = f"segment {number} of {what} is empty on this image; choose another with {argument('label')}"
    if not segment_frames:
        raise InputError(empty)
    references = {frame: _references(dataset, frame) for frame in segment_frames}
    # Empty frames may be left out, but the image is listed then.
    listed = {
        str(instance.get("ReferencedSOPInstanceUID", ""))
        for series in dataset.get("ReferencedSeriesSequence") or []
        for instance in series.get("ReferencedInstanceSequence") or []
    }
    uids = (listed | {uid for images in references.values() for uid, _ in images}) - {""}
    if subject is not None and subject.uid and uids:
        this = {(subject.uid, None), (subject.uid, subject.frame)}
        matching = [frame for frame, images in references.items() if images & this]
        if matching:
            return matching, "reference"
        if subject.uid not in uids:
            plural = "another image" if len(uids) == 1 else f"{len(uids)} other images"
            raise InputError(f"{what} refers to {plural} and not to this one; {remedy}")
        if any(references.values()):
            raise InputError(empty)
    space = str(dataset.get("FrameOfReferenceUID") or "")
    if subject is not None and subject.corners is not None and space and space == subject.space:
        near = [frame for frame in segment_frames if (_distance(dataset, frame, subject) or (1.0, 0.0))[0] <= 0.5]
        if near:
            return near, "position"
    if len(segment_frames) != 1:
        raise InputError(
            f"{what} has {len(segment_frames)} frames of segment {number} and does not say which belongs to this "
            f"image; {remedy}"
        )
    log.warning("%s cannot be held to this image by more than its size; look at the overlay of pie-engine mask", what)
    return segment_frames, "size"


def _distance(dataset: Any, frame: int, subject: _Subject | None) -> tuple[float, float] | None:
    """How far a frame lies from the image, in the image's pixels and in mm; None if either does not say where."""
    place = corners(dataset, frame)
    if subject is None or subject.corners is None or place is None:
        return None
    columns, rows = int(dataset.Columns), int(dataset.Rows)
    first, right, down = subject.corners
    pixel = min(
        float(np.linalg.norm(edge)) / max(1, count - 1) or np.inf
        for edge, count in ((right - first, columns), (down - first, rows))
    )
    distance = float(np.linalg.norm(place - subject.corners, axis=1).max())
    return distance / pixel, distance


def _check_place(dataset: Any, frame: int, what: str, subject: _Subject | None) -> None:
    """Refuse a frame that lies elsewhere than the image it refers to."""
    distance = _distance(dataset, frame, subject)
    if distance is not None and distance[0] > 0.5:
        raise InputError(
            f"{what} lies {distance[1]:.3g} mm ({distance[0]:.3g} pixels) from this image, at most half a pixel "
            "expected; resample it on the image"
        )


def _decode(dataset: Any, frame: int, what: str, number: int) -> np.ndarray:
    """[H, W] bool."""
    kind = str(dataset.get("SegmentationType", "BINARY")).upper()
    if int(dataset.BitsAllocated) == 1 and not dataset.file_meta.TransferSyntaxUID.is_compressed:
        return _unpack(dataset, frame, what)
    stored = decode_frame(dataset, frame, what)
    if kind == "LABELMAP" or str(dataset.SOPClassUID) == CLASSES[1]:
        return np.asarray(stored == number)
    if kind == "FRACTIONAL":
        return np.asarray(stored.astype(np.int64) * 2 >= int(dataset.get("MaximumFractionalValue", 255)))
    return np.asarray(stored > 0)


def _unpack(dataset: Any, frame: int, what: str) -> np.ndarray:
    """A frame of single bits, which need not begin at a byte. (pydicom 3.0 reads a byte too few of such a one.)"""
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    first, count = (frame - 1) * rows * columns, rows * columns
    data = np.frombuffer(dataset.PixelData, np.uint8)[first // 8 : -(-(first + count) // 8)]
    bits = np.unpackbits(data, bitorder="little")[first % 8 :][:count]
    if len(bits) < count:
        raise InputError(f"{what} has pixel data that cannot be decoded (truncated); copy or export it anew")
    return bits.reshape(rows, columns).astype(bool)
