"""Single files: which model the tensor names tell of, and a whole Stable Diffusion v1.x file taken apart.

The original (LDM) layout is model.diffusion_model.* (U-Net), first_stage_model.* (VAE), cond_stage_model.transformer.*
(CLIP). It carries no config, so the configs are read off the tensors' shapes; renaming is left to diffusers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from pie_engine.checkpoint.components import Part
from pie_engine.checkpoint.descriptions import UNetDescription, VaeDescription, validate_config
from pie_engine.checkpoint.tokenizer import one_line
from pie_engine.errors import CheckpointError, use

UNET_PREFIX, VAE_PREFIX, TEXT_PREFIX = "model.diffusion_model.", "first_stage_model.", "cond_stage_model.transformer."

# As published with Stable Diffusion v1.
SD_V1_SCHEDULER: dict[str, Any] = {
    "_class_name": "PNDMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
}

# Telling tensor names (prefixes, or parts when they start with a dot) -> what the file is instead.
_FOREIGN = {
    "conditioner.embedders.": "SDXL",
    "model.diffusion_model.label_emb.": "SDXL or an upscaler",
    "label_emb.": "SDXL or an upscaler",
    "add_embedding.": "SDXL",
    "cond_stage_model.model.": "SD 2.x",
    "control_model.": "ControlNet",
    "input_hint_block.": "ControlNet",
    "controlnet_": "ControlNet",
    "double_blocks.": "Flux",
    "model.diffusion_model.double_blocks.": "Flux",
    "single_transformer_blocks.": "Flux",
    "joint_blocks.": "SD 3",
    "model.diffusion_model.joint_blocks.": "SD 3",
    "transformer_blocks.": "a diffusion transformer",
}
_INPUTS = {9: "inpainting", 8: "InstructPix2Pix", 5: "depth-to-image", 7: "an upscaler"}


def identify(tensors: Mapping[str, Tensor], source: str) -> str:
    """ "sd1" (a whole file), "unet-ldm" or "unet" (diffusers names). Raises CheckpointError naming anything else."""
    for telling, name in _FOREIGN.items():
        if any(key.startswith(telling) for key in tensors):
            extra = "; SD 2.x is loaded from a diffusers folder" if name == "SD 2.x" else ""
            raise CheckpointError(
                f"{source} is {name} (it has {telling}*), not Stable Diffusion v1.x{extra}: pass a checkpoint of that "
                "architecture"
            )
    if any(marker in key for key in tensors for marker in ("lora_", ".lora.", "hada_", "lokr_")):
        raise CheckpointError(f"{source} is a LoRA, not a model; pass it as {use('lora', source)}")
    for key in (f"{UNET_PREFIX}input_blocks.0.0.weight", "input_blocks.0.0.weight", "conv_in.weight"):
        if key in tensors and tensors[key].ndim == 4 and tensors[key].shape[1] in _INPUTS:
            inputs = tensors[key].shape[1]
            raise CheckpointError(
                f"{source} is a model for {_INPUTS[inputs]} ({inputs} input channels, 4 are expected): pass a "
                "text-to-image checkpoint"
            )
    if any(key.startswith(UNET_PREFIX) for key in tensors):
        whole = all(any(key.startswith(prefix) for key in tensors) for prefix in (VAE_PREFIX, TEXT_PREFIX))
        return "sd1" if whole else "unet-ldm"
    if "input_blocks.0.0.weight" in tensors:
        return "unet-ldm"
    if "conv_in.weight" in tensors and any(key.startswith("down_blocks.") for key in tensors):
        return "unet"
    kind = (
        "a VAE" if any(key.startswith(("encoder.conv_in", "decoder.conv_in")) for key in tensors) else "no known model"
    )
    raise CheckpointError(
        f"{source} is {kind} (its first tensor is {next(iter(tensors))}); a U-Net or a whole Stable Diffusion v1.x "
        "file is expected"
    )


def unet_part(tensors: Mapping[str, Tensor], source: str, config: Mapping[str, Any] | None) -> Part:
    """The U-Net of a file in LDM names. config: of the same architecture, or None to read it off the shapes."""
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    bare = {key.removeprefix(UNET_PREFIX): value for key, value in tensors.items() if key.startswith(UNET_PREFIX)}
    bare = bare or dict(tensors)
    config = validate_config(UNetDescription, config or infer_unet(bare, source), source)
    # Taken apart by hand above: diffusers' converter would also read model_ema.* and warn about it.
    prefixed = {UNET_PREFIX + key: value for key, value in bare.items()}
    with _refusing(source, "U-Net"):
        return Part(config, convert_ldm_unet_checkpoint(prefixed, config), source)


def vae_part(tensors: Mapping[str, Tensor], source: str, config: Mapping[str, Any] | None) -> Part:
    """The VAE of a whole file."""
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    prefixed = {key: value for key, value in tensors.items() if key.startswith(VAE_PREFIX)}
    bare = {key.removeprefix(VAE_PREFIX): value for key, value in prefixed.items()}
    config = validate_config(VaeDescription, config or infer_vae(bare, source), source)
    with _refusing(source, "VAE"):
        return Part(config, convert_ldm_vae_checkpoint(prefixed, config), source)


def text_part(tensors: Mapping[str, Tensor], source: str, config: Mapping[str, Any] | None) -> Part:
    """The CLIP text encoder of a whole file."""
    bare = {
        key.removeprefix(TEXT_PREFIX).removeprefix("text_model."): value
        for key, value in tensors.items()
        if key.startswith(TEXT_PREFIX)
    }
    return Part(dict(config or infer_text(bare, source)), bare, source)


def infer_unet(tensors: Mapping[str, Tensor], source: str) -> dict[str, Any]:
    """Config from shapes: block widths, layers, which levels attend, text width.

    Heads (8) and groups (32) are SD v1's.
    """
    try:
        levels: list[list[tuple[int, bool]]] = [[]]  # per level, per layer: channels, has attention
        index = 1
        blocks = {key.split(".")[1] for key in tensors if key.startswith("input_blocks.")}
        while str(index) in blocks:
            block = f"input_blocks.{index}"
            if f"{block}.0.op.weight" in tensors:
                levels.append([])
            else:
                width = tensors[f"{block}.0.out_layers.3.weight"].shape[0]
                levels[-1].append((width, f"{block}.1.proj_in.weight" in tensors))
            index += 1
        layers = {len(level) for level in levels}
        uneven = len(layers) != 1 or any(len(set(level)) != 1 for level in levels)
        widths = [level[0][0] for level in levels]
        attends = [level[0][1] for level in levels]
        middle = "middle_block.1"
        config = {
            "_class_name": "UNet2DConditionModel",
            "in_channels": tensors["input_blocks.0.0.weight"].shape[1],
            "out_channels": tensors["out.2.weight"].shape[0],
            "block_out_channels": widths,
            "layers_per_block": layers.pop(),
            "down_block_types": ["CrossAttnDownBlock2D" if attend else "DownBlock2D" for attend in attends],
            "up_block_types": ["CrossAttnUpBlock2D" if attend else "UpBlock2D" for attend in reversed(attends)],
            "cross_attention_dim": tensors[f"{middle}.transformer_blocks.0.attn2.to_k.weight"].shape[1],
            "use_linear_projection": tensors[f"{middle}.proj_in.weight"].ndim == 2,
            "attention_head_dim": 8,
            "norm_num_groups": 32,
            "sample_size": 64,
        }
    except (KeyError, IndexError, ValueError) as error:
        raise _not_sd1(source, f"U-Net without {error}") from None
    if uneven or f"{middle}.transformer_blocks.1.attn2.to_k.weight" in tensors:
        raise _not_sd1(source, "U-Net with unequal levels or deep transformers")
    _check_divides(widths, 32, "U-Net widths", source)
    return config


def infer_vae(tensors: Mapping[str, Tensor], source: str) -> dict[str, Any]:
    """Config from shapes. Groups (32) and the scaling factor (0.18215) are SD v1's."""
    try:
        widths: list[int] = []
        layers = 0
        while f"encoder.down.{len(widths)}.block.0.conv2.weight" in tensors:
            widths.append(tensors[f"encoder.down.{len(widths)}.block.0.conv2.weight"].shape[0])
        while f"encoder.down.0.block.{layers}.conv2.weight" in tensors:
            layers += 1
        config = {
            "_class_name": "AutoencoderKL",
            "in_channels": tensors["encoder.conv_in.weight"].shape[1],
            "out_channels": tensors["decoder.conv_out.weight"].shape[0],
            "latent_channels": tensors["post_quant_conv.weight"].shape[0],
            "block_out_channels": widths,
            "layers_per_block": layers,
            "down_block_types": ["DownEncoderBlock2D"] * len(widths),
            "up_block_types": ["UpDecoderBlock2D"] * len(widths),
            "norm_num_groups": 32,
            "scaling_factor": 0.18215,
            "sample_size": 512,
        }
    except (KeyError, IndexError, ValueError) as error:
        raise _not_sd1(source, f"VAE without {error}") from None
    _check_divides(widths, 32, "VAE widths", source)
    return config


def infer_text(tensors: Mapping[str, Tensor], source: str) -> dict[str, Any]:
    """Config from shapes. Heads of 64 and quick_gelu are those of CLIP ViT-L/14, SD v1's text encoder."""
    try:
        vocabulary, hidden = tensors["embeddings.token_embedding.weight"].shape
        layers = {key.split(".")[2] for key in tensors if key.startswith("encoder.layers.")}
        config = {
            "architectures": ["CLIPTextModel"],
            "model_type": "clip_text_model",
            "vocab_size": vocabulary,
            "hidden_size": hidden,
            "projection_dim": hidden,
            "intermediate_size": tensors["encoder.layers.0.mlp.fc1.weight"].shape[0],
            "num_hidden_layers": len(layers),
            "num_attention_heads": hidden // 64,
            "max_position_embeddings": tensors["embeddings.position_embedding.weight"].shape[0],
            "hidden_act": "quick_gelu",
            "bos_token_id": vocabulary - 2,
            "eos_token_id": vocabulary - 1,
        }
    except (KeyError, IndexError, ValueError) as error:
        raise _not_sd1(source, f"text encoder without {error}") from None
    _check_divides([hidden], 64, "text width", source)
    return config


def _check_divides(widths: list[int], divisor: int, what: str, source: str) -> None:
    # Heads and groups leave no trace in shapes. A guess that is wrong would give plausible, wrong images.
    if not widths or any(width % divisor for width in widths):
        raise CheckpointError(
            f"{source} has {what} {widths}, Stable Diffusion v1.x has multiples of {divisor}, so its heads and "
            "groups cannot be inferred; put the file into its diffusers folder (model_index.json and config.json "
            "files), or pass that folder"
        )


@contextlib.contextmanager
def _refusing(source: str, what: str) -> Iterator[None]:
    """Turn what diffusers' converters raise on tensors that are missing or of another shape into a CheckpointError."""
    try:
        yield
    except (KeyError, IndexError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise _not_sd1(source, f"{what} that cannot be renamed: {type(error).__name__} {one_line(error)}") from None


def _not_sd1(source: str, found: str) -> CheckpointError:
    return CheckpointError(f"{source} is not Stable Diffusion v1.x ({found}); pass a checkpoint of that architecture")
