"""The launches of a group norm: how many, over which part of an item each program goes, and in which tiles.

What `group_norm` launches depends on one item's shape and dtype, never on the batch.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

# To be set by benchmarks/norm_kernels.py, which times both variants at every size.
# Up to so many elements per group (H W C / groups), one launch; above, two.
ONE_LAUNCH = 24576
# One launch. Elements of a tile: up to the first, the whole plane is one and stays in registers (64 per thread of 16
# warps); planes above it are read once per pass, in tiles of the second.
HELD_TILE = 32768
LOOPED_TILE = 16384
HELD_WARPS = (4, 16)  # fewest and most, with 16 elements per thread between them
LOOPED_WARPS = 16
# Bytes of a pixel that a program reads at least, in whole groups, and bytes that they have to be divisible by. Here a
# sector of the cache; wider would leave fewer programs than a GPU has multiprocessors.
ONE_LAUNCH_ROW = (32, 8)
# Two launches. Bytes of a pixel, and elements of a tile of the statistics; their programs per item.
STATISTICS_ROW = (128, 16)
STATISTICS_TILE = 4096
STATISTICS_PROGRAMS = 256
STATISTICS_WARPS = 4
MOST_BLOCKS = 128  # of statistics per group, which every program of the second launch combines
# The second launch is not bound to groups. Its programs take several tiles once there are more than so many per item.
APPLY_ROW = 128
APPLY_TILE = 2048
APPLY_PROGRAMS = 2048
APPLY_WARPS = 4


def power_of_two(number: int) -> int:
    """The smallest power of two that is not below `number`."""
    return 1 << (number - 1).bit_length()


@dataclass(frozen=True)
class Launch:
    """One launch: `programs` per item, each of `span` pixels, in tiles of `pixels` by `lanes` channels."""

    programs: int
    span: int
    pixels: int
    lanes: int
    groups: int  # of a program: whole ones, or as many as its channels can touch
    warps: int


@dataclass(frozen=True)
class Plan:
    """The launches for one item's shape: `apply` is None where the first launch does everything."""

    first: Launch
    blocks: int  # of pixels, that the first launch has statistics of
    apply: Launch | None


@functools.cache
def plan(size: int, depth: int, groups: int, itemsize: int, one_launch: bool | None = None) -> Plan:
    """How to normalise planes of `size` pixels and `groups` groups of `depth` channels of `itemsize` bytes.

    Args:
        one_launch: None to choose by size.
    """
    if one_launch is None:
        one_launch = size * depth <= ONE_LAUNCH
    together = 1
    least, divisor = ONE_LAUNCH_ROW if one_launch else STATISTICS_ROW
    while groups % (2 * together) == 0:
        row = together * depth * itemsize
        if row >= least and (row % divisor == 0 or row >= 4 * least):
            break
        together *= 2
    columns, lanes = groups // together, power_of_two(together * depth)
    if one_launch:
        if lanes * power_of_two(size) <= HELD_TILE:
            fewest, most = HELD_WARPS
            pixels = power_of_two(size)
            warps = min(most, max(fewest, lanes * pixels // (16 * 32)))
        else:
            pixels, warps = max(1, LOOPED_TILE // lanes), LOOPED_WARPS
        return Plan(Launch(columns, size, pixels, lanes, together, warps), 1, None)

    pixels = max(1, min(STATISTICS_TILE // lanes, power_of_two(size)))
    tiles = -(-size // pixels)
    span = pixels * -(-tiles // min(tiles, MOST_BLOCKS, max(1, STATISTICS_PROGRAMS // columns)))
    blocks = -(-size // span)
    first = Launch(columns * blocks, span, pixels, lanes, together, STATISTICS_WARPS)

    lanes = min(power_of_two(groups * depth), APPLY_ROW // itemsize)
    columns = -(-groups * depth // lanes)
    pixels = max(1, min(APPLY_TILE // lanes, power_of_two(size)))
    tiles = -(-size // pixels)
    span = pixels * -(-tiles * columns // APPLY_PROGRAMS)
    if lanes % depth == 0 or depth % lanes == 0:
        touched = max(1, lanes // depth)
    else:
        touched = power_of_two((lanes - 2) // depth + 2)
    return Plan(first, blocks, Launch(columns * -(-size // span), span, pixels, lanes, touched, APPLY_WARPS))
