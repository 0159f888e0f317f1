"""Pictures of a progression. Every file says in its metadata whether it is simulated."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo
from scipy.ndimage import binary_erosion

from pie_engine.outputs.colours import AMBER, BACKGROUND, TEXT

STATEMENT = "Simulated image (PIE, arXiv 2309.11745). Synthetic data, research use only, not for diagnosis."
_INPUT_STATEMENT = "Input of a simulation, resized and cropped, or its mask. Research use only, not for diagnosis."
# What photo tools and platforms read: part of the picture was made by a trained model (IPTC's digital source type).
_XMP = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" '
    'Iptc4xmpExt:DigitalSourceType="http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"/>'
    "</rdf:RDF></x:xmpmeta>"
)
# Stands above every picture that holds several frames.
HEADING = "SIMULATED - research use only"


def png_metadata(*, simulated: bool, **facts: str) -> PngInfo:
    """PNG text chunks: what the image is, and further facts by keyword."""
    info = PngInfo()
    info.add_text("Software", "pie-engine")
    info.add_text("Synthetic", "true" if simulated else "false")
    info.add_text("Description", STATEMENT if simulated else _INPUT_STATEMENT)
    if simulated:
        info.add_itxt("XML:com.adobe.xmp", _XMP)
    for key, value in facts.items():
        info.add_itxt(key, value)
    return info


def save_frames(frames: np.ndarray, folder: Path) -> list[Path]:
    """Write [N + 1, H, W, 3] uint8 as folder/000.png (the input) ... NNN.png."""
    folder.mkdir()
    paths = []
    for index, frame in enumerate(frames):
        path = folder / f"{index:03d}.png"
        info = png_metadata(simulated=index > 0, Round=str(index))
        Image.fromarray(frame).save(path, pnginfo=info)
        paths.append(path)
    return paths


def contact_sheet(
    frames: np.ndarray,
    labels: list[str],
    mask: np.ndarray | None = None,
    *,
    note: str = "",
    columns: int = 6,
    least_width: int = 192,
) -> Image.Image:
    """All frames in a grid with their labels, under a line that says what they are.

    Args:
        frames: [N, H, W, 3] uint8.
        labels: N short texts.
        mask: [H, W] bool; its outline is drawn on the first frame.
        note: added to the line on top.
        least_width: pixels, up to which smaller frames are scaled by a whole number.
    """
    height, width = frames.shape[1:3]
    zoom = max(1, round(least_width / width))  # small models: still legible
    columns = min(columns, len(frames))
    rows = math.ceil(len(frames) / columns)
    gap, caption = 8, 22
    cell_width, cell_height = width * zoom + gap, height * zoom + caption + gap
    sheet = Image.new("RGB", (columns * cell_width + gap, rows * cell_height + caption + 2 * gap), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    heading = HEADING + (f"   {note}" if note else "")
    draw.text((gap, gap), heading, AMBER, ImageFont.load_default(14))
    for index, (frame, label) in enumerate(zip(frames, labels, strict=True)):
        row, column = divmod(index, columns)
        x, y = gap + column * cell_width, caption + 2 * gap + row * cell_height
        if index == 0 and mask is not None:
            frame = _outline(frame, mask)
        tile = Image.fromarray(frame).resize((width * zoom, height * zoom), Image.Resampling.BICUBIC)
        sheet.paste(tile, (x, y))
        draw.text((x + 2, y + height * zoom + 3), label, TEXT, ImageFont.load_default(14))
    return sheet


def _outline(frame: np.ndarray, mask: np.ndarray) -> np.ndarray:
    marked = frame.copy()
    marked[mask & ~binary_erosion(mask, border_value=1)] = AMBER
    return marked
