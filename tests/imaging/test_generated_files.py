"""Files that nobody would write: each gives an image within the limits, or one line that says what is wrong with it.

Any other exception is a bug, and so is an image that cannot be shown. `HYPOTHESIS_PROFILE=fuzz` looks for longer.
"""

from __future__ import annotations

import gzip
import io
import math
import struct
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clinical_files import SECRETS, write_dicom
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pie_engine.config import RunConfig
from pie_engine.errors import PieError
from pie_engine.imaging import Box, Ellipse, Polygon, Reading, Region, read_stored
from pie_engine.imaging.item import Item, check_item
from pie_engine.imaging.limits import MAX_PIXELS

RAMP = np.arange(20 * 24, dtype=np.uint16).reshape(20, 24) * 8
CONFIG = RunConfig(resolution=64)


def look(path: Path, **reading: Any) -> None:
    """The property."""
    try:
        stored = read_stored(path, reading=Reading(**reading))
        picture = stored.picture()
        check_item(Item(path, "heart", reading=Reading(**reading)), CONFIG)
    except PieError as error:
        assert "\n" not in str(error)
        assert not any(secret in str(error) for secret in SECRETS)
        return
    assert picture.size == stored.size
    assert 0 < stored.values.shape[0] * stored.values.shape[1] <= MAX_PIXELS
    assert np.isfinite(stored.grey()).all()


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A small valid file of every kind."""
    folder = tmp_path_factory.mktemp("seeds")
    grey = (RAMP // 16).astype(np.uint8)
    files = {}
    for name, options in (
        ("PNG", {}), ("JPEG", {"progressive": True}), ("TIFF", {}), ("BMP", {}), ("GIF", {}), ("WEBP", {}),
    ):  # fmt: skip
        data = io.BytesIO()
        exif = Image.Exif()
        exif[0x0112], exif[0x010E] = 6, "text"
        Image.fromarray(grey).save(data, name, **options, **({"exif": exif} if name != "BMP" else {}))
        files[name] = data.getvalue()
    data = io.BytesIO()
    Image.fromarray(RAMP).save(data, "TIFF", compression="tiff_adobe_deflate", save_all=True)
    files["TIFF16"] = data.getvalue()
    for name, options in (("DICOM", {}), ("RLE", {"compress": "1.2.840.10008.1.2.5"})):
        tags = {
            "WindowCenter": 900,
            "WindowWidth": 1800,
            "RescaleSlope": 2,
            "RescaleIntercept": -5,
            "PixelSpacing": [1, 2],
        }
        files[name] = write_dicom(folder / name, RAMP, **tags, **options).read_bytes()
    files["NIfTI"] = nifti(shape=(24, 20, 3))
    return files


KINDS = ("PNG", "JPEG", "TIFF", "TIFF16", "BMP", "GIF", "WEBP", "DICOM", "RLE", "NIfTI")


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files(tmp_path: Path, seeds: dict[str, bytes], kind: str) -> None:
    seed = seeds[kind]
    header = st.integers(0, min(len(seed), 1200) - 1)
    values = st.one_of(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF]), st.integers(0, 255))
    edits = st.lists(st.tuples(st.one_of(header, st.integers(0, len(seed) - 1)), values), max_size=6)

    @given(edits, st.one_of(st.just(len(seed)), st.integers(0, len(seed))), st.sampled_from([None, None, 1, 2]))
    def damaged(edits: list[tuple[int, int]], length: int, frame: int | None) -> None:
        data = bytearray(seed)
        for place, value in edits:
            data[place] = value
        path = tmp_path / "x"
        path.write_bytes(data[:length])
        look(path, frame=frame, **({"slice": 2} if kind == "NIfTI" else {}))

    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)  # numpy's, of numbers that are none
        damaged()


# Numbers as a header may hold them, most of them not what was meant.
NUMBERS = st.one_of(
    st.sampled_from(["0", "-0", "1", "-1", "1E300", "-1E300", "1E-300", "1E400", "NAN", "INF", "", "x", "1\\2", "0.5"]),
    st.floats(allow_nan=True, width=32).map(lambda value: f"{value:.6g}"[:16]),
)
SHORTS = st.one_of(st.sampled_from([0, 1, 2, 7, 8, 12, 15, 16, 17, 20, 24, 32, 255, 65535]), st.integers(0, 65535))
TEXTS = {
    "WindowCenter", "WindowWidth", "RescaleSlope", "RescaleIntercept", "NumberOfFrames", "PixelSpacing",
    "PixelAspectRatio", "ImagerPixelSpacing",
}  # fmt: skip
SHORT = {"Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "SamplesPerPixel"}
WORDS = {
    "PhotometricInterpretation": [
        "MONOCHROME1",
        "MONOCHROME2",
        "RGB",
        "PALETTE COLOR",
        "YBR_FULL",
        "YBR_FULL_422",
        "X",
    ],
    "VOILUTFunction": ["LINEAR", "LINEAR_EXACT", "SIGMOID", "X"],
}
FIELDS = st.fixed_dictionaries(
    {},
    optional=dict.fromkeys(sorted(TEXTS), NUMBERS)
    | dict.fromkeys(sorted(SHORT), SHORTS)
    | {name: st.sampled_from(words) for name, words in WORDS.items()}
    | dict.fromkeys(("PixelPaddingValue", "PixelPaddingRangeLimit", "PlanarConfiguration"), SHORTS),
)
TABLES = st.none() | st.tuples(SHORTS, SHORTS, SHORTS, st.lists(st.integers(0, 65535), max_size=6))


@given(
    FIELDS,
    TABLES,
    st.sampled_from(["VOILUTSequence", "ModalityLUTSequence"]),
    st.sampled_from(["u1", "u2", "i2", "f4"]),
)
def test_dicom_headers(
    tmp_path_factory: pytest.TempPathFactory, fields: dict[str, Any], table: Any, sequence: str, kind: str
) -> None:
    import pydicom

    path = tmp_path_factory.getbasetemp() / "header.dcm"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        write_dicom(path, (RAMP % 256 if kind == "u1" else RAMP).astype(f"<{kind}" if kind != "u1" else kind))
        ds = pydicom.dcmread(path)
        for name, value in fields.items():
            vr = pydicom.datadict.dictionary_VR(name).split(" ")[0]
            if name in TEXTS:  # past pydicom's own checks
                ds[name] = pydicom.dataelem.RawDataElement(
                    pydicom.tag.Tag(pydicom.datadict.tag_for_keyword(name)),
                    vr,
                    len(value),
                    value.encode(),
                    0,
                    False,
                    True,
                )
            else:
                ds.add_new(name, vr, value)
        if table is not None:
            item = pydicom.Dataset()
            item.add_new("LUTDescriptor", "US", list(table[:3]))
            item.add_new("LUTData", "US", table[3])
            ds.add_new(sequence, "SQ", [item])
        ds.save_as(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        look(path)


def nifti(*, shape: tuple[int, ...], **fields: Any) -> bytes:
    """A NIfTI file of 16-bit voxels whose header holds what is given, whether it makes sense or not."""
    header = bytearray(352)
    struct.pack_into("<i", header, 0, 348)
    struct.pack_into("<8h", header, 40, len(shape), *shape[:7], *[1] * (7 - len(shape)))
    struct.pack_into("<hh", header, 70, fields.get("datatype", 4), fields.get("bitpix", 16))
    struct.pack_into("<8f", header, 76, *fields.get("pixdim", [1.0] * 8))
    struct.pack_into("<f", header, 108, fields.get("vox_offset", 352.0))
    struct.pack_into("<ff", header, 112, *fields.get("scaling", (1.0, 0.0)))
    struct.pack_into("<ff", header, 124, *fields.get("cal", (0.0, 0.0)))
    struct.pack_into("<hh", header, 252, *fields.get("codes", (0, 1)))
    affine = fields.get("affine", np.eye(4)[:3].ravel())
    struct.pack_into("<12f", header, 280, *affine)
    header[344:348] = b"n+1\0"
    return bytes(header) + np.resize(RAMP.astype("<i2"), min(math.prod(map(abs, shape)), 4000)).tobytes()


FLOATS = st.one_of(
    st.sampled_from([0.0, -1.0, 1.0, math.nan, math.inf, 1e30, -1e38, 1e-38, 352.0]),
    st.floats(width=32, allow_nan=True),
)
SIDES = st.one_of(st.sampled_from([24, 20, 3, 1]), st.integers(-32768, 32767))


@given(
    st.one_of(st.just((24, 20, 3)), st.lists(SIDES, min_size=1, max_size=7).map(tuple)),
    st.fixed_dictionaries(
        {},
        optional={
            "datatype": st.sampled_from([0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 768, 1024, 1536, 2048, 2304, 9999]),
            "pixdim": st.lists(FLOATS, min_size=8, max_size=8),
            "vox_offset": FLOATS,
            "scaling": st.tuples(FLOATS, FLOATS),
            "cal": st.tuples(FLOATS, FLOATS),
            "codes": st.tuples(st.integers(-1, 5), st.integers(-1, 5)),
            "affine": st.lists(FLOATS, min_size=12, max_size=12),
        },
    ),
    st.sampled_from([None, 0, 1, 2]),
    st.booleans(),
)
def test_nifti_headers(
    tmp_path_factory: pytest.TempPathFactory, shape: tuple[int, ...], fields: dict[str, Any], axis: int, packed: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / "header.nii"
    data = nifti(shape=shape, **fields)
    path.write_bytes(gzip.compress(data, 1) if packed else data)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        look(path, slice=1, axis=axis)
        look(path)


COORDINATES = st.one_of(
    st.floats(-50, 50), st.floats(allow_nan=True, allow_infinity=True), st.integers(-(10**9), 10**9)
)
SHAPES = st.one_of(
    st.tuples(st.just(Box), st.tuples(*[COORDINATES] * 4)),
    st.tuples(st.just(Ellipse), st.tuples(*[COORDINATES] * 4)),
    st.tuples(st.just(Polygon), st.tuples(st.lists(st.tuples(COORDINATES, COORDINATES), max_size=8))),
)
REGIONS = st.lists(st.tuples(SHAPES, st.none() | st.floats(-0.5, 1.5), st.none() | st.integers(0, 3)), max_size=3)


@given(
    REGIONS, REGIONS, st.integers(-20_000, 20_000) | st.integers(-9, 9), st.tuples(*[st.integers(-20, 20)] * 2),
    st.none() | st.integers(-1, 3), st.sampled_from(["crop", "pad", "stretch"]),
)  # fmt: skip
def test_regions(
    regions: Any, keep: Any, dilate: int, shift: tuple[int, int], components: int | None, how: str
) -> None:
    from pie_engine.imaging.item import prepare_item

    image = (RAMP // 16).astype(np.uint8)
    try:
        made = [
            [Region(kind(*numbers), beta, label) for (kind, numbers), beta, label in some] for some in (regions, keep)
        ]
        item = Item(image, "x", made[0], "0", keep=made[1], dilate=dilate, shift=shift, components=components)
        mask = prepare_item(item, RunConfig(resolution=16, fit=how), 8).mask
    except PieError as error:
        assert "\n" not in str(error)
        return
    assert (mask is None) == (not regions)
    if mask is not None:
        assert mask.pixels.any() and mask.beta_map is not None and np.isfinite(mask.beta_map).all()
        assert ((mask.weight >= 0) & (mask.weight <= 1) & (mask.pixels | (mask.weight == 0))).all()


@given(st.text(alphabet="0123456789.,-+eE:infa ", max_size=24), st.sampled_from([None, Box, Ellipse, Polygon]))
def test_regions_as_text(text: str, shape: Any) -> None:
    try:
        region = Region.parse(text, shape)
    except PieError as error:
        assert "\n" not in str(error)
        return
    assert region.source is not None
