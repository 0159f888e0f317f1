"""Where a box lies: at each level of a network, and how its levels' boxes lie within one another."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

# Rows that a coarser box may begin before a finer one: one by rounding, one at the image's end, one for the kernel.
WIDE = 3


class Box(NamedTuple):
    """A rectangle of latents."""

    top: int
    left: int
    height: int
    width: int


@dataclass(frozen=True)
class Window:
    """A box at one level: rows [top, top + height) and columns [left, left + width) of a map of rows x columns."""

    top: int
    left: int
    height: int
    width: int
    rows: int
    columns: int

    @property
    def slices(self) -> tuple[slice, slice]:
        """Of a map's last two axes."""
        return slice(self.top, self.top + self.height), slice(self.left, self.left + self.width)

    def ring(self, wide: int) -> tuple[np.ndarray, np.ndarray]:
        """Flat indices, in the map padded by `wide`, of rows above and below the box and of columns beside it."""
        at = np.arange((self.rows + 2 * wide) * (self.columns + 2 * wide)).reshape(self.rows + 2 * wide, -1)
        at = at[self.top : self.top + self.height + 2 * wide, self.left : self.left + self.width + 2 * wide]
        middle = at[wide:-wide]
        return np.concatenate([at[:wide], at[-wide:]]), np.concatenate([middle[:, :wide], middle[:, -wide:]], 1)

    def inside(self) -> np.ndarray:
        """Flat indices of the box in the map, row by row."""
        at = np.arange(self.rows * self.columns).reshape(self.rows, self.columns)
        return at[self.slices].ravel()

    def outside(self) -> np.ndarray:
        """Flat indices of the map outside the box, ascending."""
        inside = np.zeros((self.rows, self.columns), bool)
        inside[self.slices] = True
        return np.flatnonzero(~inside)

    @property
    def left_out(self) -> float:
        """Which share of the map lies outside the box."""
        return 1 - self.height * self.width / (self.rows * self.columns)


def cover(mask: np.ndarray, margin: int, multiple: int) -> Box:
    """A box around a mask [h, w] and `margin`, within the picture; its sides are multiples of `multiple`.

    The picture's own sides have to be, too. A mask of nothing is covered by the smallest box.
    """
    starts, lengths = [], []
    for axis, size in enumerate(mask.shape):
        hit = np.flatnonzero(mask.any(1 - axis))
        low, high = (max(0, int(hit[0]) - margin), min(size, int(hit[-1]) + 1 + margin)) if len(hit) else (0, 1)
        length = min(size, -(-(high - low) // multiple) * multiple)
        starts.append(max(0, min(low - (length - (high - low)) // 2, size - length)))
        lengths.append(length)
    return Box(*starts, *lengths)


def enlarged(box: Box, by: int, size: tuple[int, int]) -> Box:
    """A box and what lies around it, `by` latents on each side, within a picture of this size; where that ends before,
    it takes in more of the other side, so that boxes of one size become boxes of one size.
    """
    height, width = min(box.height + 2 * by, size[0]), min(box.width + 2 * by, size[1])
    top = max(0, min(box.top - by, size[0] - height))
    return Box(top, max(0, min(box.left - by, size[1] - width)), height, width)


def windows(box: Box, size: tuple[int, int], levels: int) -> list[Window]:
    """A box of latents at every level of the U-Net, finest first; each covers the one before.

    Sizes depend on sizes alone, wherever the box lies: n // 2 + 1 is enough for any even offset and any odd one.
    """
    found = [Window(*box, *size)]
    for _ in range(levels - 1):
        fine = found[-1]
        rows, columns = fine.rows // 2, fine.columns // 2
        height, width = min(fine.height // 2 + 1, rows), min(fine.width // 2 + 1, columns)
        top, left = min(fine.top // 2, rows - height), min(fine.left // 2, columns - width)
        found.append(Window(top, left, height, width, rows, columns))
    return found


def magnified(box: Box, size: tuple[int, int], levels: int) -> list[Window]:
    """A box of latents at every level of the VAE's decoder, finest first."""
    return [Window(*(n << each for n in (*box, *size))) for each in reversed(range(levels))]


@dataclass(eq=False)
class Around:
    """Index tensors of a batch of boxes of one size, int64, batch first: what is kept of the whole picture.

    Attributes:
        ring, wide: by level, flat indices into the padded map: across [B, 2 n, w + 2 n] and along [B, h, 2 n], with n
            1 or `WIDE`. The coarsest level has no wide ring.
        outside: by level, [B, T], the tokens outside the box.
        inside: by level, [B, h w of the box], the pixels in it.
    """

    ring: list[tuple[Tensor, Tensor]]
    wide: list[tuple[Tensor, Tensor]]
    outside: list[Tensor]
    inside: list[Tensor]

    def tensors(self) -> list[Tensor]:
        """All of them, in one order."""
        return [*(tensor for pair in (*self.ring, *self.wide) for tensor in pair), *self.outside, *self.inside]


@dataclass(eq=False)
class Within:
    """How the levels' boxes lie within one another, by the finer of two levels, int64, batch first.

    Attributes:
        down: [B, 2 h + 1, 2 w + 1] of the coarser box: where the pixels that a convolution of stride 2 reads are in the
            finer box with its wide ring.
        up: [B, h, w] of the finer one: where its pixels come from in the coarser one. It doubles and crops at once.
        outside: by level, [1] float32, which share of the picture is not in the box.
    """

    down: list[Tensor]
    up: list[Tensor]
    outside: list[Tensor]

    def tensors(self) -> list[Tensor]:
        """All of them, in one order."""
        return [*self.down, *self.up, *self.outside]


def places(items: Sequence[Sequence[Window]]) -> tuple[Around, Within]:
    """All that depends on where a batch's boxes lie: each item's windows, finest first; boxes have one size."""

    def stack(values: Sequence[np.ndarray]) -> Tensor:
        return torch.from_numpy(np.stack(values))

    def pairs(level: Sequence[Window], wide: int) -> tuple[Tensor, Tensor]:
        across, along = zip(*(window.ring(wide) for window in level), strict=True)
        return stack(across), stack(along)

    levels = list(zip(*items, strict=True))
    meets = [[_meet(*pair) for pair in zip(fine, coarse, strict=True)] for fine, coarse in itertools.pairwise(levels)]
    return (
        Around(
            [pairs(level, 1) for level in levels],
            [pairs(level, WIDE) for level in levels[:-1]],
            [stack([window.outside() for window in level]) for level in levels],
            [stack([window.inside() for window in level]) for level in levels],
        ),
        Within(
            [stack([down for down, _ in meet]) for meet in meets],
            [stack([up for _, up in meet]) for meet in meets],
            [torch.tensor([level[0].left_out], dtype=torch.float32) for level in levels],
        ),
    )


def _meet(fine: Window, coarse: Window) -> tuple[np.ndarray, np.ndarray]:
    """`Within.down` and `Within.up` of one item and two levels."""
    rows = 2 * coarse.top - 1 - (fine.top - WIDE) + np.arange(2 * coarse.height + 1)
    columns = 2 * coarse.left - 1 - (fine.left - WIDE) + np.arange(2 * coarse.width + 1)
    assert min(rows[0], columns[0]) >= 0
    assert rows[-1] < fine.height + 2 * WIDE and columns[-1] < fine.width + 2 * WIDE
    up_rows = (fine.top + np.arange(fine.height)) // 2 - coarse.top
    up_columns = (fine.left + np.arange(fine.width)) // 2 - coarse.left
    assert min(up_rows[0], up_columns[0]) >= 0
    assert up_rows[-1] < coarse.height and up_columns[-1] < coarse.width
    return rows[:, None] * (fine.width + 2 * WIDE) + columns, up_rows[:, None] * coarse.width + up_columns
