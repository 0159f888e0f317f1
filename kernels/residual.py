"""The end of a residual block: a residual and the bias of the last convolution or linear layer, added in one pass.

    y = x + residual + bias

The sum is rounded once, to x's dtype, where separate additions round twice and read x three times.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pie_engine.kernels.triton_launch import WARPS, check, check_floating, check_indices, launch_grid

if TYPE_CHECKING:
    import triton.language as tl

ELEMENTS = 8 * 32 * WARPS  # of a program of an elementwise kernel: 16 bytes of a 16-bit type per thread


def rows(x: Tensor) -> Tensor:
    """`x` seen as [..., C]: an image [N, C, H, W] has its channels second and, channels-last, as rows in memory."""
    return x.movedim(1, -1) if x.dim() == 4 else x


def check_rows(x: Tensor, name: str, tensor: Tensor) -> None:
    """Refuse a tensor that is not dense like `x`, with rows of channels in memory. Reads no device memory."""
    if tensor.dim() == x.dim():
        if x.dim() == 4 and not rows(tensor).is_contiguous():
            raise ValueError(f"{name} {list(tensor.shape)} is not channels-last")
        check(x, name, rows(tensor), tuple(rows(x).shape), x.dtype)
    else:
        check(x, name, tensor, tuple(x.shape), x.dtype)
    check_floating(name, tensor)
    check_indices(name, tensor)


def add_residual(x: Tensor, residual: Tensor, bias: Tensor | None = None) -> Tensor:
    """x + residual + bias: the eager reference. Arithmetic is float32 (float64 for float64).

    Args:
        x: [N, C, H, W] or, of any other number of dimensions, [..., C].
        residual: of x's shape and dtype.
        bias: [C], of any floating dtype; None for none.

    Returns:
        Of x's shape, dtype and layout.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    y = x.to(wide) + residual.to(wide)
    if bias is not None:
        rows(y).add_(bias.to(wide))
    return torch.empty_like(x).copy_(y)


def add_residual_kernel(
    x_ptr,
    residual_ptr,
    bias_ptr,
    y_ptr,
    elements,
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One block of the elements, in memory's order. A bias that is None is compiled out.

    A number of channels known when compiling keeps the bias's accesses vectors, and the division a multiplication.
    """
    here = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = here < elements
    y = tl.load(x_ptr + here, inside, other=0.0).to(tl.float32)
    y += tl.load(residual_ptr + here, inside, other=0.0).to(tl.float32)
    if bias_ptr is not None:
        y += tl.load(bias_ptr + here % CHANNELS).to(tl.float32)
    tl.store(y_ptr + here, y, inside)


def add_residual_triton(x: Tensor, residual: Tensor, bias: Tensor | None = None) -> Tensor:
    """`add_residual` as one launch of a Triton kernel, on a GPU: the same arguments, images channels-last.

    Raises:
        ValueError: a tensor has another size, dtype, device or layout than the eager reference's arguments.
        BackendError: Triton is not installed, or `x` is not on a GPU.
    """
    check_rows(x, "x", x)
    check_rows(x, "residual", residual)
    channels = rows(x).shape[-1]
    if bias is not None:
        check(x, "bias", bias, (channels,), bias.dtype)
    y = torch.empty_like(x)
    if x.numel():
        launch_grid(
            add_residual_kernel,
            x,
            (-(-x.numel() // ELEMENTS),),
            *(x, residual, bias, y, x.numel()),
            CHANNELS=1 if bias is None else channels,  # without a bias one compilation serves all
            BLOCK=ELEMENTS,
            warps=WARPS,
        )
    return y
