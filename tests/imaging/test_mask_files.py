"""Masks from NIfTI and DICOM: which slice, segment and frame is taken, and what does not fit."""

from __future__ import annotations

import logging
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from segmentations import SECRETS, Frame, items, write_image, write_segmentation

from pie_engine.config import RunConfig
from pie_engine.errors import InputError
from pie_engine.imaging import Grid, Reading, Region, Roi, as_regions, read_image, read_roi
from pie_engine.imaging.item import Item, prepare_item

nibabel = pytest.importorskip("nibabel")

RNG = np.random.default_rng(0)
SIZE = (7, 5)  # 35 bits: the next frame of a binary segmentation begins inside a byte


def random_mask(height: int = SIZE[1], width: int = SIZE[0]) -> np.ndarray:
    mask = RNG.random((height, width)) < 0.5
    mask[0, 0] = True
    return mask


def roi_of(image: Any, mask: Any, reading: Reading | None = None) -> Roi:
    reading = reading or Reading()
    opened, facts = read_image(image, reading=reading)
    return read_roi(Grid.of(image, opened, facts, reading), as_regions(mask))


def refused(image: Any, mask: Any, reading: Reading | None = None) -> str:
    with pytest.raises(InputError) as caught:
        roi_of(image, mask, reading)
    line = str(caught.value)
    assert "\n" not in line
    assert not any(secret in line for secret in SECRETS)
    return line


# --- NIfTI


def write_nifti(path: Path, values: np.ndarray, affine: np.ndarray | None = None, order: str = "RAS") -> Path:
    image = nibabel.Nifti1Image(values, np.diag([2.0, 2.0, 3.0, 1.0]) if affine is None else affine)
    codes = nibabel.orientations.axcodes2ornt
    image.as_reoriented(nibabel.orientations.ornt_transform(codes("RAS"), codes(order))).to_filename(path)
    return path


@pytest.mark.parametrize("order", ["RAS", "LPS", "PIR"])
def test_the_slice_of_the_image_however_it_is_stored(tmp_path: Path, order: str) -> None:
    """The mask drawn into the volume as its values: where the slice shows them, there the region is."""
    labels = RNG.integers(0, 4, (6, 7, 5)).astype(np.uint8)
    image = write_nifti(tmp_path / "image.nii", (labels * 50).astype(np.int16))
    mask = write_nifti(tmp_path / "mask.nii.gz", labels, order=order)
    for axis, number in ((2, 4), (1, 2), (0, 6)):
        reading = Reading(slice=number, axis=axis, window_center=75, window_width=150)
        shown = np.round(np.asarray(read_image(image, reading=reading)[0]) / 85).astype(int)
        found = roi_of(image, mask, reading)
        assert (found.pixels == (shown != 0)).all()
        two = roi_of(image, Region(mask, label=2), reading)
        assert (two.pixels == (shown == 2)).all()
        assert two.facts["regions"][0]["label"] == 2
        assert (two.facts["regions"][0]["slice"], two.facts["regions"][0]["axis"]) == (number, axis)


def test_a_mask_of_one_slice_for_a_picture(tmp_path: Path) -> None:
    picture = np.zeros((7, 6), np.uint8)  # [H, W]
    drawn = np.zeros((6, 7, 1), np.uint8)  # [x, y, z]: right and front grow
    drawn[5, 6, 0] = 1
    found = roi_of(picture, write_nifti(tmp_path / "a.nii", drawn)).pixels
    assert np.argwhere(found).tolist() == [[0, 0]]  # the patient's right and front: left at the top
    coronal = write_nifti(tmp_path / "b.nii", drawn.reshape(6, 1, 7))
    assert np.argwhere(roi_of(picture, coronal).pixels).tolist() == [[0, 0]]
    flat = write_nifti(tmp_path / "c.nii", drawn[..., 0])
    assert roi_of(picture, flat).pixels.sum() == 1
    volume = write_nifti(tmp_path / "d.nii", drawn.repeat(3, axis=2))
    assert "is a volume of 6 x 7 x 3 voxels and the image is not one" in refused(picture, volume)
    assert "has 6 x 7 pixels and the image 7 x 7" in refused(np.zeros((7, 7), np.uint8), flat)


def test_volumes_that_do_not_fit(tmp_path: Path) -> None:
    values = np.zeros((6, 7, 5), np.int16)
    values[1:4, 2:5, :4] = 1
    image, reading = write_nifti(tmp_path / "image.nii", values), Reading(slice=3, window_center=0, window_width=2)
    other = write_nifti(tmp_path / "other.nii", values[:, :, :4])
    assert "has 6 x 7 x 4 voxels and the image 6 x 7 x 5; pass the mask drawn on this image" in refused(
        image, other, reading
    )
    moved = np.diag([2.0, 2.0, 3.0, 1.0])
    moved[:3, 3] = (0, 3, 4)
    elsewhere = write_nifti(tmp_path / "moved.nii", values, moved)
    assert "lies up to 5 mm from the image's voxels (at most 1, half a voxel)" in refused(image, elsewhere, reading)
    moved[:3, 3] = (0.3, 0.4, 0.2)
    assert roi_of(image, write_nifti(tmp_path / "near.nii", values, moved), reading).pixels.sum() == 9
    mask = write_nifti(tmp_path / "mask.nii", values)
    assert roi_of(image, mask, reading).pixels.sum() == 9
    assert "has no value other than 0 in slice 5 (it has 0); choose another slice" in refused(
        image, mask, Reading(slice=5, window_center=0, window_width=2)
    )
    assert "has no value 3 in slice 3 (it has 0, 1)" in refused(image, Region(mask, label=3), reading)
    broken = values.astype(np.float32)
    broken[2, 2, 2] = np.nan
    nan = write_nifti(tmp_path / "nan.nii", broken)
    assert "slice 3, has 1 of 42 values that are not finite (NaN or infinity)" in refused(image, nan, reading)
    cut = tmp_path / "cut.nii"
    cut.write_bytes(mask.read_bytes()[:-200])
    assert "mask " in (line := refused(image, cut, Reading(slice=4, window_center=0, window_width=2)))
    assert "cannot be read as NIfTI" in line


def test_one_mask_for_all_volumes_or_one_each(tmp_path: Path) -> None:
    values = np.zeros((6, 7, 1, 2), np.int16)
    values[1, 1, 0, 0] = values[4, 4, 0, 1] = 1
    image = write_nifti(tmp_path / "image.nii", values)
    reading = Reading(frame=2, window_center=0, window_width=2)
    assert np.argwhere(roi_of(image, image, reading).pixels).tolist() == [[2, 1]]
    one = write_nifti(tmp_path / "one.nii", values[..., 0])
    assert np.argwhere(roi_of(image, one, reading).pixels).tolist() == [[5, 4]]


# --- DICOM SEG


def test_the_frame_that_refers_to_the_image(tmp_path: Path) -> None:
    images = [write_image(tmp_path / f"{n}.dcm", np.zeros(SIZE[::-1])) for n in range(3)]
    masks = {(n, segment): random_mask() for n in range(3) for segment in (1, 2)}
    frames = [Frame(mask, segment, (images[n].SOPInstanceUID, None)) for (n, segment), mask in masks.items()]
    path = write_segmentation(tmp_path / "seg.dcm", frames)
    for n in range(3):
        for segment in (1, 2):
            found = roi_of(tmp_path / f"{n}.dcm", Region(path, label=segment))
            assert (found.pixels == masks[n, segment]).all()
    facts = found.facts["regions"][0]
    assert (facts["kind"], facts["segment"], facts["matched_by"]) == ("DICOM SEG", 2, "reference")
    assert "has 2 segments (1, 2); pass label=1 or another" in refused(tmp_path / "0.dcm", path)
    assert "has no segment 3 (it has 1, 2)" in refused(tmp_path / "0.dcm", Region(path, label=3))


def test_the_frame_of_a_multi_frame_image(tmp_path: Path) -> None:
    image = write_image(tmp_path / "image.dcm", np.zeros((3, *SIZE[::-1])))
    masks = [random_mask() for _ in range(3)]
    frames = [Frame(mask, 1, (image.SOPInstanceUID, n)) for n, mask in enumerate(masks, 1)]
    path = write_segmentation(tmp_path / "seg.dcm", frames[::-1])
    for n in (1, 2, 3):
        assert (roi_of(tmp_path / "image.dcm", path, Reading(frame=n)).pixels == masks[n - 1]).all()
    without = write_segmentation(tmp_path / "without.dcm", frames[:1])
    assert "segment 1 of mask" in (line := refused(tmp_path / "image.dcm", without, Reading(frame=2)))
    assert "is empty on this image" in line


def test_kinds_of_segmentations(tmp_path: Path) -> None:
    image = write_image(tmp_path / "image.dcm", np.zeros(SIZE[::-1]))
    here = (image.SOPInstanceUID, None)
    shares = RNG.integers(0, 201, SIZE[::-1])
    shares[0, :3] = (99, 100, 101)
    fractional = write_segmentation(tmp_path / "f.dcm", [Frame(shares, 1, here)], "FRACTIONAL")
    assert (roi_of(tmp_path / "image.dcm", fractional).pixels == (shares >= 100)).all()  # of 200
    labels = RNG.integers(0, 4, SIZE[::-1])
    label_map = write_segmentation(tmp_path / "l.dcm", [Frame(labels, None, here)], "LABELMAP", segments=[0, 1, 2, 3])
    found = roi_of(tmp_path / "image.dcm", Region(label_map, label=3))
    assert (found.pixels == (labels == 3)).all()
    assert "has 3 segments (1, 2, 3)" in refused(tmp_path / "image.dcm", label_map)


def test_segmentations_of_another_image(tmp_path: Path) -> None:
    image = write_image(tmp_path / "image.dcm", np.zeros(SIZE[::-1]))
    here = (image.SOPInstanceUID, None)
    one = write_segmentation(tmp_path / "one.dcm", [Frame(random_mask(), 1, ("1.2.3", None))])
    assert "refers to another image and not to this one; pass the segmentation" in refused(tmp_path / "image.dcm", one)
    frames = [Frame(random_mask(), 1, (f"1.2.{n}", None)) for n in range(4)]
    several = write_segmentation(tmp_path / "several.dcm", frames)
    assert "refers to 4 other images and not to this one" in refused(tmp_path / "image.dcm", several)
    large = write_segmentation(tmp_path / "large.dcm", [Frame(random_mask(10, 14), 1, here)])
    assert "is a segmentation of 14 x 10 and the image has 7 x 5 pixels" in refused(tmp_path / "image.dcm", large)
    empty = write_segmentation(tmp_path / "empty.dcm", [Frame(np.zeros(SIZE[::-1]), 1, here)])
    assert "segment 1 of mask" in (line := refused(tmp_path / "image.dcm", empty))
    assert "is empty on this image" in line
    # An empty frame may be left out: the image is listed then.
    listed = items(ReferencedInstanceSequence=items(ReferencedSOPInstanceUID=here[0]))
    left_out = write_segmentation(
        tmp_path / "left.dcm", [Frame(random_mask(), 1, ("1.2.3", None))], ReferencedSeriesSequence=listed
    )
    assert "is empty on this image" in refused(tmp_path / "image.dcm", left_out)
    cut = write_segmentation(tmp_path / "cut.dcm", [Frame(random_mask(), 1, here)] * 9, PixelData=b"\xff" * 8)
    assert "cannot be decoded (truncated)" in refused(tmp_path / "image.dcm", cut)
    damaged = tmp_path / "damaged.dcm"
    damaged.write_bytes(one.read_bytes()[:700])
    assert "mask " in refused(tmp_path / "image.dcm", damaged)


PLACE = {"ImageOrientationPatient": [1, 0, 0, 0, 1, 0], "PixelSpacing": [0.5, 0.5], "FrameOfReferenceUID": "1.2.3.4"}


def shared(**changes: Any) -> dict[str, Any]:
    """The same place in the functional groups of a segmentation."""
    place = PLACE | changes
    group = items(
        PlaneOrientationSequence=items(ImageOrientationPatient=place["ImageOrientationPatient"]),
        PixelMeasuresSequence=items(PixelSpacing=place["PixelSpacing"]),
    )
    return {"SharedFunctionalGroupsSequence": group, "FrameOfReferenceUID": place["FrameOfReferenceUID"]}


def test_the_place_in_the_patient(tmp_path: Path) -> None:
    image = write_image(tmp_path / "image.dcm", np.zeros(SIZE[::-1]), ImagePositionPatient=[10, 20, 30], **PLACE)
    here, mask = (image.SOPInstanceUID, None), random_mask()
    for position, spacing, line in (
        ((10, 20, 30.2), 0.5, None),
        ((10, 22, 30), 0.5, "lies 2 mm (4 pixels) from this image, at most half a pixel expected"),
        ((10, 20, 42), 0.5, "lies 12 mm (24 pixels) from this image"),
        ((10, 20, 30), 0.7, "lies 1.2 mm (2.4 pixels) from this image"),  # six pixels of 0.2 mm more
    ):
        path = write_segmentation(
            tmp_path / "seg.dcm", [Frame(mask, 1, here, position)], **shared(PixelSpacing=[spacing, spacing])
        )
        if line is None:
            assert (roi_of(tmp_path / "image.dcm", path).pixels == mask).all()
        else:
            assert line in refused(tmp_path / "image.dcm", path)


def test_without_references_the_place_decides(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_image(tmp_path / "image.dcm", np.zeros(SIZE[::-1]), ImagePositionPatient=[10, 20, 30], **PLACE)
    masks = [random_mask() for _ in range(3)]
    frames = [Frame(mask, 1, None, (10, 20, 27 + 3 * n)) for n, mask in enumerate(masks)]
    path = write_segmentation(tmp_path / "seg.dcm", frames, **shared())
    found = roi_of(tmp_path / "image.dcm", path)
    assert (found.pixels == masks[1]).all()
    assert found.facts["regions"][0]["matched_by"] == "position"
    elsewhere = write_segmentation(tmp_path / "else.dcm", frames, **shared(FrameOfReferenceUID="1.2.3.5"))
    assert "has 3 frames of segment 1 and does not say which belongs to this image" in refused(
        tmp_path / "image.dcm", elsewhere
    )
    # Of one frame for a picture the size alone can be checked.
    one = write_segmentation(tmp_path / "one.dcm", frames[:1])
    with caplog.at_level(logging.WARNING):
        found = roi_of(np.zeros(SIZE[::-1], np.uint8), one)
    assert (found.pixels == masks[0]).all()
    assert found.facts["regions"][0]["matched_by"] == "size"
    assert "cannot be held to this image by more than its size" in caplog.text
    assert not any(secret in caplog.text for secret in SECRETS)


def test_a_segmentation_made_by_highdicom(tmp_path: Path) -> None:
    """Another library's files: frames in its order, the empty ones left out."""
    hd = pytest.importorskip("highdicom")
    from pydicom.sr.codedict import codes

    series = {
        "PatientBirthDate": "", "PatientSex": "", "StudyID": "1", "StudyDate": "", "StudyTime": "",
        "AccessionNumber": "", "ReferringPhysicianName": "", "Modality": "CT", "SeriesNumber": 1,
        "StudyInstanceUID": "1.2.3", "SeriesInstanceUID": "1.2.4", "SliceThickness": 3, **PLACE,
    }  # fmt: skip
    images = []
    for n in range(4):
        tags = series | {"ImagePositionPatient": [10, 20, 30 + 3 * n], "InstanceNumber": n + 1}
        dataset = write_image(tmp_path / f"{n}.dcm", np.zeros(SIZE[::-1]), **tags)
        dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
        dataset.save_as(tmp_path / f"{n}.dcm")
        images.append(dataset)
    masks = np.stack([random_mask() for _ in range(4)])
    masks[2] = False
    algorithm = hd.AlgorithmIdentificationSequence("test", codes.DCM.ArtificialIntelligence, "1")
    description = hd.seg.SegmentDescription(
        1, "lesion", codes.SCT.Tissue, codes.SCT.Tissue, hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC, algorithm
    )
    seg = hd.seg.Segmentation(
        images, masks, hd.seg.SegmentationTypeValues.BINARY, [description], "1.2.5", 2, "1.2.6", 1, "maker", "model",
        "1", "1",
    )  # fmt: skip
    seg.save_as(tmp_path / "seg.dcm")
    for n in (0, 1, 3):
        found = roi_of(tmp_path / f"{n}.dcm", tmp_path / "seg.dcm")
        assert (found.pixels == masks[n]).all()
        assert found.facts["regions"][0]["matched_by"] == "reference"
    assert "is empty on this image" in refused(tmp_path / "2.dcm", tmp_path / "seg.dcm")


# --- DICOM images, and files that nobody means well with


def test_an_ordinary_dicom_image_is_divided_at_half(tmp_path: Path) -> None:
    values = RNG.integers(0, 256, SIZE[::-1])
    values[0, :2] = (127, 128)
    write_image(tmp_path / "mask.dcm", values)
    found = roi_of(np.zeros(SIZE[::-1], np.uint8), tmp_path / "mask.dcm")
    assert (found.pixels == (values >= 128)).all()
    assert found.facts["regions"][0]["kind"] == "DICOM"
    frames = np.stack([values, 255 - values])
    write_image(tmp_path / "frames.dcm", frames)
    second = roi_of(tmp_path / "frames.dcm", tmp_path / "frames.dcm", Reading(frame=2))
    assert (second.pixels == (255 - values >= 128)).all()
    assert "label 2 picks nothing" in refused(values.astype(np.uint8), Region(tmp_path / "mask.dcm", label=2))
    Image.fromarray(values.astype(np.uint8)).save(tmp_path / "mask.png")
    assert "is a picture, and label 2 picks a part of" in refused(
        values.astype(np.uint8), Region(str(tmp_path / "mask.png"), label=2)
    )


def bomb(width: int, height: int) -> bytes:
    """A PNG file of a hundred bytes that says it has this size."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def test_bombs_and_odd_names(tmp_path: Path) -> None:
    image = np.arange(50 * 50, dtype=np.uint16).reshape(50, 50)
    (tmp_path / "bomb.png").write_bytes(bomb(60_000, 60_000))
    assert "has more than 67108864 pixels; crop or shrink it" in refused(image, tmp_path / "bomb.png")
    write_image(tmp_path / "bomb.dcm", image, Rows=60_000, Columns=60_000)
    assert "more than 67108864 pixels" in refused(image, tmp_path / "bomb.dcm")
    write_segmentation(tmp_path / "seg.dcm", [Frame(random_mask())], Rows=60_000, Columns=60_000)
    assert "more than 67108864 pixels" in refused(image, tmp_path / "seg.dcm")
    for name in ("../" * 30 + "etc/passwd", "/etc/passwd", "a\0b.png", "~/roi.png", "x" * 5000 + ".png"):
        assert "mask " in refused(image, name)
    # A path in an item's id names nothing but itself.
    prepared = prepare_item(Item(image, "x", item_id="../../up"), RunConfig(resolution=32), 8)
    assert prepared.item.item_id == "../../up"
