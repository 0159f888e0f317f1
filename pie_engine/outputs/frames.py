"""Pictures of a progression. Every file says in its metadata whether it is simulated."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.PngImagePlugin import PngInfo

STATEMENT = "Simulated image (PIE, arXiv 2309.11745). Synthetic data, research use only, not for diagnosis."
_INPUT_STATEMENT = "Input of a simulation, resized and cropped, or its mask. Research use only, not for diagnosis."
# What photo tools and platforms read: part of the picture was made by a trained model (IPTC's digital source type).
_XMP = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" '
    'Iptc4xmpExt:DigitalSourceType="http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"/>'
    "</rdf:RDF></x:xmpmeta>"
)
_FRAME_MS = 300
_LAST_FRAME_MS = 1500


def png_metadata(*, simulated: bool, **facts: str) -> PngInfo:
    """PNG text chunks: what the image is, and further facts by keyword."""
    from PIL.PngImagePlugin import PngInfo

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
    from PIL import Image

    folder.mkdir()
    paths = []
    for index, frame in enumerate(frames):
        path = folder / f"{index:03d}.png"
        info = png_metadata(simulated=index > 0, Round=str(index))
        Image.fromarray(frame).save(path, pnginfo=info)
        paths.append(path)
    return paths


def interleave(frames: np.ndarray, between: np.ndarray | None) -> np.ndarray:
    """Frames and what lies between them, in the order in which they are shown.

    Args:
        frames: [N + 1, H, W, 3] uint8.
        between: [N, K, H, W, 3] uint8, or None.

    Returns:
        [N (K + 1) + 1, H, W, 3] uint8.
    """
    if between is None:
        return frames
    moves = np.concatenate([between, frames[1:, None]], axis=1)  # [N, K + 1, H, W, 3]
    return np.concatenate([frames[:1], moves.reshape(-1, *frames.shape[1:])])


def save_gif(frames: np.ndarray, path: Path, between: int = 0) -> None:
    """Write an endless animation; the last picture stays a while.

    Args:
        frames: as `interleave` gives them.
        between: how many of them lie between two rounds; a round takes as long with them as without.
    """
    from PIL import Image

    images = [
        Image.fromarray(frame).quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE) for frame in frames
    ]
    images[0].save(
        path,
        save_all=True,
        append_images=images[1:],
        duration=[*_durations(len(images) - 1, between), _LAST_FRAME_MS],
        loop=0,
        comment=STATEMENT.encode(),
    )


def _durations(count: int, between: int) -> list[int]:
    """Milliseconds of each picture but the last, in the format's steps of 10."""
    ends = [10 * round(_FRAME_MS * place / (between + 1) / 10) for place in range(between + 2)]
    return [end - start for start, end in pairwise(ends)] * (count // (between + 1))


def contact_sheet(
    frames: np.ndarray, labels: list[str], mask: np.ndarray | None = None, *, note: str = "", columns: int = 6
) -> Image:
    """All frames in a grid with their labels, under a line that says what they are.

    Args:
        frames: [N, H, W, 3] uint8.
        labels: N short texts.
        mask: [H, W] bool; its outline is drawn on the first frame.
        note: added to the line on top.
    """
    from PIL import Image, ImageDraw, ImageFont

    height, width = frames.shape[1:3]
    zoom = max(1, round(192 / width))  # small models: still legible
    columns = min(columns, len(frames))
    rows = math.ceil(len(frames) / columns)
    gap, caption = 8, 22
    cell_width, cell_height = width * zoom + gap, height * zoom + caption + gap
    sheet = Image.new("RGB", (columns * cell_width + gap, rows * cell_height + caption + 2 * gap), (24, 24, 26))
    draw = ImageDraw.Draw(sheet)
    heading = "SIMULATED - research use only" + (f"   {note}" if note else "")
    draw.text((gap, gap), heading, (255, 196, 0), ImageFont.load_default(14))
    for index, (frame, label) in enumerate(zip(frames, labels, strict=True)):
        row, column = divmod(index, columns)
        x, y = gap + column * cell_width, caption + 2 * gap + row * cell_height
        if index == 0 and mask is not None:
            frame = _outline(frame, mask)
        tile = Image.fromarray(frame).resize((width * zoom, height * zoom), Image.Resampling.BICUBIC)
        sheet.paste(tile, (x, y))
        draw.text((x + 2, y + height * zoom + 3), label, (230, 230, 230), ImageFont.load_default(14))
    return sheet


def _outline(frame: np.ndarray, mask: np.ndarray) -> np.ndarray:
    from scipy.ndimage import binary_erosion

    marked = frame.copy()
    marked[mask & ~binary_erosion(mask, border_value=1)] = (255, 196, 0)
    return marked
