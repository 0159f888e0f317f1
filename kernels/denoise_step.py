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

from pie_engine.kernels.table import NOISE, SCALE, SIGNAL, TIMESTEP, VECTORS, A, B

if TYPE_CHECKING:
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
