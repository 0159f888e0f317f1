"""DICOM segmentations that tests make, written tag by tag with pydicom."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from clinical_files import SECRETS as PATIENT
from clinical_files import pydicom, write_dicom
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, generate_uid

SEGMENTATION, LABEL_MAP = "1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7"
SECRETS = (*PATIENT, "left ventricle of Jane")


@dataclass(frozen=True)
class Frame:
    """One frame of a segmentation.

    Attributes:
        pixels: [H, W] bool, or whole numbers.
        segment: its number, or None in a label map.
        image: (SOP instance UID, frame or None) that it refers to, or None.
        position: where its first pixel lies, or None.
    """

    pixels: np.ndarray
    segment: int | None = 1
    image: tuple[str, int | None] | None = None
    position: tuple[float, float, float] | None = None


def items(**tags: Any) -> list[Dataset]:
    item = Dataset()
    for name, value in tags.items():
        setattr(item, name, value)
    return [item]


def _new_file(path: Path, kind: str) -> FileDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = UID(kind), generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset(path, {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID, dataset.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    dataset.PatientName, dataset.PatientID = SECRETS[:2]
    return dataset


def write_image(path: Path, pixels: np.ndarray, **tags: Any) -> FileDataset:
    """An image of [H, W] or [frames, H, W], as 8 bits."""
    return pydicom.dcmread(write_dicom(path, pixels.astype(np.uint8), **tags))


def write_segmentation(path: Path, frames: Sequence[Frame], kind: str = "BINARY", **tags: Any) -> Path:
    """A segmentation, bit-packed where it is binary.

    Args:
        frames: in the order of the file.
        kind: "BINARY", "FRACTIONAL" or "LABELMAP".
        tags: further ones; `segments`: their numbers.
    """
    numbers = tags.pop("segments", sorted({frame.segment for frame in frames if frame.segment is not None}))
    dataset = _new_file(path, LABEL_MAP if kind == "LABELMAP" else SEGMENTATION)
    dataset.Rows, dataset.Columns = frames[0].pixels.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PixelRepresentation = 1, "MONOCHROME2", 0
    bits = 1 if kind == "BINARY" else 8
    dataset.BitsAllocated = dataset.BitsStored = bits
    dataset.HighBit = bits - 1
    dataset.NumberOfFrames, dataset.SegmentationType = len(frames), kind
    if kind == "FRACTIONAL":
        dataset.MaximumFractionalValue = 200
    dataset.SegmentSequence = [
        items(SegmentNumber=number, SegmentLabel=SECRETS[2], SegmentAlgorithmType="MANUAL")[0] for number in numbers
    ]
    groups = []
    for frame in frames:
        group = Dataset()
        if frame.segment is not None:
            group.SegmentIdentificationSequence = items(ReferencedSegmentNumber=frame.segment)
        if frame.position is not None:
            group.PlanePositionSequence = items(ImagePositionPatient=list(frame.position))
        if frame.image is not None:
            source = items(ReferencedSOPInstanceUID=frame.image[0])
            if frame.image[1] is not None:
                source[0].ReferencedFrameNumber = frame.image[1]
            group.DerivationImageSequence = items(SourceImageSequence=source)
        groups.append(group)
    dataset.PerFrameFunctionalGroupsSequence = groups
    stacked = np.stack([frame.pixels for frame in frames])
    data = np.packbits(stacked.astype(bool).ravel(), bitorder="little") if bits == 1 else stacked.astype(np.uint8)
    dataset.PixelData = data.tobytes() + b"\0" * (data.size % 2)
    dataset["PixelData"].VR = "OB"
    for name, value in tags.items():
        setattr(dataset, name, value)
    dataset.save_as(path, enforce_file_format=True)
    return path
