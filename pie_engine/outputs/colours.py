"""The colours of pictures: those of sheets, and of difference maps, where blue is darker and red is brighter."""

from __future__ import annotations

import numpy as np

# Of contact sheets, maps and animations: what lies behind, what is written, and what warns.
BACKGROUND, TEXT, AMBER = (24, 24, 26), (230, 230, 230), (255, 196, 0)
# Red, green, blue from -1 through 0 to +1. Lightness (CIELAB) falls in equal steps from the middle to both ends, alike
# on both sides, and blue and red-orange differ with every common kind of colour blindness.
DIVERGING: tuple[tuple[int, int, int], ...] = (
    (0, 69, 115), (1, 84, 138), (0, 100, 163), (0, 116, 188), (48, 132, 205),
    (81, 148, 218), (111, 165, 228), (141, 181, 235), (171, 198, 239), (201, 215, 239),
    (232, 232, 232),
    (247, 205, 193), (249, 180, 160), (245, 156, 131), (236, 134, 105), (223, 113, 82),
    (208, 93, 63), (190, 75, 46), (170, 59, 32), (148, 45, 21), (125, 32, 12),
)  # fmt: skip


def colourise(values: np.ndarray) -> np.ndarray:
    """Colours of differences as fractions of the bar: [...] in -1..1 (beyond: the end's colour) -> [..., 3] uint8."""
    table = np.asarray(DIVERGING, np.float64)
    place = (np.clip(values, -1, 1) + 1) / 2 * (len(table) - 1)
    channels = [np.interp(place, np.arange(len(table)), table[:, channel]) for channel in range(3)]
    return np.round(np.stack(channels, axis=-1)).astype(np.uint8)
