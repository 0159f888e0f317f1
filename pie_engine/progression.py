"""The PIE rounds over any backend, in both semantics: one function per equation of design and paper.

A round (arXiv 2309.11745, algorithm 1): noise or invert the previous frame's latent to the first of k timesteps;
k guided denoising steps with the outside of the region of interest (ROI) replaced between them; blend with the
original latent. Everything that does not change between rounds is computed once, in `prepare`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pie_engine.errors import BackendError
from pie_engine.kernels.denoise_step import Background, Blend, StepRow, denoise_step, write_input
from pie_engine.schedule import Schedule, build_inversion, build_schedule
from pie_engine.seeding import item_noise, official_generator

if TYPE_CHECKING:
    from torch import Tensor

    from pie_engine.backends import Backend, UNetCall
    from pie_engine.config import RunConfig

OnStep = Callable[[], None]


@dataclass(frozen=True)
class Batch:
    """The items of one progression, stacked.

    Attributes:
        pixels: [B, 3, H, W] float32 in [-1, 1].
        mask: [B, 1 or 4, h, w] float32, 1 = may change, or None. All items of a batch have one, or none has.
        prompts, item_ids: B strings each.
    """

    pixels: Tensor
    mask: Tensor | None
    prompts: list[str]
    item_ids: list[str]


@dataclass(frozen=True)
class Round:
    """What one round yields: final latents [B, 4, h, w] and decoded pixels [B, 3, H, W], both float32."""

    latents: Tensor
    pixels: Tensor


class Sampler:
    """A schedule's rows on the device, and the U-Net bound to buffers that every round reuses."""

    def __init__(self, schedule: Schedule, unet: UNetCall, batch: int, *, guidance: float | None):
        import torch

        device = unet.sample.device
        self.schedule, self.unet = schedule, unet
        self.x = torch.empty((batch, *unet.sample.shape[1:]), device=device)
        self.history = torch.empty((schedule.history, *self.x.shape), device=device)
        self.guidance = None if guidance is None else torch.full((batch, 1, 1, 1), guidance, device=device)
        following = {name: np.append(getattr(schedule, name)[1:], 0.0) for name in ("signal", "noise", "input_scale")}
        columns = (schedule.a, schedule.b, schedule.c, schedule.P, schedule.p, schedule.q, *following.values())
        table = [torch.from_numpy(column.astype(np.float32)).to(device) for column in columns]
        self.rows = [StepRow(*(column[i] for column in table)) for i in range(schedule.steps)]
        self.timesteps = torch.from_numpy(schedule.timesteps.astype(np.float32)).to(device)[:, None]  # [k, 1]
        self.first_scale = torch.tensor(schedule.input_scale[0], dtype=torch.float32, device=device)

    def __call__(
        self, x: Tensor, mask: Tensor | None, background: Background | None, blend: Blend | None, on_step: OnStep
    ) -> Tensor:
        """Run all k steps on x [B, 4, h, w]; the result is a view of the sampler's buffer."""
        self.x.copy_(x)
        self.history.zero_()
        write_input(self.x, self.unet.sample, self.first_scale)
        for i, row in enumerate(self.rows):
            self.unet.timestep.copy_(self.timesteps[i])
            self.unet()
            last = i == len(self.rows) - 1
            denoise_step(
                self.x, self.history, self.unet.output, self.unet.sample, row, self.guidance, mask, background,
                blend, last,
            )  # fmt: skip
            on_step()
        return self.x


@dataclass(frozen=True)
class Plan:
    """Everything that is the same in every round.

    Attributes:
        moments: [B, 8, h, w] float32 of the originals.
        mask: [B, 1 or 4, h, w] float32 on the device, or None.
        weight: beta1 (1 - m) + beta2 m, shaped like the mask.
    """

    backend: Backend
    config: RunConfig
    batch: Batch
    sampler: Sampler
    inversion: Sampler | None
    moments: Tensor
    mask: Tensor | None
    weight: Tensor | None

    @property
    def evaluations(self) -> int:
        """U-Net calls of the whole progression."""
        per_round = self.sampler.schedule.steps + (self.inversion.schedule.steps if self.inversion else 0)
        return per_round * self.config.steps

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        channels, height, width = self.sampler.x.shape[1:]
        return channels, height, width

    @property
    def original_latent(self) -> Tensor:
        """z0 = scaling factor * posterior mean, [B, 4, h, w] float32."""
        return self.moments.chunk(2, dim=1)[0] * self.backend.model.scaling_factor


def prepare(backend: Backend, batch: Batch, config: RunConfig) -> Plan:
    """Encode prompts and images, build the schedule's table and allocate every buffer, once."""
    model, count = backend.model, len(batch.prompts)
    height, width = (side // model.vae_scale for side in batch.pixels.shape[2:])
    mask = None if batch.mask is None else batch.mask.to(backend.device)
    default = None if config.semantics == "official" else "ddim"
    schedule = build_schedule(
        model.scheduler_config,
        name=config.scheduler or default,
        num_inference_steps=config.num_inference_steps,
        denoising_steps=config.denoising_steps,
        corrector=mask is None or config.semantics == "official",
    )
    prompts = [config.negative_prompt] * count + batch.prompts if config.guided else batch.prompts
    unet = backend.bind_unet(len(prompts), height, width)
    unet.context.copy_(_encode_unique(backend, prompts))
    sampler = Sampler(schedule, unet, count, guidance=config.guidance_scale if config.guided else None)
    inversion = None
    if config.inversion == "ddim":
        empty = backend.bind_unet(count, height, width)
        empty.context.copy_(_encode_unique(backend, [""] * count))
        start = float(schedule.timesteps[0])
        distinct = len(np.unique(schedule.timesteps))
        table = build_inversion(model.scheduler_config, start, config.num_inference_steps, distinct)
        inversion = Sampler(table, empty, count, guidance=None)
    moments = backend.encode_image(batch.pixels).clone()  # a backend may reuse its output
    weight = None if mask is None else config.beta1 * (1 - mask) + config.beta2 * mask
    return Plan(backend, config, batch, sampler, inversion, moments, mask, weight)


def rounds(plan: Plan, on_step: OnStep = lambda: None) -> Iterator[Round]:
    """Yield the N rounds of a progression; `on_step` is called after each U-Net evaluation.

    Raises:
        BackendError: a latent or a frame is not finite.
    """
    run = _official_rounds if plan.config.semantics == "official" else _engine_rounds
    for number, result in enumerate(run(plan, on_step), start=1):
        finite = result.latents.isfinite().flatten(1).all(1) & result.pixels.isfinite().flatten(1).all(1)
        if not bool(finite.all()):
            broken = [i for i, good in zip(plan.batch.item_ids, finite.tolist(), strict=True) if not good]
            precision = plan.backend.precision
            raise BackendError(
                f"round {number} gave values that are not finite in {precision} for item {', '.join(broken)}; "
                + ("check the checkpoint's weights" if precision == "fp32" else "use fp32 (--dtype or --precision)")
            )
        yield result


def _engine_rounds(plan: Plan, on_step: OnStep) -> Iterator[Round]:
    z0 = plan.original_latent
    z, eps = z0, None
    for index in range(plan.config.steps):
        if plan.inversion is not None:
            eps = invert(plan.inversion, z, on_step)
        elif eps is None or plan.config.noise == "fresh":
            eps = _item_noises(plan, index)
        x = noising(z, eps, plan.sampler.schedule)
        blend = None if plan.weight is None else Blend(z0, plan.weight)
        z = plan.sampler(x, plan.mask, Background(z0, eps), blend, on_step).clone()
        yield Round(z, decode(plan.backend, z))


def _official_rounds(plan: Plan, on_step: OnStep) -> Iterator[Round]:
    import torch

    scaling, device = plan.backend.model.scaling_factor, plan.backend.device
    generators = [official_generator(plan.config.seed) for _ in plan.batch.item_ids]
    frame = plan.moments
    for index in range(plan.config.steps):
        # Six draws per round and item, in the published order; see reference.progress_official.
        draws = [[torch.randn(plan.latent_shape, generator=g) for _ in range(6)] for g in generators]
        first, eps, second, _, third, eps_background = (
            torch.stack(draw).to(device) for draw in zip(*draws, strict=True)
        )
        z = posterior_sample(frame, first) * scaling
        z0 = posterior_sample(plan.moments, second) * scaling
        z0_background = posterior_sample(plan.moments, third) * scaling
        x = noising(z, eps, plan.sampler.schedule)
        blend = None if plan.weight is None else Blend(z0, plan.weight)
        z = plan.sampler(x, plan.mask, Background(z0_background, eps_background), blend, on_step).clone()
        pixels = decode(plan.backend, z)
        yield Round(z, pixels)
        if index + 1 == plan.config.steps:
            return
        # Each round starts from the previous round's 8-bit frame.
        frame = plan.backend.encode_image((pixels / 2 + 0.5).clamp(0, 1).mul(255).round() / 127.5 - 1)


def noising(z: Tensor, eps: Tensor, schedule: Schedule) -> Tensor:
    """x = sqrt(abar) z + sqrt(1 - abar) eps at the first timestep (the scheduler's own factors)."""
    return float(schedule.signal[0]) * z + float(schedule.noise[0]) * eps


def invert(inversion: Sampler, z: Tensor, on_step: OnStep = lambda: None) -> Tensor:
    """DDIM inversion of z, read back as the noise eps = (x - sqrt(abar) z) / sqrt(1 - abar)."""
    x = inversion(z, None, None, None, on_step)
    return (x - float(inversion.schedule.signal[-1]) * z) / float(inversion.schedule.noise[-1])


def posterior_sample(moments: Tensor, draw: Tensor) -> Tensor:
    """mean + std * draw of the VAE's diagonal Gaussian; the log-variance is clamped as diffusers does."""
    mean, log_variance = moments.chunk(2, dim=1)
    return mean + (0.5 * log_variance.clamp(-30.0, 20.0)).exp() * draw


def decode(backend: Backend, z: Tensor) -> Tensor:
    """Latent [B, 4, h, w] -> pixels [B, 3, H, W] float32, about [-1, 1]."""
    return backend.decode_latent(z / backend.model.scaling_factor)


def _item_noises(plan: Plan, index: int) -> Tensor:
    import torch

    round_index = None if plan.config.noise == "shared" else index
    noises = [item_noise(plan.latent_shape, plan.config.seed, i, round_index) for i in plan.batch.item_ids]
    return torch.stack(noises).to(plan.backend.device)


def _encode_unique(backend: Backend, prompts: list[str]) -> Tensor:
    # A cohort shares few prompts; each is encoded once.
    unique = list(dict.fromkeys(prompts))
    embeddings = backend.encode_text(backend.model.tokenize(unique))
    return embeddings[[unique.index(prompt) for prompt in prompts]]
