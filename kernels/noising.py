"""The entry of a round: noise a latent to the first timestep, and write the first U-Net input.

    x      = signal z + noise eps
    input  = scale x, written to both halves of the U-Net batch, and its timestep

DDIM inversion enters with signal 1 and without noise. What it arrives at is read back as a noise by the same formula:
eps = (x - signal z) / noise has the coefficients -signal / noise of z and 1 / noise of x.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


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
