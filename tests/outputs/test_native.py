"""Frames at the source's own geometry: what changes, by how much, where, and that nothing else does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from progressions import SIDE, brightened

from pie_engine import OutputConfig, Result
from pie_engine.errors import ConfigError, InputError, PieError
from pie_engine.imaging import Reading, fit, kept, read_image, read_stored, unfit
from pie_engine.imaging.mapping import Mapping, Range, Rescale
from pie_engine.imaging.stored import Stored
from pie_engine.outputs.native import NativeFrames, check_native

ONLY_NATIVE = OutputConfig(report=False, native_size=True)
FITS = ["crop", "pad", "stretch"]


def greys(height: int, width: int, dtype: Any = np.uint8, low: float = 0.3, high: float = 0.7) -> np.ndarray:
    """Noise over a part of the type's range, so that some levels more or less stay within it."""
    top = np.iinfo(dtype).max
    return np.random.default_rng(0).integers(int(low * top), int(high * top), (height, width)).astype(dtype)


def box(height: int, width: int) -> np.ndarray:
    roi = np.zeros((height, width), bool)
    roi[height // 3 : height // 2, width // 3 : 2 * width // 3] = True
    return roi


def save(result: Result, folder: Path, outputs: OutputConfig = ONLY_NATIVE) -> tuple[list[Path], dict[str, Any]]:
    paths = result.save(folder, outputs)
    return [Path(path) for path in paths["native"]], json.loads(Path(paths["provenance"]).read_text())["native"]


def test_unfitting_puts_things_back_where_they_were() -> None:
    """A bright square goes through Pillow's resizing and comes back to its own pixels."""
    for size in ((300, 200), (200, 300), (40, 30), (64, 64)):
        width, height = size
        square = np.zeros((height, width), np.uint8)
        square[int(0.4 * height) : int(0.6 * height), int(0.45 * width) : int(0.6 * width)] = 200
        for how in FITS:
            back = unfit(np.asarray(fit(Image.fromarray(square), SIDE, how))[..., 0], size, how)
            assert back.shape == (height, width)
            assert back.dtype == np.float32
            found = back > 100
            overlap = (found & (square > 0)).sum() / (found | (square > 0)).sum()
            assert overlap > 0.75, (size, how)
            rows, columns = np.nonzero(found)
            own_rows, own_columns = np.nonzero(square)
            # Centres of gravity agree to a fraction of an output pixel.
            assert abs(rows.mean() - own_rows.mean()) < 0.3 * max(1, height / SIDE)
            assert abs(columns.mean() - own_columns.mean()) < 0.3 * max(1, width / SIDE)


@pytest.mark.parametrize("how", FITS)
def test_unfitting_keeps_constants(how: str) -> None:
    for size in ((300, 200), (97, 211), (20, 30), (1000, 3)):
        assert np.allclose(unfit(np.full((SIDE, SIDE), 17.25), size, how), 17.25, atol=1e-4)


def test_what_the_crop_kept() -> None:
    # 300 x 200 at 64: resized to 96 x 64, columns 16 to 80 of it are kept: 50 to 250 of the source.
    expected = np.zeros((200, 300), bool)
    expected[:, 50:250] = True
    assert np.array_equal(kept((300, 200), SIDE, "crop"), expected)
    assert kept((300, 200), SIDE, "pad").all()
    assert kept((300, 200), SIDE, "stretch").all()


@pytest.mark.parametrize("how", FITS)
@pytest.mark.parametrize("shape", [(200, 300), (130, 90), (40, 50)])
def test_eight_bits_change_by_as_much_as_the_frame_inside_and_not_at_all_outside(
    tmp_path: Path, shape: tuple[int, int], how: str
) -> None:
    source, roi = greys(*shape), box(*shape)
    paths, facts = save(brightened(source, 20, roi=roi, how=how, rounds=2), tmp_path / "run")
    first, *others = (np.asarray(Image.open(path)) for path in paths)
    assert [path.name for path in paths] == ["000.png", "001.png", "002.png"]
    assert np.array_equal(first, source)
    inside = roi & kept(shape[::-1], SIDE, how)
    for frame in others:
        assert np.array_equal(frame[~inside], source[~inside])
        # A constant change stays constant: the source's own detail is below it, to the last bit.
        assert np.array_equal(frame[inside], source[inside] + 20)
    assert facts["pixels_changed"] == [0, inside.sum(), inside.sum()]
    assert facts["pixels_clipped"] == [0, 0, 0]


@pytest.mark.parametrize("how", FITS)
def test_without_a_mask_all_that_was_kept_changes(how: str) -> None:
    source = greys(200, 300)
    result = brightened(source, -9, how=how)
    frame = NativeFrames(read_stored(source), result.frames, None, how).frame(1).values
    inside = kept((300, 200), SIDE, how)
    assert np.array_equal(frame, np.where(inside, source - 9, source))


def files(folder: Path) -> dict[str, tuple[Any, np.ndarray]]:
    """Sources by name, and their pixels as they are to come back."""
    grey, deep = greys(90, 120), greys(90, 120, np.uint16)
    colour = np.stack([greys(90, 120), 255 - greys(90, 120), greys(90, 120) // 2 + 60], axis=-1)
    Image.fromarray(grey).save(folder / "grey.png")
    Image.fromarray(grey).save(folder / "grey.jpg", quality=90)
    Image.fromarray(colour).save(folder / "colour.tiff")
    Image.fromarray(deep).save(folder / "deep.png")
    Image.fromarray(deep).save(folder / "deep.tiff")
    Image.fromarray(np.dstack([colour, np.full((90, 120), 128, np.uint8)])).save(folder / "alpha.png")
    Image.fromarray(colour).quantize(16).save(folder / "palette.png")
    palette = np.asarray(Image.open(folder / "palette.png").convert("RGB"))
    decoded = np.asarray(Image.open(folder / "grey.jpg"))
    found = {"grey.png": grey, "grey.jpg": decoded, "colour.tiff": colour, "deep.png": deep, "deep.tiff": deep}
    named = {name: (folder / name, pixels) for name, pixels in found.items()}
    return named | {
        "alpha": (folder / "alpha.png", colour),
        "palette": (folder / "palette.png", palette),
        "array of 16 bits": (deep, deep),
        "picture": (Image.fromarray(colour), colour),
    }


@pytest.mark.parametrize(
    "name",
    [
        "grey.png",
        "grey.jpg",
        "colour.tiff",
        "deep.png",
        "deep.tiff",
        "alpha",
        "palette",
        "array of 16 bits",
        "picture",
    ],
)
def test_formats_keep_their_depth(tmp_path: Path, name: str) -> None:
    image, source = files(tmp_path)[name]
    roi = box(90, 120)
    paths, facts = save(brightened(image, 12, roi=roi), tmp_path / "run")
    with Image.open(paths[1]) as opened:
        frame = np.asarray(opened)
        assert opened.text["Synthetic"] == "true"
    assert (frame.dtype, frame.shape) == (source.dtype, source.shape)
    assert facts["stored_type"] == str(source.dtype)
    assert np.array_equal(np.asarray(Image.open(paths[0])), source)
    assert np.array_equal(frame[~roi], source[~roi])
    # 16 bits: 12 levels of 255 are 12 * 257 values.
    step = 12 * (257 if source.dtype == np.uint16 else 1)
    assert np.array_equal(frame[roi], source[roi] + step)


def test_a_photograph_comes_back_upright(tmp_path: Path) -> None:
    source = greys(40, 60)
    image = Image.fromarray(source)
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "photo.png", exif=exif)
    paths, facts = save(brightened(tmp_path / "photo.png", 5), tmp_path / "run")
    assert np.array_equal(np.asarray(Image.open(paths[0])), np.rot90(source, -1))
    assert facts["size"] == [40, 60]


def test_a_change_that_rounds_to_nothing_changes_nothing() -> None:
    """A greyscale source takes the luma of a coloured change: 0.114 of blue."""
    source = greys(80, 80, np.uint16)
    stored, levels = read_stored(source), np.zeros((SIDE, SIDE, 3), int)
    for blue, changes in ((4, False), (5, True)):  # 0.456 and 0.57 levels
        levels[..., 2] = blue
        result = brightened(source, levels)
        frame = NativeFrames(stored, result.frames, None, "crop").frame(1)
        assert (frame.changed > 0) == changes
        step = np.round(blue * 0.114 * 257) if changes else 0
        assert np.abs(frame.values.astype(int) - source - step).max() <= changes


def test_a_soft_edge_stays_soft_and_in_its_place() -> None:
    """A ramp over the frame comes back as a ramp: bilinear, at the frame's pixel centres."""
    source = np.full((SIDE * 4, SIDE * 4), 40, np.uint8)
    ramp = np.broadcast_to(np.arange(SIDE)[None, :, None], (SIDE, SIDE, 3))
    frames = np.stack([np.full((SIDE, SIDE, 3), 40, np.uint8), (40 + ramp).astype(np.uint8)])
    frame = NativeFrames(read_stored(source), frames, None, "crop").frame(1).values
    centres = (np.arange(SIDE * 4) + 0.5) / 4 - 0.5  # in the frame's pixels
    expected = 40 + np.clip(centres, 0, SIDE - 1)
    expected = np.where(expected - 40 >= 0.5, expected, 40)
    assert np.abs(frame - expected).max() <= 0.5 + 1e-3


def test_what_reaches_black_or_white_stops_there_and_is_counted() -> None:
    source = np.array([[0, 100], [200, 250]], np.uint8).repeat(40, 0).repeat(40, 1)
    frames = np.zeros((3, SIDE, SIDE, 3), np.uint8)
    frames[1] += 20
    frames[2, :, :] = 0
    native = NativeFrames(read_stored(source), frames, None, "stretch")
    bright = native.frame(1)
    assert sorted(set(bright.values.ravel().tolist())) == [20, 120, 220, 255]
    assert (bright.changed, bright.clipped) == (6400, 1600)
    dark = NativeFrames(read_stored(source), frames[::-1][[1, 2]], None, "stretch").frame(1)  # 20 levels less
    assert sorted(set(dark.values.ravel().tolist())) == [0, 80, 180, 230]
    assert (dark.changed, dark.clipped) == (4800, 1600)
    assert native.frame(2).changed == 0


def test_values_beyond_the_window_come_to_its_edge_where_they_change() -> None:
    """Window 1000 +- 500 of 16 bits: 3000 is white. Darker by 51 levels it is 80 %: 1300. Brighter, it stays."""
    source = np.full((80, 80), 3000, np.uint16)
    stored = read_stored(source, reading=Reading(window_center=1000, window_width=1000))
    frames = np.full((3, SIDE, SIDE, 3), 200, np.uint8)
    frames[1] -= 51
    frames[2] += 51
    native = NativeFrames(stored, frames, None, "crop")
    assert (native.frame(1).values == 1300).all()
    assert (native.frame(2).values == 3000).all()
    assert native.frame(2).clipped == 6400


def test_padding_stays_and_nothing_becomes_padding() -> None:
    values = np.array([[0, 0], [30, 200]], np.int16).repeat(40, 0).repeat(40, 1)
    stored = Stored(values, Mapping(Range(0, 255)), {"format": "DICOM", "bits": 8}, (0, 255), padding=(0, 0))
    frames = np.full((2, SIDE, SIDE, 3), 100, np.uint8)
    frames[1] -= 50
    frame = NativeFrames(stored, frames, None, "stretch").frame(1).values
    assert (frame[values == 0] == 0).all()
    assert (frame[values == 30] == 1).all()  # black would be 0, which means padding
    assert (frame[values == 200] == 150).all()


def test_signed_values_are_shifted_and_the_shift_is_said(tmp_path: Path) -> None:
    values = np.array([[-1000, 0], [500, 1000]], np.int16).repeat(40, 0).repeat(40, 1)
    stored = Stored(values, Mapping(Range(-1000, 1000)), {"format": "DICOM", "bits": 16}, (-32768, 32767))
    from pie_engine.outputs.native import save_native

    frames = np.full((2, SIDE, SIDE, 3), 100, np.uint8)
    paths, facts = save_native(NativeFrames(stored, frames, None, "crop"), tmp_path / "native")
    with Image.open(paths[1]) as opened:
        assert opened.text["StoredOffset"] == "32768"
        assert np.array_equal(np.asarray(opened).astype(int) - 32768, values)
    assert facts["stored_offset"] == 32768


def test_the_mark_is_drawn_at_the_sources_size(tmp_path: Path) -> None:
    from pie_engine.outputs.mark import mark_box

    source = greys(400, 500, np.uint16)
    outputs = OutputConfig(report=False, native_size=True, mark=True)
    paths, _ = save(brightened(source, 0), tmp_path / "run", outputs)
    first, frame = (np.asarray(Image.open(path)).astype(int) for path in paths)
    left, top, right, bottom = mark_box(400, 500)
    marked = np.zeros(source.shape, bool)
    marked[top:bottom, left:right] = True
    assert np.array_equal(first, source)
    assert np.array_equal(frame[~marked], source[~marked])
    assert frame[marked].max() == 65535  # white letters
    assert np.median(frame[marked] / source[marked]) == pytest.approx(0.3, abs=0.02)  # on a plate of 30 %


@pytest.mark.parametrize(
    ("stored", "settings", "line"),
    [
        ({}, {"composite": False}, "composite=False lets all of a frame change"),
        ({}, {"semantics": "official"}, "semantics='official' lets all of a frame change"),
        ({"values": np.zeros((4, 4, 3), np.uint16), "facts": {"bits": 16}}, {}, "in colour with 16 bits a channel"),
        ({"values": np.zeros((4, 4), np.float32), "limits": None}, {}, "in floating point, which PNG does not hold"),
        ({"values": np.zeros((4, 4), np.uint32), "facts": {"bits": 32}}, {}, "has stored values of 32 bits"),
        ({"mapping": Mapping(Range(3, 3))}, {}, "mapping to grey has no inverse"),
        ({"mapping": Mapping(Range(0, 9), Rescale(0, 1))}, {}, "mapping to grey has no inverse"),
    ],
)
def test_what_cannot_be_written_back_is_refused(stored: dict, settings: dict, line: str) -> None:
    from pie_engine import RunConfig

    whole = {"values": np.zeros((4, 4), np.uint8), "mapping": Mapping(Range(0, 255)), "facts": {"bits": 8}} | stored
    whole["facts"] = {"format": "DICOM"} | whole["facts"]
    with pytest.raises(PieError, match=line) as caught:
        check_native(Stored(**{"limits": (0, 255)} | whole), RunConfig(**settings))
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, ConfigError if settings else InputError)


def test_a_source_that_is_not_the_same_any_more_is_refused(tmp_path: Path) -> None:
    Image.fromarray(greys(60, 60)).save(tmp_path / "a.png")
    result = brightened(tmp_path / "a.png", 5)
    Image.fromarray(greys(60, 60) + 1).save(tmp_path / "a.png")
    with pytest.raises(InputError, match=r"a\.png has changed since it was simulated \(another SHA-256\)"):
        result.save(tmp_path / "run", ONLY_NATIVE)
    (tmp_path / "a.png").unlink()
    with pytest.raises(InputError, match=r"a\.png does not exist"):
        result.save(tmp_path / "run", ONLY_NATIVE)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("order", ["RAS", "LPS", "ASL"])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_nifti_slice_comes_back_as_a_volume_in_its_place(tmp_path: Path, order: str, axis: int) -> None:
    nibabel = pytest.importorskip("nibabel")
    volume = np.random.default_rng(0).integers(300, 700, (30, 40, 50)).astype(np.int16)
    affine = np.diag([2.0, 1.5, 1.0, 1.0])
    affine[:3, 3] = (-11, 7, 30)
    image = nibabel.Nifti1Image(volume, affine)
    image.header.set_slope_inter(0.5, -3)
    image.header["descrip"] = b"DOE^JANE"
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"DOE^JANE"))
    turn = nibabel.orientations.ornt_transform(
        nibabel.orientations.axcodes2ornt("RAS"), nibabel.orientations.axcodes2ornt(order)
    )
    turned = image.as_reoriented(turn)
    turned.header.set_slope_inter(0.5, -3)
    turned.to_filename(tmp_path / "a.nii.gz")
    source = nibabel.load(tmp_path / "a.nii.gz")
    reading = Reading(slice=9, axis=axis, window_center=247, window_width=510)
    shape = np.asarray(read_image(tmp_path / "a.nii.gz", reading=reading)[0]).shape
    roi = box(*shape)
    paths, facts = save(brightened(tmp_path / "a.nii.gz", 10, roi=roi, reading=reading, how="pad"), tmp_path / "run")
    assert [path.name for path in paths] == ["000.nii.gz", "001.nii.gz"]
    first, frame = (nibabel.load(path) for path in paths)
    # Where a voxel of the slice lies in the patient, it lies in the volume, by their affines alone.
    stored, changed = source.dataobj.get_unscaled(), frame.dataobj.get_unscaled()
    to_source = np.linalg.inv(source.affine) @ frame.affine
    index = np.stack(np.meshgrid(*(np.arange(n) for n in frame.shape), indexing="ij"), axis=-1).reshape(-1, 3)
    own = np.round(index @ to_source[:3, :3].T + to_source[:3, 3]).astype(int)
    assert np.array_equal(first.dataobj.get_unscaled().ravel(), stored[tuple(own.T)])
    difference = changed.ravel().astype(int) - stored[tuple(own.T)]
    # 510 values of 0.5 each over 255 levels: 10 levels are 20 values, 40 as stored.
    assert sorted(set(difference.tolist())) == [0, 40]
    assert (difference == 40).sum() == roi.sum() == facts["pixels_changed"][1]
    assert (frame.get_data_dtype(), frame.dataobj.slope, frame.dataobj.inter) == (np.dtype("<i2"), 0.5, -3.0)
    assert int(frame.header["sform_code"]) == int(source.header["sform_code"])
    assert not frame.header.extensions
    assert b"SIMULATED" in bytes(frame.header["descrip"].tobytes())
    # Read as an image again, it is the same picture.
    again = Reading(axis=axis, window_center=247, window_width=510)
    before = np.asarray(read_image(tmp_path / "a.nii.gz", reading=reading)[0])
    assert np.array_equal(np.asarray(read_image(paths[0], reading=again)[0]), before)


def test_float_volumes_stay_float(tmp_path: Path) -> None:
    nibabel = pytest.importorskip("nibabel")
    volume = np.random.default_rng(0).uniform(0.3, 0.7, (40, 50, 1)).astype(np.float32)
    nibabel.Nifti1Image(volume, np.eye(4)).to_filename(tmp_path / "a.nii")
    reading = Reading(window_center=0.5, window_width=1.0)
    paths, _ = save(brightened(tmp_path / "a.nii", 51, reading=reading, how="stretch"), tmp_path / "run")
    back = np.asarray(nibabel.load(paths[1]).dataobj)
    assert back.dtype == np.float32
    assert np.allclose(back, volume + 0.2, atol=1e-5)
