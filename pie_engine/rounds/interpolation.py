"""Pictures between the rounds, so that a progression moves smoothly: decoded from latents that lie between theirs."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from pie_engine.rounds.loop import Loop


def decode_between(loop: Loop, latents: Sequence[np.ndarray], count: int) -> list[np.ndarray]:
    """Decode `count` pictures between each round's latents and those before, in order.

    On straight lines, z = (1 - s) z(n-1) + s z(n) with s = 1/(count+1) ... count/(count+1), and not on arcs: PIE's own
    blend of a round with the original (arXiv 2309.11745, algorithm 1) is such a line, so that a place where two rounds
    agree stays as it is, and a spherical path, which keeps the norm of noise, would scale all of a clean latent.

    Args:
        loop: with the batch loaded, its rounds done.
        latents: the inputs', where the first round starts, and those of the N rounds, each [B, 4, h, w].
        count: 0 decodes nothing.

    Returns:
        N * count pictures [B, H, W, 3] uint8, as decoded.

    Raises:
        BackendError: values are not finite in the highest precision either.
    """
    found = []
    for number, (before, after) in enumerate(pairwise(latents), 1):
        for place in range(1, count + 1):
            share = np.float32(place / (count + 1))
            found.append(_decode(loop, number, before + share * (after - before)))
    return found


def _decode(loop: Loop, number: int, latents: np.ndarray) -> np.ndarray:
    def enter() -> None:
        loop.plan.buffers.x.copy_(torch.from_numpy(latents))

    return loop.compute(number, enter).frames.numpy()
