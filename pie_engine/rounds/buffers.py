"""Every tensor that a progression writes, allocated once: a captured round reads and writes these addresses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

# Rows of the flags: which stage gave values that are not finite. In the order in which the stages run.
ENCODE, INVERSION, DENOISE, DECODE = range(4)
STAGE_COMPONENT = ("vae_encoder", "unet", "unet", "vae_decoder")


@dataclass(frozen=True)
class Shape:
    """What the buffers of a progression depend on.

    Attributes:
        batch: B items.
        latent: (C, h, w).
        scale: pixels per latent along one side, so that H = scale h.
        mask_channels: 1 or C; None for no mask.
        findings: J prompts for one item, each with its own regions.
        box: height and width of the latents that rounds compute, or None for all.
    """

    batch: int
    latent: tuple[int, int, int]
    scale: int
    mask_channels: int | None
    findings: int = 1
    box: tuple[int, int] | None = None


@dataclass(frozen=True, eq=False)
class Pacing:
    """What the blend of even pace reads and writes (`pie_engine.rounds.pace`); float32.

    Attributes:
        parts: [R, B, 1, h, w], each finding's region, p.
        blended: [R, B, 1, h, w], p m: what a blend of 1 leaves of p's displacement.
        outside: [B, 1, h, w], beta1 (1 - m).
        constant: [B, 1, h, w], beta1 (1 - m) + beta2 m.
        target: [R, B], the displacement that the round is to reach.
        blend: [R, B], the b that it took.
        blends: [R, B], those that belong to what is decoded.
        first: [B, C, h, w], x after the first round's last step, as the pilot found it.
    """

    parts: Tensor
    blended: Tensor
    outside: Tensor
    constant: Tensor
    target: Tensor
    blend: Tensor
    blends: Tensor
    first: Tensor


@dataclass(frozen=True, eq=False)
class Buffers:
    """Owner of the static tensors of one progression; latents, masks and weights are float32.

    Attributes:
        x: [B, C, h, w], the latent that a round starts from and ends with.
        eps: [B, C, h, w], the noise of the round.
        z0: [B, C, h, w], the original that the final blend reads.
        z0_background, eps_background: [B, C, h, w], what the outside is noised from; z0 and eps themselves, except in
            `official` semantics.
        mask: [B, 1 or C, h, w], 1 = may change, or None.
        weight: beta1 (1 - mask) + beta2 mask, shaped like the mask, or None.
        finding_weights: [J, B, 1, h, w], each finding's share of a latent, or None where there is one.
        guidance: [B].
        moments: [B, 2 C, h, w], the originals' posterior.
        frame_moments: [B, 2 C, h, w], the last frames' posterior (`official` semantics; else None).
        draws: [3, B, C, h, w], the posterior samples' noises (`official` semantics; else None).
        flags: [4, B] int32, not zero for an item that is not finite after a stage.
        decoding: [B, C, h, w], the decoder's own copy of x, which the next round overwrites.
        decoding_flags: [4, B] int32, the flags that belong to it.
        frames: [B, H, W, 3] uint8, as decoded.
        previous_frames: [B, H, W, 3] uint8, those that a round starts from (`official` semantics; else None).
        pace: of even pace; else None.
    """

    x: Tensor
    eps: Tensor
    z0: Tensor
    z0_background: Tensor
    eps_background: Tensor
    mask: Tensor | None
    weight: Tensor | None
    finding_weights: Tensor | None
    guidance: Tensor
    moments: Tensor
    frame_moments: Tensor | None
    draws: Tensor | None
    flags: Tensor
    decoding: Tensor
    decoding_flags: Tensor
    frames: Tensor
    previous_frames: Tensor | None
    pace: Pacing | None

    @classmethod
    def allocate(cls, shape: Shape, device: torch.device, *, official: bool, even: bool = False) -> Buffers:
        batch, (channels, height, width) = shape.batch, shape.latent

        def empty(*size: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.empty(size, dtype=dtype, device=device)

        def latent() -> Tensor:
            return empty(batch, *shape.latent)

        def mask() -> Tensor | None:
            return None if shape.mask_channels is None else empty(batch, shape.mask_channels, height, width)

        def pixels() -> Tensor:
            return empty(batch, height * shape.scale, width * shape.scale, 3, dtype=torch.uint8)

        def flags() -> Tensor:
            return torch.zeros(4, batch, dtype=torch.int32, device=device)

        def pacing() -> Pacing:
            one, findings = (batch, 1, height, width), shape.findings
            maps = (empty(findings, *one), empty(findings, *one), empty(*one), empty(*one))
            target, blend, blends = (empty(findings, batch) for _ in range(3))
            return Pacing(*maps, target, blend, blends, latent())

        eps, z0 = latent(), latent()
        return cls(
            x=latent(),
            eps=eps,
            z0=z0,
            z0_background=latent() if official else z0,
            eps_background=latent() if official else eps,
            mask=mask(),
            weight=mask(),
            finding_weights=empty(shape.findings, batch, 1, height, width) if shape.findings > 1 else None,
            guidance=empty(batch),
            moments=empty(batch, 2 * channels, height, width),
            frame_moments=empty(batch, 2 * channels, height, width) if official else None,
            draws=empty(3, batch, *shape.latent) if official else None,
            flags=flags(),
            decoding=latent(),
            decoding_flags=flags(),
            frames=pixels(),
            previous_frames=pixels() if official else None,
            pace=pacing() if even else None,
        )


@dataclass(eq=False)
class Slot:
    """Host memory that one round's results arrive in: `Buffers.x`, `frames`, `decoding_flags`, `Pacing.blends`.

    Attributes:
        wait: returns when they have arrived.
    """

    latents: Tensor
    frames: Tensor
    flags: Tensor
    blends: Tensor | None
    wait: Callable[[], None] = field(default=lambda: None)

    @classmethod
    def allocate(cls, buffers: Buffers) -> Slot:
        pin = buffers.x.device.type == "cuda"

        def beside(source: Tensor) -> Tensor:
            return torch.empty(source.shape, dtype=source.dtype, pin_memory=pin)

        blends = None if buffers.pace is None else beside(buffers.pace.blends)
        return cls(beside(buffers.x), beside(buffers.frames), beside(buffers.decoding_flags), blends)
