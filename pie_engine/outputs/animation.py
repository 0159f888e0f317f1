"""A progression as an animation: each frame under the line that says what it is, above its round."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pie_engine.outputs.colours import AMBER, BACKGROUND, TEXT
from pie_engine.outputs.frames import HEADING, STATEMENT

LEAST_SIDE = 256  # pixels: smaller frames are scaled up by a whole number
LINE = 22  # pixels, of the line above a frame, and of the caption below it
_FRAME_MS = 300
_LAST_FRAME_MS = 1500


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


def save_gif(frames: np.ndarray, path: Path, between: int = 0, labels: Sequence[str] | None = None) -> None:
    """Write an endless animation; the last picture stays a while.

    Every picture says that it is simulated, and which frame it is. Frames are scaled up (nearest neighbour) until both
    sides have `LEAST_SIDE` pixels.

    Args:
        frames: as `interleave` gives them.
        between: K, how many of them lie between two rounds; a round takes as long with them as without.
        labels: N + 1 short texts, the input's first; None numbers the rounds.
    """
    rounds = (len(frames) - 1) // (between + 1)
    labels = labels or ["input", *(f"round {number}" for number in range(1, rounds + 1))]
    pictures = []
    for index, frame in enumerate(frames):
        number, place = divmod(index, between + 1)
        label = labels[number] if place == 0 else f"{labels[number]} to {labels[number + 1]}"
        picture = _caption(frame, label)
        pictures.append(picture.quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE))
    pictures[0].save(
        path,
        save_all=True,
        append_images=pictures[1:],
        duration=[*_durations(len(pictures) - 1, between), _LAST_FRAME_MS],
        loop=0,
        comment=STATEMENT.encode(),
    )


def enlargement(height: int, width: int) -> int:
    """By which whole number frames of this size are scaled up."""
    return max(1, -(-LEAST_SIDE // min(height, width)))


def _caption(frame: np.ndarray, label: str) -> Image.Image:
    zoom = enlargement(*frame.shape[:2])
    large = Image.fromarray(frame.repeat(zoom, axis=0).repeat(zoom, axis=1))
    picture = Image.new("RGB", (large.width, large.height + 2 * LINE), BACKGROUND)
    picture.paste(large, (0, LINE))
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(14)
    draw.text((4, 2), HEADING, AMBER, font)
    draw.text((4, LINE + large.height + 2), label, TEXT, font)
    return picture


def _durations(count: int, between: int) -> list[int]:
    """Milliseconds of each picture but the last, in the format's steps of 10."""
    ends = [10 * round(_FRAME_MS * place / (between + 1) / 10) for place in range(between + 2)]
    return [end - start for start, end in pairwise(ends)] * (count // (between + 1))
