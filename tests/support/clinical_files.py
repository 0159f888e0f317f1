"""DICOM files that tests make, with a made-up patient whose name must get out nowhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom")
from pydicom.dataset import Dataset, FileMetaDataset  # noqa: E402
from pydicom.uid import UID, ExplicitVRLittleEndian, generate_uid  # noqa: E402

SECRETS = ("DOE^JANE", "PID-4711", "19700101", "1.2.826.0.1.3680043.99.4711", "ACC-4711", "20010203")


def write_dicom(path: Path, pixels: np.ndarray | None, **tags: Any) -> Path:
    """A DICOM file of these stored values.

    Args:
        pixels: [H, W], [H, W, 3], or several of them; None leaves them out.
        tags: attributes by keyword; `syntax` is the transfer syntax, `compress` one to compress with.
    """
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = UID("1.2.840.10008.5.1.4.1.1.7")
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = tags.pop("syntax", ExplicitVRLittleEndian)
    compress = tags.pop("compress", None)
    ds = Dataset()
    ds.file_meta = meta
    ds.SOPClassUID, ds.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    ds.PatientName, ds.PatientID, ds.PatientBirthDate, ds.StudyInstanceUID, ds.AccessionNumber, ds.StudyDate = SECRETS
    ds.SeriesInstanceUID = f"{SECRETS[3]}.1"
    ds.ImageComments = f"of {SECRETS[0]}"
    if pixels is not None:
        samples = 3 if pixels.ndim >= 3 and pixels.shape[-1] == 3 else 1
        ds.SamplesPerPixel = samples
        ds.PhotometricInterpretation = "RGB" if samples == 3 else "MONOCHROME2"
        if samples == 3:
            ds.PlanarConfiguration = 0
        ds.Rows, ds.Columns = pixels.shape[-3:-1] if samples == 3 else pixels.shape[-2:]
        if pixels.ndim == (4 if samples == 3 else 3):
            ds.NumberOfFrames = len(pixels)
        ds.BitsAllocated = ds.BitsStored = 8 * pixels.dtype.itemsize
        if pixels.dtype.kind == "f":
            ds.FloatPixelData = pixels.astype("<f4").tobytes()
            del ds.BitsStored
        else:
            ds.PixelRepresentation = int(pixels.dtype.kind == "i")
            data = pixels.tobytes()
            ds.PixelData = data + b"\0" * (len(data) % 2)
            ds["PixelData"].VR = "OW" if pixels.dtype.itemsize == 2 else "OB"
    for name, value in tags.items():
        setattr(ds, name, value)
    if "BitsStored" in ds:
        ds.HighBit = ds.BitsStored - 1
    if compress:
        ds.compress(compress, generate_instance_uid=False)
    ds.save_as(path, enforce_file_format=True)
    return path


def tells_nothing(*texts: object) -> bool:
    """Whether none of these says anything of the made-up patient."""
    return not any(secret in str(text) for text in texts for secret in SECRETS)
