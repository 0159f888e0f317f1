"""Checkpoints: every format that Stable Diffusion v1.x models come in -> the same four parts, validated and hashed.

Importing this package is cheap: torch, diffusers and transformers are imported by `load_checkpoint`, not before.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pie_engine.checkpoint.spec import Checkpoint, LoraSpec

__all__ = ["Checkpoint", "LoraSpec", "load_checkpoint"]


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
