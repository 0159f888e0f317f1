"""The entry of a round: noise a latent to the first timestep, and write the first U-Net input.

    x      = signal z + noise eps
    input  = scale x, written to both halves of the U-Net batch, and its timestep

DDIM inversion enters with signal 1 and without noise. What it arrives at is read back as a noise by the same formula:
eps = (x - signal z) / noise has the coefficients -signal / noise of z and 1 / noise of x.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pie_engine.kernels.table import ENTRY_COLUMNS
from pie_engine.kernels.triton_launch import check, launch

if TYPE_CHECKING:
    import triton.language as tl


def noising(
    x: Tensor,
    history: Tensor | None,
    sample: Tensor | None,
    timestep: Tensor | None,
    flags: Tensor | None,
    z: Tensor,
    eps: Tensor | None,
    entry: Tensor,
) -> None:
    """Enter a round: the eager reference. Arithmetic is float32 whatever the tensors' dtypes.

    `x`, `history`, `z` and `eps` share one dtype, `sample` has its own; each may be float32, float16 or bfloat16.
    `z` or `eps` may be `x` itself.

    Args:
        x: [B, C, h, w], overwritten.
        history: [K, B, C, h, w], overwritten with 0; None for none.
        sample: [G B, C, h, w], overwritten with the U-Net's first input in each of G halves; None for none.
        timestep: [1] float32, overwritten with the first timestep; None where `sample` is.
        flags: [B] int32, overwritten with 0; None for none.
        z: [B, C, h, w], the latent to noise.
        eps: [B, C, h, w], the noise, or None for none.
        entry: [4] float32: signal, noise, scale, timestep.
    """
    noised = entry[0] * z.float()
    if eps is not None:
        noised = noised + entry[1] * eps.float()
    x.copy_(noised)
    if history is not None:
        history.zero_()
    if flags is not None:
        flags.zero_()
    if sample is not None:
        assert timestep is not None
        scaled = entry[2] * noised
        for half in sample.split(len(x)):
            half.copy_(scaled)
        timestep.copy_(entry[3:4])


def noising_kernel(
    x_ptr,
    history_ptr,
    sample_ptr,
    timestep_ptr,
    flags_ptr,
    z_ptr,
    eps_ptr,
    entry_ptr,
    planes,
    channels,
    size,
    KEPT: tl.constexpr,
    HALVES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One block of one of the B C planes of h w elements. A pointer that is None is compiled out.

    z and eps may be x itself: every element is loaded before it is stored, and by no other program.
    """
    plane, block = tl.program_id(0), tl.program_id(1)
    pixel = block * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < size
    here = plane.to(tl.int64) * size + pixel  # [BLOCK], in x and in everything of its shape
    whole = planes.to(tl.int64) * size  # elements of x, to step from one half or kept latent to the next

    noised = tl.load(entry_ptr) * tl.load(z_ptr + here, inside, other=0.0).to(tl.float32)
    if eps_ptr is not None:
        noised += tl.load(entry_ptr + 1) * tl.load(eps_ptr + here, inside, other=0.0).to(tl.float32)
    if sample_ptr is not None:
        scaled = tl.load(entry_ptr + 2) * noised
        timestep = tl.load(entry_ptr + 3)
        for half in tl.static_range(HALVES):
            tl.store(sample_ptr + half * whole + here, scaled, inside)
        tl.store(timestep_ptr, timestep, plane + block == 0)
    tl.store(x_ptr + here, noised, inside)
    for i in tl.static_range(KEPT):
        tl.store(history_ptr + i * whole + here, tl.full((BLOCK,), 0.0, tl.float32), inside)
    if flags_ptr is not None:
        tl.store(flags_ptr + plane // channels, 0, block == 0)


def noising_triton(
    x: Tensor,
    history: Tensor | None,
    sample: Tensor | None,
    timestep: Tensor | None,
    flags: Tensor | None,
    z: Tensor,
    eps: Tensor | None,
    entry: Tensor,
) -> None:
    """`noising` as one launch of a Triton kernel, on a GPU: the same arguments, all of them contiguous.

    Raises:
        ValueError: a tensor has another size, dtype, device or layout than the eager reference's arguments.
        BackendError: Triton is not installed, or `x` is not on a GPU.
    """
    full = tuple(x.shape)
    kept = 0 if history is None else len(history)
    halves = 1 if sample is None else max(1, len(sample) // full[0])
    check(x, "x", x, full, x.dtype)
    check(x, "z", z, full, x.dtype)
    check(x, "entry", entry, (ENTRY_COLUMNS,), torch.float32)
    if eps is not None:
        check(x, "eps", eps, full, x.dtype)
    if history is not None:
        check(x, "history", history, (kept, *full), x.dtype)
    if flags is not None:
        check(x, "flags", flags, full[:1], torch.int32)
    if sample is not None:
        if timestep is None:
            raise ValueError("sample without timestep: the first U-Net input needs both")
        check(x, "sample", sample, (halves * full[0], *full[1:]), sample.dtype)
        check(x, "timestep", timestep, (1,), torch.float32)
    launch(
        noising_kernel,
        x,
        *(x, history if kept else None, sample, timestep, flags, z, eps, entry),
        KEPT=kept,
        HALVES=halves,
    )
