"""Crop, pad and stretch, the same for image and mask; parts and windows of ordinary image files."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pie_engine.config import RunConfig
from pie_engine.errors import ConfigError, InputError
from pie_engine.imaging import Reading, find_content_box, fit, prepare_mask, read_image
from pie_engine.imaging.compositing import composite


@pytest.mark.parametrize("size", [(300, 200), (200, 300), (64, 64), (1000, 3)])
def test_pad_keeps_all_of_it_in_the_middle(size: tuple[int, int]) -> None:
    fitted = np.asarray(fit(Image.new("L", size, 200), 64, "pad"))
    left, top, right, bottom = find_content_box(size, 64)
    assert max(right - left, bottom - top) == 64
    assert (fitted[top:bottom, left:right] == 200).all()
    assert (fitted == 200).sum() == 3 * (right - left) * (bottom - top)  # black elsewhere
    mask = prepare_mask(Image.new("L", size, 255), size, 64, official=False, how="pad")
    assert mask.pixels.sum() == (right - left) * (bottom - top)
    assert (mask.weight[~mask.pixels] == 0).all()


def test_stretch_uses_all_of_both() -> None:
    half = np.zeros((50, 200), np.uint8)
    half[:, 100:] = 255
    mask = prepare_mask(Image.fromarray(half), (200, 50), 64, official=False, how="stretch")
    assert not mask.pixels[:, :32].any()
    assert mask.pixels[:, 32:].all()


def test_padding_never_changes_without_a_mask() -> None:
    decoded = np.full((2, 8, 8, 3), 9, np.uint8)
    frames = composite(decoded, np.zeros((8, 8, 3), np.uint8), None, (0, 2, 8, 6))
    assert (frames[:, 2:6] == 9).all()
    assert not frames[:, :2].any()
    assert not frames[:, 6:].any()


def test_many_frames_are_composited_one_by_one() -> None:
    """In floating point all at once need eight times the memory of the frames themselves."""
    rng = np.random.default_rng(0)
    decoded = rng.integers(0, 256, (64, 64, 64, 3)).astype(np.uint8)
    half = np.zeros((64, 64), np.uint8)
    half[:, 20:] = 255
    mask = prepare_mask(Image.fromarray(half), (64, 64), 64, official=False)
    tracemalloc.start()
    frames = composite(decoded, decoded[0], mask)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.5 * decoded.nbytes
    share = mask.weight[5, 21]
    assert 0 < share < 1
    pairs = zip(decoded[3, 5, 21].tolist(), decoded[0, 5, 21].tolist(), strict=True)
    assert frames[3, 5, 21].tolist() == [round(share * new + (1 - share) * old) for new, old in pairs]
    assert np.array_equal(frames[:, :, :20], np.broadcast_to(decoded[0, :, :20], (64, 64, 20, 3)))


def test_official_semantics_crop() -> None:
    with pytest.raises(ConfigError, match="fit 'pad' is not what the published code computes"):
        RunConfig(semantics="official", fit="pad")
    with pytest.raises(ConfigError, match="fit 'tile' is unknown"):
        RunConfig(fit="tile")


def test_pages_of_a_tiff(tmp_path: Path) -> None:
    pages = [Image.new("L", (4, 4), n) for n in (10, 20, 30)]
    pages[0].save(tmp_path / "a.tiff", save_all=True, append_images=pages[1:])
    with pytest.raises(InputError, match="has 3 pages; pass frame=1 to 3"):
        read_image(tmp_path / "a.tiff")
    image, facts = read_image(tmp_path / "a.tiff", reading=Reading(frame=2))
    assert np.asarray(image).max() == 20
    assert (facts["frame"], facts["frames"]) == (2, 3)
    with pytest.raises(InputError, match="none of them 4"):
        read_image(tmp_path / "a.tiff", reading=Reading(frame=4))


def test_windows_of_16_bits_only(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 1000, 2000, 4000]], np.uint16)).save(tmp_path / "deep.png")
    image, facts = read_image(tmp_path / "deep.png", reading=Reading(window_center=1000, window_width=2000))
    assert np.asarray(image).tolist() == [[0, 128, 255, 255]]
    assert facts["bits"] == 16
    Image.new("L", (4, 4)).save(tmp_path / "flat.png")
    with pytest.raises(InputError, match="is not a 16-bit greyscale image"):
        read_image(tmp_path / "flat.png", reading=Reading(window_center=1000, window_width=2000))
    with pytest.raises(InputError, match="to which slice does not apply"):
        read_image(tmp_path / "flat.png", reading=Reading(slice=1))


@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        ({"frame": 0}, "frame 0 is not a whole number of at least 1"),
        ({"axis": 3}, "axis 3 is not 0, 1 or 2"),
        ({"window_center": 1.0}, "window_center is given without window_width"),
        ({"window_center": 1.0, "window_width": 0.0}, "window_width 0 is not greater than 0"),
        ({"window_center": float("nan"), "window_width": 1.0}, "window_center nan is not a finite number"),
    ],
)
def test_readings_are_checked_when_they_are_made(wrong: dict, line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        Reading(**wrong)
