"""Difference maps: grey levels, scale, colours and the sheet, by hand and by other means."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pie_engine import Result
from pie_engine.outputs.colours import DIVERGING, colourise
from pie_engine.outputs.differences import (
    Scale,
    difference_sheet,
    differences,
    luminance,
    save_differences,
    scale_of,
    spaced,
)

# Machado, Oliveira and Fernandes 2009, severity 1: what is left of linear RGB.
BLINDNESS = {
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def linear(rgb: np.ndarray) -> np.ndarray:
    share = np.asarray(rgb, np.float64) / 255
    return np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)


def lab(light: np.ndarray) -> np.ndarray:
    """CIELAB (D65) of linear sRGB."""
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    t = np.clip(light, 0, 1) @ to_xyz.T / np.array([0.9505, 1.0, 1.089])
    f = np.where(t > (6 / 29) ** 3, np.cbrt(t), t / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], axis=-1)


def test_grey_levels_are_pillows() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 50, 40, 3), dtype=np.uint8)
    expected = np.stack([np.asarray(Image.fromarray(frame).convert("L")) for frame in pixels])
    assert np.array_equal(luminance(pixels), expected)


def test_differences_and_their_scale_by_hand() -> None:
    grey = np.array([[[10, 10]], [[13, 10]], [[250, 0]]], np.int16)
    assert differences(grey, "input").tolist() == [[[3, 0]], [[240, -10]]]
    assert differences(grey, "previous").tolist() == [[[3, 0]], [[237, -10]]]
    assert scale_of(differences(grey, "input")) == Scale(255, -10, 240, 0.0)
    assert scale_of(np.zeros((2, 3, 3), np.int16)) == Scale(5, 0, 0, 0.0)
    # One speck of 200 beside 999 changes of 12: the bar ends at 15, and one in a thousand lies beyond.
    maps = np.full((1, 10, 100), 12, np.int16)
    maps[0, 0, 0] = -200
    assert scale_of(maps) == Scale(15, -200, 12, 0.001)
    maps[0, 1, :9] = 100
    assert scale_of(maps).limit == 100  # ten in a thousand are more than the bar may leave out


def test_colours_are_even_symmetric_and_safe() -> None:
    """Lightness falls in equal steps to either side, and the sides are told apart without any one kind of cone."""
    table = np.array(DIVERGING)
    middle = len(table) // 2
    assert len(table) % 2 == 1
    assert len(set(table[middle].tolist())) == 1  # grey
    lightness = lab(linear(table))[:, 0]
    down, up = lightness[middle::-1], lightness[middle:]
    assert np.abs(down - up).max() < 1
    steps = -np.diff(up)
    assert steps.min() > 0.9 * steps.mean()
    assert steps.max() < 1.1 * steps.mean()
    assert up[0] - up[-1] > 50
    for matrix in BLINDNESS.values():
        seen = lab(linear(table) @ np.array(matrix).T)
        apart = np.linalg.norm(seen[: middle // 2 + 1] - seen[::-1][: middle // 2 + 1], axis=1)
        assert apart.min() > 25  # a difference of 2 is just visible


def test_colourise() -> None:
    colours = colourise(np.array([-1, 0, 1, -7, 7, 0.5 / (len(DIVERGING) // 2)]))
    middle = len(DIVERGING) // 2
    assert colours[:5].tolist() == [list(DIVERGING[i]) for i in (0, middle, -1, 0, -1)]
    between = (np.array(DIVERGING[middle]) + np.array(DIVERGING[middle + 1])) / 2
    assert np.abs(colours[5] - between).max() <= 0.5


def test_shown_rounds_are_at_even_distances() -> None:
    assert spaced(5, 60) == [0, 1, 2, 3, 4]
    many = spaced(1000, 60)
    assert (len(set(many)), many[0], many[-1]) == (60, 0, 999)
    assert set(np.diff(many)) <= {16, 17}


@pytest.mark.parametrize("size", [(64, 48), (300, 200)])
def test_sheet_shows_every_round_against_both(size: tuple[int, int]) -> None:
    """Round n is 10 n brighter than the input, and 10 brighter than the frame before."""
    frames = np.stack([np.full((*size, 3), 100 + 10 * n, np.uint8) for n in range(4)])
    mask = np.zeros(size, bool)
    mask[10:20, 10:20] = True
    sheet = np.asarray(difference_sheet(frames, mask))
    zoom = max(1, round(192 / size[1]))
    pixels = size[0] * size[1] * zoom**2 - 40 * zoom**2  # but for the outline, which lies outside of the region
    # Against the input 10, 20, 30 of 30; against the frame before 10 of 10, three times.
    for share, count in ((1 / 3, 1), (2 / 3, 1), (1.0, 4)):
        found = (sheet == colourise(np.array(share))).all(axis=2).sum()
        assert count * pixels <= found < count * pixels + 200  # and a little of the colour bars


def test_file_is_marked(result: Result, tmp_path: Path) -> None:
    save_differences(result.frames, result.mask, tmp_path / "differences.png")
    with Image.open(tmp_path / "differences.png") as image:
        assert image.text["Synthetic"] == "true"
        assert "grey levels" in image.text["Content"]
