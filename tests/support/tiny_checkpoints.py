"""Tiny Stable Diffusion v1.x-shaped models for the checkpoint tests, and the original (LDM) names of their tensors."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from pie_engine.checkpoint import load_checkpoint
from pie_engine.errors import CheckpointError

LETTERS = "abcdefghijklmnopqrstuvwxyz"
SCHEDULER = {
    "_class_name": "PNDMScheduler",
    "_diffusers_version": "0.15.0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
}


def vocabulary() -> dict[str, int]:
    tokens = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), "in</w>", "<|startoftext|>", "<|endoftext|>"]
    return {token: index for index, token in enumerate(tokens)}


def make_models(**unet: object) -> SimpleNamespace:
    """U-Net, VAE and text encoder of SD v1's proportions: 8 heads, 32 groups, text heads of 64."""
    torch.manual_seed(0)
    config = {
        "sample_size": 8,
        "block_out_channels": (32, 64),
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": 64,
        "attention_head_dim": 8,
    }
    text = CLIPTextConfig(
        vocab_size=len(vocabulary()),
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=1,
        max_position_embeddings=77,
    )
    models = SimpleNamespace(
        unet=UNet2DConditionModel(**{**config, **unet}),
        vae=AutoencoderKL(
            block_out_channels=(32, 32, 32, 32),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
        ),
        text_encoder=CLIPTextModel(text),
    )
    for model in vars(models).values():
        # Norms start at 1 and 0: a weight that lands in the wrong layer would go unnoticed.
        for parameter in model.parameters():
            parameter.data.add_(0.05 * torch.randn_like(parameter))
        model.requires_grad_(False).eval()
    return models


def old_text_state(model: CLIPTextModel) -> dict[str, Tensor]:
    """The text encoder's tensors under the names of transformers 4."""
    state = {f"text_model.{name.removeprefix('text_model.')}": value for name, value in model.state_dict().items()}
    return {**state, "text_model.embeddings.position_ids": torch.arange(77)[None]}


def write_json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def save_tokenizer(folder: Path) -> None:
    write_json(folder / "vocab.json", vocabulary())
    (folder / "merges.txt").write_text("#version: 0.2\ni n</w>\n")
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77})


def save_folder(models: SimpleNamespace, folder: Path) -> Path:
    """A diffusers folder as SD v1 was published: old text encoder names, no scaling factor in the VAE's config."""
    models.unet.save_pretrained(folder / "unet")
    models.vae.save_pretrained(folder / "vae")
    config = json.loads((folder / "vae" / "config.json").read_text())
    del config["scaling_factor"]
    write_json(folder / "vae" / "config.json", config)
    text = models.text_encoder.config.to_dict() | {"architectures": ["CLIPTextModel"]}
    write_json(folder / "text_encoder" / "config.json", text)
    save_file(old_text_state(models.text_encoder), folder / "text_encoder" / "model.safetensors")
    save_tokenizer(folder / "tokenizer")
    write_json(folder / "scheduler" / "scheduler_config.json", SCHEDULER)
    write_json(folder / "model_index.json", {"_class_name": "StableDiffusionPipeline"})
    return folder


_UNET_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
_UNET_TOP = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}


def ldm_unet(model: UNet2DConditionModel) -> dict[str, Tensor]:
    """The U-Net's tensors under LDM names, without prefix."""
    layers = model.config.layers_per_block

    def rename(name: str) -> str:
        for new, old in _UNET_TOP.items():
            if name.startswith(f"{new}."):
                return name.replace(new, old, 1)
        for new, old in _UNET_RESNET.items():
            if ".resnets." in name:
                name = name.replace(f".{new}.", f".{old}.")
        if found := re.match(r"down_blocks\.(\d+)\.(resnets|attentions)\.(\d+)\.(.*)", name):
            block, kind, layer, rest = int(found[1]), found[2], int(found[3]), found[4]
            return f"input_blocks.{1 + block * (layers + 1) + layer}.{int(kind == 'attentions')}.{rest}"
        if found := re.match(r"down_blocks\.(\d+)\.downsamplers\.0\.conv\.(.*)", name):
            return f"input_blocks.{(int(found[1]) + 1) * (layers + 1)}.0.op.{found[2]}"
        if found := re.match(r"mid_block\.resnets\.(\d)\.(.*)", name):
            return f"middle_block.{2 * int(found[1])}.{found[2]}"
        if found := re.match(r"mid_block\.attentions\.0\.(.*)", name):
            return f"middle_block.1.{found[1]}"
        if found := re.match(r"up_blocks\.(\d+)\.(resnets|attentions)\.(\d+)\.(.*)", name):
            block, kind, layer, rest = int(found[1]), found[2], int(found[3]), found[4]
            return f"output_blocks.{block * (layers + 1) + layer}.{int(kind == 'attentions')}.{rest}"
        found = re.match(r"up_blocks\.(\d+)\.upsamplers\.0\.conv\.(.*)", name)
        assert found, name
        place = 2 if "CrossAttn" in model.config.up_block_types[int(found[1])] else 1
        return f"output_blocks.{(int(found[1]) + 1) * (layers + 1) - 1}.{place}.conv.{found[2]}"

    return {rename(name): value for name, value in model.state_dict().items()}


def ldm_vae(model: AutoencoderKL) -> dict[str, Tensor]:
    """The VAE's tensors under LDM names, without prefix: attention as 1x1 convolutions, decoder levels reversed."""
    last = len(model.config.block_out_channels) - 1
    attention = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
    state = {}
    for original, value in model.state_dict().items():
        name, tensor = original.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut"), value
        name = re.sub(r"mid_block\.resnets\.(\d)", lambda found: f"mid.block_{int(found[1]) + 1}", name)
        name = re.sub(r"down_blocks\.(\d)\.resnets", r"down.\1.block", name)
        name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", name)
        name = re.sub(r"up_blocks\.(\d)\.resnets", lambda found: f"up.{last - int(found[1])}.block", name)
        name = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda found: f"up.{last - int(found[1])}.upsample", name)
        if "mid_block.attentions.0" in name:
            name = name.replace("mid_block.attentions.0", "mid.attn_1")
            for new, old in attention.items():
                name = name.replace(f".{new}.", f".{old}.")
            tensor = value[:, :, None, None].clone() if value.ndim == 2 else value
        state[name] = tensor
    return state


def ldm_whole(models: SimpleNamespace) -> dict[str, Tensor]:
    """A whole Stable Diffusion v1.x file, with the extras that real ones carry."""
    return {
        **{f"model.diffusion_model.{name}": value for name, value in ldm_unet(models.unet).items()},
        **{f"first_stage_model.{name}": value for name, value in ldm_vae(models.vae).items()},
        **{f"cond_stage_model.transformer.{k}": v for k, v in old_text_state(models.text_encoder).items()},
        "alphas_cumprod": torch.linspace(1, 0, 1000),
        "model_ema.decay": torch.tensor(0.999),
    }


def same_weights(loaded: torch.nn.Module, expected: torch.nn.Module) -> bool:
    """Equal bit for bit, tensor by tensor, and nothing left over."""
    left, right = loaded.state_dict(), expected.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def edit_config(folder: Path, **entries: object) -> None:
    path = folder / "config.json"
    write_json(path, json.loads(path.read_text()) | entries)


def refused(match: str, base: object = None, **kwargs: object) -> None:
    """load_checkpoint refuses, in one short line."""
    with pytest.raises(CheckpointError, match=match) as caught:
        load_checkpoint(base, **kwargs)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600
