"""Where one slice lies in a NIfTI volume: out of it as an upright picture, and back into a volume of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

# Voxels that are read at once of a slice across the file's planes.
_AT_ONCE = 2**24


@dataclass(frozen=True)
class NiftiSlice:
    """One slice of a volume.

    Attributes:
        volume: the nibabel image that it belongs to; its header and affine are used, its voxels only by `take`.
        axis: which of the patient's axes it lies across: 0 sagittal, 1 coronal, 2 axial.
        number: along it, of `count`; both count from 1.
        frame: which volume of a 4-D file, of `frames`.
        file_axes: the file's axis for each of the patient's.
        index: where along the file's axis.
        steps: -1 where the picture runs against the file, for columns and rows.
    """

    volume: Any
    axis: int
    number: int
    count: int
    frame: int
    frames: int
    file_axes: tuple[int, int, int]
    index: int
    steps: tuple[int, int]

    @property
    def across_up(self) -> tuple[int, int]:
        """The file's axes along the picture's columns and rows."""
        across, up = (self.file_axes[axis] for axis in range(3) if axis != self.axis)
        return across, up

    def take(self, voxels: Any) -> np.ndarray:
        """[H, W] of an array of the volume's shape, which may be a proxy that reads what is asked of it."""
        shape = tuple(voxels.shape)
        place: list[Any] = [slice(None)] * 3
        place[self.file_axes[self.axis]] = self.index
        chosen = (*place[: min(len(shape), 3)], *([self.frame - 1] if len(shape) > 3 else []), *[0] * (len(shape) - 4))
        values = _read_slice(voxels, chosen)
        if len(shape) == 2:
            values = values[..., None][tuple(place)]
        across, up = self.across_up
        if across > up:
            values = values.T  # [across, up]
        # Right, anterior and superior grow along the patient's axes; the picture has them at the left and at the top.
        return values[:: self.steps[0], :: self.steps[1]].T  # [H, W]

    def volume_of(self, values: np.ndarray, description: str) -> Any:
        """A volume of this slice alone, at its place in the patient: [H, W] stored values -> a nibabel image.

        Type, scaling, unit, window and position are the source's. Nothing else of its header goes along: texts and
        extensions may name a patient.
        """
        across, up = self.across_up
        placed = values.T[:: self.steps[0], :: self.steps[1]]  # [across, up]
        through = self.file_axes[self.axis]
        placed = np.ascontiguousarray(np.expand_dims(placed.T if across > up else placed, through))
        shift = np.eye(4)
        shift[through, 3] = self.index
        source = self.volume.header
        header = type(self.volume).header_class()
        header.set_data_dtype(source.get_data_dtype())
        for name in ("xyzt_units", "cal_min", "cal_max"):
            header[name] = source[name]
        header["descrip"] = description.encode()
        made = type(self.volume)(placed, self.volume.affine @ shift, header)
        for read, write in ((source.get_sform, made.set_sform), (source.get_qform, made.set_qform)):
            affine, code = read(coded=True)
            write(None if affine is None else affine @ shift, int(code), update_affine=False)
        made.header.set_slope_inter(self.volume.dataobj.slope, self.volume.dataobj.inter)
        return made


def _read_slice(voxels: Any, chosen: tuple[Any, ...]) -> np.ndarray:
    """`voxels[chosen]`, a few of the file's planes at a time, for nibabel may read a whole volume for a slice of it."""
    shape = tuple(voxels.shape)
    if len(shape) < 3 or not isinstance(chosen[2], slice):
        return np.asarray(voxels[chosen])
    planes = max(1, _AT_ONCE // (shape[0] * shape[1]))
    parts = [
        np.array(voxels[(*chosen[:2], slice(start, start + planes), *chosen[3:])])
        for start in range(0, shape[2], planes)
    ]
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)
