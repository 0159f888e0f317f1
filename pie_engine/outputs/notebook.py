"""A progression in a notebook: a small strip of its frames, marked as simulated."""

from __future__ import annotations

import base64
import io
from html import escape

import numpy as np
from PIL import Image

from pie_engine.outputs.differences import spaced
from pie_engine.outputs.frames import HEADING, STATEMENT, contact_sheet, png_metadata
from pie_engine.outputs.result import Progression

_MOST_FRAMES = 6
_SIDE = 128  # pixels of a frame's longer side


def strip_html(result: Progression) -> str:
    """An HTML figure: the input and up to five frames at even distances in one row, with the result's one line.

    The picture says that it is simulated, in its pixels and in its metadata.
    """
    numbers = spaced(len(result.frames), _MOST_FRAMES)
    labels = ["input" if number == 0 else f"round {number}" for number in numbers]
    small = np.stack([_reduce(result.frames[number]) for number in numbers])
    stream = io.BytesIO()
    strip = contact_sheet(small, labels, columns=_MOST_FRAMES, least_width=_SIDE)
    strip.save(stream, "PNG", pnginfo=png_metadata(simulated=True))
    picture = base64.b64encode(stream.getvalue()).decode()
    return (
        f'<figure><img src="data:image/png;base64,{picture}" alt="{HEADING}: {", ".join(labels)}">'
        f"<figcaption>{escape(repr(result))}<br>{STATEMENT}</figcaption></figure>"
    )


def _reduce(frame: np.ndarray) -> np.ndarray:
    """[H, W, 3] uint8 with no side above `_SIDE` pixels."""
    picture = Image.fromarray(frame)
    picture.thumbnail((_SIDE, _SIDE))
    return np.asarray(picture)
