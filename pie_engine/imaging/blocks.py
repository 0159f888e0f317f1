"""Large arrays a few rows at a time, so that what is computed of them stays small."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

# Values that are computed at once; as float64, 8 MB.
_BLOCK = 2**20


def row_blocks(values: np.ndarray) -> Iterator[slice]:
    """The rows of [H, W] or [H, W, C] in blocks."""
    rows = max(1, _BLOCK * len(values) // max(1, values.size))
    return (slice(start, start + rows) for start in range(0, len(values), rows))


def extremes(
    values: np.ndarray, forward: Callable[[np.ndarray], np.ndarray] | None = None, without: np.ndarray | None = None
) -> tuple[Any, Any]:
    """The least and the greatest of what `forward` makes of [H, W] values.

    Args:
        without: [H, W] bool, values that do not count; where these are all, all count.
    """
    if without is not None and without.all():
        without = None
    pairs = []
    for rows in row_blocks(values):
        block = values[rows] if without is None else values[rows][~without[rows]]
        if block.size:
            block = block if forward is None else forward(block)
            pairs.append((block.min(), block.max()))
    low, high = zip(*pairs, strict=True)
    return np.min(low), np.max(high)


def count_not_finite(values: np.ndarray, forward: Callable[[np.ndarray], np.ndarray] | None = None) -> int:
    """How many of what `forward` makes of the values are NaN or infinite."""
    blocks = (values[rows] for rows in row_blocks(values))
    return sum(int((~np.isfinite(block if forward is None else forward(block))).sum()) for block in blocks)
