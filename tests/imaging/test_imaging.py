"""Reading, fitting and masks, against the rules written out."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from golden import GOLDEN
from PIL import Image

from pie_engine.errors import InputError
from pie_engine.imaging import (
    binary_mask,
    feather,
    fit,
    latent_mask,
    official_latent_mask,
    open_image,
    prepare_mask,
    read_image,
    to_image,
)


@pytest.mark.parametrize("size", [(300, 260), (260, 300), (128, 128), (129, 128), (64, 200)])
def test_fit_crops_the_centre_square(size: tuple[int, int]) -> None:
    fitted = fit(Image.new("L", size, 77), 128)
    assert (fitted.size, fitted.mode) == ((128, 128), "RGB")
    assert (np.asarray(fitted) == 77).all()


def test_fit_keeps_what_lies_in_the_middle() -> None:
    wide = np.zeros((128, 384), np.uint8)
    wide[:, 128:256] = 200
    assert (np.asarray(fit(to_image(wide), 128)) == 200).all()


def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path) -> None:
    values = np.array([[0, 257, 32896, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    for image in (open_image(tmp_path / "deep.png"), to_image(values)):
        assert np.asarray(image).tolist() == [[0, 1, 128, 255]]


def test_16_bit_colour_is_read_with_8_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Pillow writes no such file: one red pixel of 0x1234, by the PNG specification."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0)
    pixels = zlib.compress(b"\0" + struct.pack(">HHH", 0x1234, 0, 0xFFFF))
    path = tmp_path / "deep.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b""))
    image, facts = read_image(path)
    assert np.asarray(image).tolist() == [[[0x12, 0, 0xFF]]]
    assert (facts["bits"], facts["mapping"]["function"]) == (16, "upper 8 of 16 bits")
    assert "has 16 bits a channel; the upper 8 of each are used" in caplog.text


def test_exif_turns_16_bits_too(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 65535]], np.uint16))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "deep.png", exif=exif)
    assert np.asarray(open_image(tmp_path / "deep.png")).tolist() == [[0], [255]]


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    image = Image.new("RGB", (20, 10))
    exif = image.getexif()
    exif[0x0112] = 6  # rotate by 90 degrees
    image.save(tmp_path / "photo.jpg", exif=exif)
    assert open_image(tmp_path / "photo.jpg").size == (10, 20)


@pytest.mark.parametrize("scale", [2, 4, 8])
def test_official_mask_averages_the_four_centre_pixels(scale: int) -> None:
    values = np.random.default_rng(0).integers(0, 256, (4 * scale, 6 * scale, 3), np.uint8)
    reduced = official_latent_mask(to_image(values), scale)
    assert reduced.shape == (4, 4, 6)
    lower, upper = scale // 2 - 1, scale // 2
    for channel, source in enumerate((0, 1, 2, 0)):
        for i in range(4):
            for j in range(6):
                block = values[i * scale : (i + 1) * scale, j * scale : (j + 1) * scale, source].astype(int)
                total = block[lower, lower] + block[lower, upper] + block[upper, lower] + block[upper, upper]
                assert reduced[channel, i, j] == np.float32(((total + 2) >> 2) / 255)


def test_latent_mask_is_the_area_average() -> None:
    pixels = np.zeros((16, 16), bool)
    pixels[:8, :4] = True
    pixels[8:, 8:] = True
    assert latent_mask(pixels).tolist() == [[[0.5, 0.0], [0.0, 1.0]]]


def test_feather_ramps_inward_only() -> None:
    pixels = np.zeros((40, 40), bool)
    pixels[:, 10:] = True  # touches three borders of the image, which are not edges of the region
    weight = feather(pixels, 8)
    assert (weight[~pixels] == 0).all()
    assert np.allclose(weight[0], weight[20])
    assert np.allclose(weight[20, 10:18], np.arange(1, 9) / 9)
    assert (weight[:, 18:] == 1).all()


def test_a_mask_over_everything_has_no_edge() -> None:
    assert (feather(np.ones((16, 16), bool)) == 1).all()


def test_mask_follows_the_image_through_the_crop() -> None:
    drawn = np.zeros((260, 300), np.uint8)
    drawn[:, 150:] = 255
    mask = prepare_mask(to_image(drawn), (300, 260), 128, official=False)
    assert mask.pixels.shape == (128, 128)
    assert mask.pixels[:, 65:].all()
    assert not mask.pixels[:, :63].any()
    assert mask.latent.shape == (1, 16, 16)


def test_a_mask_drawn_on_a_rescaled_copy_is_not_shifted() -> None:
    """Half a per cent of rounding in the aspect ratio must not move the region by a pixel."""
    drawn = np.zeros((240, 320), np.uint8)
    drawn[80:160, 60:120] = 255
    exact = prepare_mask(to_image(drawn), (320, 240), 128, official=False).pixels
    copy = to_image(drawn).resize((107 * 4, 81 * 4), Image.Resampling.NEAREST)
    rescaled = prepare_mask(copy, (320, 240), 128, official=False).pixels
    rows, columns = (np.flatnonzero(exact.any(axis=axis)) for axis in (1, 0))
    other_rows, other_columns = (np.flatnonzero(rescaled.any(axis=axis)) for axis in (1, 0))
    for ours, theirs in ((rows, other_rows), (columns, other_columns)):
        assert abs(ours[0] - theirs[0]) <= 1
        assert abs(ours[-1] - theirs[-1]) <= 1


def test_masks_of_another_shape_or_without_white_are_refused() -> None:
    white = Image.new("L", (200, 100), 255)
    with pytest.raises(InputError, match=r"mask of 200 x 100 does not have the aspect ratio of the image, 100 x 100"):
        prepare_mask(white, (100, 100), 64, official=False)
    grey = Image.new("L", (100, 100), 100)
    with pytest.raises(InputError, match="mask is black at 64 x 64"):
        prepare_mask(grey, (100, 100), 64, official=False)
    # The published code's masks are soft, so there grey counts; black never does.
    assert prepare_mask(grey, (100, 100), 64, official=True).latent.max() == pytest.approx(100 / 255)
    with pytest.raises(InputError, match="mask is black"):
        prepare_mask(Image.new("L", (100, 100)), (100, 100), 64, official=True)


def test_the_golden_mask_is_binary_after_fitting() -> None:
    pixels = binary_mask(fit(open_image(GOLDEN / "mask.png"), 128))
    assert pixels.dtype == bool
    assert 0.3 < pixels.mean() < 0.5
