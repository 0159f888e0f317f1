"""A config and named tensors -> the model, with every weight accounted for; and what makes it Stable Diffusion v1.

Models are built on the meta device and then given their weights, so that nothing is ever left at its random
initialisation and no memory is spent on one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.utils import logging as diffusers_logging
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer
from transformers.utils import logging as transformers_logging

from pie_engine.checkpoint.descriptions import (
    SchedulerDescription,
    TextEncoderDescription,
    UNetDescription,
    VaeDescription,
    bare,
    validate_config,
)
from pie_engine.checkpoint.json_files import read_json
from pie_engine.checkpoint.tokenizer import one_line, read_tokenizer
from pie_engine.checkpoint.weights import read_tensors, to_float32, weight_files
from pie_engine.errors import CheckpointError, mention

_STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")
_UNET_BLOCKS = {"CrossAttnDownBlock2D", "DownBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"}
# Config entries that SD v1.x leaves empty -> what a U-Net that sets them is.
_UNET_FOREIGN = {
    "addition_embed_type": "as in SDXL",
    "class_embed_type": "class-conditional",
    "num_class_embeds": "class-conditional, as in the upscaler",
    "encoder_hid_dim": "as in DeepFloyd or Kandinsky",
    "encoder_hid_dim_type": "as in Kandinsky",
    "time_cond_proj_dim": "as in latent consistency models",
    "dual_cross_attention": "as in Versatile Diffusion",
}


@dataclass(frozen=True, eq=False)
class Part:
    """One component before it is built: its config, its tensors (memory-mapped) and where they came from."""

    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    source: str


@contextmanager
def quiet() -> Iterator[None]:
    """Mute the libraries' warnings about old configs for the duration: what matters is checked here, as an error."""
    libraries = (diffusers_logging, transformers_logging)
    levels = [library.get_verbosity() for library in libraries]
    try:
        for library in libraries:
            library.set_verbosity_error()
        yield
    finally:
        for library, level in zip(libraries, levels, strict=True):
            library.set_verbosity(level)


def read_part(folder: Path, source: str) -> Part:
    """A diffusers or transformers component folder -> Part. Raises CheckpointError."""
    return Part(read_json(folder / "config.json"), read_tensors(*weight_files(folder, _STEMS)), source)


def empty_unet(config: Mapping[str, Any], source: str) -> UNet2DConditionModel:
    """The U-Net of a config, without weights. Raises CheckpointError."""
    described = validate_config(UNetDescription, config, source)
    return _make(lambda: UNet2DConditionModel.from_config(described), source)


def build_unet(part: Part) -> UNet2DConditionModel:
    """The U-Net: [B, 4, h, w] latents, [B] timesteps, [B, 77, D] text states -> [B, 4, h, w].

    Raises CheckpointError.
    """
    return _fill(empty_unet(part.config, part.source), part.tensors, part.source)


def empty_vae(config: Mapping[str, Any], source: str) -> AutoencoderKL:
    """The VAE of a config, without weights. Raises CheckpointError."""
    # Configs written before diffusers 0.8 have no scaling factor; all of them are Stable Diffusion v1.
    described = validate_config(VaeDescription, config, source)
    complete = {**described, "scaling_factor": described.get("scaling_factor") or 0.18215}
    return _make(lambda: AutoencoderKL.from_config(complete), source)


def build_vae(part: Part) -> AutoencoderKL:
    """The VAE: [B, 3, H, W] in -1..1 <-> [B, 4, h, w]. Raises CheckpointError."""
    tensors = {_modern_vae_name(name): tensor for name, tensor in part.tensors.items()}
    return _fill(empty_vae(part.config, part.source), tensors, part.source)


def empty_text_encoder(config: Mapping[str, Any], source: str) -> CLIPTextModel:
    """The CLIP text model of a config, without weights. Raises CheckpointError."""
    described = validate_config(TextEncoderDescription, config, source)

    def make() -> CLIPTextModel:
        settings = CLIPTextConfig.from_dict(described)
        settings.dtype = torch.float32
        return CLIPTextModel(settings)

    model = _make(make, source)
    embeddings = (model.text_model if _is_nested(model) else model).embeddings
    # The one buffer that no file holds: 0..76.
    embeddings.position_ids = torch.arange(model.config.max_position_embeddings).unsqueeze(0)  # [1, 77]
    return model


def build_text_encoder(part: Part) -> CLIPTextModel:
    """The CLIP text model: [B, 77] ids -> [B, 77, D] states. Raises CheckpointError."""
    # transformers 5 dropped the "text_model." level and keeps position_ids out of the state dict; older files have
    # both. A projection is no part of what the U-Net reads.
    dropped = ("embeddings.position_ids", "text_projection.weight", "logit_scale")
    tensors = {name.removeprefix("text_model."): tensor for name, tensor in part.tensors.items()}
    tensors = {name: tensor for name, tensor in tensors.items() if name not in dropped}
    model = empty_text_encoder(part.config, part.source)
    if _is_nested(model):
        tensors = {f"text_model.{name}": tensor for name, tensor in tensors.items()}
    return _fill(model, tensors, part.source)


def load_tokenizer(folder: Path, text_encoder: CLIPTextModel) -> CLIPTokenizer:
    """The CLIP tokenizer of a folder; its length limit is the text encoder's. Raises CheckpointError."""
    tokenizer = read_tokenizer(folder, embeddings=text_encoder.config.vocab_size)
    # Some configs lack the limit, and transformers then means "none", which no CLIP model can take.
    tokenizer.model_max_length = text_encoder.config.max_position_embeddings
    return tokenizer


def check_compatible(unet: UNet2DConditionModel, vae: AutoencoderKL, text_encoder: CLIPTextModel, source: str) -> None:
    """Raise CheckpointError if the parts do not fit each other. source: the U-Net's."""
    latents = vae.config.latent_channels
    if unet.config.in_channels != latents or unet.config.out_channels != latents:
        raise CheckpointError(
            f"U-Net {source} has {unet.config.in_channels} input and {unet.config.out_channels} output channels, the "
            f"VAE's latents have {latents}; pass a text-to-image U-Net (9 inputs: inpainting, 8: InstructPix2Pix)"
        )
    widths = unet.config.cross_attention_dim
    hidden = text_encoder.config.hidden_size
    for width in {*widths} if isinstance(widths, (list, tuple)) else {widths}:
        if width != hidden:
            raise CheckpointError(
                f"U-Net {source} reads text states of width {width}, the text encoder's are {hidden} wide (SD v1: "
                f"768, SD v2: 1024); pass the {mention('checkpoint')} that the U-Net was trained from",
                field="checkpoint",
            )


def checked_scheduler(config: Mapping[str, Any], source: str) -> dict[str, Any]:
    """A scheduler's config without what no scheduler knows.

    Raises:
        CheckpointError: it has no class, a prediction type that nobody knows, or a value out of bounds.
    """
    if not isinstance(config.get("_class_name"), str):
        raise CheckpointError(f"{source} names no scheduler (_class_name); copy or download it again")
    described = validate_config(SchedulerDescription, config, source)
    kind = described.get("prediction_type", "epsilon")
    if kind not in ("epsilon", "v_prediction", "sample"):
        raise CheckpointError(
            f"{source} has prediction_type '{kind}'; epsilon, v_prediction or sample is expected: correct the file"
        )
    return described


def check_unet_config(part: Part) -> None:
    """Raise CheckpointError for a U-Net that is no Stable Diffusion v1.x's, from its config alone."""
    config = part.config
    for key, kind in _UNET_FOREIGN.items():
        # False and None both mean absent; so does the string of a few exporters.
        if config.get(key) not in (None, False, "null"):
            raise CheckpointError(
                f"U-Net {part.source} has {key}={bare(config[key])} ({kind}); none is expected in Stable Diffusion "
                "v1.x: pass a checkpoint of that architecture"
            )
    described = validate_config(UNetDescription, config, part.source)
    blocks = [*described.get("down_block_types", ()), *described.get("up_block_types", ())]
    foreign = next((block for block in blocks if block not in _UNET_BLOCKS), None)
    if foreign is not None:
        raise CheckpointError(
            f"U-Net {part.source} is built of {bare(foreign)}; Stable Diffusion v1.x is built of "
            f"{', '.join(sorted(_UNET_BLOCKS))}: pass a checkpoint of that architecture"
        )


def _modern_vae_name(name: str) -> str:
    """The VAE's attention as it was called before diffusers 0.15 -> as it is called now."""
    if ".attentions." in name:
        for old, new in (("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj_attn", "to_out.0")):
            name = name.replace(f".{old}.", f".{new}.")
    return name


def _config_errors(make: Callable[[], Any], source: str) -> Any:
    """make(), with whatever the libraries raise on an unusable config turned into a CheckpointError."""
    try:
        return make()
    except Exception as error:
        raise CheckpointError(
            f"config of {source} is not usable ({type(error).__name__}: {one_line(error)}); copy or download it again"
        ) from error


def _is_nested(text_encoder: CLIPTextModel) -> bool:
    return any(name.startswith("text_model.") for name in text_encoder.state_dict())


def _make(make: Callable[[], Any], source: str) -> Any:
    """Build on meta, to run and not to train."""
    with torch.device("meta"):
        model: nn.Module = _config_errors(make, source)
    return model.requires_grad_(False).eval()


def _fill(model: Any, tensors: Mapping[str, Tensor], source: str) -> Any:
    """Check every name and shape, give the model float32 copies of the tensors."""
    check_names({name: tuple(value.shape) for name, value in model.state_dict().items()}, tensors, source)
    weights = {name: to_float32(name, tensor, source) for name, tensor in tensors.items()}
    model.load_state_dict(weights, strict=True, assign=True)
    return model


def check_names(expected: Mapping[str, tuple[int, ...]], tensors: Mapping[str, Tensor], source: str) -> None:
    """Raise CheckpointError for the first tensor of another shape, missing, or unexpected, with how many there are."""
    wrong = [name for name in expected if name in tensors and tuple(tensors[name].shape) != expected[name]]
    if wrong:
        raise CheckpointError(
            f"tensor {wrong[0]} of {source} is {list(tensors[wrong[0]].shape)}, its config expects "
            f"{list(expected[wrong[0]])} ({len(wrong)} differ); pass the {mention('checkpoint')} it was trained from",
            field="checkpoint",
        )
    for word, names in (
        ("lacks", [name for name in expected if name not in tensors]),
        ("has the unexpected", [name for name in tensors if name not in expected]),
    ):
        if names:
            raise CheckpointError(
                f"{source} {word} tensor {names[0]} ({len(names)} in all, {len(expected)} are expected); it is "
                "incomplete or of another architecture: pass a Stable Diffusion v1.x checkpoint"
            )
