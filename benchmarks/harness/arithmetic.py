"""Floating-point operations of each component, counted from its own modules; nothing is computed.

Matrix products, convolutions and attention count, at two operations per multiplication and addition; the rest is less
than one in a hundred (arXiv 2309.11745's model: Stable Diffusion v1.x).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pie_engine.checkpoint import Checkpoint


def count_flops(checkpoint: Checkpoint, resolution: int) -> dict[str, float]:
    """Operations of one call with one sample, by component (`pie_engine.config.COMPONENTS`).

    Args:
        checkpoint: its architecture counts, its weights are not read.
        resolution: side in pixels.
    """
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from diffusers.models.attention_processor import AttnProcessor
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(checkpoint.unet.config)
        vae = AutoencoderKL.from_config(checkpoint.vae.config)
        text_encoder = type(checkpoint.text_encoder)._from_config(
            checkpoint.text_encoder.config, attn_implementation="eager"
        )
        # Plain products instead of the fused operator, whose count differs from one device to the next.
        unet.set_attn_processor(AttnProcessor())
        vae.set_attn_processor(AttnProcessor())
        side = resolution // checkpoint.vae_scale
        latent = torch.empty(1, checkpoint.unet.config.in_channels, side, side)
        ids = torch.empty(1, checkpoint.max_tokens, dtype=torch.int64)
        context = torch.empty(1, checkpoint.max_tokens, checkpoint.unet.config.cross_attention_dim)
        pixels = torch.empty(1, 3, resolution, resolution)
        timestep = torch.empty(1)
    calls: dict[str, Any] = {
        "text_encoder": lambda: text_encoder(ids),
        "vae_encoder": lambda: vae.encode(pixels),
        "unet": lambda: unet(latent, timestep, encoder_hidden_states=context),
        "vae_decoder": lambda: vae.decode(latent),
    }
    counted = {}
    for name, call in calls.items():
        with torch.inference_mode(), FlopCounterMode(display=False) as counter:
            call()
        counted[name] = float(counter.get_total_flops())
    return counted


def progression_flops(
    per_call: dict[str, float], *, rounds: int, steps: int, guided: bool, official: bool = False, batch: int = 1
) -> float:
    """Operations that a progression cannot do without.

    Args:
        per_call: of one sample (`count_flops`).
        steps: U-Net evaluations of a round, each with two samples if guided.
        official: count what the published code computes, which encodes text and three images in each round; the engine
            encodes each once.
    """
    samples = 2 if guided else 1
    unet = rounds * steps * samples * per_call["unet"]
    decoded = rounds * per_call["vae_decoder"]
    encoded = samples * per_call["text_encoder"] + (3 if official else 1) * per_call["vae_encoder"]
    return batch * (unet + decoded + (rounds if official else 1) * encoded)
