"""The four components of a Stable-Diffusion-v1.x-shaped model as modules over plain tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pie_engine.export.graph import Component

if TYPE_CHECKING:
    from pie_engine.checkpoint import Checkpoint


class _UNet(nn.Module):
    def __init__(self, unet: Any):
        super().__init__()
        self.unet = unet

    def forward(self, sample: Tensor, timestep: Tensor, context: Tensor) -> Tensor:
        return self.unet(sample, timestep, encoder_hidden_states=context, return_dict=False)[0]


class _Encoder(nn.Module):
    """Pixels -> posterior moments. Pixels and moments stay fp32: only the inside runs in the module's dtype."""

    def __init__(self, vae: Any):
        super().__init__()
        self.encoder: Any = vae.encoder
        self.quant_conv: Any = vae.quant_conv

    def forward(self, pixels: Tensor) -> Tensor:
        hidden = self.encoder(pixels.to(self.encoder.conv_in.weight.dtype))
        return (hidden if self.quant_conv is None else self.quant_conv(hidden)).float()


class _Decoder(nn.Module):
    def __init__(self, vae: Any):
        super().__init__()
        self.decoder: Any = vae.decoder
        self.post_quant_conv: Any = vae.post_quant_conv

    def forward(self, latent: Tensor) -> Tensor:
        latent = latent.to(self.decoder.conv_in.weight.dtype)
        return self.decoder(latent if self.post_quant_conv is None else self.post_quant_conv(latent)).float()


class _TextEncoder(nn.Module):
    def __init__(self, text_encoder: Any):
        super().__init__()
        self.text_encoder = text_encoder

    def forward(self, ids: Tensor) -> Tensor:
        return self.text_encoder(ids)[0]


def component(checkpoint: Checkpoint, name: str, *, small: bool = False) -> Component:
    """One component with example inputs: batch 2 and two different sides, so that no size is taken for a constant.

    Args:
        small: a sixth of those, to see that a graph that was exported before has its weights in their places.
    """
    batch, sides = (1, (1, 2)) if small else (2, (2, 3))
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    multiple = checkpoint.resolution_multiple
    height, width = (multiple * side for side in sides)
    latent = (batch, checkpoint.latent_channels, height // checkpoint.vae_scale, width // checkpoint.vae_scale)
    space = {0: "batch", 2: "height", 3: "width"}
    if name == "unet":
        context = normal(batch, checkpoint.max_tokens, checkpoint.unet.config.cross_attention_dim)
        inputs = {"sample": normal(*latent), "timestep": torch.tensor([481.0]), "context": context}
        return Component(name, _UNet(checkpoint.unet), inputs, {"sample": space, "context": {0: "batch"}}, "prediction")
    if name == "vae_encoder":
        pixels = normal(batch, 3, height, width).clamp(-1, 1)
        return Component(name, _Encoder(checkpoint.vae), {"pixels": pixels}, {"pixels": space}, "moments")
    if name == "vae_decoder":
        return Component(name, _Decoder(checkpoint.vae), {"latent": normal(*latent)}, {"latent": space}, "pixels")
    ids = torch.randint(0, 100, (batch, checkpoint.max_tokens), generator=generator)
    return Component(name, _TextEncoder(checkpoint.text_encoder), {"ids": ids}, {"ids": {0: "batch"}}, "embeddings")
