"""Rarer kinds of DICOM, each against values worked out by hand: tables, enhanced objects, encodings, float, shapes."""

from __future__ import annotations

import builtins
import io
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clinical_files import pydicom, tells_nothing
from clinical_files import write_dicom as write
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.uid import UID

from pie_engine.errors import InputError
from pie_engine.imaging import Reading, read_image

WINDOW = {"WindowCenter": 128, "WindowWidth": 256}  # LINEAR: value n becomes grey n


def grey(path: Path, **reading: Any) -> list[list[int]]:
    return np.asarray(read_image(path, reading=Reading(**reading))[0]).tolist()


def table(first: int, entries: list[int], bits: int = 16) -> Dataset:
    item = Dataset()
    item.add_new("LUTDescriptor", "SS" if first < 0 else "US", [len(entries), first, bits])
    item.add_new("LUTData", "OW", np.array(entries, "<u2").tobytes())
    return item


def test_modality_table(tmp_path: Path) -> None:
    stored = np.array([[0, 10, 11], [12, 13, 400]], np.uint16)
    path = write(tmp_path / "a.dcm", stored, ModalityLUTSequence=[table(10, [7, 50, 100, 200])], **WINDOW)
    assert grey(path) == [[7, 7, 50], [100, 200, 200]]  # beyond its ends, its ends
    assert read_image(path)[1]["mapping"]["modality"] == "lookup table"


def test_modality_table_of_signed_values(tmp_path: Path) -> None:
    stored = np.array([[-300, -2, -1], [0, 1, 300]], np.int16)
    path = write(tmp_path / "a.dcm", stored, ModalityLUTSequence=[table(-2, [10, 20, 30, 40])], **WINDOW)
    assert grey(path) == [[10, 10, 20], [30, 40, 40]]


def groups(windows: list[tuple[float, float] | None], rescale: tuple[float, float] | None) -> dict[str, Any]:
    """Functional groups: a window per frame, or one for all under None; a rescale for all."""

    def group(window: tuple[float, float] | None) -> Dataset:
        found, voi = Dataset(), Dataset()
        if window is not None:
            voi.WindowCenter, voi.WindowWidth = window
            found.FrameVOILUTSequence = [voi]
        return found

    shared = group(windows[0] if len(windows) == 1 else None)
    if rescale is not None:
        values = Dataset()
        values.RescaleSlope, values.RescaleIntercept, values.RescaleType = *rescale, "US"
        shared.PixelValueTransformationSequence = [values]
    made = {"SharedFunctionalGroupsSequence": [shared]}
    if len(windows) > 1:
        made["PerFrameFunctionalGroupsSequence"] = [group(window) for window in windows]
    return made


def test_enhanced_objects_take_the_settings_of_their_own_frame(tmp_path: Path) -> None:
    frames = np.stack([np.array([[0, 50], [75, 100]], np.uint16)] * 3)
    # Rescaled by 2: 0 to 200. Windows of LINEAR: 0..255; black up to 100, white above 200; 0..200.
    settings = groups([(128, 256), (150.5, 101), (100.5, 201)], (2, 0))
    path = write(tmp_path / "a.dcm", frames, SOPClassUID="1.2.840.10008.5.1.4.1.1.2.1", **settings)
    assert grey(path, frame=1) == [[0, 100], [150, 200]]
    assert grey(path, frame=2) == [[0, 0], [128, 255]]
    assert grey(path, frame=3) == [[0, 128], [191, 255]]
    assert read_image(path, reading=Reading(frame=2))[1]["mapping"]["modality"] == {"slope": 2.0, "intercept": 0.0}


def test_enhanced_objects_with_shared_settings(tmp_path: Path) -> None:
    frames = np.stack([np.array([[0, 50], [75, 100]], np.uint16), np.array([[200, 100], [0, 1]], np.uint16)])
    path = write(tmp_path / "a.dcm", frames, WindowCenter=1, WindowWidth=2, **groups([(128, 256)], (1, 5)))
    assert grey(path, frame=1) == [[5, 55], [80, 105]]  # the group wins over the object itself
    assert grey(path, frame=2) == [[205, 105], [5, 6]]


def test_jpeg_baseline(tmp_path: Path) -> None:
    smooth = np.add.outer(np.arange(64), 2 * np.arange(48)).astype(np.uint8)
    packed = io.BytesIO()
    Image.fromarray(smooth).save(packed, "JPEG", quality=95)
    path = write(tmp_path / "a.dcm", smooth)
    ds = pydicom.dcmread(path)
    ds.file_meta.TransferSyntaxUID = UID("1.2.840.10008.1.2.4.50")
    ds.PixelData = pydicom.encaps.encapsulate([packed.getvalue()])
    ds["PixelData"].VR, ds["PixelData"].is_undefined_length = "OB", True
    ds.save_as(path)
    image, facts = read_image(path)
    with Image.open(packed) as decoded:
        assert np.abs(np.asarray(image).astype(int) - np.asarray(decoded)).max() <= 1  # two decoders
    assert np.abs(np.asarray(image).astype(int) - smooth).max() <= 4
    assert facts["transfer_syntax"] == "JPEG Baseline (Process 1)"


def test_big_endian(tmp_path: Path) -> None:
    stored, syntax = np.array([[0, 1, 2], [100, 200, 255]], np.uint16), UID("1.2.840.10008.1.2.2")
    path = write(tmp_path / "a.dcm", stored.astype(">u2"), syntax=syntax, **WINDOW)
    assert grey(path) == stored.tolist()
    item = table(0, [10, 20, 30])
    item["LUTData"].value = np.array([10, 20, 30], ">u2").tobytes()
    path = write(tmp_path / "b.dcm", (stored // 100).astype(">u2"), syntax=syntax, ModalityLUTSequence=[item], **WINDOW)
    assert grey(path) == [[10, 10, 10], [20, 30, 30]]


def test_float_pixels(tmp_path: Path) -> None:
    stored = np.array([[0, 0.25], [0.5, 1]], np.float32)
    tags = {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.30", "VOILUTFunction": "LINEAR_EXACT"}
    path = write(tmp_path / "a.dcm", stored, **tags)
    assert grey(path, window_center=0.5, window_width=1) == [[0, 64], [128, 255]]
    broken = write(tmp_path / "b.dcm", np.array([[0, np.nan]], np.float32), **tags)
    with pytest.raises(InputError, match=r"has 1 of 2 values that are not finite \(NaN or infinity\)"):
        read_image(broken)


def test_the_whole_range_of_signed_values(tmp_path: Path) -> None:
    """Their difference does not fit into 16 signed bits."""
    path = write(tmp_path / "a.dcm", np.array([[-32768, 0, 32767]], np.int16))
    assert grey(path) == [[0, 128, 255]]


def test_padding_range(tmp_path: Path) -> None:
    stored = np.array([[-2000, -1990, -1980], [0, 100, 200]], np.int16)
    path = write(tmp_path / "a.dcm", stored, WindowCenter=-900, WindowWidth=2201)
    ds = pydicom.dcmread(path)
    ds.add_new("PixelPaddingValue", "SS", -2000)
    ds.add_new("PixelPaddingRangeLimit", "SS", -1985)
    ds.save_as(path)
    image, facts = read_image(path)
    assert facts["mapping"]["padding_pixels"] == 2
    # LINEAR: (x + 900.5) / 2200 + 0.5, and 0 where it is padding.
    expected = [[0, 0, round((-1980 + 900.5) / 2200 * 255 + 127.5)]]
    expected += [[round((x + 900.5) / 2200 * 255 + 127.5) for x in (0, 100)] + [255]]
    assert np.asarray(image).tolist() == expected


@pytest.mark.parametrize(
    ("tags", "said"),
    [
        ({"PixelSpacing": [0.5, 1.0]}, "has pixels of 1 x 0.5, used as if they were square"),
        ({"ImagerPixelSpacing": [0.3, 0.2]}, "has pixels of 0.2 x 0.3, used"),
        ({"PixelAspectRatio": [4, 3]}, "has pixels of 3 x 4, used"),
        ({"PixelSpacing": [0.5, 0.51]}, ""),
        ({}, ""),
    ],
)
def test_pixels_that_are_not_square_are_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, tags: dict[str, Any], said: str
) -> None:
    path = write(tmp_path / "a.dcm", np.zeros((4, 4), np.uint8), **tags)
    with caplog.at_level(logging.WARNING):
        read_image(path)
    assert (said in caplog.text) if said else not caplog.text


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.dcm", np.zeros((4, 4), np.uint8))
    found = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.split(".")[0] == "pydicom":
            raise ImportError(name)
        return found(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match=r"is DICOM and pydicom is missing; pip install 'pie-engine\[dicom\]'"):
        read_image(path)


DAMAGED = {
    "cut in the header": lambda data: data[:300],
    "cut in the pixels": lambda data: data[:-50],
    "no pixels": lambda data: data[: data.index(b"\xe0\x7f\x10\x00")],
    "cut after the prefix": lambda data: data[:140],
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_files_are_one_line_without_the_patient(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path / "a.dcm", np.zeros((16, 16), np.uint16), WindowCenter=5, WindowWidth=9)
    path.write_bytes(DAMAGED[name](path.read_bytes()))
    with pytest.raises(InputError) as caught:
        read_image(path)
    assert "\n" not in str(caught.value)
    assert tells_nothing(caught.value, caplog.text, repr(caught.value.__cause__))


@pytest.mark.parametrize("name", ["window", "name", "spacing"])
def test_header_values_that_are_none_are_not_quoted(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A value of the wrong kind, which libraries like to quote in warnings and errors."""
    path = write(
        tmp_path / "a.dcm", np.zeros((16, 16), np.uint8), WindowCenter="11111111", WindowWidth=9, PixelSpacing=[1, 1]
    )
    wrong = {"window": (b"11111111", b"DOE^JANE"), "name": (b"DOE^JANE", b"DOE^JANE"[:4] + b"\xff\xfe\xfd\xfc")}
    data = path.read_bytes()
    if name == "spacing":
        place = data.index(b"\x28\x00\x30\x00DS")
        length = int.from_bytes(data[place + 6 : place + 8], "little")
        data = data[: place + 8] + b"DOE^JANE"[:length].ljust(length) + data[place + 8 + length :]
    else:
        data = data.replace(*wrong[name])
    path.write_bytes(data)
    with caplog.at_level(logging.DEBUG):
        if name != "window":
            read_image(path)
        else:
            with pytest.raises(InputError, match="cannot be read as DICOM") as caught:
                read_image(path)
            assert tells_nothing(caught.value)
            assert "DOE" not in str(caught.value)
            assert "\n" not in str(caught.value)
    assert "DOE" not in caplog.text
