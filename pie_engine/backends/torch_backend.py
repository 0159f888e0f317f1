"""The components as PyTorch modules: no compilation, any device and dtype."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from pie_engine.checkpoint import Checkpoint
    from pie_engine.model import ModelInfo


def torch_dtype(name: str) -> torch.dtype:
    """ "fp32", "fp16" or "bf16" as a torch dtype."""
    import torch

    return {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[name]


class TorchBackend:
    """A checkpoint's own modules, moved to one device and dtype: the checkpoint must not be used for anything else."""

    name = "torch"

    def __init__(self, checkpoint: Checkpoint, model: ModelInfo, *, device: str = "cpu", precision: str = "fp32"):
        import torch

        self.model = model
        self.device = torch.device(device)
        self.precision = precision
        self._dtype = torch_dtype(precision)
        if precision == "fp32" and self.device.type == "cuda":
            torch.backends.cudnn.allow_tf32 = False  # on by default: convolutions would keep 10 bits of mantissa
        # nn.Module.to, not the diffusers override: that one warns about an empty list of modules to keep in fp32.
        move = torch.nn.Module.to
        self._unet = move(checkpoint.unet, self.device, self._dtype)
        self._vae = move(checkpoint.vae, self.device, self._dtype)
        self._text_encoder = move(checkpoint.text_encoder, self.device, self._dtype)

    def encode_text(self, ids: Tensor) -> Tensor:
        return self._text_encoder(ids.to(self.device))[0]

    def encode_image(self, pixels: Tensor) -> Tensor:
        return self._vae.encode(pixels.to(self.device, self._dtype)).latent_dist.parameters.float()

    def decode_latent(self, latent: Tensor) -> Tensor:
        return self._vae.decode(latent.to(self.device, self._dtype)).sample.float()

    def bind_unet(self, batch: int, height: int, width: int) -> _BoundUNet:
        import torch

        channels, info = self.model.latent_channels, self.model
        return _BoundUNet(
            self._unet,
            sample=torch.empty((batch, channels, height, width), device=self.device, dtype=self._dtype),
            timestep=torch.empty(1, device=self.device),
            context=torch.empty((batch, info.max_tokens, info.text_width), device=self.device, dtype=self._dtype),
        )


class _BoundUNet:
    def __init__(self, unet: torch.nn.Module, *, sample: Tensor, timestep: Tensor, context: Tensor):
        self._unet = unet
        self.sample, self.timestep, self.context = sample, timestep, context
        self.output = sample  # replaced by the first call

    def __call__(self) -> None:
        # The module allocates its own output; keeping that one saves a copy on the CPU.
        self.output = self._unet(self.sample, self.timestep, encoder_hidden_states=self.context).sample
