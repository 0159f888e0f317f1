"""Checkpoints of another architecture, and parts in the wrong place, are refused by name."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from tiny_checkpoints import edit_config, ldm_unet, ldm_whole, make_models, refused, save_tokenizer, write_json


def test_unet_in_text_encoder_of_a_base(copied: Path, models: SimpleNamespace) -> None:
    shutil.rmtree(copied / "text_encoder")
    models.unet.save_pretrained(copied / "text_encoder")
    refused(
        r"text_encoder holds a UNet2DConditionModel where a CLIPTextModel is expected.*unet='.*/text_encoder", copied
    )


def test_ambiguous_unet(folder: Path, models: SimpleNamespace, tmp_path: Path) -> None:
    for name in ("unet", "text_encoder"):
        models.unet.save_pretrained(tmp_path / "out" / name)
    refused("holds 2 U-Nets", folder, unet=tmp_path / "out")


def test_wrong_flag(folder: Path, models: SimpleNamespace, tmp_path: Path) -> None:
    refused("U-Net alone; pass it as unet=", folder / "unet")
    refused("holds a AutoencoderKL", folder / "vae")
    refused("holds a AutoencoderKL", folder, unet=folder / "vae")
    save_file({f"model.diffusion_model.{k}": v for k, v in ldm_unet(models.unet).items()}, tmp_path / "u.safetensors")
    refused("U-Net alone; pass it as unet=", tmp_path / "u.safetensors")


@pytest.mark.parametrize(
    ("names", "match"),
    [
        ("conditioner.embedders.0.transformer.x", "SDXL"),
        ("cond_stage_model.model.ln_final.weight", "SD 2.x.*diffusers folder"),
        ("control_model.input_blocks.0.0.weight", "ControlNet"),
        ("double_blocks.0.img_attn.qkv.weight", "Flux"),
        ("model.diffusion_model.joint_blocks.0.x", "SD 3"),
        ("encoder.conv_in.weight", "a VAE"),
        ("layer1.0.weight", "no known model.*layer1.0.weight"),
    ],
)
def test_foreign_single_files(names: str, match: str, folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "foreign.safetensors"
    save_file({names: torch.ones(4, 4)}, path)
    refused(match, path)
    refused(match, folder, unet=path)


def test_inpainting_file(models: SimpleNamespace, tmp_path: Path) -> None:
    state = ldm_whole(models)
    state["model.diffusion_model.input_blocks.0.0.weight"] = torch.ones(32, 9, 3, 3)
    save_file(state, tmp_path / "inpainting.safetensors")
    refused("inpainting.*9 input channels, 4 are expected", tmp_path / "inpainting.safetensors")


@pytest.mark.parametrize(
    ("entries", "match"),
    [
        ({"addition_embed_type": "text_time"}, "addition_embed_type=text_time .as in SDXL"),
        ({"num_class_embeds": 1000}, "class-conditional"),
        ({"encoder_hid_dim": 768}, "encoder_hid_dim=768"),
        ({"down_block_types": ["SimpleCrossAttnDownBlock2D", "DownBlock2D"]}, "built of SimpleCrossAttnDownBlock2D"),
    ],
)
def test_foreign_unet_config(entries: dict[str, object], match: str, copied: Path) -> None:
    edit_config(copied / "unet", **entries)
    refused(match, copied)


def test_foreign_pipelines(copied: Path) -> None:
    write_json(copied / "unet" / "config.json", {"_class_name": "ControlNetModel"})
    refused("holds a ControlNetModel, not a UNet2DConditionModel", copied)
    (copied / "unet").rename(copied / "transformer")
    write_json(copied / "transformer" / "config.json", {"_class_name": "FluxTransformer2DModel"})
    write_json(copied / "model_index.json", {"_class_name": "FluxPipeline"})
    refused("is a FluxPipeline and has no UNet2DConditionModel", copied)


def test_parts_that_do_not_fit_each_other(folder: Path, models: SimpleNamespace, tmp_path: Path) -> None:
    make_models(cross_attention_dim=32).unet.save_pretrained(tmp_path / "narrow")
    refused("width 32, the text encoder's are 64 wide", folder, unet=tmp_path / "narrow")
    make_models(in_channels=9).unet.save_pretrained(tmp_path / "inpainting")
    refused("9 input and 4 output channels", folder, unet=tmp_path / "inpainting")
    save_file(make_models(block_out_channels=(32, 96)).unet.state_dict(), tmp_path / "wide.safetensors")
    refused(
        r"tensor \S+ of .*wide.safetensors is \[.*its config expects \[", folder, unet=tmp_path / "wide.safetensors"
    )


def test_shapes_that_do_not_tell_the_config(models: SimpleNamespace, tmp_path: Path) -> None:
    """16 groups and 4 heads look like 32 and 8 in the shapes: refuse instead of guessing."""
    odd = make_models(block_out_channels=(16, 48), norm_num_groups=16, attention_head_dim=4).unet
    save_file(ldm_whole(SimpleNamespace(**{**vars(models), "unet": odd})), tmp_path / "odd.safetensors")
    save_tokenizer(tmp_path / "tokenizer")
    refused(r"\[16, 48\].*multiples of 32", tmp_path / "odd.safetensors")


def test_vae_of_another_class(copied: Path) -> None:
    edit_config(copied / "vae", _class_name="AutoencoderTiny")
    refused("holds a AutoencoderTiny, not a AutoencoderKL", copied)
