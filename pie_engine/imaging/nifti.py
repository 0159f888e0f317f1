"""One slice of a NIfTI volume, upright and in radiological convention."""

from __future__ import annotations

import gzip
import logging
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from pie_engine.errors import InputError
from pie_engine.imaging.limits import MAX_PIXELS, quiet
from pie_engine.imaging.reading import Reading
from pie_engine.imaging.window import check_finite, range_mapping, to_bytes, window_mapping

log = logging.getLogger(__name__)

_NAMES = ("sagittal", "coronal", "axial")


def sniff_nifti(path: Path) -> bytes | None:
    """The magic number if the file's content is a NIfTI header, packed or not; else None."""
    with path.open("rb") as file:
        head = file.read(352)
    if head[:2] == b"\x1f\x8b":
        try:
            with gzip.open(path) as packed:
                head = packed.read(352)
        except (OSError, EOFError, zlib.error):
            return None
    for magic in (head[344:348], head[4:8]):
        if magic in (b"n+1\0", b"ni1\0", b"n+2\0", b"ni2\0"):
            return magic
    return None


def read_nifti(path: Path, magic: bytes, reading: Reading) -> tuple[np.ndarray, dict[str, Any]]:
    """Read one slice.

    The volume is turned to the closest of the patient's axes (right, anterior, superior). The picture has superior at
    the top (anterior, for axial slices) and the patient's right at the left (anterior, for sagittal ones).

    Returns:
        [H, W] uint8, and what provenance says of it.

    Raises:
        InputError: it cannot be read, or `reading` names no slice of it.
    """
    what = f"image {path}"
    try:
        import nibabel
    except ImportError:
        raise InputError(f"{what} is NIfTI and nibabel is missing; pip install 'pie-engine[nifti]'") from None
    if magic in (b"ni1\0", b"ni2\0"):
        raise InputError(f"{what} is the header of a NIfTI pair; join .hdr and .img into one .nii file")
    kind = nibabel.Nifti1Image if magic == b"n+1\0" else nibabel.Nifti2Image
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    try:
        with quiet("nibabel.global"), gzip.open(path) if packed else path.open("rb") as stream:
            volume = kind.from_stream(stream)
            return _read_slice(volume, what, reading)
    except (InputError, MemoryError):
        raise
    except Exception as error:  # nibabel's and zlib's errors share no base; their texts may hold header values
        raise InputError(
            f"{what} cannot be read as NIfTI ({type(error).__name__}: damaged or cut off); copy or export it anew"
        ) from None


def _read_slice(volume: Any, what: str, reading: Reading) -> tuple[np.ndarray, dict[str, Any]]:
    from nibabel.orientations import io_orientation

    shape = tuple(int(side) for side in volume.shape)
    if not shape or 0 in shape or len([side for side in shape[4:] if side > 1]) or len(shape) < 2:
        raise InputError(f"{what} has the shape {shape}, not that of a volume; pass one of 3 or 4 dimensions")
    if volume.get_data_dtype().fields is not None:
        raise InputError(f"{what} holds colours, not intensities; save the slice as PNG")
    if np.issubdtype(volume.get_data_dtype(), np.complexfloating):
        raise InputError(f"{what} holds complex numbers, not intensities; save their magnitude")
    spatial, frames = (*shape, 1)[:3], shape[3] if len(shape) > 3 else 1
    frame = _choose("frame", reading.frame, frames, what, f"has {frames} volumes")
    axis = 2 if reading.axis is None else reading.axis
    turns = io_orientation(volume.affine)  # per axis of the file: which of the patient's, and in which direction
    if np.isnan(turns).any():
        raise InputError(f"{what} has an affine that names no axis of the patient; mend its header (sform or qform)")
    own = [int(np.flatnonzero(turns[:, 0] == a)[0]) for a in range(3)]  # the file's axis of each of the patient's
    count = spatial[own[axis]]
    number = _choose("slice", reading.slice, count, what, f"has {count} {_NAMES[axis]} slices")
    across, up = (own[a] for a in range(3) if a != axis)
    if spatial[across] * spatial[up] > MAX_PIXELS:
        raise InputError(f"{what} has slices of more than {MAX_PIXELS} pixels; crop or shrink it")
    index: list[Any] = [slice(None)] * 3
    index[own[axis]] = number - 1 if turns[own[axis], 1] > 0 else count - number
    chosen = (*index[: min(len(shape), 3)], *([frame - 1] if len(shape) > 3 else []), *[0] * (len(shape) - 4))
    values = np.asarray(volume.dataobj[chosen])
    if len(shape) == 2:
        values = values[..., None][tuple(index)]
    if across > up:
        values = values.T  # [across, up]
    # Right, anterior and superior grow along the patient's axes; the picture has them at the left and at the top.
    across_step, up_step = (-1 if turns[a, 1] > 0 else 1 for a in (across, up))
    values = values[::across_step, ::up_step].T  # [H, W]
    check_finite(values, f"{what}, slice {number},")
    grey, mapping = _map(volume.header, values, what, reading)
    zooms = [float(zoom) for zoom in (*volume.header.get_zooms(), 1.0)[:3]]
    pixel = (zooms[across], zooms[up])
    if min(pixel) > 0 and abs(pixel[0] / pixel[1] - 1) > 0.05:
        log.warning("%s has pixels of %.3g x %.3g mm, used as if they were square; resample it first", what, *pixel)
    header = volume.header
    oriented = bool(header["sform_code"]) or bool(header["qform_code"])
    if not oriented:
        log.warning("%s does not say how the patient lies (no sform, no qform); left and right are assumed", what)
    return to_bytes(grey), {
        "format": f"NIfTI-{2 if type(volume).__name__.startswith('Nifti2') else 1}",
        "bits": 8 * volume.get_data_dtype().itemsize,
        "axis": axis,
        "slice": number,
        "slices": count,
        "frame": frame,
        "frames": frames,
        "orientation": "radiological, closest canonical axes" + ("" if oriented else "; none in the header"),
        "mapping": mapping,
    }


def _map(header: Any, values: np.ndarray, what: str, reading: Reading) -> tuple[np.ndarray, dict[str, Any]]:
    if reading.window is not None:
        return window_mapping(values, reading.window, "LINEAR_EXACT", "option")
    low, high = float(header["cal_min"]), float(header["cal_max"])
    if np.isfinite((low, high)).all() and low < high:
        return range_mapping(values, low, high, "file (cal_min, cal_max)")
    low, high = float(values.min()), float(values.max())
    log.warning(
        "%s names no window: %g..%g, all of this slice's values, become black to white; "
        "pass --window-center and --window-width",
        what, low, high,
    )  # fmt: skip
    return range_mapping(values, low, high, "values of this slice")


def _choose(name: str, chosen: int | None, count: int, what: str, has: str) -> int:
    if chosen is None and count > 1:
        raise InputError(f"{what} {has}; pass --{name} 1 to {count}, such as --{name} {(count + 1) // 2}")
    if chosen is not None and chosen > count:
        raise InputError(f"{what} {has}, none of them {chosen}; pass --{name} 1 to {count}")
    return chosen or 1
