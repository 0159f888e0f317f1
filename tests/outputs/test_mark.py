"""The visible mark: legible, where it should be, and nowhere else."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pie_engine import OutputConfig, Result
from pie_engine.outputs.animation import LINE
from pie_engine.outputs.mark import draw_mark, mark_box, mark_frames

SIZES = [(64, 64), (64, 200), (128, 128), (512, 512), (1024, 800)]


def light(grey: float) -> float:
    """Relative luminance of WCAG 2 for a grey of 0..1."""
    return grey / 12.92 if grey <= 0.04045 else ((grey + 0.055) / 1.055) ** 2.4


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("dtype", "white"), [(np.uint8, 255), (np.uint16, 4095)])
def test_legible_on_light_and_dark(size: tuple[int, int], dtype: type, white: int) -> None:
    height, width = size
    for background in (0, white // 2, white):
        pixels = np.full(size, background, dtype)
        draw_mark(pixels, white)
        left, top, right, bottom = mark_box(height, width)
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
        box = pixels[top:bottom, left:right] / white
        letters, plate = box.max(), np.median(box)
        assert (light(letters) + 0.05) / (light(plate) + 0.05) > 7  # WCAG 2, level AAA
        assert 0.1 < (box > 0.7).mean() < 0.5
        assert bottom - top >= 10  # letters of at least 6 pixels
        assert (right - left) * (bottom - top) < 0.3 * height * width
        pixels[top:bottom, left:right] = background
        assert (pixels == background).all()


def test_a_picture_smaller_than_the_mark_is_covered() -> None:
    pixels = np.full((8, 16, 3), 255, np.uint8)
    draw_mark(pixels)
    assert mark_box(8, 16) == (0, 0, 16, 8)
    assert pixels.min() < 100


def test_the_input_is_not_marked() -> None:
    frames = np.full((3, 64, 64, 3), 200, np.uint8)
    marked = mark_frames(frames)
    assert (frames == 200).all()
    assert (marked[0] == 200).all()
    assert (marked[1] != 200).any()
    assert np.array_equal(marked[1], marked[2])


def test_every_picture_carries_it_and_provenance_says_so(result: Result, tmp_path: Path) -> None:
    paths = result.save(tmp_path / "marked", OutputConfig(mark=True))
    plain = result.save(tmp_path / "plain")
    provenance = json.loads(Path(paths["provenance"]).read_text())
    left, top, right, bottom = provenance["visible_mark"]["box"]
    assert provenance["outputs"]["mark"] is True
    assert "visible_mark" not in json.loads(Path(plain["provenance"]).read_text())
    box = np.zeros(result.frames.shape[1:3], bool)
    box[top:bottom, left:right] = True
    frames = np.stack([np.asarray(Image.open(path)) for path in paths["frames"]])
    assert np.array_equal(frames[0], result.frames[0])
    assert np.array_equal(frames[:, ~box], result.frames[:, ~box])
    expected = mark_frames(result.frames)
    assert np.array_equal(frames, expected)
    with Image.open(paths["gif"]) as gif:
        for index in range(3):
            gif.seek(index)
            grey = np.asarray(gif.convert("L"), np.int16)[LINE:-LINE:2, ::2]  # as it was before it was enlarged
            assert np.abs(grey - np.asarray(Image.fromarray(expected[index]).convert("L"), np.int16)).mean() < 3
    sheets = [np.asarray(Image.open(which["sheet"])) for which in (paths, plain)]
    assert (sheets[0] != sheets[1]).any()
    maps = [Path(which["differences"]).read_bytes() for which in (paths, plain)]
    assert maps[0] == maps[1]  # of the simulation, not of the mark
