"""One slice of a NIfTI volume, upright and in radiological convention."""

from __future__ import annotations

import contextlib
import gzip
import logging
import math
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pie_engine.errors import InputError, Notice, argument, use
from pie_engine.imaging.blocks import extremes
from pie_engine.imaging.formats.nifti_slice import NiftiSlice
from pie_engine.imaging.limits import MAX_NIFTI_HEADER, MAX_UNPACKED, check_size, quiet
from pie_engine.imaging.mapping import Mapping, Range, Rescale, Window
from pie_engine.imaging.reading import Reading, choose
from pie_engine.imaging.rules import broken_rescale
from pie_engine.imaging.stored import Stored
from pie_engine.imaging.window import check_finite

log = logging.getLogger(__name__)

_NAMES = ("sagittal", "coronal", "axial")
# Of the units that a header may name; without one, millimetres are meant.
_MILLIMETRES = {"meter": 1000.0, "micron": 0.001}


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


def read_nifti(path: Path, magic: bytes, reading: Reading) -> Stored:
    """Read one slice; see `locate`. Raises InputError: it cannot be read, or `reading` names no slice of it."""
    what = f"image {path}"
    with open_volume(path, magic, what) as volume:
        from nibabel.arrayproxy import ArrayProxy

        # The proxy keeps what the header loses when a volume is loaded: where voxels begin, and their scaling.
        place, header, proxy = locate(volume, what, reading), volume.header, volume.dataobj
        scaled = (proxy.slope, proxy.inter) != (1, 0)
        rescale = Rescale(float(proxy.slope), float(proxy.inter)) if scaled else None
        unscaled = (proxy.shape, proxy.dtype, proxy.offset)
        stored = place.take(ArrayProxy(proxy.file_like, unscaled, mmap=False))
        wrong = broken_rescale(rescale)
        if wrong is not None:  # before anything is computed with it
            raise InputError(f"{what} {wrong}")
        forward = None if rescale is None else rescale.forward
        check_finite(stored, f"{what}, slice {place.number},", forward)
        shown, said = _show(header, stored, forward, what, reading)
        if rescale is not None:
            said |= {"modality": {"slope": rescale.slope, "intercept": rescale.intercept}}
        facts = describe(place) | {"mapping": said}
    rows, columns = facts["spacing_mm"] or (1.0, 1.0)
    if abs(columns / rows - 1) > 0.05:
        log.warning(
            "%s has pixels of %.3g x %.3g mm, used as if they were square; resample it first", what, columns, rows
        )
    if not _oriented(header):
        log.warning("%s does not say how the patient lies (no sform, no qform); left and right are assumed", what)
    limits = None
    if np.issubdtype(stored.dtype, np.integer):
        limits = int(np.iinfo(stored.dtype).min), int(np.iinfo(stored.dtype).max)
    return Stored(stored, Mapping(shown, rescale, facts=said), facts, limits, aspect=(rows, columns), header=place)


@contextlib.contextmanager
def open_volume(path: Path, magic: bytes, what: str) -> Iterator[Any]:
    """A NIfTI file as a nibabel image whose voxels are read on demand, within the block alone.

    Raises:
        InputError: it cannot be read, also where the block finds that out.
    """
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
            _check_cost(kind.header_class, stream, packed, what)
            volume = kind.from_stream(stream)
            _check(volume, what)
            yield volume
    except (InputError, MemoryError):
        raise
    except Exception as error:  # nibabel's and zlib's errors share no base; their texts may hold header values
        raise InputError(
            f"{what} cannot be read as NIfTI ({type(error).__name__}: damaged or cut off); copy or export it anew"
        ) from None


def _check_cost(kind: Any, stream: Any, packed: bool, what: str) -> None:
    """Refuse what would take too much memory or time to read, by what the header declares. Rewinds the stream.

    Args:
        kind: nibabel's class of the header.

    Raises:
        InputError: beyond a limit.
    """
    header = kind(stream.read(kind.sizeof_hdr), check=False)
    stream.seek(0)
    before = float(header["vox_offset"])
    if before > MAX_NIFTI_HEADER:
        raise InputError(
            f"{what} has its first voxel at byte {before:.0f} (at most {MAX_NIFTI_HEADER}); save it anew without "
            "extensions"
        )
    voxels = math.prod(max(0, int(side)) for side in header.get_data_shape())
    size = voxels * header.get_data_dtype().itemsize
    if packed and size > MAX_UNPACKED:
        raise InputError(
            f"{what} is gzipped and holds {size} bytes of voxels (at most {MAX_UNPACKED}); unpack it with gunzip first"
        )


def _check(volume: Any, what: str) -> None:
    shape = tuple(int(side) for side in volume.shape)
    if not shape or 0 in shape or len([side for side in shape[4:] if side > 1]) or len(shape) < 2:
        raise InputError(f"{what} has the shape {shape}, not that of a volume; pass one of 3 or 4 dimensions")
    if volume.get_data_dtype().fields is not None:
        raise InputError(f"{what} holds colours, not intensities; save the slice as PNG")
    if np.issubdtype(volume.get_data_dtype(), np.complexfloating):
        raise InputError(f"{what} holds complex numbers, not intensities; save their magnitude")
    if np.isnan(_turns(volume)).any():
        raise InputError(f"{what} has an affine that names no axis of the patient; mend its header (sform or qform)")


def _turns(volume: Any) -> np.ndarray:
    """[3, 2]: for each axis of the file which of the patient's it is closest to, and in which direction."""
    from nibabel.orientations import io_orientation

    return np.asarray(io_orientation(volume.affine))


def spatial_shape(volume: Any) -> tuple[int, int, int]:
    """Voxels along the patient's axes: sagittal, coronal and axial slices."""
    shape = (*(int(side) for side in volume.shape), 1)[:3]
    turns = _turns(volume)
    return tuple(shape[int(np.flatnonzero(turns[:, 0] == axis)[0])] for axis in range(3))  # type: ignore[return-value]


def corners(volume: Any) -> np.ndarray:
    """[8, 3]: where the centres of the corner voxels lie in the patient, in the header's unit.

    In the order of the patient's axes, so that volumes compare however they are stored.
    """
    from nibabel.orientations import inv_ornt_aff

    shape = (*(int(side) for side in volume.shape), 1)[:3]
    affine = volume.affine @ inv_ornt_aff(_turns(volume), shape)
    last = np.array(spatial_shape(volume)) - 1
    places = np.array([[x, y, z] for x in (0, last[0]) for y in (0, last[1]) for z in (0, last[2])])
    return np.asarray(places @ affine[:3, :3].T + affine[:3, 3])


def _oriented(header: Any) -> bool:
    return bool(header["sform_code"]) or bool(header["qform_code"])


def locate(volume: Any, what: str, reading: Reading) -> NiftiSlice:
    """The slice that `reading` names.

    The volume is turned to the closest of the patient's axes (right, anterior, superior). The picture has superior at
    the top (anterior, for axial slices) and the patient's right at the left (anterior, for sagittal ones).

    Raises:
        InputError: `reading` names none.
    """
    shape = tuple(int(side) for side in volume.shape)
    frames = shape[3] if len(shape) > 3 else 1
    frame = choose("frame", reading.frame, frames, f"{what} has {frames} volumes", _middle("frame", frames))
    axis = 2 if reading.axis is None else reading.axis
    turns = _turns(volume)
    sagittal, coronal, axial = (int(np.flatnonzero(turns[:, 0] == a)[0]) for a in range(3))
    file_axes = (sagittal, coronal, axial)
    count = spatial_shape(volume)[axis]
    number = choose("slice", reading.slice, count, f"{what} has {count} {_NAMES[axis]} slices", _middle("slice", count))
    across, up = (file_axes[a] for a in range(3) if a != axis)
    spatial = (*shape, 1)[:3]
    check_size(spatial[across], spatial[up], what, "slice")
    index = number - 1 if turns[file_axes[axis], 1] > 0 else count - number
    steps = (-1 if turns[across, 1] > 0 else 1, -1 if turns[up, 1] > 0 else 1)
    return NiftiSlice(volume, axis, number, count, frame, frames, file_axes, index, steps)


def describe(place: NiftiSlice) -> dict[str, Any]:
    """What provenance says of a slice."""
    volume, (across, up) = place.volume, place.across_up
    unit = _MILLIMETRES.get(volume.header.get_xyzt_units()[0], 1.0)
    zooms = [float(zoom) * unit for zoom in (*volume.header.get_zooms(), 1.0)[:3]]
    known = min(zooms) > 0 and np.isfinite(zooms).all()
    return {
        "format": f"NIfTI-{2 if type(volume).__name__.startswith('Nifti2') else 1}",
        "bits": 8 * volume.get_data_dtype().itemsize,
        "axis": place.axis,
        "slice": place.number,
        "slices": place.count,
        "frame": place.frame,
        "frames": place.frames,
        "spacing_mm": [zooms[up], zooms[across]] if known else None,
        "orientation": "radiological, closest canonical axes"
        + ("" if _oriented(volume.header) else "; none in the header"),
    }


def choose_slice(volume: Any, what: str, reading: Reading) -> tuple[np.ndarray, dict[str, Any]]:
    """The slice that `reading` names: [H, W] of the file's values after its scaling, and what provenance says of it.

    Raises:
        InputError: `reading` names none, or a value is not finite.
    """
    place = locate(volume, what, reading)
    values = place.take(volume.dataobj)
    check_finite(values, f"{what}, slice {place.number},")
    return values, describe(place)


def _show(
    header: Any,
    stored: np.ndarray,
    forward: Callable[[np.ndarray], np.ndarray] | None,
    what: str,
    reading: Reading,
) -> tuple[Window | Range, dict[str, Any]]:
    if reading.window is not None:
        window = Window(*reading.window, "LINEAR_EXACT")
        return window, window.describe("option")
    low, high = float(header["cal_min"]), float(header["cal_max"])
    source = "file (cal_min, cal_max)"
    if not np.isfinite((low, high)).all() or low >= high:
        low, high = map(float, extremes(stored, forward))
        source = "values of this slice"
        log.warning(
            Notice(
                "%s names no window: %g..%g, all of this slice's values, become black to white; "
                f"pass {argument('window_center')} and {argument('window_width')}"
            ),
            what, low, high,
        )  # fmt: skip
    everything = Range(low, high)
    return everything, everything.describe(source)


def _middle(name: str, count: int) -> str:
    return f", such as {use(name, (count + 1) // 2)}"
