"""The gated activation of a transformer block's feed-forward layer, in one pass over its projection.

y = value * gelu(gate)        with (value, gate) the halves of x, and the exact GELU, 0.5 gate (1 + erf(gate / √2))
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from pie_engine.kernels.residual import ELEMENTS
from pie_engine.kernels.triton_launch import WARPS, check, check_floating, check_indices, launch_grid

if TYPE_CHECKING:
    import triton.language as tl


def geglu(x: Tensor) -> Tensor:
    """The first half of each row times the GELU of its second: the eager reference, in float32 (float64 for float64).

    Args:
        x: [..., 2 D].

    Returns:
        [..., D] of x's dtype.
    """
    value, gate = x.to(torch.promote_types(x.dtype, torch.float32)).chunk(2, dim=-1)
    return (value * F.gelu(gate)).to(x.dtype)


def geglu_kernel(
    x_ptr,
    y_ptr,
    elements,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One block of the elements of y, in memory's order: blocks span rows, since their widths are no powers of two."""
    here = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = here < elements
    there = here // WIDTH * (2 * WIDTH) + here % WIDTH  # in x
    value = tl.load(x_ptr + there, inside, other=0.0).to(tl.float32)
    gate = tl.load(x_ptr + WIDTH + there, inside, other=0.0).to(tl.float32)
    tl.store(y_ptr + here, value * (0.5 * gate * (1.0 + tl.erf(gate * 0.7071067811865476))), inside)


def geglu_triton(x: Tensor) -> Tensor:
    """`geglu` as one launch of a Triton kernel, on a GPU: the same argument, contiguous.

    Raises:
        ValueError: `x` has an odd last dimension, is not contiguous, has 2^31 elements, or is of another dtype than
            float32, float16 and bfloat16.
        BackendError: Triton is not installed, or `x` is not on a GPU.
    """
    check(x, "x", x, tuple(x.shape), x.dtype)
    if x.dim() == 0 or x.shape[-1] % 2:
        raise ValueError(f"x is {list(x.shape)}; its last dimension, a value and a gate, has to be even")
    check_floating("x", x)
    check_indices("x", x)
    width = x.shape[-1] // 2
    y = x.new_empty((*x.shape[:-1], width))
    if y.numel():
        launch_grid(
            geglu_kernel,
            x,
            (-(-y.numel() // ELEMENTS),),
            *(x, y, y.numel()),
            WIDTH=width,
            BLOCK=ELEMENTS,
            warps=WARPS,
        )
    return y
