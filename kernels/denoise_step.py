"""One denoising step around the U-Net: guidance, scheduler update, ROI blend, and the next U-Net input.

The eager reference of the fused step. With g the guidance scale, m the mask and one row of the schedule's table:

    e      = u + g (c - u)
    x'     = a x + b e + c . h                     h' = P h + p x + q e
    next   : x = m x' + (1 - m) (signal z0 + noise eps)     the outside of the ROI, noised to the next timestep
    last   : x = z + (beta1 (1 - m) + beta2 m) (x' - z)     the beta blend with the original latent z
    input  = input_scale x, written to both halves of the next U-Net batch
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor


class StepRow(NamedTuple):
    """One row of the table, as float32 tensors on the device (0-d, [K] or [K, K]), so that no step syncs.

    `next_signal`, `next_noise` and `next_scale` belong to the following timestep; unused in the last step.
    """

    a: Tensor
    b: Tensor
    c: Tensor
    P: Tensor
    p: Tensor
    q: Tensor
    next_signal: Tensor
    next_noise: Tensor
    next_scale: Tensor


class Blend(NamedTuple):
    """The final blend of a round with the original latent z [B, 4, h, w].

    weight [B, 1 or 4, h, w] is beta1 (1 - m) + beta2 m: a tensor, so that betas may differ by item or region.
    """

    z: Tensor
    weight: Tensor


class Background(NamedTuple):
    """What replaces the outside of the ROI between steps: z0 and eps, both [B, 4, h, w]."""

    z0: Tensor
    eps: Tensor


def denoise_step(
    x: Tensor,
    history: Tensor,
    output: Tensor,
    unet_input: Tensor,
    row: StepRow,
    guidance: Tensor | None,
    mask: Tensor | None,
    background: Background | None,
    blend: Blend | None,
    last: bool,
) -> None:
    """Apply one step in place.

    Args:
        x: [B, 4, h, w] float32, the sample; overwritten with the next one.
        history: [K, B, 4, h, w] float32, what the sampler keeps; overwritten.
        output: [G B, 4, h, w], the U-Net's output; G = 2 with guidance (unconditional half first), else 1.
        unet_input: [G B, 4, h, w], overwritten with the next input (not in the last step).
        row: this step's coefficients.
        guidance: [B, 1, 1, 1] float32 scale, or None when G = 1.
        mask: [B, 1 or 4, h, w] float32, 1 = may change; None for no mask.
        background, blend: needed with a mask.
        last: the round's last step: the beta blend instead of the background.
    """
    if guidance is None:
        e = output.float()
    else:
        u, c = output.float().chunk(2)
        e = u + guidance * (c - u)
    stepped = row.a * x + row.b * e
    if len(history):
        weights = row.c.reshape(-1, 1, 1, 1, 1)
        stepped += (weights * history).sum(0)
        kept = (row.P @ history.flatten(1)).view_as(history)
        kept += row.p.reshape(-1, 1, 1, 1, 1) * x + row.q.reshape(-1, 1, 1, 1, 1) * e
        history.copy_(kept)
    if mask is not None and last:
        assert blend is not None
        stepped = blend.z + blend.weight * (stepped - blend.z)
    elif mask is not None:
        assert background is not None
        outside = row.next_signal * background.z0 + row.next_noise * background.eps
        stepped = mask * stepped + (1 - mask) * outside
    x.copy_(stepped)
    if not last:
        write_input(x, unet_input, row.next_scale)


def write_input(x: Tensor, unet_input: Tensor, scale: Tensor) -> None:
    """unet_input [G B, 4, h, w] = scale * x [B, 4, h, w] in each of its G halves, in the U-Net's dtype."""
    scaled = scale * x
    for half in unet_input.split(len(x)):
        half.copy_(scaled)
