"""What a DICOM file claims, held to limits and to each other before anything of it is inflated or decoded."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

from pie_engine.errors import InputError
from pie_engine.imaging.limits import MAX_DICOM_FILE, MAX_FRAMES, MAX_INFLATED, MAX_SCANS, check_size

_DEFLATED = "1.2.840.10008.1.2.1.99"
_RLE = "1.2.840.10008.1.2.5"
_STEP = 2**20
_BITS = (1, 8, 16, 32, 64)
_SAMPLES = (1, 3, 4)
# JPEG's markers of a frame's size: SOF0 to SOF15 without the three that mean something else, and JPEG-LS's.
_SIZES = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC} | {0xF7})


def check_file(path: Path, what: str) -> None:
    """Refuse a file that is too large to be read whole, packed or not. Raises InputError, OSError."""
    size = path.stat().st_size
    if size > MAX_DICOM_FILE:
        raise InputError(f"{what} has {size} bytes (at most {MAX_DICOM_FILE}); save the frame alone")
    with path.open("rb") as file:
        if _syntax(file) != _DEFLATED:
            return
        unpacker, total = zlib.decompressobj(-zlib.MAX_WBITS), 0
        waiting = file.read(_STEP)
        while waiting and not unpacker.eof:  # counted and thrown away: pydicom inflates at once, without a limit
            total += len(unpacker.decompress(waiting, _STEP))
            if total > MAX_INFLATED:
                raise InputError(
                    f"{what} is deflated and inflates to more than {MAX_INFLATED} bytes; "
                    "convert it to Explicit VR Little Endian (dcmconv +te)"
                )
            waiting = unpacker.unconsumed_tail or file.read(_STEP)


def _syntax(file: Any) -> str:
    """The transfer syntax that a file's meta information names; leaves the file where its data set begins."""
    from pydicom.filereader import read_dataset, read_preamble

    read_preamble(file, True)
    meta = read_dataset(file, False, True, stop_when=lambda tag, vr, length: tag >> 16 != 2)
    return str(meta.get("TransferSyntaxUID", "")).strip("\0 ")


def check_numbers(dataset: Any, what: str) -> None:
    """Refuse sizes, depths and counts that no image has. Raises InputError."""
    check_size(int(dataset.Columns), int(dataset.Rows), what, "frame")
    bits = int(dataset.BitsAllocated)
    stored = int(dataset.get("BitsStored") or bits)
    samples = int(dataset.get("SamplesPerPixel") or 1)
    if bits not in _BITS or not 0 < stored <= bits or samples not in _SAMPLES:
        raise InputError(
            f"{what} says {samples} samples per pixel of {stored} bits in {bits}, which no image has; export it anew"
        )
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frames > MAX_FRAMES:
        raise InputError(f"{what} says that it has {frames} frames (at most {MAX_FRAMES}); save the frame alone")


def check_compressed(dataset: Any, frame: int, what: str) -> None:
    """Refuse a compressed frame that declares another size than the header, which its decoder would allocate.

    Args:
        dataset: of an encapsulated transfer syntax.
        frame: counts from 1.

    Raises:
        InputError: another size, or more samples or scans than it may have; also whatever pydicom raises for a frame
            that cannot be found.
    """
    from pydicom.encaps import get_frame

    tables = None
    if "ExtendedOffsetTable" in dataset:
        tables = (dataset.ExtendedOffsetTable, dataset.ExtendedOffsetTableLengths)
    data = get_frame(
        dataset.PixelData, frame - 1, extended_offsets=tables, number_of_frames=int(dataset.get("NumberOfFrames") or 1)
    )
    rows, columns, samples = int(dataset.Rows), int(dataset.Columns), int(dataset.get("SamplesPerPixel") or 1)
    if str(dataset.file_meta.TransferSyntaxUID) == _RLE:
        needed = rows * columns * samples * int(dataset.BitsAllocated) // 8
        if len(data) > 2 * needed + 2**16:  # at worst, a byte in front of each one
            raise InputError(f"{what} has {len(data)} bytes for a frame of {needed}; export it anew")
        return
    declared = codestream_size(data)
    if declared is not None and declared != (columns, rows, samples):
        raise InputError(
            f"{what} decodes to another size than its header says ({declared[0]} x {declared[1]} of {declared[2]} "
            f"samples, not {columns} x {rows} of {samples}); export it anew"
        )
    scans = data.count(b"\xff\xda") if data[:2] == b"\xff\xd8" else 0
    if scans > MAX_SCANS:
        raise InputError(f"{what} has {scans} scans (at most {MAX_SCANS}); export it anew")


def codestream_size(data: bytes) -> tuple[int, int, int] | None:
    """(width, height, samples) that a JPEG, JPEG-LS or JPEG 2000 stream declares; None if it does not begin as one."""
    start = data.find(b"\xff\x4f\xff\x51")
    if start >= 0 and data[:2] != b"\xff\xd8" and len(data) >= start + 42:
        right, bottom, left, top = struct.unpack_from(">4I", data, start + 8)
        return right - left, bottom - top, struct.unpack_from(">H", data, start + 40)[0]
    place = 2
    while data[:2] == b"\xff\xd8" and place + 10 <= len(data):
        if data[place] != 0xFF:
            return None
        if data[place + 1] == 0xFF:  # fill bytes may stand before a marker
            place += 1
            continue
        if data[place + 1] in _SIZES:
            height, width, samples = struct.unpack_from(">HHB", data, place + 5)
            return width, height, samples
        place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    return None
