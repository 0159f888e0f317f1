"""A picture of what may change: the region of interest drawn over the image that the model is given."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import binary_erosion

from pie_engine.outputs.colours import AMBER, BACKGROUND, TEXT

_KEEP, _TRUTH = (70, 160, 255), (255, 90, 220)
_TINT = 0.3
_LEAST_WIDTH = 512


def draw_overlay(
    image: np.ndarray,
    region: np.ndarray,
    *,
    keep: np.ndarray | None = None,
    truth: np.ndarray | None = None,
    legend: dict[str, str],
) -> Image.Image:
    """Tint a region, outline it and say what is what.

    Args:
        image: [H, W, 3] uint8.
        region, keep, truth: [H, W] bool; the region is yellow, what is kept blue, the truth's outline pink and dashed.
        legend: a short text for each of "region", "keep" and "truth" that is drawn.
    """
    height, width = image.shape[:2]
    zoom = max(1, -(-_LEAST_WIDTH // width))  # small models: still legible
    picture = np.asarray(Image.fromarray(image).resize((width * zoom, height * zoom), Image.Resampling.BICUBIC))
    drawn, rows = picture.astype(np.float64), []
    for name, mask, colour in (("region", region, AMBER), ("keep", keep, _KEEP), ("truth", truth, _TRUTH)):
        if mask is None:
            continue
        large = mask.repeat(zoom, axis=0).repeat(zoom, axis=1)
        if name != "truth":
            drawn[large] = (1 - _TINT) * drawn[large] + _TINT * np.array(colour)
        drawn[_outline(large, dashed=name == "truth")] = colour
        rows.append((colour, legend[name]))
    gap, line = 8, 22
    sheet = Image.new("RGB", (width * zoom + 2 * gap, height * zoom + 3 * gap + line * (1 + len(rows))), BACKGROUND)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    draw.text((gap, gap // 2), "INPUT, with what may change - research use only", AMBER, font)
    sheet.paste(Image.fromarray(np.round(drawn).astype(np.uint8)), (gap, line + gap))
    for index, (colour, text) in enumerate(rows):
        y = line + 2 * gap + height * zoom + index * line
        draw.rectangle((gap, y + 3, gap + 14, y + 15), colour)
        draw.text((gap + 22, y), text, TEXT, font)
    return sheet


def _outline(mask: np.ndarray, *, dashed: bool) -> np.ndarray:
    edge = mask & ~binary_erosion(mask, iterations=2, border_value=1)
    if not dashed:
        return np.asarray(edge)
    rows, columns = np.indices(mask.shape)
    return np.asarray(edge & ((rows + columns) // 6 % 2 == 0))
