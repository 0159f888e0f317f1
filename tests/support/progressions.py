"""Progressions made by hand, for tests of what is written: no model runs."""

from __future__ import annotations

from typing import Any

import numpy as np

from pie_engine import Result, RunConfig
from pie_engine.imaging import ImageSource, Reading, fit, read_image
from pie_engine.metrics import measure_change

SIDE = 64


def brightened(
    image: Any,
    levels: int | np.ndarray,
    *,
    roi: np.ndarray | None = None,
    how: str = "crop",
    reading: Reading | None = None,
    rounds: int = 1,
    **settings: Any,
) -> Result:
    """Every round `levels` grey levels brighter than the input, in all of the frame.

    Args:
        levels: a number, or [SIDE, SIDE, 3].
        roi: [H, W] bool in the source's pixels.
    """
    reading = reading or Reading()
    first = np.asarray(fit(read_image(image, reading=reading)[0], SIDE, how))
    changed = np.clip(first.astype(int) + levels, 0, 255).astype(np.uint8)
    frames = np.stack([first, *[changed] * rounds])
    latents = np.zeros((rounds, 4, 8, 8), np.float32)
    change = measure_change(latents, latents[0], frames[1:], None, frames, None, None)
    config = RunConfig(steps=rounds, resolution=SIDE, fit=how, **settings)
    source = ImageSource.of(image, reading)
    return Result(frames, latents, latents[0], None, change, config, {"input": {}}, source, roi)
