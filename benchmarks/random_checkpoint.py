"""Write a full-size Stable Diffusion v1.4-shaped checkpoint with random weights: 859.5 M parameters in the U-Net.

    python benchmarks/random_checkpoint.py DIR

Random weights cost the same to export and run as trained ones; what they draw means nothing. The demo's tokenizer.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, PNDMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from pie_engine.demo.assets import CHECKPOINT

INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "scheduler": ["diffusers", "PNDMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "safety_checker": [None, None],
    "feature_extractor": [None, None],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    write(arguments.output)


def make_unet() -> UNet2DConditionModel:
    """The U-Net of Stable Diffusion v1.4, 859.5 M parameters, on the default device."""
    return UNet2DConditionModel(
        sample_size=64,
        block_out_channels=(320, 640, 1280, 1280),
        layers_per_block=2,
        cross_attention_dim=768,
        attention_head_dim=8,
    )


def make_vae() -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        sample_size=512,
        scaling_factor=0.18215,
    )


def make_text_encoder() -> CLIPTextModel:
    config = CLIPTextConfig(
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        vocab_size=49408,
        hidden_act="quick_gelu",
    )
    return CLIPTextModel(config)


def make_scheduler() -> PNDMScheduler:
    return PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1
    )


def write(folder: Path, device: str = "cpu") -> None:
    """Each part is made, on a GPU in seconds, written as fp16 and freed before the next."""
    folder.mkdir(parents=True, exist_ok=True)
    with torch.device(device):
        _write_parts(folder)
    shutil.copytree(CHECKPOINT / "tokenizer", folder / "tokenizer", dirs_exist_ok=True)
    make_scheduler().save_pretrained(folder / "scheduler")
    (folder / "model_index.json").write_text(json.dumps(INDEX, indent=2) + "\n")


def _write_parts(folder: Path) -> None:
    unet = make_unet()
    print(f"U-Net: {sum(p.numel() for p in unet.parameters()) / 1e6:.1f} M parameters")
    unet.half().save_pretrained(folder / "unet")
    del unet
    make_vae().half().save_pretrained(folder / "vae")
    make_text_encoder().half().save_pretrained(folder / "text_encoder")


if __name__ == "__main__":
    main()
