"""A progression as a DICOM series: one secondary capture object (PS3.3 A.8.1) per simulated frame.

The input is not written: no picture of the patient leaves under new identifiers. By default nothing of the source's
header goes along but how its values are stored and shown and the size of its pixels; patient and study are new.
"""

from __future__ import annotations

import contextlib
import copy
import datetime
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pie_engine import __version__
from pie_engine.errors import ConfigError, InputError, OutputError, argument, mention
from pie_engine.imaging import Stored
from pie_engine.imaging.limits import quiet
from pie_engine.outputs.dicom_pixels import add_frame, add_native
from pie_engine.outputs.native import NativeFrames, describe_native

if TYPE_CHECKING:
    from pie_engine.config import OutputConfig, RunConfig

_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
# Apart from the scanner's own series, which count from 1.
_SERIES_NUMBER = 9001
_LABEL = "SIMULATED (PIE), research use only"
# What a series in the source's own study takes over. Frames of reference have no place in a secondary capture.
_PATIENT_AND_STUDY = (
    "SpecificCharacterSet", "PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex",
    "PatientIdentityRemoved", "DeidentificationMethod", "DeidentificationMethodCodeSequence", "StudyInstanceUID",
    "StudyDate", "StudyTime", "StudyID", "StudyDescription", "AccessionNumber", "ReferringPhysicianName",
    "BodyPartExamined", "Laterality", "ImageLaterality", "PatientOrientation",
)  # fmt: skip
# Attributes that have to be there, though they may be empty.
_TYPE_2 = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID",
    "AccessionNumber", "ReferringPhysicianName", "PatientOrientation",
)  # fmt: skip


def check_series(stored: Stored, outputs: OutputConfig) -> None:
    """Refuse what no series can be made of, before anything is simulated.

    Raises:
        OutputError: pydicom is missing.
        ConfigError, InputError: the source has no study to stay in, or values that a secondary capture cannot hold.
    """
    try:
        import pydicom  # noqa: F401
    except ImportError:
        raise OutputError("a DICOM series needs pydicom, which is missing; pip install 'pie-engine[dicom]'") from None
    if outputs.native_size and (stored.limits is None or stored.values.dtype.itemsize > 2):
        raise InputError(
            f"the image has stored values of type {stored.values.dtype}, and a DICOM series takes 8 or 16 bits; "
            f"leave out {argument('native_size')} or {argument('dicom')}",
            field="native_size",
            value=True,
        )
    if outputs.dicom_same_study:
        if stored.facts["format"] != "DICOM":
            raise ConfigError(
                f"{mention('dicom_same_study')} keeps the source's patient and study, and the image is "
                f"{stored.facts['format']}; leave it out",
                field="dicom_same_study",
                value=True,
            )
        missing = [
            name for name in ("StudyInstanceUID", "SeriesInstanceUID", "SOPClassUID", "SOPInstanceUID")
            if not stored.header.get(name)
        ]  # fmt: skip
        if missing:
            raise InputError(
                f"the image does not say its {', '.join(missing)}, so that nothing can be in its study; "
                f"leave out {argument('dicom_same_study')}",
                field="dicom_same_study",
                value=True,
            )


def save_series(
    frames: np.ndarray,
    folder: Path,
    stored: Stored,
    config: RunConfig,
    outputs: OutputConfig,
    native: NativeFrames | None = None,
) -> tuple[list[Path], dict[str, Any]]:
    """Write folder/NNN.dcm for every frame but the input.

    Args:
        frames: [N + 1, R, R, 3] uint8, as they are shown.
        stored: the source.
        native: the same frames at the source's geometry, which are written instead.

    Returns:
        The paths, and what provenance says: the new identifiers, none of the patient's.

    Raises:
        OutputError: an attribute of the source's patient or study is damaged.
    """
    from pydicom.uid import generate_uid

    folder.mkdir()
    shared = _kept(stored.header) if outputs.dicom_same_study else _new()
    shared.SeriesInstanceUID = generate_uid(prefix=None)
    paths, uids, counts = [], [], []
    for index in range(1, len(frames)):
        with _quoting_nothing(), quiet("pydicom"):
            dataset = copy.deepcopy(shared)
            _describe_simulation(dataset, index, len(frames) - 1, stored, outputs)
            if native is None:
                add_frame(dataset, frames[index], stored, config.fit)
            else:
                frame = native.frame(index)
                add_native(dataset, frame.values, stored)
                counts.append((frame.changed, frame.clipped))
            path = folder / f"{index:03d}.dcm"
            _save(dataset, path)
        paths.append(path)
        uids.append(str(dataset.SOPInstanceUID))
    new = {} if outputs.dicom_same_study else {
        "patient_id": str(shared.PatientID), "study_instance_uid": str(shared.StudyInstanceUID),
    }  # fmt: skip
    return paths, {
        "study": "the source's" if outputs.dicom_same_study else "new, of a pseudonymous patient",
        **new,
        "series_instance_uid": str(shared.SeriesInstanceUID),
        "sop_instance_uids": uids,
        "pixels": "8 bits at output resolution" if native is None else describe_native(stored, counts),
    }


def _new() -> Any:
    """A patient and a study that do not exist."""
    from pydicom.dataset import Dataset
    from pydicom.uid import generate_uid

    dataset = Dataset()
    _fill_up(dataset)
    dataset.PatientName = "SIMULATED^PIE"
    dataset.PatientID = f"SIM-{secrets.token_hex(6).upper()}"
    dataset.PatientIdentityRemoved = "YES"
    dataset.DeidentificationMethod = ["new identifiers, no text or date of the source", "pixels not searched for text"]
    dataset.StudyInstanceUID = generate_uid(prefix=None)
    dataset.StudyDescription = _LABEL
    return dataset


def _kept(source: Any) -> Any:
    """The source's patient and study, and a reference to the source."""
    from pydicom.dataset import Dataset

    with _quoting_nothing(), quiet("pydicom"):
        dataset = Dataset()
        for name in _PATIENT_AND_STUDY:
            if name in source:
                dataset[name] = copy.deepcopy(source[name])
        _fill_up(dataset)
        image = _reference(source)
        image.PurposeOfReferenceCodeSequence = [_code("121322", "Source image for image processing operation")]
        dataset.SourceImageSequence = [image]
        series = Dataset()
        series.SeriesInstanceUID = source.SeriesInstanceUID
        series.ReferencedInstanceSequence = [_reference(source)]
        dataset.ReferencedSeriesSequence = [series]
    return dataset


def _fill_up(dataset: Any) -> None:
    for name in _TYPE_2:
        if name not in dataset:
            setattr(dataset, name, None)
    if "ImageLaterality" not in dataset and "Laterality" not in dataset:
        dataset.Laterality = None  # of paired organs; nothing says whether this is one


def _reference(source: Any) -> Any:
    from pydicom.dataset import Dataset

    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = source.SOPClassUID, source.SOPInstanceUID
    return item


def _code(value: str, meaning: str) -> Any:
    from pydicom.dataset import Dataset

    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "DCM", meaning
    return item


def _describe_simulation(dataset: Any, index: int, rounds: int, stored: Stored, outputs: OutputConfig) -> None:
    """Everything that says what this object is, but for its pixels."""
    from pydicom.dataset import Dataset
    from pydicom.uid import generate_uid

    dataset.SOPClassUID, dataset.SOPInstanceUID = _SECONDARY_CAPTURE, generate_uid(prefix=None)
    dataset.SyntheticData = "YES"
    dataset.ImageType = ["DERIVED", "SECONDARY", "SIMULATED"]
    dataset.Modality, dataset.ConversionType = "OT", "SYN"
    dataset.SeriesNumber, dataset.InstanceNumber = _SERIES_NUMBER, index
    dataset.SeriesDescription = _LABEL
    dataset.ImageComments = "SIMULATED - research use only, not for diagnosis"
    dataset.DerivationDescription = (
        f"Simulated disease progression (PIE), round {index} of {rounds}, not a patient's image, research use only"
    )
    now = datetime.datetime.now()
    dataset.InstanceCreationDate = dataset.DateOfSecondaryCapture = now.strftime("%Y%m%d")
    dataset.InstanceCreationTime = dataset.TimeOfSecondaryCapture = now.strftime("%H%M%S")
    dataset.Manufacturer = dataset.SecondaryCaptureDeviceManufacturer = "pie-engine"
    model = "Progressive Image Editing"
    dataset.ManufacturerModelName = dataset.SecondaryCaptureDeviceManufacturerModelName = model
    dataset.SoftwareVersions = dataset.SecondaryCaptureDeviceSoftwareVersions = __version__
    equipment = Dataset()
    equipment.PurposeOfReferenceCodeSequence = [_code("109102", "Processing Equipment")]
    equipment.Manufacturer, equipment.ManufacturerModelName = "pie-engine", model
    equipment.SoftwareVersions = __version__
    equipment.ContributionDescription = "Simulated by a diffusion model (arXiv 2309.11745)"
    dataset.ContributingEquipmentSequence = [equipment]
    dicom = stored.facts["format"] == "DICOM"
    frames = int(stored.facts.get("frames", 1))
    if outputs.dicom_same_study and frames > 1:
        for item in (dataset.SourceImageSequence[0], dataset.ReferencedSeriesSequence[0].ReferencedInstanceSequence[0]):
            item.ReferencedFrameNumber = stored.facts["frame"]
    # Text in the source's pixels may name the patient; whether it does is not known of other formats.
    burned = str(stored.header.get("BurnedInAnnotation", "")) if dicom else ""
    if outputs.mark or burned in ("YES", "NO"):
        dataset.BurnedInAnnotation = "YES" if outputs.mark else burned
    lossy = dicom and str(stored.header.get("LossyImageCompression", "")) == "01"
    if lossy or stored.facts["format"] == "JPEG" or "JPEG Baseline" in str(stored.facts.get("transfer_syntax")):
        dataset.LossyImageCompression = "01"


def _save(dataset: Any, path: Path) -> None:
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian

    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.save_as(path, enforce_file_format=True)


@contextlib.contextmanager
def _quoting_nothing() -> Iterator[None]:
    """Replace errors whose text may quote the source's header. Those of the disk pass."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise OutputError(
            f"the DICOM series cannot be written ({type(error).__name__}: an attribute of the source's patient or "
            f"study is damaged); leave out {argument('dicom_same_study')}",
            field="dicom_same_study",
            value=True,
        ) from None
