"""Images and masks on the command line: what is refused with which words, and what has to work."""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pie_engine.imaging import limits


def cut(name: str, image: Image.Image) -> bytes:
    data = io.BytesIO()
    image.convert("RGB").save(data, Path(name).suffix[1:].replace("jpg", "jpeg"))
    return data.getvalue()[: len(data.getvalue()) // 2]


UNREADABLE: dict[str, tuple[Callable[[Path, Image.Image], Any], str]] = {
    "missing.png": (lambda path, image: None, "does not exist"),
    "folder.png": (lambda path, image: path.mkdir(), "is a folder"),
    "pipe.png": (lambda path, image: os.mkfifo(path), "is a pipe; pass the path of a PNG"),
    "program.png": (lambda path, image: path.write_text("%!PS-Adobe-3.0\n{} loop\n"), "not an image in a known format"),
    "empty.png": (lambda path, image: path.write_bytes(b""), "not an image in a known format"),
    "text.png": (lambda path, image: path.write_text("hello"), "not an image in a known format"),
    "cut.png": (lambda path, image: path.write_bytes(cut(path.name, image)), "cannot be decoded (image file is trunc"),
    "cut.jpg": (lambda path, image: path.write_bytes(cut(path.name, image)), "cannot be decoded (image file is trunc"),
    "float.tiff": (lambda path, image: image.convert("F").save(path), "not 8- or 16-bit; convert it"),
    "long.png": (lambda path, image: image.resize((9_000_000, 1)).save(path), "at least 8 on each side needed"),
    "line\nbreak.png": (lambda path, image: None, "line\\nbreak.png does not exist"),
}


@pytest.mark.parametrize("name", UNREADABLE)
@pytest.mark.parametrize("kind", ["image", "mask"])
def test_unreadable(refuse: Any, tmp_path: Path, greys: np.ndarray, kind: str, name: str) -> None:
    make, reason = UNREADABLE[name]
    make(tmp_path / name, Image.fromarray(greys))
    line = refuse(f"--{kind}", tmp_path / name)
    if (kind, name) != ("mask", "long.png"):  # as a mask it has the wrong aspect ratio first
        assert f"{kind} " in line
        assert reason in line


@pytest.mark.parametrize("kind", ["image", "mask"])
def test_no_path_and_no_permission(refuse: Any, image: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    assert f"{kind} '' is not a path" in refuse(f"--{kind}", "")
    real = Image.open

    def denied(path: Path, *rest: Any, **named: Any) -> Image.Image:
        if Path(path).name == "mask.png" or kind == "image":
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(path, *rest, **named)

    monkeypatch.setattr(Image, "open", denied)  # tests may run as root, who may read everything
    assert f"{kind} " in (line := refuse("--mask", image.with_name("mask.png")))
    assert "permission denied); make it readable" in line


def test_decompression_bomb(refuse: Any, image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert "pixels; crop or shrink it" in refuse("--image", image)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)  # another library may have lifted Pillow's limit
    monkeypatch.setattr(limits, "MAX_PIXELS", 1000)
    assert "has 300 x 260, more than 1000 pixels; crop or shrink it" in refuse("--image", image)


FORMS: dict[str, tuple[str, Callable[[Image.Image], Image.Image]]] = {
    "cmyk": ("jpg", lambda image: image.convert("CMYK")),
    "palette": ("png", lambda image: image.convert("P")),
    "grey-alpha": ("png", lambda image: image.convert("LA")),
    "colour-alpha": ("png", lambda image: image.convert("RGBA")),
    "1-bit": ("png", lambda image: image.convert("1")),
    "16-bit": ("png", lambda image: Image.fromarray(np.asarray(image).astype(np.uint16) * 257)),
    "bitmap": ("bmp", lambda image: image),
    "webp": ("webp", lambda image: image.convert("RGB")),
    "gif": ("gif", lambda image: image),
}


@pytest.mark.parametrize("form", list(FORMS))
def test_other_forms_work(simulate: Any, tmp_path: Path, greys: np.ndarray, form: str) -> None:
    suffix, convert = FORMS[form]
    path = tmp_path / f"image.{suffix}"
    convert(Image.fromarray(greys)).save(path)
    outcome = simulate("--image", path)
    assert (outcome.code, outcome.err) == (0, "")
    first = np.asarray(Image.open(tmp_path / "result" / "frames" / "000.png")).astype(int)
    expected = np.asarray(Image.open(path).convert("RGB") if form != "16-bit" else Image.fromarray(greys)).mean()
    assert abs(first.mean() - expected) < 6  # the centre square has about the whole image's brightness


def test_an_animation_needs_a_frame(refuse: Any, simulate: Any, tmp_path: Path, greys: np.ndarray) -> None:
    white = Image.new("L", (300, 260), 255)
    white.save(tmp_path / "moving.gif", save_all=True, append_images=[Image.fromarray(greys), white])
    line = "has 3 frames; pass --frame 1 to 3, or save one frame alone"
    assert line in refuse("--image", tmp_path / "moving.gif")
    assert simulate("--image", tmp_path / "moving.gif", "--frame", "2").code == 0
    assert np.asarray(Image.open(tmp_path / "result" / "frames" / "000.png")).mean() < 200


def test_images_that_show_nothing(refuse: Any, simulate: Any, tmp_path: Path, greys: np.ndarray) -> None:
    Image.new("L", (300, 260), 7).save(tmp_path / "grey.png")
    assert "grey.png is one grey (7 of 255) all over; pass the image itself" in refuse("--image", tmp_path / "grey.png")
    Image.fromarray(greys.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    line = refuse("--image", tmp_path / "deep.png", "--window-center", "1e6", "--window-width", "9")
    assert "as it is windowed; pass --window-center and --window-width that show something" in line
    assert "prompt ' ' is blank" in refuse("--prompt", " ")
    Image.fromarray(greys[:30, :30]).save(tmp_path / "small.png")
    outcome = simulate("--image", tmp_path / "small.png", "--prompt", "")
    assert outcome.code == 0
    empty, small = outcome.err.splitlines()  # each once, though the image is read twice
    assert "pie-engine: prompt is empty: the progression moves towards no finding" in empty
    assert "has 30 x 30 pixels and is enlarged 1.07 times to resolution 32" in small


def test_12_bits_stored_as_16_are_said_once(simulate: Any, tmp_path: Path, greys: np.ndarray) -> None:
    Image.fromarray(greys.astype(np.uint16) * 16).save(tmp_path / "dim.png")
    outcome = simulate("--image", tmp_path / "dim.png")
    assert outcome.code == 0
    assert "of 0..65535 and is almost black; scale it to the full range" in outcome.err
    assert len(outcome.err.splitlines()) == 1


def test_masks_that_do_not_fit(refuse: Any, tmp_path: Path) -> None:
    for name, size, grey in (("tall", (100, 400), 255), ("black", (300, 260), 0), ("ones", (300, 260), 1)):
        Image.new("L", size, grey).save(tmp_path / f"{name}.png")
    assert "100 x 400 does not have the aspect ratio of the image, 300 x 260" in refuse("--mask", tmp_path / "tall.png")
    black = tmp_path / "black.png"
    assert f"mask {black} is black (brightest grey 0, at least 128 needed); paint" in refuse("--mask", black)
    # A mask of zeros and ones looks black to a person too; the line says why.
    assert "brightest grey 1, at least 128 needed" in refuse("--mask", tmp_path / "ones.png")
    assert "above 0 needed" in refuse("--mask", tmp_path / "black.png", "--semantics", "official")


@pytest.mark.parametrize("form", ["palette", "grey-alpha", "1-bit", "16-bit"])
def test_masks_of_other_forms(simulate: Any, tmp_path: Path, form: str) -> None:
    white = np.zeros((26, 30), np.uint8)
    white[:, :15] = 255
    suffix, convert = FORMS[form]
    convert(Image.fromarray(white)).save(tmp_path / f"mask.{suffix}")
    outcome = simulate("--mask", tmp_path / f"mask.{suffix}", "--feather", "0")
    assert outcome.code == 0
    # 36 x 32 of 300 x 260, of which two columns go: 17 of the mask's 150.
    assert "--fit crop cuts off 11 % of the mask (4420 of 39000 pixels)" in outcome.err
    assert len(outcome.err.splitlines()) == 1
    before, after = (np.asarray(Image.open(tmp_path / "result" / "frames" / f"00{i}.png")) for i in (0, 1))
    assert (before[:, 16:] == after[:, 16:]).all()
    assert (before[:, :16] != after[:, :16]).any()
