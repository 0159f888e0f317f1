"""Second stage: a small UNet2DConditionModel and its CLIP text encoder, trained together on cached latents."""

import copy
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel
from transformers.models.clip.tokenization_clip import CLIPTokenizer

from pie_engine.demo.training.tokenizer import MAX_LENGTH

log = logging.getLogger(__name__)
READ_LENGTH = 32  # tokens: no report is longer


@dataclass(frozen=True)
class UnetTraining:
    """What the second stage does; the defaults are those of the shipped checkpoint."""

    steps: int = 1800
    batch: int = 32
    learning_rate: float = 1e-3
    warmup: int = 100
    ema: float = 0.998
    caption_dropout: float = 0.12
    early_fraction: float = 0.7  # of the samples, drawn from the timesteps that PIE visits
    early_timesteps: int = 600  # PIE at strength 0.5 starts at t = 481
    largest_weight: float = 8.0  # of a noisy sample's loss, where the report matters most
    reading_steps: int = 300  # of the text encoder alone, before
    bfloat16: bool = True  # arithmetic of the forward pass; the weights stay float32
    seed: int = 0
    channels: tuple[int, int] = (64, 128)
    heads: int = 4
    text_width: int = 64
    text_layers: int = 2


class Denoiser(torch.nn.Module):
    """Text encoder and U-Net as one module, so that one optimizer and one average hold both."""

    def __init__(self, config: UnetTraining, tokenizer: CLIPTokenizer, latent_size: int) -> None:
        super().__init__()
        self.text_encoder = build_text_encoder(config, tokenizer)
        self.unet = build_unet(config, latent_size).to(memory_format=torch.channels_last)

    def forward(self, noisy: torch.Tensor, timesteps: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Predicted noise: [B, 4, h, w], int64 [B], int64 [B, 77] to [B, 4, h, w]."""
        context = self.text_encoder(input_ids=tokens).last_hidden_state  # [B, 77, text_width]
        return self.unet(noisy, timesteps, context).sample


def build_text_encoder(config: UnetTraining, tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """CLIP's text model, made small, with the tokenizer's own special tokens."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=config.text_width,
            intermediate_size=4 * config.text_width,
            num_hidden_layers=config.text_layers,
            num_attention_heads=config.heads,
            max_position_embeddings=MAX_LENGTH,
            projection_dim=config.text_width,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def build_unet(config: UnetTraining, latent_size: int) -> UNet2DConditionModel:
    """Stable Diffusion's U-Net with two levels: attention at the lower one, where it is cheap, and in the middle."""
    return UNet2DConditionModel(
        sample_size=latent_size,
        in_channels=4,
        out_channels=4,
        block_out_channels=config.channels,
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=config.text_width,
        attention_head_dim=config.heads,
        norm_num_groups=16,
    )


def build_scheduler() -> DDIMScheduler:
    """Stable Diffusion v1's noise schedule, sampled by DDIM."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def tokenize(tokenizer: CLIPTokenizer, texts: list[str]) -> torch.Tensor:
    """Token ids, padded to CLIP's length; int64 [N, 77]."""
    return tokenizer(texts, padding="max_length", max_length=MAX_LENGTH, truncation=True, return_tensors="pt").input_ids


def train_unet(
    latents: torch.Tensor,
    reports: list[list[str]],
    findings: torch.Tensor,
    tokenizer: CLIPTokenizer,
    config: UnetTraining,
    on_interval: Callable[[Denoiser], None] | None = None,
    interval: int = 400,
    start_from: Denoiser | None = None,
) -> tuple[Denoiser, dict]:
    """Train on latents [N, 4, h, w], each with the same number of reports; return the averaged weights and a record.

    `findings` [N, F] are what the reports describe, as numbers: the text encoder learns to read them first.

    `on_interval` is handed the average every `interval` steps, to save or to look at. `start_from` is trained
    on, with a new optimizer and a learning rate that begins anew (a warm restart); it can read already.
    """
    torch.manual_seed(config.seed)
    generator = torch.Generator().manual_seed(config.seed)
    wordings = len(reports[0])
    tokens = tokenize(tokenizer, [text for texts in reports for text in texts]).reshape(len(reports), wordings, -1)
    empty = tokenize(tokenizer, [""])[0]
    model = start_from or Denoiser(config, tokenizer, latents.shape[-1])
    model.train().requires_grad_(True)
    start = time.perf_counter()
    reading_loss = None if start_from else learn_to_read(model.text_encoder, tokens, findings, config, generator)
    average = copy.deepcopy(model).eval().requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, betas=(0.9, 0.99), weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _learning_rate(step, config))
    scheduler = build_scheduler()
    weights = _loss_weights(scheduler, config.largest_weight)
    latents = latents.contiguous(memory_format=torch.channels_last)

    losses = []
    for step in range(config.steps):
        index = torch.randint(len(latents), (config.batch,), generator=generator)
        wording = torch.randint(wordings, (config.batch,), generator=generator)
        text = tokens[index, wording]  # [B, 77]
        text[torch.rand(config.batch, generator=generator) < config.caption_dropout] = empty
        timesteps = _draw_timesteps(config, scheduler.config.num_train_timesteps, generator)
        clean = latents[index]
        noise = torch.randn(clean.shape, generator=generator)
        with torch.autocast("cpu", torch.bfloat16, enabled=config.bfloat16):
            predicted = model(scheduler.add_noise(clean, noise, timesteps), timesteps, text)
        error = (predicted.float() - noise).square().mean((1, 2, 3))  # [B]
        loss = (error * weights[timesteps]).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        _update_average(average, model, min(config.ema, (1 + step) / (10 + step)))
        losses.append(error.mean().item())
        if step % 100 == 0 or step == config.steps - 1:
            log.info("u-net step %d of %d: loss %.4f", step, config.steps, float(np.mean(losses[-100:])))
        if on_interval and (step + 1) % interval == 0:
            on_interval(average)
    record = {
        "seconds": round(time.perf_counter() - start, 1),
        "parameters": sum(p.numel() for p in model.unet.parameters()),
        "text_encoder_parameters": sum(p.numel() for p in model.text_encoder.parameters()),
        "reading_loss": reading_loss and round(reading_loss, 5),
        "loss": [round(float(np.mean(chunk)), 5) for chunk in np.array_split(losses, min(20, len(losses)))],
        "final_loss": float(np.mean(losses[-100:])),
    }
    return average, record


def learn_to_read(
    text_encoder: CLIPTextModel,
    tokens: torch.Tensor,
    findings: torch.Tensor,
    config: UnetTraining,
    generator: torch.Generator,
) -> float:
    """Teach the text encoder to tell findings [N, F] from tokens [N, W, 77]; return the last loss.

    Left to the U-Net's loss alone it stays illiterate for thousands of steps: the noisy picture says almost as much.
    """
    targets = (findings - findings.mean(0)) / findings.std(0).clamp_min(1e-3)
    head = torch.nn.Linear(config.text_width, findings.shape[1])
    parameters = [*text_encoder.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=config.learning_rate)
    loss = torch.zeros(())
    for _ in range(config.reading_steps):
        index = torch.randint(len(tokens), (64,), generator=generator)
        wording = torch.randint(tokens.shape[1], (64,), generator=generator)
        hidden = text_encoder(input_ids=tokens[index, wording, :READ_LENGTH]).last_hidden_state  # [64, length, width]
        loss = F.mse_loss(head(hidden.mean(1)), targets[index])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    return loss.item()


def _loss_weights(scheduler: DDIMScheduler, largest: float) -> torch.Tensor:
    """1 + noise / signal per timestep, which is how predicting the velocity would weigh the noise; float32 [T]."""
    signal = scheduler.alphas_cumprod
    return (1 + (1 - signal) / signal).clamp_max(largest)


def _learning_rate(step: int, config: UnetTraining) -> float:
    """Linear warm-up, then a cosine to 2 % of the peak."""
    warm = min(1.0, (step + 1) / max(1, config.warmup))
    progress = min(1.0, step / max(1, config.steps))
    return warm * (0.02 + 0.98 * 0.5 * (1 + np.cos(np.pi * progress)))


def _draw_timesteps(config: UnetTraining, total: int, generator: torch.Generator) -> torch.Tensor:
    """Mostly the timesteps that PIE visits, some of all, so that plain sampling works too; int64 [B]."""
    early = torch.rand(config.batch, generator=generator) < config.early_fraction
    limit = torch.where(early, config.early_timesteps, total)
    return (torch.rand(config.batch, generator=generator) * limit).long()


@torch.no_grad()
def _update_average(average: Denoiser, model: Denoiser, decay: float) -> None:
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
