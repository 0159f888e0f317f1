"""Clinical images on the command line: they run, refusals are one line, and no header value gets out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

SECRETS = (b"DOE^JANE", b"PID-4711", b"1.2.826.0.1.3680043.8.498.1")


def make_dicom(path: Path, values: np.ndarray) -> Path:
    pydicom = pytest.importorskip("pydicom")
    ds = pydicom.Dataset()
    ds.file_meta = pydicom.dataset.FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    ds.SOPClassUID, ds.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.1.1", SECRETS[2].decode()
    ds.PatientName, ds.PatientID = SECRETS[0].decode(), SECRETS[1].decode()
    ds.Rows, ds.Columns = values.shape
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PixelRepresentation = 1, "MONOCHROME2", 0
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 16, 12, 11
    ds.PixelData = values.astype("<u2").tobytes()
    ds.save_as(path, enforce_file_format=True)
    return path


def test_dicom_runs_and_tells_nothing_of_the_patient(simulate: Any, tmp_path: Path, greys: np.ndarray) -> None:
    path = make_dicom(tmp_path / "a.dcm", greys.astype(np.uint16) * 16)
    outcome = simulate("--image", path, "--window-center", "2040", "--window-width", "4081", "--fit", "pad")
    assert (outcome.code, outcome.err) == (0, "")
    provenance = json.loads((tmp_path / "result" / "provenance.json").read_text())
    assert provenance["settings"]["fit"] == "pad"
    assert provenance["input"]["mapping"]["window_width"] == 4081
    assert provenance["input"]["format"] == "DICOM"
    for written in (tmp_path / "result").rglob("*"):
        assert written.is_dir() or not any(secret in written.read_bytes() for secret in SECRETS)
    frames = [np.asarray(Image.open(tmp_path / "result" / "frames" / f"00{i}.png")) for i in (0, 1)]
    assert not frames[1][:2].any()  # black padding above a picture that is wider than high
    assert (frames[0][8:20] != frames[1][8:20]).any()


def test_refusals(refuse: Any, tmp_path: Path, greys: np.ndarray) -> None:
    path = make_dicom(tmp_path / "a.dcm", greys.astype(np.uint16) * 16)
    cut = tmp_path / "cut.dcm"
    cut.write_bytes(path.read_bytes()[:-1000])
    for words, line in (
        (("--image", path, "--frame", "2"), "has 1 frame, none of them 2"),
        (("--image", path, "--slice", "2"), "--slice belongs to NIfTI"),
        (("--image", path, "--window-center", "2"), "without window-width"),
        (("--image", path, "--window-center", "2", "--window-width", "-1"), "window-width -1 is not greater than 0"),
        (("--image", cut), "cannot be decoded"),
        (("--mask", path, "--mask-label", "1"), "is a DICOM image and no segmentation, so mask-label 1 picks nothing"),
        (("--mask", cut), f"mask {cut} has pixel data that cannot be decoded"),
        (("--window-center", "2", "--window-width", "9"), "is not a 16-bit greyscale image"),
        (("--fit", "pad", "--semantics", "official"), "fit 'pad' is not what the published code computes"),
    ):
        said = refuse(*words)
        assert line in said
        assert not any(secret.decode() in said for secret in SECRETS)


def test_native_frames_and_a_series(simulate: Any, tmp_path: Path, greys: np.ndarray) -> None:
    pydicom = pytest.importorskip("pydicom")
    stored = greys.astype(np.uint16) * 16
    path = make_dicom(tmp_path / "a.dcm", stored)
    words = ("--window-center", "2040", "--window-width", "4081", "--feather", "0", "--mask-box", "60,80,200,180")
    outcome = simulate("--image", path, *words, "--native-size", "--dicom", "--json")
    assert (outcome.code, outcome.err) == (0, "")
    written = json.loads(outcome.out)
    assert [Path(p).name for p in written["native"]] == ["000.png", "001.png"]
    assert [Path(p).name for p in written["dicom"]] == ["001.dcm"]
    outside = np.ones(stored.shape, bool)
    outside[80:180, 60:200] = False
    frame = np.asarray(Image.open(written["native"][1]))
    ds = pydicom.dcmread(written["dicom"][0])
    assert np.array_equal(frame, ds.pixel_array)
    assert np.array_equal(frame[outside], stored[outside])
    assert (frame != stored).any()
    assert (ds.WindowCenter, ds.WindowWidth, ds.BitsStored) == (2040, 4081, 12)
    files = json.loads(Path(written["provenance"]).read_text())["files"]
    assert {"native/000.png", "native/001.png", "dicom/001.dcm"} <= set(files)
    for file in (tmp_path / "result").rglob("*"):
        assert file.is_dir() or not any(secret in file.read_bytes() for secret in SECRETS[:2])


def test_outputs_that_a_source_does_not_allow(refuse: Any, tmp_path: Path, greys: np.ndarray) -> None:
    path = make_dicom(tmp_path / "a.dcm", greys.astype(np.uint16) * 16)
    window = ("--window-center", "2040", "--window-width", "4081")
    for words, line in (
        (("--native-size", "--no-composite"), "--no-composite lets all of a frame change; leave out one of the two"),
        (("--native-size", "--semantics", "official"), "and --semantics official lets all of a frame change"),
        (("--dicom-same-study",), "pass --dicom too"),
        (("--dicom", "--dicom-same-study"), "and the image is PNG; leave it out"),
        (("--dicom", "--dicom-same-study", "--image", path, *window), "does not say its StudyInstanceUID, Series"),
    ):
        # Refused before a model is loaded, which this one could not be.
        said = refuse(*words, "--checkpoint", tmp_path / "none")
        assert line in said
        assert not any(secret.decode() in said for secret in SECRETS)
