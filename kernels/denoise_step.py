"""One denoising step around the U-Net: guidance, scheduler update, ROI blend, and the next U-Net input.

With g the guidance scale and one row of the schedule's table (`pie_engine.kernels.table`):

    e      = u + g (c - u)
    x'     = a x + b e + c . h                     h' = P h + p x + q e
    x      = m x' + (1 - m) (signal z0 + noise eps)         where a step follows: m the mask
    x      = w x' + (1 - w) original                        in the last: w = beta1 (1 - m) + beta2 m
    input  = scale x, written to both halves of the next U-Net batch, and its timestep

Between steps the outside is the original, noised to the next timestep; the last one's blend is the round's own,
original + w (x' - original) (arXiv 2309.11745, algorithm 1). DDIM inversion is a step without guidance and mask.

Which row it is stands in a counter on the device, so that one captured CUDA graph is every step of every schedule.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pie_engine.kernels.table import LAST, NOISE, SCALE, SIGNAL, TIMESTEP, VECTORS, A, B, columns
from pie_engine.kernels.triton_launch import check, launch

if TYPE_CHECKING:
    import triton.language as tl


def denoise_step(
    x: Tensor,
    history: Tensor,
    sample: Tensor,
    timestep: Tensor,
    flags: Tensor,
    output: Tensor,
    table: Tensor,
    row: Tensor,
    guidance: Tensor | None = None,
    mask: Tensor | None = None,
    z0: Tensor | None = None,
    eps: Tensor | None = None,
    weight: Tensor | None = None,
    original: Tensor | None = None,
) -> None:
    """Apply one step in place: the eager reference. Arithmetic is float32 whatever the tensors' dtypes.

    Every implementation takes these arguments. `x`, `history`, `mask`, `z0`, `eps`, `weight` and `original` share one
    dtype, `sample` and `output` another; each may be float32, float16 or bfloat16.

    Args:
        x: [B, C, h, w], the latent; overwritten with the next one.
        history: [K, B, C, h, w], what the sampler keeps; overwritten.
        sample: [G B, C, h, w], overwritten with the next U-Net input (after the last step it means nothing).
        timestep: [1] float32, overwritten with the next timestep.
        flags: [B] int32, set to 1 for an item whose latent or guided noise is not finite; else left alone.
        output: [G B, C, h, w], the U-Net's output; G = 2 with guidance (unconditional half first), else 1.
        table: [R, columns(K)] float32, the rows of one schedule or of several, one after the other.
        row: [1] int32, this step's row of the table; overwritten with the next one's.
        guidance: [B] float32 scales, or None when G = 1.
        mask: [B, 1 or C, h, w], 1 = may change; None for no mask, and then the other four are None too.
        z0: [B, C, h, w], the original that the outside of the mask is taken from between steps.
        eps: [B, C, h, w], the background's noise.
        weight: shaped like the mask, how far the last step's latent is taken instead of the original.
        original: [B, C, h, w], what the last step blends with.
    """
    kept = len(history)
    coefficients = table.index_select(0, row)[0]
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
        assert z0 is not None and eps is not None and weight is not None and original is not None
        last = coefficients[LAST] != 0
        background = coefficients[SIGNAL] * z0.float() + coefficients[NOISE] * eps.float()
        background = torch.where(last, original.float(), background)
        m = torch.where(last, weight.float(), mask.float())
        after = m * after + (1 - m) * background
    x.copy_(after)
    finite = x.isfinite() & e.isfinite()
    flags.logical_or_(~finite.flatten(1).all(1))
    scaled = coefficients[SCALE] * after
    for half in sample.split(len(x)):
        half.copy_(scaled)
    timestep.copy_(coefficients[TIMESTEP : TIMESTEP + 1])
    row.add_(1)


def denoise_step_kernel(
    x_ptr,
    history_ptr,
    sample_ptr,
    timestep_ptr,
    flags_ptr,
    output_ptr,
    table_ptr,
    row_ptr,
    guidance_ptr,
    mask_ptr,
    z0_ptr,
    eps_ptr,
    weight_ptr,
    original_ptr,
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

    # The order of the columns is that of kernels/table.py; a kernel cannot read Python's globals. The row is not
    # advanced here: other programs of the launch may still have to read it.
    own_ptr = table_ptr + tl.load(row_ptr) * (7 + 3 * KEPT + KEPT * KEPT)
    c_ptr, p_ptr, q_ptr, matrix_ptr = own_ptr + 7, own_ptr + 7 + KEPT, own_ptr + 7 + 2 * KEPT, own_ptr + 7 + 3 * KEPT

    before = tl.load(x_ptr + here, inside, other=0.0).to(tl.float32)
    e = tl.load(output_ptr + here, inside, other=0.0).to(tl.float32)
    if guidance_ptr is not None:
        conditional = tl.load(output_ptr + whole + here, inside, other=0.0).to(tl.float32)
        e += tl.load(guidance_ptr + item) * (conditional - e)
    kept = ()
    for i in tl.static_range(KEPT):
        latent = tl.load(history_ptr + i * whole + here, inside, other=0.0).to(tl.float32)
        kept += (latent,)  # type: ignore[assignment]

    after = tl.load(own_ptr) * before + tl.load(own_ptr + 1) * e
    for i in tl.static_range(KEPT):
        after += tl.load(c_ptr + i) * kept[i]
    next_kept = ()
    for j in tl.static_range(KEPT):
        latent = tl.load(p_ptr + j) * before + tl.load(q_ptr + j) * e
        for i in tl.static_range(KEPT):
            latent += tl.load(matrix_ptr + j * KEPT + i) * kept[i]
        next_kept += (latent,)  # type: ignore[assignment]
    if mask_ptr is not None:
        # Both blends' planes are read and one is kept: a branch would save little traffic, and its reads would begin
        # only when the row and then the table's entry had arrived, one memory latency after the other.
        mask_plane = plane if MASK_PER_CHANNEL else item
        there = mask_plane.to(tl.int64) * size + pixel
        m = tl.load(mask_ptr + there, inside, other=0.0).to(tl.float32)
        weight = tl.load(weight_ptr + there, inside, other=0.0).to(tl.float32)
        background = tl.load(own_ptr + 2) * tl.load(z0_ptr + here, inside, other=0.0).to(tl.float32)
        background += tl.load(own_ptr + 3) * tl.load(eps_ptr + here, inside, other=0.0).to(tl.float32)
        original = tl.load(original_ptr + here, inside, other=0.0).to(tl.float32)
        last = tl.load(own_ptr + 6) != 0
        m, background = tl.where(last, weight, m), tl.where(last, original, background)
        after = m * after + (1.0 - m) * background

    stored = after.to(x_ptr.dtype.element_ty)
    scaled = tl.load(own_ptr + 4) * after
    timestep = tl.load(own_ptr + 5)
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
    sample: Tensor,
    timestep: Tensor,
    flags: Tensor,
    output: Tensor,
    table: Tensor,
    row: Tensor,
    guidance: Tensor | None = None,
    mask: Tensor | None = None,
    z0: Tensor | None = None,
    eps: Tensor | None = None,
    weight: Tensor | None = None,
    original: Tensor | None = None,
) -> None:
    """`denoise_step` as a Triton kernel, on a GPU: the same arguments, all of them contiguous.

    The host does not know the row: that it is one of the table's is up to whoever sets it.

    Raises:
        ValueError: a tensor has another size, dtype, device or layout than the eager reference's arguments.
        BackendError: Triton is not installed, or `x` is not on a GPU.
    """
    kept, halves, full = len(history), 1 if guidance is None else 2, tuple(x.shape)
    batch, channels, *plane = full
    check(x, "x", x, full, x.dtype)
    check(x, "history", history, (kept, *full), x.dtype)
    check(x, "sample", sample, (halves * batch, *full[1:]), output.dtype)
    check(x, "timestep", timestep, (1,), torch.float32)
    check(x, "flags", flags, (batch,), torch.int32)
    check(x, "output", output, (halves * batch, *full[1:]), output.dtype)
    check(x, "table", table, (len(table), columns(kept)), torch.float32)
    check(x, "row", row, (1,), torch.int32)
    if guidance is not None:
        check(x, "guidance", guidance, (batch,), torch.float32)
    per_channel = mask is not None and mask.shape[1] != 1
    if mask is not None:
        shape = (batch, channels if per_channel else 1, *plane)
        check(x, "mask", mask, shape, x.dtype)
        blended = (("z0", z0, full), ("eps", eps, full), ("weight", weight, shape), ("original", original, full))
        for name, tensor, expected in blended:
            if tensor is None:
                raise ValueError(f"mask without {name}: masked steps need z0, eps, weight and original")
            check(x, name, tensor, expected, x.dtype)
    else:
        z0 = eps = weight = original = None
    launch(
        denoise_step_kernel,
        x,
        *(x, history if kept else None, sample, timestep, flags, output, table, row, guidance),
        *(mask, z0, eps, weight, original),
        KEPT=kept,
        HALVES=halves,
        MASK_PER_CHANNEL=per_channel,
    )
    row.add_(1)
