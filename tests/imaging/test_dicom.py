"""DICOM in: every step from stored values to grey against values computed by hand, and what is refused."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clinical_files import SECRETS, pydicom
from clinical_files import write_dicom as write
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.uid import UID, JPEG2000Lossless, RLELossless

from pie_engine.errors import InputError
from pie_engine.imaging import Reading, read_image

RAMP = np.array([[0, 1000, 2000], [3000, 4000, 4095]], np.uint16)


def grey(path: Path, **reading: Any) -> tuple[list[list[int]], dict[str, Any]]:
    image, facts = read_image(path, reading=Reading(**reading))
    assert not any(secret in json.dumps(facts) for secret in SECRETS)
    return np.asarray(image).tolist(), facts


def linear(values: np.ndarray, center: float, width: float) -> list[list[int]]:
    """PS3.3 C.11.2.1.2.1, one value at a time."""
    out = np.zeros(values.shape)
    for place, x in np.ndenumerate(values.astype(float)):
        if x <= center - 0.5 - (width - 1) / 2:
            out[place] = 0
        elif x > center - 0.5 + (width - 1) / 2:
            out[place] = 255
        else:
            out[place] = ((x - (center - 0.5)) / (width - 1) + 0.5) * 255
    return np.round(out).astype(int).tolist()


def test_window_of_the_file_and_of_the_options(tmp_path: Path) -> None:
    path = write(tmp_path / "a.dcm", RAMP, BitsStored=12, WindowCenter=[2000, 1], WindowWidth=[3000, 1])
    pixels, facts = grey(path)
    assert pixels == linear(RAMP, 2000, 3000)
    assert facts["mapping"] == {
        "function": "LINEAR", "window_center": 2000, "window_width": 3000, "source": "file (first of its windows)",
        "modality": "none", "inverted": False, "padding_pixels": 0,
    }  # fmt: skip
    assert (facts["format"], facts["bits"], facts["size"]) == ("DICOM", 12, [3, 2])
    assert facts["transfer_syntax"] == "Explicit VR Little Endian"
    pixels, facts = grey(path, window_center=3000, window_width=500)
    assert pixels == linear(RAMP, 3000, 500)
    assert facts["mapping"]["source"] == "option"


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_functions_agree_with_pydicom(tmp_path: Path, function: str) -> None:
    path = write(tmp_path / "a.dcm", RAMP, BitsStored=12, WindowCenter=2000, WindowWidth=3000, VOILUTFunction=function)
    theirs = pydicom.pixels.apply_voi_lut(RAMP, pydicom.dcmread(path)) / 4095
    assert grey(path)[0] == np.round(theirs * 255).astype(int).tolist()


def test_monochrome1_and_padding(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.dcm", RAMP, BitsStored=12, WindowCenter=2000, WindowWidth=3000,
        PhotometricInterpretation="MONOCHROME1", PixelPaddingValue=0,
    )  # fmt: skip
    pixels, facts = grey(path)
    expected = [[255 - value for value in row] for row in linear(RAMP, 2000, 3000)]
    expected[0][0] = 0  # the padding, which inversion had made white
    assert np.abs(np.array(pixels) - expected).max() <= 1  # rounding at .5
    assert facts["mapping"]["inverted"] is True
    assert facts["mapping"]["padding_pixels"] == 1


def test_signed_with_rescale(tmp_path: Path) -> None:
    stored = np.array([[-1000, 0], [500, 1000]], np.int16)
    path = write(tmp_path / "a.dcm", stored, RescaleSlope=2, RescaleIntercept=-24, WindowCenter=40, WindowWidth=400)
    pixels, facts = grey(path)
    assert pixels == linear(stored * 2.0 - 24, 40, 400)
    assert facts["mapping"]["modality"] == {"slope": 2.0, "intercept": -24.0}


def test_voi_lut_wins_over_the_window(tmp_path: Path) -> None:
    table = Dataset()
    table.LUTDescriptor, table.LUTData = [4, 1000, 16], [0, 20000, 40000, 65535]
    table["LUTDescriptor"].VR = table["LUTData"].VR = "US"
    stored = np.array([[0, 1000, 1001], [1002, 1003, 4000]], np.uint16)
    path = write(tmp_path / "a.dcm", stored, VOILUTSequence=[table], WindowCenter=1, WindowWidth=2)
    pixels, facts = grey(path)
    assert pixels == [[0, 0, 78], [156, 255, 255]]
    assert facts["mapping"]["function"] == "VOI LUT"


def test_without_a_window_the_range_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        pixels, facts = grey(write(tmp_path / "a.dcm", RAMP + 5, BitsStored=13))
    assert (pixels[0][0], pixels[1][2]) == (0, 255)
    assert (facts["mapping"]["low"], facts["mapping"]["high"]) == (5, 4100)
    assert "has no window: 5..4100" in caplog.text
    caplog.clear()
    eight = np.array([[3, 200]], np.uint8)
    assert grey(write(tmp_path / "b.dcm", eight))[0] == [[3, 200]]
    assert not caplog.text


@pytest.mark.parametrize("syntax", [JPEG2000Lossless, RLELossless])
def test_compressed(tmp_path: Path, syntax: Any) -> None:
    if syntax == JPEG2000Lossless:
        pytest.importorskip("openjpeg")
    values = np.random.default_rng(0).integers(0, 4096, (64, 48), np.uint16)
    path = write(tmp_path / "a.dcm", values, BitsStored=12, WindowCenter=2048, WindowWidth=4096, compress=syntax)
    pixels, facts = grey(path)
    assert pixels == linear(values, 2048, 4096)
    assert facts["transfer_syntax"] == syntax.name
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match=r"cannot be decoded|cut off"):
        read_image(path)


def test_colour(tmp_path: Path) -> None:
    colour = np.random.default_rng(0).integers(0, 256, (8, 6, 3), np.uint8)
    assert grey(write(tmp_path / "rgb.dcm", colour))[0] == colour.tolist()
    ybr = np.asarray(Image.fromarray(colour).convert("YCbCr"))
    back, facts = grey(write(tmp_path / "ybr.dcm", ybr, PhotometricInterpretation="YBR_FULL"))
    assert np.abs(np.array(back) - colour).max() <= 3
    assert facts["mapping"]["converted"] == "YBR to RGB"
    tables = {}
    for name, first in (("Red", 0), ("Green", 1), ("Blue", 2)):
        tables[f"{name}PaletteColorLookupTableDescriptor"] = [4, 0, 16]
        entries = (np.arange(4) * 257 * 10 + first * 257).astype("<u2")
        tables[f"{name}PaletteColorLookupTableData"] = entries.tobytes()
    indices = np.array([[0, 1], [2, 3]], np.uint8)
    path = write(tmp_path / "palette.dcm", indices, PhotometricInterpretation="PALETTE COLOR", **tables)
    assert grey(path)[0] == [[[0, 1, 2], [10, 11, 12]], [[20, 21, 22], [30, 31, 32]]]
    with pytest.raises(InputError, match="in colour, and a window belongs to greyscale"):
        grey(path, window_center=1, window_width=1)


def test_frames(tmp_path: Path) -> None:
    path = write(tmp_path / "a.dcm", np.stack([np.full((2, 2), n, np.uint8) for n in (10, 20, 30)]))
    with pytest.raises(InputError, match="has 3 frames; pass frame=1 to 3"):
        read_image(path)
    with pytest.raises(InputError, match="none of them 4; pass frame=1 to 3"):
        grey(path, frame=4)
    pixels, facts = grey(path, frame=2)
    assert pixels == [[20, 20], [20, 20]]
    assert (facts["frame"], facts["frames"]) == (2, 3)


def test_without_preamble(tmp_path: Path) -> None:
    path = write(tmp_path / "a.dcm", np.array([[3, 200]], np.uint8))
    path.write_bytes(path.read_bytes()[132:])
    assert grey(path)[0] == [[3, 200]]


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "report": ({"pixels": None, "SOPClassUID": "1.2.840.10008.5.1.4.1.1.88.11"}, "Basic Text SR Storage"),
    "pdf": ({"pixels": None, "SOPClassUID": "1.2.840.10008.5.1.4.1.1.104.1"}, "Encapsulated PDF Storage"),
    "contours": ({"pixels": None, "SOPClassUID": "1.2.840.10008.5.1.4.1.1.481.3"}, "RT Structure Set Storage"),
    "width": ({"pixels": RAMP, "WindowCenter": 5, "WindowWidth": 0}, "window of width 0"),
    "bomb": ({"pixels": RAMP, "Rows": 60000, "Columns": 60000}, "more than 67108864 pixels"),
    "size": ({"pixels": RAMP, "Rows": 60}, "cannot be decoded"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    tags, reason = REFUSED[name]
    path = write(tmp_path / "a.dcm", **tags)
    with pytest.raises(InputError, match=reason) as caught:
        read_image(path)
    assert "\n" not in str(caught.value)
    assert not any(secret in str(caught.value) + caplog.text for secret in SECRETS)


@pytest.mark.parametrize(
    ("syntax", "reason"),
    [
        ("1.2.840.10008.1.2.4.100", "is a video"),
        ("1.2.840.10008.1.2.4.70", r"no decoder is installed; pip install pylibjpeg-libjpeg \(GPL"),
    ],
)
def test_transfer_syntaxes_that_are_refused(tmp_path: Path, syntax: str, reason: str) -> None:
    if syntax.endswith(".70") and pydicom.pixels.get_decoder(UID(syntax)).is_available:
        pytest.skip("a decoder is installed")
    path = write(tmp_path / "a.dcm", RAMP)
    ds = pydicom.dcmread(path)
    ds.file_meta.TransferSyntaxUID = UID(syntax)
    ds.PixelData = pydicom.encaps.encapsulate([b"\xff\xd8\xff\xd9"])
    ds["PixelData"].VR, ds["PixelData"].is_undefined_length = "OB", True
    ds.save_as(path)
    with pytest.raises(InputError, match=reason):
        read_image(path)
