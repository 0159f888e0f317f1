"""What the Triton launchers share: compiling a kernel on first use, checks on the host, and the grid.

A kernel is a plain function until then, so that its module imports where Triton is not installed, and quickly.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pie_engine.errors import BackendError

if TYPE_CHECKING:
    from collections.abc import Callable


# Each of the 128 threads holds 4 consecutive elements: 16 bytes of float32, 8 of a 16-bit type. Larger blocks leave
# most of a GPU idle at batch 1, where the whole latent is 16384 elements.
WARPS = 4
BLOCK = 4 * 32 * WARPS
INDICES = 2**31  # offsets within an item, or within a whole tensor for elementwise kernels, are 32-bit
# A kernel compiled for one value of these serves them all. Vector loads need the plane's size to be divisible by 16,
# so that stays; the flags and the counter of rows may be parts of a larger tensor, aligned or not.
UNSPECIALISED = ("row_ptr", "planes", "channels", "flags_ptr")


@functools.cache
def jitted(kernel: Callable[..., None]) -> Any:
    """The Triton kernel whose body `kernel` is, compiled at its first launch for each set of argument types."""
    try:
        import triton
        import triton.language
    except ImportError as error:
        raise BackendError("triton is not installed; pip install 'pie-engine[gpu]', or use the eager step") from error
    kernel.__globals__["tl"] = triton.language
    names = kernel.__code__.co_varnames[: kernel.__code__.co_argcount]
    return triton.jit(kernel, do_not_specialize=[name for name in UNSPECIALISED if name in names])


def check(x: Tensor, name: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Refuse what a kernel would read or write wrongly. Reads no device memory."""
    if tensor.shape == shape and tensor.dtype == dtype and tensor.device == x.device and tensor.is_contiguous():
        return
    layout = "contiguous" if tensor.is_contiguous() else "not contiguous"
    raise ValueError(
        f"{name} is {tensor.dtype} {list(tensor.shape)}, {layout}, on {tensor.device}; "
        f"{dtype} {list(shape)}, contiguous, on {x.device} expected"
    )


def check_floating(name: str, tensor: Tensor) -> None:
    """Refuse a dtype that the kernels do not compute from. Raises ValueError."""
    if not tensor.dtype.is_floating_point or tensor.dtype.itemsize > 4:
        raise ValueError(f"{name} is {tensor.dtype}; float32, float16 or bfloat16 expected")


def check_indices(name: str, tensor: Tensor) -> None:
    """Refuse a tensor whose elements 32 bits do not number. Raises ValueError."""
    if tensor.numel() >= INDICES:
        raise ValueError(f"{name} has {tensor.numel()} elements; less than 2^31 expected")


def launch_grid(
    kernel: Callable[..., None],
    x: Tensor,
    grid: tuple[int, ...],
    *arguments: Any,
    warps: int,
    what: str = "tensor",
    **constants: Any,
) -> None:
    """Launch `kernel` over `grid` on the device of `x`. The first launch compiles: make it before a graph's capture.

    Nothing is allocated and nothing waits for the device.

    Args:
        what: x in an error's words.

    Raises:
        BackendError: Triton is not installed, or `x` is not on a GPU.
    """
    compiled = jitted(kernel)
    import triton

    if not x.is_cuda and isinstance(compiled, triton.JITFunction):
        raise BackendError(f"the Triton kernels run on a GPU and the {what} is on {x.device}; use the eager ones")
    with torch.cuda.device_of(x):  # Triton launches on the current device, whatever its arguments are on
        compiled[grid](*arguments, num_warps=warps, **constants)


def launch(kernel: Callable[..., None], x: Tensor, *arguments: Any, **constants: int) -> None:
    """`launch_grid` with one program per block of each plane of `x` [B, C, h, w]."""
    batch, channels, height, width = x.shape
    planes, size = batch * channels, height * width
    grid = (planes, -(-size // BLOCK))
    launch_grid(
        kernel, x, grid, *arguments, planes, channels, size, what="latent", BLOCK=BLOCK, warps=WARPS, **constants
    )
