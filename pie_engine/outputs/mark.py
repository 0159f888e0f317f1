"""The visible mark: "SIMULATED" drawn into pixels, for pictures that may travel without their metadata."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

TEXT = "SIMULATED"
# White on a plate that darkens what is below to 30 %: at least 8:1 on white, and the anatomy below stays visible.
_PLATE = 0.3
_SHARE = 0.33  # of the picture's width, where the letters are large enough then
_LEAST_SIZE, _LARGEST_SIZE = 9, 96


def mark_frames(frames: np.ndarray) -> np.ndarray:
    """A copy of [N + 1, H, W, 3] uint8 with the mark in every frame but the first, which is the input."""
    marked = frames.copy()
    for frame in marked[1:]:
        draw_mark(frame)
    return marked


def draw_mark(pixels: np.ndarray, white: int | None = None) -> None:
    """Draw the mark into the lower left corner of one picture, in place.

    Args:
        pixels: [H, W] or [H, W, C] of an integer type.
        white: the value that is shown as white; None takes the type's largest.
    """
    letters, (left, top, right, bottom) = _layout(*pixels.shape[:2])
    white = int(np.iinfo(pixels.dtype).max) if white is None else white
    if pixels.ndim == 3:
        letters = letters[..., None]
    below = pixels[top:bottom, left:right]
    mixed = letters * float(white) + (1 - letters) * _PLATE * below.astype(np.float64)
    pixels[top:bottom, left:right] = np.round(mixed).astype(pixels.dtype)


def mark_box(height: int, width: int) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of the mark's plate in a picture of this size, in pixels."""
    return _layout(height, width)[1]


def describe_mark(height: int, width: int) -> dict[str, Any]:
    """What provenance says of the mark."""
    return {
        "text": TEXT,
        "box": list(mark_box(height, width)),
        "note": "drawn into every simulated frame as written; in its box pixels differ from the input's also outside "
        "the region of interest, and measures of change are taken without it",
    }


def _layout(height: int, width: int) -> tuple[np.ndarray, tuple[int, int, int, int]]:
    """The letters' coverage in [0, 1], [h, w], and the box in which they lie, cut to the picture."""
    unit = ImageFont.load_default(100).getlength(TEXT) / 100
    size = int(min(max(_SHARE * width / unit, _LEAST_SIZE), _LARGEST_SIZE))
    font = ImageFont.load_default(size)
    x0, y0, x1, y1 = (round(edge) for edge in font.getbbox(TEXT))
    pad = max(2, size // 4)
    plate = Image.new("L", (x1 - x0 + 2 * pad, y1 - y0 + 2 * pad))
    ImageDraw.Draw(plate).text((pad - x0, pad - y0), TEXT, 255, font)
    # Strokes thinner than a pixel would be faint.
    letters = np.clip(np.asarray(plate, np.float64) / 255 * 1.5, 0, 1)
    gap = min(size // 2, max(0, (width - plate.width) // 2))
    left, bottom = gap, height - min(gap, max(0, height - plate.height))
    top, right = max(0, bottom - plate.height), min(width, left + plate.width)
    return letters[: bottom - top, : right - left], (left, top, right, bottom)
