"""One frame of a DICOM file as 8-bit grey or RGB.

No value of the header reaches a message, a log or provenance, but for technical ones (sizes, bits, windows, the
transfer syntax's name): others may identify the patient.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np

from pie_engine.errors import InputError
from pie_engine.imaging.dicom_grey import map_grey
from pie_engine.imaging.limits import MAX_PIXELS, quiet
from pie_engine.imaging.reading import Reading
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


def read_dicom(path: Path, reading: Reading) -> tuple[np.ndarray, dict[str, Any]]:
    """Read one frame.

    Returns:
        [H, W] or [H, W, 3] uint8, and what provenance says of it.

    Raises:
        InputError: no image, or one that cannot be decoded, or `reading` does not apply to it.
    """
    what = f"image {path}"
    try:
        import pydicom
    except ImportError:
        raise InputError(f"{what} is DICOM and pydicom is missing; pip install 'pie-engine[dicom]'") from None
    for name in ("slice", "axis"):
        if getattr(reading, name) is not None:
            raise InputError(f"--{name} belongs to NIfTI, and {what} is DICOM; pass --frame, or leave it out")
    try:
        with quiet("pydicom"):
            dataset = pydicom.dcmread(path, force=True)
            _check(dataset, what)
            frame, frames = _choose_frame(dataset, what, reading)
            stored = _decode(dataset, frame, what)
            pixels, mapping = _to_8_bits(dataset, stored, frame, what, reading)
    except (InputError, MemoryError, PermissionError):
        raise
    except Exception as error:  # whatever a damaged header leads to; its text may quote the header
        raise InputError(
            f"{what} cannot be read as DICOM ({type(error).__name__}: damaged or cut off); copy or export it anew"
        ) from None
    return pixels, {
        "format": "DICOM",
        "transfer_syntax": _name(_syntax(dataset)),
        "photometric": str(dataset.PhotometricInterpretation),
        "bits": int(dataset.get("BitsStored", dataset.BitsAllocated)),
        "frame": frame,
        "frames": frames,
        "mapping": mapping,
    }


def _syntax(dataset: Any) -> Any:
    from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

    meta = getattr(dataset, "file_meta", None)
    found = None if meta is None else meta.get("TransferSyntaxUID")
    if found:
        return found
    implicit = dataset.original_encoding[0]
    return ImplicitVRLittleEndian if implicit in (True, None) else ExplicitVRLittleEndian


def _name(uid: Any) -> str:
    """A registered UID's name; private ones are not repeated."""
    name = str(getattr(uid, "name", ""))
    return name if name and not name[0].isdigit() else "unknown"


def _check(dataset: Any, what: str) -> None:
    """Refuse what holds no image that can be decoded, before anything is decoded."""
    kind = dataset.get("SOPClassUID")
    if not kind and not any(name in dataset for name in _PIXELS):
        raise InputError(
            f"{what} is no DICOM object (no SOP class, no pixel data, or cut off); pass a whole DICOM image"
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
    if dataset.Rows * dataset.Columns > MAX_PIXELS:
        raise InputError(f"{what} has more than {MAX_PIXELS} pixels a frame; crop or shrink it")
    photometric = str(dataset.PhotometricInterpretation)
    if photometric not in (*_GREY, *_COLOUR, "PALETTE COLOR"):
        raise InputError(f"{what} has a photometric interpretation that is not supported; export it as MONOCHROME2")
    dataset.ensure_file_meta()
    dataset.file_meta.TransferSyntaxUID = syntax  # a file without a preamble does not say it


def _choose_frame(dataset: Any, what: str, reading: Reading) -> tuple[int, int]:
    try:
        frames = max(1, int(dataset.get("NumberOfFrames") or 1))
    except (TypeError, ValueError):
        raise InputError(f"{what} has a number of frames that is none; export it anew") from None
    if reading.frame is None and frames > 1:
        raise InputError(f"{what} has {frames} frames; pass --frame 1 to {frames}")
    if reading.frame is not None and reading.frame > frames:
        raise InputError(
            f"{what} has {frames} frame{'s' * (frames > 1)}, none of them {reading.frame}; pass --frame 1 to {frames}"
        )
    return reading.frame or 1, frames


def _decode(dataset: Any, frame: int, what: str) -> np.ndarray:
    """[H, W] or [H, W, 3], stored values; colour is RGB."""
    from pydicom.pixels import get_decoder, pixel_array

    syntax = _syntax(dataset)
    try:
        decoder = get_decoder(syntax)
        usable = not syntax.is_compressed or decoder.is_available or syntax.is_deflated
    except NotImplementedError:
        raise InputError(
            f"{what} is compressed as {_name(syntax)}, which pydicom does not decode; convert it to "
            "Explicit VR Little Endian (dcmdjpeg, gdcmconv --raw)"
        ) from None
    plugin = _OTHER_PLUGINS.get(str(syntax))
    remedy = f"pip install {plugin}{_LICENCES.get(plugin, '')}" if plugin else "pip install 'pie-engine[dicom]'"
    if not usable:
        raise InputError(f"{what} is compressed as {_name(syntax)}, and no decoder is installed; {remedy}")
    try:
        array = pixel_array(dataset, index=frame - 1)
    except MemoryError:
        raise
    except Exception:
        again = f"copy or export it anew (or {remedy})" if plugin else "copy or export it anew"
        raise InputError(
            f"{what} has pixel data that cannot be decoded ({_name(syntax)}; truncated, damaged, or not of the size "
            f"that its header says); {again}"
        ) from None
    if array.shape[:2] != (dataset.Rows, dataset.Columns):
        raise InputError(f"{what} decodes to another size than its header says; export it anew")
    return array


def _to_8_bits(
    dataset: Any, stored: np.ndarray, frame: int, what: str, reading: Reading
) -> tuple[np.ndarray, dict[str, Any]]:
    photometric = str(dataset.PhotometricInterpretation)
    if photometric in _GREY and stored.ndim == 2:
        grey, mapping = map_grey(dataset, stored, frame, what, reading)
        return to_bytes(grey), mapping
    if reading.window is not None:
        raise InputError(
            f"{what} is in colour, and a window belongs to greyscale; leave out --window-center and -width"
        )
    if photometric == "PALETTE COLOR":
        from pydicom.pixels import apply_color_lut

        depth = int(dataset.RedPaletteColorLookupTableDescriptor[2])
        colour, source = apply_color_lut(stored, dataset)[..., :3], "palette"
    else:
        depth, source = int(dataset.get("BitsStored", dataset.BitsAllocated)), "stored values"
        colour = stored[..., :3]
    if colour.ndim != 3 or colour.shape[2] != 3 or not np.issubdtype(colour.dtype, np.integer):
        raise InputError(f"{what} has {colour.shape[2:]} samples per pixel, not 3; export it as RGB or MONOCHROME2")
    mapping = {"function": "full range", "low": 0.0, "high": float(2**depth - 1), "source": source}
    if photometric.startswith("YBR"):
        mapping["converted"] = "YBR to RGB"
    return to_bytes(colour / (2**depth - 1)), mapping
