"""The step between two layers of a transformer block: add to the residual stream, and normalise it for the next one.

sum    = x + residual + shift             shift: the bias of the linear layer that x comes from
normed = (sum - mean) / √(variance + eps) weight + bias, over the last dimension
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from pie_engine.kernels.residual import check_rows
from pie_engine.kernels.triton_launch import check, launch_grid

if TYPE_CHECKING:
    import triton.language as tl

# Elements of a program, in whole rows: 16 per thread of 4 warps. Narrow rows share a program, wide ones take more.
TILE = 2048
WARPS = 4
MOST_WARPS = 16


def add_layer_norm(
    x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, eps: float, *, shift: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """A sum and its layer norm: the eager reference. Arithmetic is float32 (float64 for float64).

    The norm is of the sum before it is rounded to x's dtype.

    Args:
        x: [..., C].
        residual: of x's shape and dtype, or None for none.
        weight: [C], of any floating dtype, and so `bias`.
        shift: [C], added to x, or None for none.

    Returns:
        The sum, which is `x` itself where there is nothing to add, and its layer norm; both like x.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    total = x.to(wide)
    if residual is not None:
        total = total + residual.to(wide)
    if shift is not None:
        total = total + shift.to(wide)
    normed = F.layer_norm(total, x.shape[-1:], weight.to(wide), bias.to(wide), eps).to(x.dtype)
    return x if residual is None and shift is None else total.to(x.dtype), normed


def add_layer_norm_kernel(
    x_ptr,
    residual_ptr,
    shift_ptr,
    weight_ptr,
    bias_ptr,
    sum_ptr,
    normed_ptr,
    rows,
    eps,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """ROWS rows, held in registers: the variance is of the differences from the mean. None is compiled out."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)
    held = column < WIDTH
    inside = (row < rows)[:, None] & held[None, :]
    here = row[:, None] * WIDTH + column[None, :]
    weight = tl.load(weight_ptr + column, held, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + column, held, other=0.0).to(tl.float32)
    total = tl.load(x_ptr + here, inside, other=0.0).to(tl.float32)
    if residual_ptr is not None:
        total += tl.load(residual_ptr + here, inside, other=0.0).to(tl.float32)
    if shift_ptr is not None:
        total += tl.load(shift_ptr + column, held, other=0.0).to(tl.float32)[None, :]
    if sum_ptr is not None:
        tl.store(sum_ptr + here, total, inside)
    # Rounded as IEEE does, not approximate: a row of one value then differs from its mean by nothing. An error of one
    # unit of a large mean would otherwise be magnified by 1 / sqrt(eps).
    mean = tl.div_rn(tl.sum(total, 1), WIDTH * 1.0)
    away = tl.where(held[None, :], total - mean[:, None], 0.0)
    scale = tl.rsqrt(tl.sum(away * away, 1) / WIDTH + eps)
    tl.store(normed_ptr + here, away * scale[:, None] * weight[None, :] + bias[None, :], inside)


def add_layer_norm_triton(
    x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, eps: float, *, shift: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`add_layer_norm` as one launch of a Triton kernel, on a GPU: the same arguments, all of them contiguous.

    Raises:
        ValueError: a tensor has another size, dtype, device or layout than the eager reference's arguments.
        BackendError: Triton is not installed, or `x` is not on a GPU.
    """
    shape = tuple(x.shape)
    if not x.dim() or not shape[-1]:
        raise ValueError(f"x is {list(shape)}; rows of channels expected")
    flat = x.view(-1, shape[-1]) if x.is_contiguous() else x
    check(x, "x", x, shape, x.dtype)
    check_rows(flat, "x", flat)  # flat, because here four dimensions are no image
    if residual is not None:
        check(x, "residual", residual, shape, x.dtype)
    for name, tensor in (("weight", weight), ("bias", bias), ("shift", shift)):
        if tensor is not None:
            check(x, name, tensor, shape[-1:], tensor.dtype)
    normed = torch.empty_like(x)
    total = x if residual is None and shift is None else torch.empty_like(x)
    if x.numel():
        width = shape[-1]
        block = 1 << (width - 1).bit_length()
        together = max(1, TILE // block)
        launch_grid(
            add_layer_norm_kernel,
            x,
            (-(-len(flat) // together),),
            *(x, residual, shift, weight, bias, None if total is x else total, normed, len(flat), eps),
            WIDTH=width,
            ROWS=together,
            BLOCK=block,
            warps=min(MOST_WARPS, max(WARPS, block // (TILE // WARPS))),
        )
    return total, normed
