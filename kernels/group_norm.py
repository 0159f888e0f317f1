"""Group normalisation of a channels-last image, with the addition before it and the activation after it.

    y = silu((x + shift - mean) / √(variance + eps) weight + bias)

mean and variance are over the pixels and the channels of one group of one item. PyTorch normalises NCHW memory, which
costs a channels-last network two copies per norm. Here a small plane takes one launch, whose programs each hold a few
groups of an item; a large one takes two: the statistics of blocks of pixels, then the result, each program combining
the block statistics of its own groups.

The variance never comes from a difference of sums of squares: every position of a tile follows its mean and squared
differences (Welford), and positions and blocks combine by theirs (Chan). Which launches, and of which sizes, depends on
one item's shape and dtype, never on the batch, and nothing is added atomically: an item's result is always the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from pie_engine.kernels.group_norm_plan import plan, power_of_two
from pie_engine.kernels.triton_launch import INDICES, check, check_floating, launch_grid

if TYPE_CHECKING:
    import triton.language as tl


def group_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    eps: float,
    *,
    silu: bool = False,
    shift: Tensor | None = None,
) -> Tensor:
    """Group norm of x + shift, then SiLU if asked: the eager reference. Arithmetic is float32 (float64 for float64).

    Args:
        x: [N, C, ...], for instance [N, C, H, W] or [N, C, L].
        weight: [C], of any floating dtype, and so `bias` and `shift`.
        groups: a divisor of C.
        shift: [N, C] or [1, C], added to every pixel; None for none.

    Returns:
        Of x's shape and dtype, channels-last.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    y = x.to(wide)
    if shift is not None:
        y = y + shift.to(wide).reshape(*shift.shape, *[1] * (x.dim() - 2))
    y = F.group_norm(y, groups, weight.to(wide), bias.to(wide), eps)
    if silu:
        y = F.silu(y)
    return y.to(x.dtype).movedim(1, -1).contiguous().movedim(-1, 1)


def group_norm_kernel(
    x_ptr,
    shift_ptr,
    weight_ptr,
    bias_ptr,
    y_ptr,
    statistics_ptr,
    size,
    span,
    blocks,
    shift_stride,
    eps,
    DEPTH: tl.constexpr,
    GROUPS: tl.constexpr,
    TOGETHER: tl.constexpr,
    PIXELS: tl.constexpr,
    LANES: tl.constexpr,
    ONE_TILE: tl.constexpr,
    SILU: tl.constexpr,
):
    """TOGETHER groups of an item over one block of its pixels. With y the block is the plane and is normalised here.

    Without y the block's mean and sum of squared differences are written to statistics, [N, 2, GROUPS, blocks].
    The numbers of channels are known when compiling, so that accesses are as wide as they allow.
    """
    item = tl.program_id(1).to(tl.int64)
    column = tl.program_id(0) % (GROUPS // TOGETHER)
    block = tl.program_id(0) // (GROUPS // TOGETHER)
    lane, pixel = tl.arange(0, LANES), tl.arange(0, PIXELS)
    held = lane < TOGETHER * DEPTH
    channel = column * (TOGETHER * DEPTH) + lane
    first = block * span
    last = tl.minimum(first + span, size)
    here = (pixel * (GROUPS * DEPTH))[:, None] + channel[None, :]  # from a tile's first pixel
    x_ptr += item * size * (GROUPS * DEPTH)  # from here on 32 bits are enough
    if shift_ptr is not None:
        shift = tl.load(shift_ptr + item * shift_stride + channel, held, other=0.0).to(tl.float32)[None, :]

    # Each position of the tile: the mean of the pixels it has seen, and their squared differences from it.
    if ONE_TILE:
        inside = (first + pixel < last)[:, None] & held[None, :]
        x = tl.load(x_ptr + first * (GROUPS * DEPTH) + here, inside, other=0.0).to(tl.float32)
        if shift_ptr is not None:
            x += shift
        mean = x
        spread = tl.full((PIXELS, LANES), 0.0, tl.float32)
    else:
        mean = tl.full((PIXELS, LANES), 0.0, tl.float32)
        spread = tl.full((PIXELS, LANES), 0.0, tl.float32)
        seen = 0.0
        for start in range(first, last, PIXELS):
            within = (start + pixel < last)[:, None]
            x = tl.load(x_ptr + start * (GROUPS * DEPTH) + here, within & held[None, :], other=0.0).to(tl.float32)
            if shift_ptr is not None:
                x += shift
            seen += 1.0
            away = tl.where(within, x - mean, 0.0)
            mean += away * (1.0 / seen)
            spread += away * (x - mean)

    # Positions and channels combine into their group; what concerns a group goes back to its channels. The lanes beyond
    # the last group hold zeros, and are of none.
    member = (lane // DEPTH)[:, None] == tl.arange(0, TOGETHER)[None, :]
    counts = ((last - first - pixel + (PIXELS - 1)) // PIXELS).to(tl.float32)[:, None]  # pixels that each has seen
    number = (last - first).to(tl.float32) * DEPTH
    group_mean = tl.sum(tl.where(member, tl.sum(counts * mean, 0)[:, None], 0.0), 0) / number
    center = tl.sum(tl.where(member, group_mean[None, :], 0.0), 1)[None, :]
    away = mean - center
    group_spread = tl.sum(tl.where(member, tl.sum(spread + counts * (away * away), 0)[:, None], 0.0), 0)

    if y_ptr is None:
        group = column * TOGETHER + tl.arange(0, TOGETHER)
        there = (item * (2 * GROUPS) + group) * blocks + block
        tl.store(statistics_ptr + there, group_mean)
        tl.store(statistics_ptr + there + GROUPS * blocks, group_spread)
    else:
        y_ptr += item * size * (GROUPS * DEPTH)
        scale = tl.sum(tl.where(member, tl.rsqrt(group_spread / number + eps)[None, :], 0.0), 1)
        scale = (scale * tl.load(weight_ptr + channel, held, other=0.0).to(tl.float32))[None, :]
        bias = tl.load(bias_ptr + channel, held, other=0.0).to(tl.float32)[None, :]
        if ONE_TILE:
            y = (x - center) * scale + bias
            if SILU:
                y = y / (1.0 + tl.exp(-y))
            tl.store(y_ptr + first * (GROUPS * DEPTH) + here, y, inside)
        else:
            for start in range(first, last, PIXELS):
                inside = (start + pixel < last)[:, None] & held[None, :]
                x = tl.load(x_ptr + start * (GROUPS * DEPTH) + here, inside, other=0.0).to(tl.float32)
                if shift_ptr is not None:
                    x += shift
                y = (x - center) * scale + bias
                if SILU:
                    y = y / (1.0 + tl.exp(-y))
                tl.store(y_ptr + start * (GROUPS * DEPTH) + here, y, inside)


def group_norm_apply_kernel(
    x_ptr,
    shift_ptr,
    weight_ptr,
    bias_ptr,
    y_ptr,
    statistics_ptr,
    size,
    span,
    blocks,
    block_span,
    shift_stride,
    eps,
    DEPTH: tl.constexpr,
    GROUPS: tl.constexpr,
    TOUCHED: tl.constexpr,
    BLOCKS: tl.constexpr,
    PIXELS: tl.constexpr,
    LANES: tl.constexpr,
    SILU: tl.constexpr,
):
    """LANES channels of an item over `span` of its pixels, after combining what the first launch wrote of their groups.

    statistics is [N, 2, GROUPS, blocks], of blocks of `block_span` pixels; BLOCKS is the power of two that holds them.
    """
    item = tl.program_id(1).to(tl.int64)
    columns: tl.constexpr = (GROUPS * DEPTH + LANES - 1) // LANES
    column = tl.program_id(0) % columns
    lane, pixel = tl.arange(0, LANES), tl.arange(0, PIXELS)
    channel = column * LANES + lane
    held = channel < GROUPS * DEPTH
    first = tl.program_id(0) // columns * span
    last = tl.minimum(first + span, size)
    here = (pixel * (GROUPS * DEPTH))[:, None] + channel[None, :]  # from a tile's first pixel
    x_ptr += item * size * (GROUPS * DEPTH)  # from here on 32 bits are enough
    y_ptr += item * size * (GROUPS * DEPTH)
    # The tile is loaded one ahead, so that the first is on its way while the statistics combine.
    inside = (first + pixel < last)[:, None] & held[None, :]
    x = tl.load(x_ptr + first * (GROUPS * DEPTH) + here, inside, other=0.0)

    group = column * LANES // DEPTH + tl.arange(0, TOUCHED)
    block = tl.arange(0, BLOCKS)
    known = (group < GROUPS)[:, None] & (block < blocks)[None, :]
    there = (item * (2 * GROUPS) + group)[:, None] * blocks + block[None, :]
    block_mean = tl.load(statistics_ptr + there, known, other=0.0)
    block_spread = tl.load(statistics_ptr + there + GROUPS * blocks, known, other=0.0)
    counts = tl.minimum(size - block * block_span, block_span).to(tl.float32)[None, :]
    counts = tl.where(known, counts, 0.0)
    number = size * 1.0
    group_mean = tl.sum(counts * block_mean, 1) / number
    away = block_mean - group_mean[:, None]
    group_spread = tl.sum(block_spread + (counts * DEPTH) * (away * away), 1)
    group_scale = tl.rsqrt(group_spread / (number * DEPTH) + eps)

    member = (channel // DEPTH)[:, None] == group[None, :]
    center = tl.sum(tl.where(member, group_mean[None, :], 0.0), 1)
    scale = tl.sum(tl.where(member, group_scale[None, :], 0.0), 1)
    scale = (scale * tl.load(weight_ptr + channel, held, other=0.0).to(tl.float32))[None, :]
    bias = tl.load(bias_ptr + channel, held, other=0.0).to(tl.float32)[None, :]
    center = center[None, :]
    if shift_ptr is not None:
        shift = tl.load(shift_ptr + item * shift_stride + channel, held, other=0.0).to(tl.float32)[None, :]
    for start in range(first, last, PIXELS):
        y = x.to(tl.float32)
        if shift_ptr is not None:
            y += shift
        y = (y - center) * scale + bias
        if SILU:
            y = y / (1.0 + tl.exp(-y))
        inside = (start + PIXELS + pixel < last)[:, None] & held[None, :]
        x = tl.load(x_ptr + (start + PIXELS) * (GROUPS * DEPTH) + here, inside, other=0.0)
        inside = (start + pixel < last)[:, None] & held[None, :]
        tl.store(y_ptr + start * (GROUPS * DEPTH) + here, y, inside)


def group_norm_triton(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    eps: float,
    *,
    silu: bool = False,
    shift: Tensor | None = None,
    one_launch: bool | None = None,
) -> Tensor:
    """`group_norm` as one or two launches of Triton kernels, on a GPU: the same arguments, x channels-last.

    Args:
        one_launch: None to choose by the size of one item; for measurements.

    Raises:
        ValueError: a tensor has another size, dtype, device or layout than the eager reference's arguments.
        BackendError: Triton is not installed, or `x` is not on a GPU.
    """
    if x.dim() < 3 or not x.movedim(1, -1).is_contiguous():
        raise ValueError(f"x {list(x.shape)} is not a channels-last image")
    check_floating("x", x)
    items, channels = x.shape[:2]
    if groups < 1 or channels % groups:
        raise ValueError(f"{channels} channels are not {groups} groups")
    if x.numel() >= INDICES * max(1, items):
        raise ValueError(f"x {list(x.shape)} has more than 2^31 elements per item")
    check(x, "weight", weight, (channels,), weight.dtype)
    check(x, "bias", bias, (channels,), bias.dtype)
    if shift is not None:
        check(x, "shift", shift, (1 if len(shift) == 1 else items, channels), shift.dtype)
    y = torch.empty_like(x)
    if not x.numel():
        return y
    size, depth = x.numel() // (items * channels), channels // groups
    launches = plan(size, depth, groups, x.dtype.itemsize, one_launch)
    first, apply = launches.first, launches.apply
    stride = channels if shift is not None and len(shift) == items else 0
    statistics = None
    if apply is not None:
        statistics = torch.empty((items, 2, groups, launches.blocks), dtype=torch.float32, device=x.device)
    launch_grid(
        group_norm_kernel,
        x,
        (first.programs, items),
        *(x, shift, None if apply else weight, None if apply else bias, None if apply else y, statistics),
        *(size, first.span, launches.blocks, stride, eps),
        DEPTH=depth,
        GROUPS=groups,
        TOGETHER=first.groups,
        PIXELS=first.pixels,
        LANES=first.lanes,
        ONE_TILE=first.span <= first.pixels,
        SILU=silu and apply is None,
        warps=first.warps,
    )
    if apply is not None:
        launch_grid(
            group_norm_apply_kernel,
            x,
            (apply.programs, items),
            *(x, shift, weight, bias, y, statistics),
            *(size, apply.span, launches.blocks, first.span, stride, eps),
            DEPTH=depth,
            GROUPS=groups,
            TOUCHED=apply.groups,
            BLOCKS=power_of_two(launches.blocks),
            PIXELS=apply.pixels,
            LANES=apply.lanes,
            SILU=silu,
            warps=apply.warps,
        )
    return y
