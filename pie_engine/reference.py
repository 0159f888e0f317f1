"""Eager PyTorch and diffusers PIE, both semantics: the oracle of every test and the baseline of every benchmark.

Written to be read beside the paper (arXiv 2309.11745, algorithm 1) and to share as little as possible with the fast
path: it drives the diffusers scheduler itself, one item at a time, and keeps no buffers. Only input preparation and the
noise's seeding are shared. It runs on the checkpoint's own device and in its dtype: everything in half precision is
what a user of diffusers would run. Notation: z0 = latent of the original, z = latent of the previous frame, m = mask.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pie_engine.rounds.noise import item_noise, official_generator
from pie_engine.rounds.schedule import disable_corrector, make_scheduler, prepare_scheduler

if TYPE_CHECKING:
    from PIL.Image import Image

    from pie_engine.checkpoint import Checkpoint
    from pie_engine.config import RoundSettings, RunConfig


def progress_official(
    checkpoint: Checkpoint, image: Image, mask: np.ndarray | None, prompt: str, config: RunConfig
) -> Iterator[tuple[Tensor, np.ndarray]]:
    """What the published implementation computes, draw for draw.

    Args:
        image: RGB, already fitted to the resolution.
        mask: [4, h, w] float32 in [0, 1] (`official_latent_mask`), or None for no mask.

    Yields:
        After each round: final latent [1, 4, h, w] float32 and frame [H, W, 3] uint8.
    """
    vae, scaling = checkpoint.vae, checkpoint.scaling_factor
    generator = official_generator(config.seed)
    model = next(checkpoint.unet.parameters())  # its device and dtype are everybody's
    original, frame = to_pixels(image).to(model), to_pixels(image).to(model)
    m = None if mask is None else torch.from_numpy(mask)[None].to(model)

    def draw(shape: Any) -> Tensor:
        return torch.randn(shape, generator=generator).to(model)

    def posterior_sample(pixels: Tensor) -> Tensor:
        posterior = vae.encode(pixels).latent_dist
        return (posterior.mean + posterior.std * draw(posterior.mean.shape)) * scaling

    with torch.inference_mode():
        for _ in range(config.steps):
            # Everything is encoded again in every round, as published.
            context = encode_prompts(checkpoint, prompt, config)
            z = posterior_sample(frame)  # draw 1
            eps = draw(z.shape)  # draw 2, noise A: the edit's
            z0 = posterior_sample(original)  # draw 3, read by the final blend
            draw(z.shape)  # draw 4, noise B, discarded
            z0_background = posterior_sample(original)  # draw 5
            eps_background = draw(z.shape)  # draw 6, noise C: the background's, for all timesteps
            scheduler = make_scheduler(checkpoint.scheduler_config, config.scheduler)
            timesteps = prepare_scheduler(scheduler, config.num_inference_steps, config.denoising_steps)
            x = scheduler.add_noise(z, eps, timesteps[:1])
            x = denoise(checkpoint, scheduler, timesteps, x, context, m, z0_background, eps_background, config)
            if m is not None:
                x = blend(x, z0, m, config)
            pixels = to_uint8(vae.decode(x / scaling).sample)
            frame = torch.from_numpy(pixels.astype(np.float32) / 127.5 - 1).permute(2, 0, 1)[None].to(model)
            yield x.float().cpu().clone(), pixels


def progress_engine(
    checkpoint: Checkpoint,
    image: Image,
    mask: np.ndarray | None,
    prompt: str,
    config: RunConfig,
    item_id: str = "0",
    beta_map: np.ndarray | None = None,
    findings: Sequence[tuple[str, np.ndarray]] = (),
) -> Iterator[tuple[Tensor, np.ndarray]]:
    """The engine's own semantics: latents carried from round to round, posterior means, one noise per item.

    Arguments and yields as for `progress_official`; the mask is [1, h, w] and frames are not composited. A schedule's
    rounds run with their own prompt, strength and guidance.

    Args:
        beta_map: [1, h, w] float32, each pixel's beta averaged over the ROI, where its regions have their own, or None.
        findings: several prompts instead of the one, each with its share of a latent, [1, h, w] float32, 1 in all.
    """
    vae, scaling = checkpoint.vae, checkpoint.scaling_factor
    model = next(checkpoint.unet.parameters())
    m = None if mask is None else torch.from_numpy(mask)[None].to(model)
    betas = None if beta_map is None else torch.from_numpy(beta_map)[None].to(model)
    with torch.inference_mode():
        settings = {
            each: replace(config, strength=each.strength, guidance_scale=each.guidance_scale, schedule=None)
            for each in config.rounds
        }
        contexts = {
            each: encode_prompts(checkpoint, prompt if each.prompt is None else each.prompt, now)
            for each, now in settings.items()
        }
        finding_weights = None
        if findings:
            finding_weights = torch.from_numpy(np.stack([share for _, share in findings])).to(model)
            own_prompts = encode_text(checkpoint, [text for text, _ in findings])
            contexts = {each: torch.cat([contexts[each][:-1], own_prompts]) for each in contexts}
        empty = encode_text(checkpoint, [""])
        z0 = vae.encode(to_pixels(image).to(model)).latent_dist.mean * scaling

        def edit(z: Tensor, round_index: int, each: RoundSettings) -> Tensor:
            """Steps 1 and 2 of a round."""
            now = settings[each]
            scheduler = make_scheduler(checkpoint.scheduler_config, config.scheduler or "ddim")
            if m is not None:
                disable_corrector(scheduler, config.num_inference_steps)
            timesteps = prepare_scheduler(scheduler, config.num_inference_steps, now.denoising_steps)
            if config.inversion == "ddim":
                eps = invert(checkpoint, z, empty, timesteps, config)
            else:
                number = None if config.noise == "shared" else round_index
                eps = item_noise((z.shape[1], z.shape[2], z.shape[3]), config.seed, item_id, number)[None].to(model)
            x = scheduler.add_noise(z, eps, timesteps[:1])
            return denoise(checkpoint, scheduler, timesteps, x, contexts[each], m, z0, eps, now, finding_weights)

        blends = _even_blends(edit, z0, m, config, betas, finding_weights) if config.even else None
        z = z0
        for round_index, each in enumerate(config.rounds):
            x = edit(z, round_index, each)
            if blends is not None:
                z = blends(x, round_index)
            else:
                z = x if m is None else blend(x, z0, m, config, betas)
            yield z.float().cpu().clone(), to_uint8(vae.decode(z / scaling).sample)


def _even_blends(
    edit: Callable[[Tensor, int, RoundSettings], Tensor],
    z0: Tensor,
    m: Tensor | None,
    config: RunConfig,
    beta_map: Tensor | None,
    finding_weights: Tensor | None,
) -> Callable[[Tensor, int], Tensor]:
    """The blend of even pace, after its pilot: frame n is to lie n/N of the way that the constant run goes.

    Of the region p of each finding, D = |p (z - z0)| after the constant run's N rounds, extrapolated from its first
    four, or as many as it takes until two extrapolations in a row agree to 1 % and the last leaves at most 6 % to
    extrapolate, but from all N if the second round went further than the first; then b = min(1, n/N D / |p m (x -
    z0)|). Where rounds have settings of their own the pilot runs them all, and each range of them goes evenly from
    where the range before it ended.
    """
    region = torch.ones_like(z0[:, :1]) if m is None else m
    parts = [region]
    if beta_map is not None:
        parts = [beta_map / max(float(b) for b in (beta_map / region.clamp(min=1e-6)).flatten())]
    if finding_weights is not None:
        parts = [parts[0] * weight for weight in finding_weights]
    ends: list[list[float]] = []

    def extrapolated(r: int, count: int) -> float:
        """After all rounds, from the first `count` of the pilot's."""
        if count == config.steps:
            return ends[-1][r]
        d = [0.0, *(end[r] for end in ends[:count])]
        q, before = (d[-1] - d[-2]) / (d[-2] - d[-3]), (d[-2] - d[-3]) / (d[-3] - d[-4])
        q = min(max(q + (q - before) / 2, 0.0), 1.0)
        return d[-1] + (d[-1] - d[-2]) * sum(q**n for n in range(1, config.steps - count + 1))

    if config.displacement is None:
        z = z0
        for number, each in enumerate(config.rounds):
            z = blend(edit(z, number, each), z0, region, config, beta_map)
            ends.append([float((part * (z - z0)).norm()) for part in parts])
            if config.schedule is None and 3 <= number < config.steps - 1:
                before = [extrapolated(r, number) for r in range(len(parts))]
                now = [extrapolated(r, number + 1) for r in range(len(parts))]
                agree = all(abs(a - b) <= 0.01 * b for a, b in zip(before, now, strict=True))
                near = all(b - end <= 0.06 * b for b, end in zip(now, ends[-1], strict=True))
                if agree and near and all(d[1] <= 2 * d[0] for d in zip(*ends, strict=True)):
                    break

    def target(number: int, r: int) -> float:
        share = (number + 1) / config.steps
        if config.displacement is not None:
            return share * config.displacement
        if config.schedule is not None:
            rounds = config.rounds
            first = next(n for n in range(number, -1, -1) if n == 0 or rounds[n - 1] != rounds[n])
            last = next(n for n in range(number, len(rounds)) if n == len(rounds) - 1 or rounds[n + 1] != rounds[n])
            start, end = ends[first - 1][r] if first else 0.0, ends[last][r]
            return start + (number + 1 - first) / (last + 1 - first) * (end - start)
        return share * extrapolated(r, len(ends))

    def paced(x: Tensor, number: int) -> Tensor:
        weight = config.beta1 * (1 - region)
        for r, part in enumerate(parts):
            weight = weight + min(1.0, target(number, r) / float((part * sum(parts) * (x - z0)).norm())) * part
        return z0 + weight * (x - z0)

    return paced


def denoise(
    checkpoint: Checkpoint,
    scheduler: Any,
    timesteps: Tensor,
    x: Tensor,
    context: Tensor,
    m: Tensor | None,
    z0: Tensor,
    eps: Tensor,
    config: RunConfig,
    finding_weights: Tensor | None = None,
) -> Tensor:
    """Step 2 of a round: k guided denoising steps, the outside of the ROI replaced before each but the first.

    With several findings c is sum_j w_j c_j, w = `finding_weights` [J, 1, h, w]: the model is asked about each, and
    each answer holds in its own regions (composable diffusion, arXiv 2206.01714; here weights vary over the image).
    """
    for i, t in enumerate(timesteps):
        if m is not None and i > 0:
            x = m * x + (1 - m) * _renoise(scheduler, z0, eps, timesteps, i)
        sample = scheduler.scale_model_input(x, t)
        predicted = checkpoint.unet(torch.cat([sample] * len(context)), t, encoder_hidden_states=context).sample
        e = (
            predicted[-1:]
            if finding_weights is None
            else (finding_weights * predicted[-len(finding_weights) :]).sum(0, keepdim=True)
        )
        if config.guided:
            e = predicted[:1] + config.guidance_scale * (e - predicted[:1])
        x = scheduler.step(e, t, x).prev_sample
    return x


def _renoise(scheduler: Any, z0: Tensor, eps: Tensor, timesteps: Tensor, i: int) -> Tensor:
    """z0 noised to timestep i: sqrt(abar_i) z0 + sqrt(1 - abar_i) eps for a variance-preserving scheduler."""
    if not hasattr(scheduler, "sigmas"):
        return scheduler.add_noise(z0, eps, timesteps[i : i + 1])
    # Sigma-based schedulers noise to their current step, whatever timestep they are given; asked through a
    # fresh copy, because the answer must not depend on (or disturb) the sampler's own position.
    twin = make_scheduler(scheduler.config, type(scheduler).__name__)
    twin.set_timesteps(scheduler.num_inference_steps)
    twin.set_begin_index(len(twin.timesteps) - len(timesteps) + i)
    return twin.add_noise(z0, eps, timesteps[i : i + 1])


def blend(x: Tensor, z0: Tensor, m: Tensor, config: RunConfig, beta_map: Tensor | None = None) -> Tensor:
    """Step 3 of a round: z0 + (beta1 (1 - m) + beta2 m) (x - z0); `beta_map` takes the place of beta2 m."""
    beta_map = config.beta2 * m if beta_map is None else beta_map
    return z0 + (config.beta1 * (1 - m) + beta_map) * (x - z0)


def invert(checkpoint: Checkpoint, z: Tensor, empty: Tensor, timesteps: Tensor, config: RunConfig) -> Tensor:
    """DDIM inversion of z up to the first denoising timestep (empty prompt, g = 1), read back as a noise.

    Written out from Song et al. 2021, eq. 12, run backwards: the model is asked at the timestep to be reached.

    Returns:
        eps = (x - sqrt(abar) z) / sqrt(1 - abar), so that noising z with it gives the inverted x.
    """
    ddim = make_scheduler(checkpoint.scheduler_config, "ddim")
    stride = ddim.config.num_train_timesteps // config.num_inference_steps
    first, steps = round(float(timesteps[0])), len(timesteps.unique())
    x, abar = z, ddim.final_alpha_cumprod  # the clean latent's; then that of the timestep reached
    for i in reversed(range(steps)):
        t = max(0, first - i * stride)
        before = ddim.alphas_cumprod[t - stride] if t >= stride else abar
        abar = ddim.alphas_cumprod[t]
        e = checkpoint.unet(x, torch.tensor(t), encoder_hidden_states=empty).sample
        x0 = (x - (1 - before).sqrt() * e) / before.sqrt()
        x = abar.sqrt() * x0 + (1 - abar).sqrt() * e
    return (x - abar.sqrt() * z) / (1 - abar).sqrt()


def encode_prompts(checkpoint: Checkpoint, prompt: str, config: RunConfig) -> Tensor:
    """[unconditional, conditional] embeddings [2, 77, D], or [1, 77, D] without guidance."""
    return encode_text(checkpoint, [config.negative_prompt, prompt] if config.guided else [prompt])


def encode_text(checkpoint: Checkpoint, prompts: list[str]) -> Tensor:
    """CLIP's last hidden state [B, 77, D]; longer prompts are cut at 77 tokens."""
    tokens = checkpoint.tokenizer(
        prompts, padding="max_length", max_length=checkpoint.max_tokens, truncation=True, return_tensors="pt"
    )
    return checkpoint.text_encoder(tokens.input_ids.to(next(checkpoint.text_encoder.parameters()).device))[0]


def to_pixels(image: Image) -> Tensor:
    """RGB image -> [1, 3, H, W] float32 in [-1, 1]."""
    return torch.from_numpy(np.asarray(image).astype(np.float32) / 127.5 - 1).permute(2, 0, 1)[None]


def to_uint8(decoded: Tensor) -> np.ndarray:
    """[1, 3, H, W] in [-1, 1] -> [H, W, 3] uint8, clamped and rounded half to even."""
    image = (decoded[0] / 2 + 0.5).clamp(0, 1).permute(1, 2, 0).float().cpu().numpy()
    return (image * 255).round().astype(np.uint8)
