"""DICOM in, frames, DICOM out: pixels, what they look like, identifiers, and nothing of the patient."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clinical_files import SECRETS, pydicom, tells_nothing, write_dicom
from golden import GOLDEN
from PIL import Image
from progressions import SIDE, brightened
from pydicom.dataset import Dataset
from pydicom.uid import JPEG2000Lossless, RLELossless

from pie_engine import Item, OutputConfig, PieEngine, Result, RunConfig
from pie_engine.errors import ConfigError, InputError, OutputError
from pie_engine.imaging import Reading, fit, read_image, read_stored
from pie_engine.outputs import check_source

NATIVE = OutputConfig(report=False, dicom=True, native_size=True)
FRAMES = OutputConfig(report=False, dicom=True)
SAME_STUDY = OutputConfig(report=False, dicom=True, native_size=True, dicom_same_study=True)
SHAPE = (100, 140)


def noise(low: int, high: int, dtype: Any = np.uint16, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return np.random.default_rng(0).integers(low, high, shape).astype(dtype)


def roi() -> np.ndarray:
    region = np.zeros(SHAPE, bool)
    region[30:60, 40:90] = True
    return region


def table(first: int, entries: np.ndarray, bits: int) -> Dataset:
    item = Dataset()
    item.add_new("LUTDescriptor", "SS" if first < 0 else "US", [len(entries) % 65536, first, bits])
    item.add_new("LUTData", "OW", entries.astype("<u2").tobytes())
    return item


def modality_table(entries: np.ndarray) -> Dataset:
    item = table(0, entries, 16)
    item.ModalityLUTType = "US"
    return item


LEVELS = 17
# Name: (stored values, attributes, which frame, by how much a stored value grows for one grey level of 255).
CASES: dict[str, tuple[np.ndarray, dict[str, Any], dict[str, Any], float]] = {
    "MONOCHROME2, 8 bits": (noise(60, 180, np.uint8), {}, {}, 1),
    "MONOCHROME2, 8 bits, signed": (noise(-60, 60, np.int8), {"WindowCenter": 0, "WindowWidth": 256}, {}, 1),
    # LINEAR: w - 1 values over 255 levels.
    "MONOCHROME2, 12 bits": (
        noise(1000, 3000), {"BitsStored": 12, "WindowCenter": 2048, "WindowWidth": 4096}, {}, 4095 / 255,
    ),
    "MONOCHROME1, 12 bits": (
        noise(1000, 3000),
        {"BitsStored": 12, "WindowCenter": 2048, "WindowWidth": 4096, "PhotometricInterpretation": "MONOCHROME1"},
        {}, -4095 / 255,
    ),
    "MONOCHROME1, 12 bits, signed": (
        noise(-500, 500, np.int16),
        {"BitsStored": 12, "WindowCenter": 0, "WindowWidth": 2041, "PhotometricInterpretation": "MONOCHROME1"},
        {}, -2040 / 255,
    ),
    # A window of 400 after 2 x - 24: 400 / 2 stored values over 255 levels.
    "MONOCHROME2, 16 bits, signed, rescaled": (
        noise(0, 60, np.int16),
        {"RescaleSlope": 2, "RescaleIntercept": -24, "RescaleType": "HU", "WindowCenter": 40, "WindowWidth": 400,
         "VOILUTFunction": "LINEAR_EXACT"},
        {}, 200 / 255,
    ),
    "MONOCHROME2, 16 bits": (noise(20000, 40000), {"WindowCenter": 32768, "WindowWidth": 65536}, {}, 257),
    "window of the options": (noise(1000, 1500), {"BitsStored": 12}, {"window_center": 1300, "window_width": 1021}, 4),
    "VOI lookup table": (  # 12 bits of it, in steps of 1: 4096 values over 255 levels
        noise(1000, 3000), {"BitsStored": 12, "VOILUTSequence": [table(0, np.arange(4096), 12)]}, {}, 4095 / 255,
    ),
    "falling VOI lookup table": (
        noise(1000, 3000), {"BitsStored": 12, "VOILUTSequence": [table(0, np.arange(4096)[::-1], 12)]}, {},
        -4095 / 255,
    ),
    "modality lookup table": (  # stored x -> 16 x, all of which is shown
        noise(1000, 3000),
        {"BitsStored": 12, "ModalityLUTSequence": [modality_table(16 * np.arange(4096))], "WindowCenter": 32760.5,
         "WindowWidth": 65521},
        {}, 4095 / 255,
    ),
    "padding": (
        np.where(np.add.outer(np.arange(SHAPE[0]), np.arange(SHAPE[1])) % 7 == 0, 0, noise(1000, 3000)),
        {"BitsStored": 12, "WindowCenter": 2048, "WindowWidth": 4096, "PixelPaddingValue": 0}, {}, 4095 / 255,
    ),
    "JPEG 2000": (
        noise(1000, 3000),
        {"BitsStored": 12, "WindowCenter": 2048, "WindowWidth": 4096, "compress": JPEG2000Lossless}, {}, 4095 / 255,
    ),
    "RLE": (
        noise(1000, 3000),
        {"BitsStored": 12, "WindowCenter": 2048, "WindowWidth": 4096, "compress": RLELossless}, {}, 4095 / 255,
    ),
    "frame 2 of 3": (
        noise(1000, 3000, shape=(3, *SHAPE)),
        {"BitsStored": 12, "WindowCenter": 2048, "WindowWidth": 4096, "SOPClassUID": "1.2.840.10008.5.1.4.1.1.7.3"},
        {"frame": 2}, 4095 / 255,
    ),
    "RGB": (noise(60, 180, np.uint8, (*SHAPE, 3)), {}, {}, 1),
}  # fmt: skip


@pytest.mark.parametrize("how", ["crop", "pad", "stretch"])
@pytest.mark.parametrize("name", CASES)
def test_stored_values_come_back_and_change_as_the_frame_does(tmp_path: Path, name: str, how: str) -> None:
    values, tags, chosen, step = CASES[name]
    if tags.get("compress") == JPEG2000Lossless:
        pytest.importorskip("openjpeg")
    path, reading = write_dicom(tmp_path / "a.dcm", values, **tags), Reading(**chosen)
    source = values[chosen["frame"] - 1] if "frame" in chosen else values
    result = brightened(path, LEVELS, roi=roi(), how=how, reading=reading, rounds=2)
    written = result.save(tmp_path / "run", NATIVE)
    assert [Path(p).name for p in written["dicom"]] == ["001.dcm", "002.dcm"]  # never the input
    facts = json.loads(Path(written["provenance"]).read_text())["dicom"]
    assert facts["pixels"]["pixels_clipped"] == [0, 0]
    for number in (1, 2):
        ds = pydicom.dcmread(tmp_path / f"run/dicom/00{number}.dcm")
        back = ds.pixel_array
        original = pydicom.dcmread(path)
        for keyword in ("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "Rows", "Columns"):
            assert ds[keyword].value == original[keyword].value, keyword
        assert ds.PhotometricInterpretation == original.PhotometricInterpretation
        assert back.dtype == source.dtype
        assert np.array_equal(back[~roi()], source[~roi()])
        padded = source == 0 if "PixelPaddingValue" in tags else np.zeros(SHAPE, bool)
        assert np.array_equal(back[padded], source[padded])
        inside = roi() & ~padded
        # A constant stays constant through the resampling, so what is left is the rounding to whole values.
        difference = back[inside].astype(int) - source[inside]
        assert np.abs(difference - LEVELS * step).max() <= 0.5 + 1e-3
        # What is shown, read anew: 17 levels brighter, give or take what one stored value comes to in levels.
        before = np.asarray(read_image(path, reading=reading)[0]).astype(int)
        after = np.asarray(read_image(tmp_path / f"run/dicom/00{number}.dcm")[0]).astype(int)
        assert np.array_equal(before[~inside], after[~inside])
        assert np.abs(after - before - LEVELS)[inside].max() <= 1 + int(0.5 / abs(step))
    assert tells_nothing(*(p.read_bytes().decode("latin1") for p in (tmp_path / "run").rglob("*") if p.is_file()))


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_windows_look_the_same_to_pydicom(tmp_path: Path, function: str) -> None:
    tags = {"BitsStored": 12, "WindowCenter": 2000.25, "WindowWidth": 3000.5, "VOILUTFunction": function}
    path = write_dicom(tmp_path / "a.dcm", noise(0, 4096), **tags)
    brightened(path, 0, roi=roi()).save(tmp_path / "run", NATIVE)
    before, after = (pydicom.dcmread(p) for p in (path, tmp_path / "run/dicom/001.dcm"))
    assert np.array_equal(before.pixel_array, after.pixel_array)
    shown = [pydicom.pixels.apply_voi_lut(ds.pixel_array, ds) for ds in (before, after)]
    assert np.array_equal(*shown)


def test_a_range_of_values_becomes_a_window_that_looks_the_same(tmp_path: Path) -> None:
    values = noise(500, 2500)
    path = write_dicom(tmp_path / "a.dcm", values, BitsStored=12)  # no window: lowest to highest
    brightened(path, 0, roi=roi()).save(tmp_path / "run", NATIVE)
    after = pydicom.dcmread(tmp_path / "run/dicom/001.dcm")
    shown = pydicom.pixels.apply_voi_lut(after.pixel_array, after) / 4095
    assert np.allclose(shown, (values - values.min()) / (values.max() - values.min()), atol=1e-6)


@pytest.mark.parametrize("colour", [False, True])
@pytest.mark.parametrize("how", ["crop", "pad", "stretch"])
def test_frames_at_output_resolution(tmp_path: Path, colour: bool, how: str) -> None:
    values = noise(60, 180, np.uint8, (*SHAPE, 3) if colour else SHAPE)
    path = write_dicom(tmp_path / "a.dcm", values, PixelSpacing=[0.5, 0.4])
    result = brightened(path, LEVELS, how=how, rounds=2)
    written = result.save(tmp_path / "run", FRAMES)
    for number, name in enumerate(written["dicom"], 1):
        ds = pydicom.dcmread(name)
        assert ds.InstanceNumber == number
        assert ds.PhotometricInterpretation == ("RGB" if colour else "MONOCHROME2")
        assert (ds.BitsAllocated, ds.BitsStored, ds.PixelRepresentation) == (8, 8, 0)
        expected = result.frames[number] if colour else result.frames[number][..., 0]
        assert np.array_equal(ds.pixel_array, expected)
        shown = np.asarray(read_image(name)[0])
        assert np.array_equal(shown, expected)
        # 140 x 100: resized to 89 x 64 (crop), 64 x 46 (pad), 64 x 64 (stretch).
        columns, rows = {"crop": (89, 64), "pad": (64, 46), "stretch": (64, 64)}[how]
        assert [float(side) for side in ds.PixelSpacing] == pytest.approx([0.5 * 100 / rows, 0.4 * 140 / columns])


def test_pixels_of_unknown_size_keep_their_shape(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "a.dcm", noise(60, 180, np.uint8), ImagerPixelSpacing=[0.2, 0.2])
    brightened(path, 5, how="stretch").save(tmp_path / "run", FRAMES)
    ds = pydicom.dcmread(tmp_path / "run/dicom/001.dcm")
    assert "PixelSpacing" not in ds  # on the detector is not in the patient
    height, width = ds.PixelAspectRatio  # 100 rows and 140 columns became 64 each
    assert height / width == pytest.approx(100 / 140, rel=1e-3)
    brightened(path, 5, how="pad").save(tmp_path / "run", NATIVE)
    ds = pydicom.dcmread(tmp_path / "run/dicom/001.dcm")
    assert "PixelSpacing" not in ds
    assert "PixelAspectRatio" not in ds


def test_every_object_says_that_it_is_simulated(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "a.dcm", noise(60, 180, np.uint8), BurnedInAnnotation="NO")
    written = brightened(path, 5, rounds=3).save(tmp_path / "run", FRAMES)
    objects = [pydicom.dcmread(name) for name in written["dicom"]]
    for number, ds in enumerate(objects, 1):
        assert ds.SOPClassUID == ds.file_meta.MediaStorageSOPClassUID == "1.2.840.10008.5.1.4.1.1.7"
        assert ds.SOPInstanceUID == ds.file_meta.MediaStorageSOPInstanceUID
        assert ds[0x0008, 0x001C].value == "YES"  # Synthetic Data
        assert list(ds.ImageType)[:2] == ["DERIVED", "SECONDARY"]
        assert (ds.Modality, ds.ConversionType, ds.Manufacturer) == ("OT", "SYN", "pie-engine")
        assert f"round {number} of 3, not a patient's image, research use only" in ds.DerivationDescription
        assert "SIMULATED" in ds.SeriesDescription
        assert "research use only" in ds.SeriesDescription
        assert ds.ContributingEquipmentSequence[0].Manufacturer == "pie-engine"
        assert ds.BurnedInAnnotation == "NO"
    assert len({ds.SOPInstanceUID for ds in objects}) == 3
    assert len({(ds.SeriesInstanceUID, ds.StudyInstanceUID, ds.PatientID) for ds in objects}) == 1
    marked = brightened(path, 5).save(tmp_path / "run", OutputConfig(report=False, dicom=True, mark=True))
    ds = pydicom.dcmread(marked["dicom"][0])
    assert ds.BurnedInAnnotation == "YES"
    assert ds.SeriesInstanceUID != objects[0].SeriesInstanceUID
    assert np.array_equal(ds.pixel_array, np.asarray(Image.open(marked["frames"][1]))[..., 0])


def test_the_patient_is_another_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_dicom(tmp_path / "a.dcm", noise(60, 180, np.uint8), InstitutionName="DOE^JANE", PatientSex="F")
    with caplog.at_level(logging.DEBUG):
        paths = [brightened(path, 5).save(tmp_path / name, NATIVE)["dicom"][0] for name in "ab"]
    one, other = (pydicom.dcmread(name) for name in paths)
    for ds in (one, other):
        assert str(ds.PatientName) == "SIMULATED^PIE"
        assert ds.PatientID.startswith("SIM-")
        assert ds.PatientIdentityRemoved == "YES"
        assert not (ds.PatientBirthDate or ds.PatientSex or ds.StudyDate or ds.AccessionNumber)
        assert "SourceImageSequence" not in ds
        assert "ReferencedSeriesSequence" not in ds
        facts = json.loads((Path(ds.filename).parents[1] / "provenance.json").read_text())["dicom"]
        assert facts["patient_id"] == ds.PatientID
        assert facts["study_instance_uid"] == ds.StudyInstanceUID
        assert facts["series_instance_uid"] == ds.SeriesInstanceUID
        assert facts["sop_instance_uids"] == [ds.SOPInstanceUID]
    for keyword in ("PatientID", "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
        assert one[keyword].value != other[keyword].value
    contents = [p.read_bytes().decode("latin1") for p in tmp_path.glob("[ab]/**/*") if p.is_file()]
    assert tells_nothing(caplog.text, *contents, *tmp_path.glob("[ab]/**/*"))
    own = pydicom.dcmread(path).SOPInstanceUID
    assert not any(own in text for text in contents)


def test_the_same_study_if_it_is_asked_for(tmp_path: Path) -> None:
    values = noise(1000, 3000, shape=(3, *SHAPE))
    tags = {"BitsStored": 12, "WindowCenter": 2048, "WindowWidth": 4096, "SpecificCharacterSet": "ISO_IR 192"}
    path = write_dicom(tmp_path / "a.dcm", values, InstitutionName="SECRET PLACE", Laterality="L", **tags)
    source = pydicom.dcmread(path)
    result = brightened(path, 5, roi=roi(), reading=Reading(frame=2))
    written = result.save(tmp_path / "run", SAME_STUDY)
    ds = pydicom.dcmread(written["dicom"][0])
    for keyword in ("PatientName", "PatientID", "PatientBirthDate", "StudyInstanceUID", "StudyDate", "Laterality"):
        assert ds[keyword].value == source[keyword].value
    assert ds.SeriesInstanceUID != source.SeriesInstanceUID
    assert ds.SOPInstanceUID != source.SOPInstanceUID
    reference = ds.SourceImageSequence[0]
    assert reference.ReferencedSOPInstanceUID == source.SOPInstanceUID
    assert reference.ReferencedFrameNumber == 2
    assert reference.PurposeOfReferenceCodeSequence[0].CodeValue == "121322"
    series = ds.ReferencedSeriesSequence[0]
    assert series.SeriesInstanceUID == source.SeriesInstanceUID
    assert series.ReferencedInstanceSequence[0].ReferencedSOPInstanceUID == source.SOPInstanceUID
    assert "InstitutionName" not in ds
    assert "PatientIdentityRemoved" not in ds
    # Not even then is the patient in anything but the series itself.
    others = [p for p in (tmp_path / "run").rglob("*") if p.is_file() and p.suffix != ".dcm"]
    assert tells_nothing(*(p.read_bytes().decode("latin1") for p in others))


def test_damaged_patients_are_not_quoted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_dicom(tmp_path / "a.dcm", noise(60, 180, np.uint8))
    data = path.read_bytes().replace(b"19700101", b"DOE^JANE")  # as a date of birth
    path.write_bytes(data)
    result = brightened(path, 5)
    try:
        result.save(tmp_path / "run", SAME_STUDY)
    except OutputError as error:
        assert tells_nothing(error)
        assert "\n" not in str(error)
    assert tells_nothing(caplog.text)
    result.save(tmp_path / "other", NATIVE)  # of which nothing is needed


@pytest.mark.parametrize(
    ("tags", "line"),
    [
        ({"StudyInstanceUID": ""}, "does not say its StudyInstanceUID"),
        ({"SeriesInstanceUID": "", "StudyInstanceUID": ""}, "does not say its StudyInstanceUID, SeriesInstanceUID"),
    ],
)
def test_a_source_without_a_study_has_none_to_stay_in(tmp_path: Path, tags: dict[str, Any], line: str) -> None:
    path = write_dicom(tmp_path / "a.dcm", noise(60, 180, np.uint8), **tags)
    with pytest.raises(InputError, match=line):
        check_source(read_stored(path), RunConfig(), SAME_STUDY)
    check_source(read_stored(path), RunConfig(), NATIVE)


def test_other_formats_make_a_series_too_but_have_no_study(tmp_path: Path) -> None:
    Image.fromarray(noise(20000, 40000)).save(tmp_path / "deep.png")
    result = brightened(tmp_path / "deep.png", 10, roi=roi())
    ds = pydicom.dcmread(result.save(tmp_path / "run", NATIVE)["dicom"][0])
    back, source = ds.pixel_array, noise(20000, 40000)
    assert np.array_equal(back[~roi()], source[~roi()])
    assert (back[roi()] == source[roi()] + 2570).all()
    with pytest.raises(ConfigError, match=r"dicom_same_study keeps .*, and the image is PNG; leave it out"):
        result.save(tmp_path / "run", SAME_STUDY)
    Image.fromarray(noise(60, 180, np.uint8)).save(tmp_path / "a.jpg")
    ds = pydicom.dcmread(brightened(tmp_path / "a.jpg", 10).save(tmp_path / "run", FRAMES)["dicom"][0])
    assert ds.LossyImageCompression == "01"
    assert "BurnedInAnnotation" not in ds  # nobody has said


def test_volumes_of_floats_have_no_secondary_capture(tmp_path: Path) -> None:
    nibabel = pytest.importorskip("nibabel")
    volume = np.random.default_rng(0).uniform(0.3, 0.7, (40, 50, 1)).astype(np.float32)
    nibabel.Nifti1Image(volume, np.diag([2, 3, 1, 1])).to_filename(tmp_path / "a.nii")
    reading = Reading(window_center=0.5, window_width=1.0)
    result = brightened(tmp_path / "a.nii", 5, reading=reading, how="stretch")
    with pytest.raises(InputError, match="stored values of type float32, and a DICOM series takes 8 or 16 bits"):
        result.save(tmp_path / "run", NATIVE)
    ds = pydicom.dcmread(result.save(tmp_path / "run", FRAMES)["dicom"][0])
    # 40 columns of 2 mm, 50 rows of 3 mm, each on 64 pixels.
    assert [float(side) for side in ds.PixelSpacing] == pytest.approx([3 * 50 / 64, 2 * 40 / 64])


@pytest.fixture(scope="module")
def engine() -> PieEngine:
    return PieEngine.load(checkpoint=GOLDEN / "checkpoint_ddim", backend="torch", device="cpu")


@pytest.mark.parametrize("suffix", ["MONOCHROME1", "RGB", "MONOCHROME2"])
def test_end_to_end(tmp_path: Path, engine: PieEngine, suffix: str) -> None:
    """Through the tiny model: a real frame's change arrives in the stored values, inside the region alone."""
    shape = (150, 120)
    values = noise(800, 3200, shape=shape) if suffix != "RGB" else noise(60, 180, np.uint8, (*shape, 3))
    tags = {} if suffix == "RGB" else {
        "BitsStored": 12, "WindowCenter": 2048, "WindowWidth": 4096, "PhotometricInterpretation": suffix,
    }  # fmt: skip
    path = write_dicom(tmp_path / "a.dcm", values, **tags)
    region = np.zeros(shape, np.uint8)
    region[40:100, 30:90] = 255
    config = RunConfig(steps=1, num_inference_steps=4, resolution=SIDE)
    # The item's name must not become a path.
    result: Result = engine.run(Item(path, "the heart", region, "../../evil"), config)
    written = result.save(tmp_path / "out" / "run", NATIVE)
    back = pydicom.dcmread(written["dicom"][0]).pixel_array
    inside = region > 0
    assert np.array_equal(back[~inside], values[~inside])
    assert (back[inside] != values[inside]).mean() > 0.3
    # Resized to the frame's grid as the input was, the written picture is the frame, but for what resampling blurs.
    shown = np.asarray(fit(read_image(written["dicom"][0])[0], SIDE)).astype(int)
    change, own = result.frames[1].astype(int) - result.frames[0], shown - result.frames[0]
    assert np.corrcoef(change.ravel(), own.ravel())[0, 1] > 0.9
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.dcm", "out"]
    assert not list(tmp_path.parent.glob("evil*"))
    assert tells_nothing(*(p.read_bytes().decode("latin1") for p in (tmp_path / "out").rglob("*") if p.is_file()))
    assert tells_nothing(json.dumps(result.provenance))
    assert SECRETS[0] in path.read_bytes().decode("latin1")  # the test would see it


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(noise(60, 180, np.uint8)).save(tmp_path / "a.png")
    stored = read_stored(tmp_path / "a.png")
    monkeypatch.setitem(__import__("sys").modules, "pydicom", None)
    with pytest.raises(OutputError, match=r"needs pydicom, which is missing; pip install 'pie-engine\[dicom\]'"):
        check_source(stored, RunConfig(), FRAMES)


# PS3.3 A.8.1, secondary capture: patient, study, series, SC equipment, general image, image pixel, SOP common.
TYPE_1 = (
    "StudyInstanceUID", "Modality", "SeriesInstanceUID", "ConversionType", "SamplesPerPixel",
    "PhotometricInterpretation", "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation",
    "PixelData", "SOPClassUID", "SOPInstanceUID",
)  # fmt: skip
TYPE_2 = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "ReferringPhysicianName",
    "StudyID", "AccessionNumber", "SeriesNumber", "InstanceNumber", "PatientOrientation",
)  # fmt: skip
# Where the first is present, the second has to be: type 1C of the same modules, and of modality and VOI LUT.
TOGETHER = (
    ("PatientIdentityRemoved", "DeidentificationMethod"), ("WindowCenter", "WindowWidth"),
    ("RescaleSlope", "RescaleIntercept"), ("RescaleIntercept", "RescaleType"),
    ("PixelPaddingRangeLimit", "PixelPaddingValue"), ("PlanarConfiguration", "SamplesPerPixel"),
)  # fmt: skip


def check_secondary_capture(path: Path) -> None:
    ds = pydicom.dcmread(path)
    assert not [name for name in TYPE_1 if name not in ds or ds[name].value in (None, "")]
    assert not [name for name in TYPE_2 if name not in ds]
    assert not [pair for pair in TOGETHER if pair[0] in ds and pair[1] not in ds]
    assert ("PlanarConfiguration" in ds) == (ds.SamplesPerPixel == 3)
    assert ds.HighBit == ds.BitsStored - 1 < ds.BitsAllocated
    assert len(ds.PixelData) == ds.Rows * ds.Columns * ds.SamplesPerPixel * ds.BitsAllocated // 8
    assert "RescaleSlope" not in ds or "ModalityLUTSequence" not in ds
    for item in ds.get("ModalityLUTSequence", []):
        assert item.ModalityLUTType
    for sequence in ("ContributingEquipmentSequence", "SourceImageSequence"):
        for item in ds.get(sequence, []):
            code = item.PurposeOfReferenceCodeSequence[0]
            assert code.CodeValue and code.CodingSchemeDesignator and code.CodeMeaning
    mode = pydicom.config.RAISE
    for element in ds.iterall():
        if element.VR != "SQ" and element.value is not None:
            pydicom.dataelem.DataElement(element.tag, element.VR, element.value, validation_mode=mode)


@pytest.mark.parametrize("name", CASES)
def test_objects_hold_what_a_secondary_capture_has_to(tmp_path: Path, name: str) -> None:
    values, tags, chosen, _ = CASES[name]
    if tags.get("compress") == JPEG2000Lossless:
        pytest.importorskip("openjpeg")
    path = write_dicom(tmp_path / "a.dcm", values, PixelSpacing=[0.33, 0.33], **tags)
    result = brightened(path, LEVELS, roi=roi(), reading=Reading(**chosen))
    for number, outputs in enumerate((NATIVE, FRAMES, SAME_STUDY)):
        written = result.save(tmp_path / str(number), outputs)["dicom"][0]
        check_secondary_capture(Path(written))
        if shutil.which("dciodvfy"):
            done = subprocess.run(["dciodvfy", written], capture_output=True, text=True, check=False)
            said = (done.stdout + done.stderr).splitlines()
            # Synthetic Data (0008,001C) is younger than that program's dictionary.
            assert not [line for line in said if line.startswith("Error") and "(0x0008,0x001c)" not in line]
