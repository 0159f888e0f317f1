"""What a loaded checkpoint is, and how a LoRA is asked for. No heavy import at run time."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pie_engine.errors import CheckpointError

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer


@dataclass(frozen=True)
class LoraSpec:
    """A LoRA file (or folder) and its strength."""

    path: Path
    scale: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path(self.path))
        if not math.isfinite(self.scale):
            raise CheckpointError(f"LoRA scale {self.scale} of {self.path} is not a finite number; use one such as 0.8")

    @classmethod
    def of(cls, given: str | Path | LoraSpec) -> LoraSpec:
        """A LoRA as it was given: itself, a path, or a text as `parse` takes it."""
        if isinstance(given, LoraSpec):
            return given
        return cls(given) if isinstance(given, Path) else cls.parse(given)

    @classmethod
    def parse(cls, text: str) -> LoraSpec:
        """Read "file.safetensors" or "file.safetensors:0.8". Raises CheckpointError on a scale that is no number."""
        path, colon, scale = text.rpartition(":")
        # A colon may belong to the path ("C:\\lora.safetensors", or a file that is really called "a:1").
        if not colon or (len(path) == 1 and scale.startswith(("/", "\\"))) or Path(text).exists():
            return cls(Path(text))
        try:
            value = float(scale)
        except ValueError:
            raise CheckpointError(
                f"LoRA scale '{scale}' in '{text}' is not a number; write FILE or FILE:SCALE, such as {path}:0.8"
            ) from None
        return cls(Path(path), value)


@dataclass(frozen=True)
class Checkpoint:
    """The parts of one model: float32, eval mode, no gradients, on the CPU.

    scheduler_config: as stored, with "_class_name".
    hashes: "unet", "vae", "text_encoder", "tokenizer" -> sha256 of what was loaded, LoRA included.
    sources: the same names and "scheduler" -> where each came from, for provenance.
    """

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    scheduler_config: dict[str, Any]
    hashes: dict[str, str]
    sources: dict[str, str]

    @property
    def latent_channels(self) -> int:
        """Channels of a latent [B, C, H / vae_scale, W / vae_scale]."""
        return int(self.vae.config.latent_channels)

    @property
    def vae_scale(self) -> int:
        """Pixels per latent pixel along one side: 8 for Stable Diffusion v1.x."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def resolution_multiple(self) -> int:
        """Height and width in pixels must be multiples of this: 64 for Stable Diffusion v1.x."""
        return self.vae_scale * 2 ** (len(self.unet.config.block_out_channels) - 1)

    @property
    def default_resolution(self) -> int:
        """The side in pixels that the U-Net was trained at: 512 for Stable Diffusion v1.x."""
        size = self.unet.config.sample_size
        return int(size[0] if isinstance(size, (list, tuple)) else size or 64) * self.vae_scale

    @property
    def scaling_factor(self) -> float:
        """Latents are the posterior's values times this: 0.18215 for Stable Diffusion v1.x."""
        return float(self.vae.config.scaling_factor)

    @property
    def prediction_type(self) -> str:
        """What the U-Net predicts: "epsilon", "v_prediction" or "sample"."""
        return str(self.scheduler_config.get("prediction_type", "epsilon"))

    @property
    def max_tokens(self) -> int:
        """Length of a tokenized prompt: 77 for CLIP."""
        return int(self.text_encoder.config.max_position_embeddings)
