"""First stage: a small AutoencoderKL, 128 x 128 pictures to [4, 16, 16] latents, trained on phantoms from scratch.

Pictures are uint8, grey [N, 128, 128] or RGB [N, 128, 128, 3].
"""

import logging
import time
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from numpy.typing import NDArray

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class VaeTraining:
    """What the first stage does; the defaults are those of the shipped checkpoint."""

    steps: int = 1500
    batch: int = 8
    learning_rate: float = 3e-3
    kl_weight: float = 1e-6
    latent_noise: float = 0.10  # in standard deviations of the latents, so that the decoder forgives the U-Net
    seed: int = 0
    channels: tuple[int, int, int, int] = (16, 16, 32, 32)
    bfloat16: bool = False  # arithmetic of the forward pass; the weights stay float32


def build_vae(channels: tuple[int, int, int, int]) -> AutoencoderKL:
    """Stable Diffusion's autoencoder, made thin: 3-channel pictures in -1 to 1, 4 latent channels, 1/8 resolution."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=channels,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=128,
    )


def to_input(pictures: NDArray[np.uint8]) -> torch.Tensor:
    """The autoencoder's range: uint8 [B, 128, 128] or [B, 128, 128, 3] to float32 [B, 3, 128, 128] in -1 to 1."""
    scaled = torch.from_numpy(pictures).float().div(127.5).sub(1)
    scaled = scaled.permute(0, 3, 1, 2) if scaled.ndim == 4 else scaled[:, None].expand(-1, 3, -1, -1)
    return scaled.contiguous(memory_format=torch.channels_last)


def train_vae(pictures: NDArray[np.uint8], config: VaeTraining) -> tuple[AutoencoderKL, dict]:
    """Train on pictures [N, ...]; return the autoencoder in eval mode, its scaling factor measured, and a record."""
    torch.manual_seed(config.seed)
    generator = torch.Generator().manual_seed(config.seed)
    vae = build_vae(config.channels).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=config.learning_rate, betas=(0.9, 0.98), weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, config.learning_rate, total_steps=config.steps, pct_start=0.1
    )
    start, losses = time.perf_counter(), []
    for step in range(config.steps):
        index = torch.randint(len(pictures), (config.batch,), generator=generator).numpy()
        batch = to_input(pictures[index])
        with torch.autocast("cpu", torch.bfloat16, enabled=config.bfloat16):
            posterior = vae.encode(batch).latent_dist
            latents = posterior.sample(generator)
            noise = torch.randn(latents.shape, generator=generator)
            latents = latents + config.latent_noise * latents.detach().std() * noise
            decoded = vae.decode(latents).sample
        error = F.mse_loss(decoded.float(), batch)
        loss = error + config.kl_weight * posterior.kl().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(error.item())
        if step % 100 == 0 or step == config.steps - 1:
            log.info("vae step %d of %d: mse %.5f", step, config.steps, float(np.mean(losses[-100:])))
    vae.eval()
    latents = encode_mean(vae, pictures[:256], scaled=False)
    vae.register_to_config(scaling_factor=round(float(1 / latents.std()), 5))
    record = {
        "seconds": round(time.perf_counter() - start, 1),
        "parameters": sum(p.numel() for p in vae.parameters()),
        "mse": [round(float(np.mean(chunk)), 6) for chunk in np.array_split(losses, min(15, len(losses)))],
        "final_mse": float(np.mean(losses[-100:])),
        "scaling_factor": vae.config.scaling_factor,
    }
    return vae, record


@torch.inference_mode()
def encode_mean(
    vae: AutoencoderKL, pictures: NDArray[np.uint8], *, scaled: bool = True, batch: int = 32
) -> torch.Tensor:
    """Posterior means, times the scaling factor if asked: pictures [N, ...] to float32 [N, 4, 16, 16]."""
    factor = vae.config.scaling_factor if scaled else 1.0
    chunks = [
        vae.encode(to_input(pictures[i : i + batch])).latent_dist.mode() * factor
        for i in range(0, len(pictures), batch)
    ]
    return torch.cat(chunks).contiguous()


@torch.inference_mode()
def reconstruct(vae: AutoencoderKL, pictures: NDArray[np.uint8], batch: int = 32) -> NDArray[np.uint8]:
    """Encode and decode, shape for shape: of grey pictures the three decoded channels are averaged."""
    factor = vae.config.scaling_factor
    latents = encode_mean(vae, pictures, batch=batch)
    chunks = []
    for i in range(0, len(latents), batch):
        decoded = vae.decode(latents[i : i + batch] / factor).sample
        decoded = decoded.permute(0, 2, 3, 1) if pictures.ndim == 4 else decoded.mean(1)
        chunks.append(((decoded + 1) * 127.5).round().clamp(0, 255).byte())
    return torch.cat(chunks).numpy()


def psnr(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    """Peak signal-to-noise ratio of two stacks of pictures, in dB, over all pixels."""
    mse = np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2)
    return float(10 * np.log10(255**2 / mse))
