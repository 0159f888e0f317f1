"""One denoising step around the U-Net: guidance, scheduler update, ROI blend, and the next U-Net input.

With g the guidance scale, m the mask and one row of the schedule's table (`pie_engine.kernels.table`):

    e      = u + g (c - u)
    x'     = a x + b e + c . h                     h' = P h + p x + q e
    x      = m x' + (1 - m) (signal z0 + noise eps)
    input  = scale x, written to both halves of the next U-Net batch, and its timestep

Between steps m is the mask and the background is the original, noised to the next timestep. In the last step the row
says signal 1 and noise 0, and the caller passes m = beta1 (1 - mask) + beta2 mask and the z0 of the blend: the same
formula is then the round's final blend, z0 + m (x' - z0) (arXiv 2309.11745, algorithm 1). DDIM inversion is a step
without guidance and mask.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pie_engine.kernels.table import NOISE, SCALE, SIGNAL, TIMESTEP, VECTORS, A, B, columns
from pie_engine.kernels.triton_launch import check, launch

if TYPE_CHECKING:
    import triton.language as tl
    from torch import Tensor


def denoise_step(
    x: Tensor,
    history: Tensor,
    sample: Tensor | None,
    timestep: Tensor | None,
    flags: Tensor,
    output: Tensor,
    table: Tensor,
    row: int,
    guidance: Tensor | None = None,
    mask: Tensor | None = None,
    z0: Tensor | None = None,
    eps: Tensor | None = None,
) -> None:
    """Apply one step in place: the eager reference. Arithmetic is float32 whatever the tensors' dtypes.

    Every implementation takes these arguments. `x`, `history`, `mask`, `z0` and `eps` share one dtype, `sample` and
    `output` another; each may be float32, float16 or bfloat16.

    Args:
        x: [B, C, h, w], the latent; overwritten with the next one.
        history: [K, B, C, h, w], what the sampler keeps; overwritten.
        sample: [G B, C, h, w], overwritten with the next U-Net input; None in a round's last step.
        timestep: [1] float32, overwritten with the next timestep; None where `sample` is.
        flags: [B] int32, set to 1 for an item whose latent or guided noise is not finite; else left alone.
        output: [G B, C, h, w], the U-Net's output; G = 2 with guidance (unconditional half first), else 1.
        table: [k, columns(K)] float32.
        row: this step's row of the table.
        guidance: [B] float32 scales, or None when G = 1.
        mask: [B, 1 or C, h, w], 1 = may change; None for no mask.
        z0: [B, C, h, w], the original that the outside of the mask is taken from; needed with a mask.
        eps: [B, C, h, w], the background's noise; None leaves it out (the last step).
    """
    kept = len(history)
    coefficients = table[row]
    c, p, q = (coefficients[VECTORS + i * kept :][:kept].view(-1, 1, 1, 1, 1) for i in range(3))
    if guidance is None:
        e = output.float()
    else:
        unconditional, conditional = output.float().chunk(2)
        e = unconditional + guidance.view(-1, 1, 1, 1) * (conditional - unconditional)
    before, h = x.float(), history.float()
    after = coefficients[A] * before + coefficients[B] * e
    if kept:
        after = after + (c * h).sum(0)
        matrix = coefficients[VECTORS + 3 * kept :].view(kept, kept)
        history.copy_((matrix @ h.flatten(1)).view_as(h) + p * before + q * e)
    if mask is not None:
        assert z0 is not None
        background = coefficients[SIGNAL] * z0.float()
        if eps is not None:
            background = background + coefficients[NOISE] * eps.float()
        after = mask.float() * after + (1 - mask.float()) * background
    x.copy_(after)
    finite = x.isfinite() & e.isfinite()
    flags.logical_or_(~finite.flatten(1).all(1))
    if sample is not None:
        assert timestep is not None
        scaled = coefficients[SCALE] * after
        for half in sample.split(len(x)):
            half.copy_(scaled)
        timestep.copy_(coefficients[TIMESTEP : TIMESTEP + 1])


def denoise_step_kernel(
    x_ptr,
    history_ptr,
    sample_ptr,
    timestep_ptr,
    flags_ptr,
    output_ptr,
    table_ptr,
    row,
    guidance_ptr,
    mask_ptr,
    z0_ptr,
    eps_ptr,
    planes,
    channels,
    size,
    KEPT: tl.constexpr,
    HALVES: tl.constexpr,
    MASK_PER_CHANNEL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One block of one of the B C planes of h w elements. A pointer that is None is compiled out.

    All is loaded before anything is stored: x and the history are updated in place, and since the compiler cannot
    know that the tensors do not overlap, it moves no load above a store.
    """
    plane, block = tl.program_id(0), tl.program_id(1)
    item = plane // channels
    pixel = block * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < size
    here = plane.to(tl.int64) * size + pixel  # [BLOCK], in x and in everything of its shape
    whole = planes.to(tl.int64) * size  # elements of x, to step from one half or kept latent to the next

    # The order of the columns is that of kernels/table.py; a kernel cannot read Python's globals.
    row_ptr = table_ptr + row * (6 + 3 * KEPT + KEPT * KEPT)
    c_ptr, p_ptr, q_ptr, matrix_ptr = row_ptr + 6, row_ptr + 6 + KEPT, row_ptr + 6 + 2 * KEPT, row_ptr + 6 + 3 * KEPT

    before = tl.load(x_ptr + here, inside, other=0.0).to(tl.float32)
    e = tl.load(output_ptr + here, inside, other=0.0).to(tl.float32)
    if guidance_ptr is not None:
        conditional = tl.load(output_ptr + whole + here, inside, other=0.0).to(tl.float32)
        e += tl.load(guidance_ptr + item) * (conditional - e)
    kept = ()
    for i in tl.static_range(KEPT):
        latent = tl.load(history_ptr + i * whole + here, inside, other=0.0).to(tl.float32)
        kept += (latent,)  # type: ignore[assignment]

    after = tl.load(row_ptr) * before + tl.load(row_ptr + 1) * e
    for i in tl.static_range(KEPT):
        after += tl.load(c_ptr + i) * kept[i]
    next_kept = ()
    for j in tl.static_range(KEPT):
        latent = tl.load(p_ptr + j) * before + tl.load(q_ptr + j) * e
        for i in tl.static_range(KEPT):
            latent += tl.load(matrix_ptr + j * KEPT + i) * kept[i]
        next_kept += (latent,)  # type: ignore[assignment]
    if mask_ptr is not None:
        mask_plane = plane if MASK_PER_CHANNEL else item
        m = tl.load(mask_ptr + mask_plane.to(tl.int64) * size + pixel, inside, other=0.0).to(tl.float32)
        background = tl.load(row_ptr + 2) * tl.load(z0_ptr + here, inside, other=0.0).to(tl.float32)
        if eps_ptr is not None:
            background += tl.load(row_ptr + 3) * tl.load(eps_ptr + here, inside, other=0.0).to(tl.float32)
        after = m * after + (1.0 - m) * background

    stored = after.to(x_ptr.dtype.element_ty)
    if sample_ptr is not None:
        scaled = tl.load(row_ptr + 4) * after
        timestep = tl.load(row_ptr + 5)
        for half in tl.static_range(HALVES):
            tl.store(sample_ptr + half * whole + here, scaled, inside)
        tl.store(timestep_ptr, timestep, plane + block == 0)
    tl.store(x_ptr + here, stored, inside)
    for i in tl.static_range(KEPT):
        tl.store(history_ptr + i * whole + here, next_kept[i], inside)
    # An e that is not finite leaves no x finite: even 0 times it is NaN, and NaN compares as not less. Whoever finds a
    # bad value stores the same 1, so no order matters.
    finite = tl.abs(stored.to(tl.float32)) < float("inf")
    tl.store(flags_ptr + tl.full((BLOCK,), item, tl.int32), 1, inside & (finite == 0))


def denoise_step_triton(
    x: Tensor,
    history: Tensor,
    sample: Tensor | None,
    timestep: Tensor | None,
    flags: Tensor,
    output: Tensor,
    table: Tensor,
    row: int,
    guidance: Tensor | None = None,
    mask: Tensor | None = None,
    z0: Tensor | None = None,
    eps: Tensor | None = None,
) -> None:
    """`denoise_step` as one launch of a Triton kernel, on a GPU: the same arguments, all of them contiguous.

    Raises:
        ValueError: a tensor has another size, dtype, device or layout than the eager reference's arguments.
        BackendError: Triton is not installed, or `x` is not on a GPU.
    """
    import torch

    kept, halves, full = len(history), 1 if guidance is None else 2, tuple(x.shape)
    batch, channels, *plane = full
    check(x, "x", x, full, x.dtype)
    check(x, "history", history, (kept, *full), x.dtype)
    check(x, "flags", flags, (batch,), torch.int32)
    check(x, "output", output, (halves * batch, *full[1:]), output.dtype)
    check(x, "table", table, (len(table), columns(kept)), torch.float32)
    if not 0 <= row < len(table):
        raise ValueError(f"row {row} is not one of the table's {len(table)}")
    if guidance is not None:
        check(x, "guidance", guidance, (batch,), torch.float32)
    if sample is not None:
        if timestep is None:
            raise ValueError("sample without timestep: the next U-Net input needs both")
        check(x, "sample", sample, (halves * batch, *full[1:]), output.dtype)
        check(x, "timestep", timestep, (1,), torch.float32)
    per_channel = mask is not None and mask.shape[1] != 1
    if mask is not None:
        if z0 is None:
            raise ValueError("mask without z0: the outside of the mask is taken from it")
        check(x, "mask", mask, (batch, channels if per_channel else 1, *plane), x.dtype)
        check(x, "z0", z0, full, x.dtype)
        if eps is not None:
            check(x, "eps", eps, full, x.dtype)
    launch(
        denoise_step_kernel,
        x,
        *(x, history if kept else None, sample, timestep, flags, output, table, row, guidance, mask, z0, eps),
        KEPT=kept,
        HALVES=halves,
        MASK_PER_CHANNEL=per_channel,
    )
