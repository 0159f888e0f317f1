"""One frame of a DICOM file: stored values, and how they become grey or RGB.

No value of the header reaches a message, a log or provenance, but for technical ones (sizes, bits, windows, the
transfer syntax's name): others may identify the patient.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pie_engine.errors import InputError, argument
from pie_engine.imaging.formats.dicom_geometry import pixel_aspect, pixel_spacing
from pie_engine.imaging.formats.dicom_grey import grey_mapping
from pie_engine.imaging.formats.dicom_limits import check_compressed, check_file, check_numbers
from pie_engine.imaging.limits import quiet
from pie_engine.imaging.mapping import Mapping, Range
from pie_engine.imaging.reading import Reading, choose
from pie_engine.imaging.stored import Stored
from pie_engine.imaging.window import to_bytes

log = logging.getLogger(__name__)

_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_GREY = ("MONOCHROME1", "MONOCHROME2")
_COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT", "YBR_PARTIAL_420", "YBR_PARTIAL_422")
_OTHER_PLUGINS = {
    "1.2.840.10008.1.2.4.51": "pylibjpeg-libjpeg",  # extended
    "1.2.840.10008.1.2.4.57": "pylibjpeg-libjpeg",  # lossless
    "1.2.840.10008.1.2.4.70": "pylibjpeg-libjpeg",
    "1.2.840.10008.1.2.4.80": "pyjpegls",
    "1.2.840.10008.1.2.4.81": "pyjpegls",
}
_LICENCES = {"pylibjpeg-libjpeg": " (GPL-3.0; no part of pie-engine)"}


def sniff_dicom(path: Path) -> bool:
    """Whether the content has DICOM's prefix, or begins as a DICOM file without one may."""
    with path.open("rb") as file:
        head = file.read(132)
    return head[128:132] == b"DICM" or _begins_bare(head)


def _begins_bare(head: bytes) -> bool:
    # Group 2 or 8, a low element, and a short length, whether or not the value representation is written.
    return head[:2] in (b"\x02\x00", b"\x08\x00") and len(head) > 8 and head[3] == head[7] == 0


def read_dicom(path: Path, reading: Reading, kind: str = "image") -> Stored:
    """Read one frame.

    Args:
        kind: what it is to the user, for messages: "image" or "mask".

    Raises:
        InputError: no image, or one that cannot be decoded, or `reading` does not apply to it.
    """
    what = f"{kind} {path}"
    for name in ("slice", "axis"):
        if getattr(reading, name) is not None:
            raise InputError(
                f"{argument(name)} belongs to NIfTI, and {what} is DICOM; pass {argument('frame')}, or leave it out",
                field=name, value=getattr(reading, name),
            )  # fmt: skip
    with open_dicom(path, what) as dataset:
        check_pixels(dataset, what)
        frame, frames = _choose_frame(dataset, what, reading)
        values = decode_frame(dataset, frame, what)
        stored = _stored(dataset, values, frame, what, reading)
        spacing, plane = pixel_spacing(dataset, frame) or (None, None)
        aspect = pixel_aspect(dataset, frame)
        facts = {
            "format": "DICOM",
            "transfer_syntax": _name(_syntax(dataset)),
            "photometric": str(dataset.PhotometricInterpretation),
            "bits": int(dataset.get("BitsStored", dataset.BitsAllocated)),
            "frame": frame,
            "frames": frames,
            "spacing_mm": spacing,
            "spacing_plane": plane,
            "mapping": stored.mapping.facts,
        }
    if abs(aspect[0] / aspect[1] - 1) > 0.05:
        log.warning("%s has pixels of %.3g x %.3g, used as if they were square; resample it first", what, *aspect[::-1])
    return replace(stored, facts=facts, aspect=aspect)


@contextlib.contextmanager
def open_dicom(path: Path, what: str) -> Iterator[Any]:
    """A file as a pydicom Dataset, within the block alone; libraries' warnings, which quote headers, stay silent.

    Raises:
        InputError: it cannot be read, also where the block finds that out.
    """
    try:
        import pydicom
    except ImportError:
        raise InputError(f"{what} is DICOM and pydicom is missing; pip install 'pie-engine[dicom]'") from None
    try:
        with quiet("pydicom"):
            check_file(path, what)
            yield pydicom.dcmread(path, force=True)
    except (InputError, MemoryError, PermissionError):
        raise
    except Exception as error:  # whatever a damaged header leads to; its text may quote the header
        raise InputError(
            f"{what} cannot be read as DICOM ({type(error).__name__}: damaged or cut off); copy or export it anew"
        ) from None


def _syntax(dataset: Any) -> Any:
    from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

    meta = getattr(dataset, "file_meta", None)
    uid = None if meta is None else meta.get("TransferSyntaxUID")
    if uid:
        return uid
    implicit = dataset.original_encoding[0]
    return ImplicitVRLittleEndian if implicit in (True, None) else ExplicitVRLittleEndian


def _name(uid: Any) -> str:
    """A registered UID's name; private ones are not repeated."""
    name = str(getattr(uid, "name", ""))
    return name if name and not name[0].isdigit() else "unknown"


def check_pixels(dataset: Any, what: str) -> None:
    """Refuse what holds no image that can be decoded, before anything is decoded."""
    kind = dataset.get("SOPClassUID")
    if not kind and not any(name in dataset for name in _PIXELS):
        raise InputError(
            f"{what} is not a DICOM object (no SOP class, no pixel data, or cut off); pass a whole DICOM image"
        )
    syntax = _syntax(dataset)
    if str(syntax).startswith("1.2.840.10008.1.2.4.10") and len(str(syntax).split(".")[-1].rstrip()) == 3:
        raise InputError(f"{what} is a video ({_name(syntax)}); extract the frame as PNG or as a DICOM image")
    if not any(name in dataset for name in _PIXELS):
        called = _name(kind)
        raise InputError(
            f"{what} has no pixel data ({'SOP class ' + called if called != 'unknown' else 'unknown SOP class'}, "
            "or a file that was cut off); pass a DICOM image"
        )
    missing = [name for name in ("Rows", "Columns", "BitsAllocated", "PhotometricInterpretation")
               if not dataset.get(name)]  # fmt: skip
    if missing:
        raise InputError(f"{what} does not say its {', '.join(missing)}; export it anew")
    check_numbers(dataset, what)
    photometric = str(dataset.PhotometricInterpretation)
    if photometric not in (*_GREY, *_COLOUR, "PALETTE COLOR"):
        raise InputError(f"{what} has a photometric interpretation that is not supported; export it as MONOCHROME2")
    dataset.ensure_file_meta()
    dataset.file_meta.TransferSyntaxUID = syntax  # a file without a preamble does not say it


def _choose_frame(dataset: Any, what: str, reading: Reading) -> tuple[int, int]:
    frames = max(1, int(dataset.get("NumberOfFrames") or 1))
    return choose("frame", reading.frame, frames, f"{what} has {frames} frame{'s' * (frames > 1)}"), frames


def decode_frame(dataset: Any, frame: int, what: str) -> np.ndarray:
    """[H, W] or [H, W, 3], stored values; colour is RGB."""
    from pydicom.pixels import get_decoder, pixel_array

    syntax = _syntax(dataset)
    try:
        decoder = get_decoder(syntax)
        usable = not syntax.is_compressed or decoder.is_available or syntax.is_deflated
    except NotImplementedError:
        raise InputError(
            f"{what} is compressed as {_name(syntax)}, which pydicom does not decode; convert it to "
            "Explicit VR Little Endian (dcmdjpeg, gdcmconv)"
        ) from None
    plugin = _OTHER_PLUGINS.get(str(syntax))
    remedy = f"pip install {plugin}{_LICENCES.get(plugin, '')}" if plugin else "pip install 'pie-engine[dicom]'"
    if not usable:
        raise InputError(f"{what} is compressed as {_name(syntax)}, and no decoder is installed; {remedy}")
    try:
        if syntax.is_encapsulated:
            check_compressed(dataset, frame, what)
        array = pixel_array(dataset, index=frame - 1)
    except (InputError, MemoryError):
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":  # how decoders in Rust fail
            raise
        again = f"copy or export it anew (or {remedy})" if plugin else "copy or export it anew"
        raise InputError(
            f"{what} has pixel data that cannot be decoded ({_name(syntax)}; truncated, damaged, or not of the size "
            f"that its header says); {again}"
        ) from None
    if array.shape[:2] != (dataset.Rows, dataset.Columns):
        raise InputError(f"{what} decodes to another size than its header says; export it anew")
    return array


def _stored(dataset: Any, values: np.ndarray, frame: int, what: str, reading: Reading) -> Stored:
    """Stored values with what they mean; without facts about the file."""
    photometric, bits = str(dataset.PhotometricInterpretation), int(dataset.get("BitsStored", dataset.BitsAllocated))
    if photometric in _GREY and values.ndim == 2:
        mapping, padding = grey_mapping(dataset, values, frame, what, reading)
        limits = None
        if np.issubdtype(values.dtype, np.integer):
            signed = bool(dataset.get("PixelRepresentation", 0))
            limits = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
        return Stored(values, mapping, {}, limits, padding, header=dataset)
    if reading.window is not None:
        raise InputError(
            f"{what} is in colour, and a window belongs to greyscale; leave out {argument('window_center')} and "
            f"{argument('window_width')}",
            field="window_center",
        )
    depth, source = bits, "stored values"
    if photometric == "PALETTE COLOR":
        from pydicom.pixels import apply_color_lut

        depth, source = int(dataset.RedPaletteColorLookupTableDescriptor[2]), "palette"
        values = apply_color_lut(values, dataset)
    colour = values[..., :3]
    if colour.ndim != 3 or colour.shape[2] != 3 or not np.issubdtype(colour.dtype, np.integer):
        raise InputError(f"{what} has {colour.shape[2:]} samples per pixel, not 3; export it as RGB or MONOCHROME2")
    everything = Range(0, 2**depth - 1)
    facts = everything.describe(source)
    if photometric.startswith("YBR"):
        facts["converted"] = "YBR to RGB"
    if source == "palette":  # of mostly 16 bits for what 8-bit indices choose: the colours are kept with 8
        colour, everything = to_bytes(everything.forward(colour)), Range(0, 255)
    return Stored(colour, Mapping(everything, facts=facts), {}, (0, int(everything.high)), header=dataset)
