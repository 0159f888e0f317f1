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
        (("--mask", path), "is DICOM; pass the mask as a PNG or TIFF file"),
        (("--window-center", "2", "--window-width", "9"), "is no 16-bit greyscale image"),
        (("--fit", "pad", "--semantics", "official"), "fit 'pad' is not what the published code computes"),
    ):
        said = refuse(*words)
        assert line in said
        assert not any(secret.decode() in said for secret in SECRETS)
