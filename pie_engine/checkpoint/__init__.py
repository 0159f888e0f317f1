"""Checkpoints: every format that Stable Diffusion v1.x models come in -> the same four parts, validated and hashed.

Importing this package is cheap: torch, diffusers and transformers are imported by `load_checkpoint`, not before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pie_engine.checkpoint.spec import Checkpoint, LoraSpec

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

__all__ = ["Checkpoint", "LoraSpec", "load_checkpoint", "load_unet_alone"]


def load_checkpoint(
    base: str | Path | None = None, *, unet: str | Path | None = None, lora: Sequence[LoraSpec] = ()
) -> Checkpoint:
    """Load a Stable Diffusion v1.x checkpoint in float32 on the CPU, without network and without unpickling objects.

    base: a diffusers folder, a whole single file (.safetensors, .ckpt), or a hub id in the local cache. Without it, the
        base is the pipeline folder that `unet` sits in, or Stable Diffusion v1.4 from the local cache.
    unet: replaces the base's U-Net: a U-Net folder, a pipeline or trainer folder that holds one, a single
        .safetensors file (diffusers or LDM names), or a hub id in the local cache.
    lora: fused in this order, each as W += scale * alpha / rank * up @ down.

    Raises CheckpointError (one line: value, limit, remedy): missing, corrupt, unsafe, or of another architecture.
    """
    from pie_engine.checkpoint.load import load

    return load(base, unet, tuple(lora))


def load_unet_alone(
    unet: str | Path, *, config: Mapping[str, Any], lora: Sequence[LoraSpec] = ()
) -> tuple[UNet2DConditionModel, str, str]:
    """Load a U-Net without a base, in float32 on the CPU.

    unet: as in `load_checkpoint`.
    config: the U-Net's architecture, for a file that has no config.json beside it.
    lora: fused in this order; layers of the text encoder are refused, since there is none.

    Returns the model, the sha256 of what was loaded, and where it came from. Raises CheckpointError.
    """
    from pie_engine.checkpoint.load import load_unet

    return load_unet(unet, config, tuple(lora))
