"""Signed difference maps: what each round changed, against the input and against the frame before it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import binary_dilation

from pie_engine.outputs.colours import AMBER, BACKGROUND, TEXT, colourise
from pie_engine.outputs.frames import HEADING, png_metadata

COMPARED_WITH = {"input": "the input", "previous": "the frame before it"}
# A progression of thousands of rounds is shown by frames at even distances.
MOST_SHOWN = 60

# What the colour bar may end at. The first that holds this share of all changed pixels is taken, so that one bright
# speck does not make everything else pale; what lies beyond is stated.
_LIMITS = (5, 10, 15, 20, 30, 40, 50, 60, 80, 100, 120, 150, 200, 255)
_WITHIN = 0.995
_GAP, _LINE, _BAR_WIDTH = 8, 22, 320
_EDGE = (70, 70, 76)


@dataclass(frozen=True)
class Scale:
    """How differences are shown.

    Attributes:
        limit: grey levels at either end of the colour bar.
        low, high: the most negative and the most positive difference there is.
        beyond: share of the changed pixels that lie beyond the bar, and have the colour of its end.
    """

    limit: int
    low: int
    high: int
    beyond: float


def luminance(frames: np.ndarray) -> np.ndarray:
    """Grey levels of [..., 3] uint8 (ITU-R BT.601, rounded, as Pillow's mode L): [...] int16 in 0..255."""
    red, green, blue = (frames[..., channel].astype(np.uint32) for channel in range(3))
    return ((red * 19595 + green * 38470 + blue * 7471 + 32768) >> 16).astype(np.int16)


def differences(grey: np.ndarray, against: str) -> np.ndarray:
    """Frame minus what it is compared with, for every round: [N + 1, H, W] int16 -> [N, H, W] int16 in -255..255.

    Args:
        against: "input" (frame 0) or "previous".
    """
    return grey[1:] - (grey[:1] if against == "input" else grey[:-1])


def scale_of(maps: np.ndarray) -> Scale:
    """One scale for all maps of a kind, so that rounds can be compared."""
    sizes = np.bincount(np.abs(maps).ravel(), minlength=256)[1:256]  # of the changed pixels, by grey levels 1..255
    changed = int(sizes.sum())
    within = np.cumsum(sizes)
    limit = next(limit for limit in _LIMITS if within[limit - 1] >= _WITHIN * changed)
    beyond = (changed - int(within[limit - 1])) / changed if changed else 0.0
    return Scale(limit, int(min(maps.min(), 0)), int(max(maps.max(), 0)), beyond)


def spaced(count: int, most: int = MOST_SHOWN) -> list[int]:
    """At most `most` of 0 .. count - 1 at even distances, the first and the last among them."""
    if count <= most:
        return list(range(count))
    return [round(index * (count - 1) / (most - 1)) for index in range(most)]


def save_differences(frames: np.ndarray, mask: np.ndarray | None, path: Path) -> None:
    """Write `difference_sheet` as PNG."""
    about = "frame minus reference, in grey levels (ITU-R BT.601)"
    difference_sheet(frames, mask).save(path, pnginfo=png_metadata(simulated=True, Content=about))


def difference_sheet(frames: np.ndarray, mask: np.ndarray | None = None, *, columns: int = 6) -> Image.Image:
    """Maps of all rounds against the input, then against the frame before, each under its heading and colour bar.

    Args:
        frames: [N + 1, H, W, 3] uint8, frame 0 the input.
        mask: [H, W] bool; outlined just outside of the region, so that no value in it is covered.
    """
    grey = luminance(frames)
    shown = spaced(len(frames) - 1)
    zoom = max(1, round(192 / grey.shape[2]))  # small models: still legible
    cell_width, cell_height = grey.shape[2] * zoom + _GAP, grey.shape[1] * zoom + _LINE + _GAP
    columns = min(columns, len(shown))
    rows = math.ceil(len(shown) / columns)
    block = 2 * _LINE + rows * cell_height + 2 * _GAP
    font = ImageFont.load_default(14)
    parts = []
    for against, name in COMPARED_WITH.items():
        maps = differences(grey, against)
        scale = scale_of(maps)
        parts.append((f"Each round minus {name}, in grey levels", maps, scale, _describe(scale)))
    width = max(columns * cell_width + _GAP, *(_BAR_WIDTH + 4 * _GAP + round(font.getlength(p[3])) for p in parts))
    sheet = Image.new("RGB", (width, _LINE + 2 * _GAP + len(parts) * block), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    draw.text((_GAP, _GAP), f"{HEADING}   difference maps", AMBER, font)
    edge = _outside_edge(mask)
    for index, (heading, maps, scale, note) in enumerate(parts):
        top = _LINE + 2 * _GAP + index * block
        draw.text((_GAP, top), heading, TEXT, font)
        _draw_bar(sheet, (_GAP, top + _LINE), scale.limit)
        draw.text((_BAR_WIDTH + 3 * _GAP, top + _LINE), note, TEXT, font)
        for place, number in enumerate(shown):
            row, column = divmod(place, columns)
            x, y = _GAP + column * cell_width, top + 2 * _LINE + _GAP + row * cell_height
            colours = colourise(maps[number] / scale.limit)
            if edge is not None:
                colours[edge] = _EDGE
            sheet.paste(Image.fromarray(colours.repeat(zoom, axis=0).repeat(zoom, axis=1)), (x, y))
            draw.text((x + 2, y + grey.shape[1] * zoom + 3), f"round {number + 1}", TEXT, font)
    return sheet


def _describe(scale: Scale) -> str:
    beyond = f"; {scale.beyond:.2%} of changed pixels beyond the bar" if scale.beyond else ""
    return f"0: no change. Found: {scale.low} to +{scale.high}{beyond}"


def _draw_bar(sheet: Image.Image, corner: tuple[int, int], limit: int) -> None:
    """The colour bar between the numbers at its ends."""
    font, draw = ImageFont.load_default(14), ImageDraw.Draw(sheet)
    (x, y), ends = corner, (f"darker -{limit}", f"+{limit} brighter")
    left, right = (round(font.getlength(end)) + _GAP for end in ends)
    ramp = colourise(np.linspace(-1, 1, _BAR_WIDTH - left - right)[None].repeat(_LINE - 8, axis=0))
    draw.text((x, y), ends[0], TEXT, font)
    sheet.paste(Image.fromarray(ramp), (x + left, y + 2))
    draw.text((x + _BAR_WIDTH - right + _GAP, y), ends[1], TEXT, font)


def _outside_edge(mask: np.ndarray | None) -> np.ndarray | None:
    return None if mask is None else binary_dilation(mask) & ~mask
