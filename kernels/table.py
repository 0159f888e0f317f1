"""The layout of a schedule's table: one row of float32 coefficients per denoising step, packed.

    a, b, signal, noise, scale, timestep, last, c[K], p[K], q[K], P[K * K]

`signal`, `noise`, `scale` and `timestep` are those of the step that follows: the row holds all that one launch reads.
In a round's last row, where nothing follows, they are 1, 0, 1 and 0, and `last` is 1: the latent is blended with the
original itself there.
The entry of a round has a short row of its own: signal, noise, scale, timestep.
"""

from __future__ import annotations

import math

A, B, SIGNAL, NOISE, SCALE, TIMESTEP, LAST, VECTORS = range(8)
ENTRY_COLUMNS = 4


def columns(history: int) -> int:
    """Columns of a table whose sampler keeps `history` = K latents."""
    return VECTORS + 3 * history + history * history


def history_of(columns: int) -> int:
    """K, from the number of columns: the inverse of `columns`."""
    return (math.isqrt(9 + 4 * (columns - VECTORS)) - 3) // 2
