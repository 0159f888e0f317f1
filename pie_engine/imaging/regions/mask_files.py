"""Masks from files, arrays and shapes, as pictures that are white where the region is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image as PILImage

from pie_engine.errors import InputError, mention
from pie_engine.imaging.formats import nifti
from pie_engine.imaging.formats.dicom import open_dicom
from pie_engine.imaging.grid import Grid
from pie_engine.imaging.image import read_image, sniff
from pie_engine.imaging.reading import Reading
from pie_engine.imaging.regions import dicom_seg
from pie_engine.imaging.regions.region import Region
from pie_engine.imaging.regions.shapes import Shape

if TYPE_CHECKING:
    from PIL.Image import Image


def read_mask(region: Region, grid: Grid, kind: str = "mask") -> tuple[Image, dict[str, Any]]:
    """Read or draw one region.

    Args:
        grid: the image's pixels, which volumes and segmentations have to fit exactly. A picture may have another size;
            its aspect ratio is not looked at here.
        kind: what it is to the user, for messages: "mask" or "keep mask".

    Returns:
        The picture, of any mode, white inside; and what provenance says of it.

    Raises:
        InputError: it cannot be read, does not fit the image, or holds no such label.
    """
    source = region.source
    if isinstance(source, Shape):
        return _picture(source.draw(grid.size)), region.describe()
    if isinstance(source, str | Path):
        magic, dicom = sniff(source)
        path = Path(source)
        if magic is not None:
            pixels, facts = _from_nifti(path, magic, grid, region.label, kind)
            return _picture(pixels), region.describe() | facts
        if dicom:
            image, facts = _from_dicom(path, grid, region.label, kind)
            return image, region.describe() | facts
    image = read_image(source, kind)[0]
    if region.label is not None:
        raise InputError(
            f"{kind} {source} is a picture, and {mention('label')} {region.label} picks a part of a NIfTI or DICOM "
            "SEG file; leave it out",
            field="label",
            value=region.label,
        )
    return image, region.describe()


def _picture(pixels: np.ndarray) -> Image:
    return PILImage.fromarray(pixels.astype(np.uint8) * 255)


def _from_dicom(path: Path, grid: Grid, label: int | None, kind: str) -> tuple[Image, dict[str, Any]]:
    what = f"{kind} {path}"
    with open_dicom(path, what) as dataset:
        if str(dataset.get("SOPClassUID")) in dicom_seg.CLASSES:
            pixels, facts = dicom_seg.read_segmentation(dataset, what, grid, label)
            return _picture(pixels), facts
        several = int(dataset.get("NumberOfFrames") or 1) > 1
    if label is not None:
        raise InputError(
            f"{what} is a DICOM image and no segmentation, so {mention('label')} {label} picks nothing; leave it out",
            field="label",
            value=label,
        )
    # Of as many frames as the image has, the one that belongs to it.
    frame = grid.facts.get("frame") if several else None
    return read_image(path, kind, Reading(frame=frame))[0], {"kind": "DICOM"}


def _from_nifti(
    path: Path, magic: bytes, grid: Grid, label: int | None, kind: str
) -> tuple[np.ndarray, dict[str, Any]]:
    """[H, W] bool: the slice that belongs to the image, turned as the image is."""
    what = f"{kind} {path}"
    with nifti.open_volume(path, magic, what) as volume:
        if grid.format == "NIfTI" and grid.path is not None:
            _check_place(volume, what, grid)
            several = len(volume.shape) > 3 and volume.shape[3] > 1
            axis, number = grid.facts["axis"], grid.facts["slice"]
            reading = Reading(grid.facts["frame"] if several else None, number, axis)
        else:
            reading = Reading(axis=_only_axis(volume, what))
        values, facts = nifti.choose_slice(volume, what, reading)
    if values.shape != grid.size[::-1]:
        raise InputError(
            f"{what} has {values.shape[1]} x {values.shape[0]} pixels and the image {grid.size[0]} x {grid.size[1]}; "
            "pass the mask drawn on this image"
        )
    inside = values != 0 if label is None else values == label
    if not inside.any():
        present = np.unique(values)
        shown = ", ".join(f"{value:g}" for value in present[:12]) + (", ..." if len(present) > 12 else "")
        wanted = "other than 0" if label is None else str(label)
        raise InputError(
            f"{what} has no value {wanted} in slice {facts['slice']} (it has {shown}); choose another slice"
        )
    return inside, {"kind": "NIfTI", "slice": facts["slice"], "axis": facts["axis"]}


def _only_axis(volume: Any, what: str) -> int:
    """The axis along which a volume has one slice: where the image is no volume, nothing says which one to take."""
    shape = nifti.spatial_shape(volume)
    axes = [axis for axis in (2, 1, 0) if shape[axis] == 1]
    if not axes:
        raise InputError(
            f"{what} is a volume of {' x '.join(map(str, shape))} voxels and the image is not one; "
            "save the image's slice of it alone"
        )
    return axes[0]


def _check_place(volume: Any, what: str, grid: Grid) -> None:
    """Refuse a volume of other voxels than the image's."""
    assert grid.path is not None
    shape, corners = nifti.spatial_shape(volume), nifti.corners(volume)
    magic = sniff(grid.path)[0]
    assert magic is not None
    with nifti.open_volume(grid.path, magic, f"image {grid.path}") as image:
        image_shape, image_corners = nifti.spatial_shape(image), nifti.corners(image)
        voxel = min(float(np.linalg.norm(column)) for column in image.affine[:3, :3].T)
    if shape != image_shape:
        raise InputError(
            f"{what} has {' x '.join(map(str, shape))} voxels and the image {' x '.join(map(str, image_shape))}; "
            "pass the mask drawn on this image"
        )
    distance = float(np.linalg.norm(corners - image_corners, axis=1).max())
    if distance > voxel / 2:
        raise InputError(
            f"{what} lies up to {distance:.3g} mm from the image's voxels (at most {voxel / 2:.3g}, half a voxel); "
            "pass the mask drawn on this image, or resample it on it"
        )
