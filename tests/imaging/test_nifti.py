"""NIfTI in: which way up a slice is, its window, and what is refused."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pie_engine.errors import InputError
from pie_engine.imaging import Reading, read_image

nibabel = pytest.importorskip("nibabel")

# [x, y, z] in RAS: x grows to the right, y to the front, z upwards; every voxel has another value.
VOLUME = np.arange(2 * 3 * 4, dtype=np.int16).reshape(2, 3, 4)
WINDOW = {"window_center": 127.5, "window_width": 255.0}  # value n becomes grey n


def write(path: Path, values: np.ndarray, affine: np.ndarray | None = None) -> Path:
    nibabel.Nifti1Image(values, np.eye(4) if affine is None else affine).to_filename(path)
    return path


def read(path: Path, **reading: Any) -> list[list[int]]:
    return np.asarray(read_image(path, reading=Reading(**{**WINDOW, **reading}))[0]).tolist()


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_slices_are_upright_in_radiological_convention(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, VOLUME)
    # Axial: anterior (y high) on top, the patient's right (x high) at the left.
    assert read(path, slice=1) == [[VOLUME[x, y, 0] for x in (1, 0)] for y in (2, 1, 0)]
    assert read(path, slice=2, axis=1) == [[VOLUME[x, 1, z] for x in (1, 0)] for z in (3, 2, 1, 0)]
    assert read(path, slice=2, axis=0) == [[VOLUME[1, y, z] for y in (2, 1, 0)] for z in (3, 2, 1, 0)]


@pytest.mark.parametrize("order", ["LPS", "ASL", "PIR", "RAS"])
def test_the_order_of_storage_does_not_matter(tmp_path: Path, order: str) -> None:
    image = nibabel.Nifti1Image(VOLUME, np.eye(4))
    turn = nibabel.orientations.ornt_transform(
        nibabel.orientations.axcodes2ornt("RAS"), nibabel.orientations.axcodes2ornt(order)
    )
    image.as_reoriented(turn).to_filename(tmp_path / "b.nii")
    path = write(tmp_path / "a.nii", VOLUME)
    for axis, count in enumerate(VOLUME.shape):
        for number in range(1, count + 1):
            chosen = {"slice": number, "axis": axis}
            assert read(tmp_path / "b.nii", **chosen) == read(path, **chosen)


def test_range_without_a_window(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    image, facts = read_image(write(tmp_path / "a.nii", VOLUME), reading=Reading(slice=1))
    assert (np.asarray(image).min(), np.asarray(image).max()) == (0, 255)
    assert (facts["mapping"]["low"], facts["mapping"]["high"]) == (0, 20)
    assert "names no window" in caplog.text
    assert (facts["slice"], facts["slices"], facts["axis"], facts["format"]) == (1, 4, 2, "NIfTI-1")


def test_refusals(tmp_path: Path) -> None:
    path = write(tmp_path / "a.nii", VOLUME)
    for reading, line in (
        ({}, r"has 4 axial slices; pass slice=1 to 4"),
        ({"slice": 5}, "none of them 5; pass slice=1 to 4"),
        ({"slice": 1, "frame": 2}, "has 1 volumes, none of them 2"),
    ):
        with pytest.raises(InputError, match=line):
            read(path, **reading)
    broken = VOLUME.astype(np.float32)
    broken[0, 0, 0] = np.nan
    with pytest.raises(InputError, match=r"slice 1, has 1 of 6 values that are not finite"):
        read(write(tmp_path / "nan.nii", broken), slice=1)
    four = write(tmp_path / "four.nii", np.stack([VOLUME, VOLUME + 100], axis=-1))
    with pytest.raises(InputError, match=r"has 2 volumes; pass frame=1 to 2"):
        read(four, slice=1)
    assert read(four, slice=1, frame=2)[0][0] == VOLUME[1, 2, 0] + 100
    data = path.read_bytes()
    path.write_bytes(data[:-10])
    with pytest.raises(InputError, match="cannot be read as NIfTI"):
        read(path, slice=4)


def test_nifti_2_and_its_own_window(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    image = nibabel.Nifti2Image(VOLUME, np.eye(4))
    image.header["cal_min"], image.header["cal_max"] = 10, 20
    image.to_filename(tmp_path / "a.nii")
    picture, facts = read_image(tmp_path / "a.nii", reading=Reading(slice=3))
    values = np.array([[VOLUME[x, y, 2] for x in (1, 0)] for y in (2, 1, 0)])
    assert np.asarray(picture).tolist() == np.round(np.clip((values - 10) / 10, 0, 1) * 255).tolist()
    assert (facts["format"], facts["mapping"]["source"]) == ("NIfTI-2", "file (cal_min, cal_max)")
    assert "names no window" not in caplog.text


def test_scaling_of_the_header(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(VOLUME, np.eye(4))
    image.header.set_slope_inter(2.5, -7.5)
    image.to_filename(tmp_path / "a.nii")
    assert read(tmp_path / "a.nii", slice=4)[0][0] == 2.5 * VOLUME[1, 2, 3] - 7.5
    facts = read_image(tmp_path / "a.nii", reading=Reading(slice=4, **WINDOW))[1]
    assert facts["mapping"]["modality"] == {"slope": 2.5, "intercept": -7.5}


def test_without_a_place_in_the_patient(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    image = nibabel.Nifti1Image(VOLUME, np.eye(4))
    image.set_sform(None, 0)
    image.set_qform(None, 0)
    image.to_filename(tmp_path / "a.nii")
    facts = read_image(tmp_path / "a.nii", reading=Reading(slice=1, **WINDOW))[1]
    assert "does not say how the patient lies (no sform, no qform)" in caplog.text
    assert facts["orientation"].endswith("none in the header")


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.nii", VOLUME)
    found = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.split(".")[0] == "nibabel":
            raise ImportError(name)
        return found(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match=r"is NIfTI and nibabel is missing; pip install 'pie-engine\[nifti\]'"):
        read(path, slice=1)
