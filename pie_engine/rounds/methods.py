"""The baselines as frames over a loaded loop: each a few calls of the plan's samplers or of the autoencoder.

A mask keeps the outside as in PIE's rounds: between two denoising steps it is replaced by the noised input. After the
last step the inside is what the model gave (beta2 = 1) and the outside the input's latent (beta1 = 0), as in Blended
Latent Diffusion (Avrahami et al. 2023): the betas are PIE's own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pie_engine.config import RoundRange, RoundSchedule
from pie_engine.rounds.buffers import ENCODE
from pie_engine.rounds.equations import Noises, enter, run_inversion, run_round, run_steps
from pie_engine.rounds.loop import Round
from pie_engine.rounds.noise import item_noise
from pie_engine.rounds.schedule import build_schedule, make_scheduler

if TYPE_CHECKING:
    from pie_engine.config import MethodConfig, RunConfig
    from pie_engine.rounds.equations import OnStep, Part
    from pie_engine.rounds.loop import Loop, Method
    from pie_engine.rounds.plan import Batch, Plan

# Vectors whose cosine is beyond this are interpolated linearly, as is usual: the angle between them is too small.
_PARALLEL = 0.9995


def slerp(first: Tensor, second: Tensor, share: float) -> Tensor:
    """Spherical interpolation (Shoemake 1985) of each item's tensor as one vector.

    sin((1 - u) a) / sin(a) first + sin(u a) / sin(a) second, where a is the angle between them; their norms are
    interpolated along. Almost parallel ones (cosine beyond 0.9995) are interpolated linearly.

    Args:
        first, second: [B, ...] float32.
        share: u, 0 for the first, 1 for the second.
    """
    a, b = first.flatten(1).double(), second.flatten(1).double()
    cosine = ((a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))).clamp(-1, 1)
    angle = cosine.acos()
    straight = cosine.abs() > _PARALLEL
    sine = torch.where(straight, torch.ones_like(angle), angle.sin())
    left = torch.where(straight, torch.full_like(angle, 1 - share), ((1 - share) * angle).sin() / sine)
    right = torch.where(straight, torch.full_like(angle, share), (share * angle).sin() / sine)
    return (left[:, None] * a + right[:, None] * b).to(first.dtype).view_as(first)


@dataclass(frozen=True)
class Interpolation:
    """Latents on the straight line from the input's to where PIE's N rounds end: z0 + n/N (z_N - z0).

    As even as a progression can be in its latents, and what an even pace has to be sharper than half-way.
    """

    def evaluations(self, plan: Plan, config: RunConfig) -> int:
        return plan.total_evaluations

    def rounds(self, loop: Loop, batch: Batch, config: RunConfig, on_step: OnStep) -> Iterator[Round]:
        plan, b = loop.plan, loop.plan.buffers
        noises, end = Noises(plan, batch, config), plan.original_latent.clone()

        def go_on(index: int) -> None:
            plan.enter(index)
            noises.fill(index)
            b.x.copy_(end)
            run_round(plan, loop.run, on_step)

        for index in range(config.steps):
            loop.compute(index + 1, partial(go_on, index), decoded=False)
            end.copy_(b.x)

        def mix(share: float) -> None:
            torch.lerp(plan.original_latent, end, share, out=b.x)

        for number in range(1, config.steps + 1):
            yield loop.compute(number, partial(mix, number / config.steps))


@dataclass(frozen=True)
class Walk:
    """A Stable Diffusion walk from the input to the prompt.

    Frame n is generated from slerp(inverted input, the item's noise, n / N), conditioned on lerp(start prompt's
    embedding, prompt's embedding, n / N), with the run's guidance. The plan's schedule has the walk's total strength.

    Attributes:
        start_prompt: what the embeddings begin with.
    """

    start_prompt: str

    def evaluations(self, plan: Plan, config: RunConfig) -> int:
        steps = plan.sampler.schedule.steps
        return plan.evaluations - steps + config.steps * steps

    def rounds(self, loop: Loop, batch: Batch, config: RunConfig, on_step: OnStep) -> Iterator[Round]:
        plan, count, reruns = loop.plan, len(batch.prompts), list(loop.reruns)
        end = plan.sampler.unet.context.clone().float()
        # Through the loop, so that embeddings are checked and computed again as a run's own are.
        loop.load(replace(batch, prompts=[self.start_prompt] * count), config)
        start = plan.sampler.unet.context.clone().float()
        loop.reruns[:0] = reruns  # which a load forgets
        noise = _noise(plan, batch, config, None)
        loop.compute(0, lambda: run_inversion(plan, partial(_run, plan), on_step))
        inverted = plan.buffers.eps.clone()

        def generate(share: float) -> None:
            plan.sampler.unet.condition(torch.lerp(start, end, share))
            _edit(plan, slerp(inverted, noise, share), on_step)

        for number in range(1, config.steps + 1):
            yield loop.compute(number, partial(generate, number / config.steps))


@dataclass(frozen=True)
class OneShot:
    """One image-to-image edit (SDEdit, Meng et al. 2022) of the input per frame, of rising strength.

    The plan's schedule of rounds has the strengths (`rising_schedule`); its inversion replaces noising where the run
    asks for it.
    """

    def evaluations(self, plan: Plan, config: RunConfig) -> int:
        return sum(plan.evaluations_of(index) for index in _computed(config))

    def rounds(self, loop: Loop, batch: Batch, config: RunConfig, on_step: OnStep) -> Iterator[Round]:
        plan, b = loop.plan, loop.plan.buffers
        noise = None if config.inversion == "ddim" else _noise(plan, batch, config, None)
        computed, last = _computed(config), None

        def edit(index: int) -> None:
            plan.enter(index)
            if noise is not None:
                _edit(plan, _noise(plan, batch, config, index) if config.noise == "fresh" else noise, on_step)
                return
            b.x.copy_(plan.original_latent)
            run_inversion(plan, partial(_run, plan), on_step)
            _edit(plan, b.eps, on_step)

        for index in range(config.steps):
            if last is None or index in computed:
                last = loop.compute(index + 1, partial(edit, index))
            yield last


@dataclass(frozen=True)
class RoundTrips:
    """Frame n is frame n - 1, in 8 bits, encoded (posterior mean) and decoded: what the autoencoder does by itself."""

    def evaluations(self, plan: Plan, config: RunConfig) -> int:
        return 0

    def rounds(self, loop: Loop, batch: Batch, config: RunConfig, on_step: OnStep) -> Iterator[Round]:
        plan, b = loop.plan, loop.plan.buffers

        def encode(pixels: Tensor) -> None:
            moments = plan.backend.encode_image(pixels)
            b.flags[ENCODE].copy_(~moments.isfinite().flatten(1).all(1))
            b.x.copy_(moments.chunk(2, dim=1)[0] * plan.backend.model.scaling_factor)

        pixels = batch.pixels
        for number in range(1, config.steps + 1):
            result = loop.compute(number, partial(encode, pixels))
            yield result
            pixels = (result.frames.float() / 127.5 - 1).permute(0, 3, 1, 2).contiguous()


@dataclass(frozen=True)
class Previous:
    """Every frame is the input."""

    def evaluations(self, plan: Plan, config: RunConfig) -> int:
        return 0

    def rounds(self, loop: Loop, batch: Batch, config: RunConfig, on_step: OnStep) -> Iterator[Round]:
        frames = ((batch.pixels + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
        same = Round(loop.plan.original_latent.cpu(), frames)
        yield from [same] * config.steps


@dataclass(frozen=True)
class Chosen:
    """What a method's settings come to.

    Attributes:
        frames: what gives the frames; None for PIE's rounds.
        config: the settings that the plan is made with.
        what: the run in words.
        facts: what provenance says of the method beside its settings.
    """

    frames: Method | None
    config: RunConfig
    what: str
    facts: dict[str, Any]


_WHAT = {
    "pie": "{n} rounds of progression from one image towards the prompt",
    "interpolation": "{n} frames on the straight line to where that many rounds of progression towards the prompt end",
    "walk": "{n} frames of a Stable Diffusion walk from the input towards the prompt",
    "one-shot": "{n} image-to-image edits of the input, of rising strength, towards the prompt",
    "previous": "the input {n} times",
    "vae": "{n} round trips of the input through the autoencoder",
    "control": "{n} rounds of progression from one image towards the healthy prompt",
}


def describe_method(name: str, frames: int) -> str:
    """A run of a method, in words."""
    return _WHAT[name].format(n=frames)


def choose_method(method: MethodConfig, config: RunConfig, scheduler_config: Mapping[str, Any]) -> Chosen:
    """A method made ready for settings that it has checked (`MethodConfig.check`).

    Args:
        scheduler_config: the checkpoint's.
    """
    what = describe_method(method.name, config.steps)
    if method.name == "walk":
        total = 1.0 if method.total_strength is None else method.total_strength
        start = method.start_prompt or ""
        inverting = replace(config, strength=total, inversion="ddim")
        return Chosen(Walk(start), inverting, what, {"start_prompt": start, "total_strength": total})
    if method.name == "one-shot":
        most = config.num_inference_steps
        if method.total_strength is None:
            steps = matched_steps(scheduler_config, config)
        else:
            steps = int(most * method.total_strength)
        each = rising_steps(steps, config.steps)
        rising = replace(config, schedule=rising_schedule(each, most))
        return Chosen(OneShot(), rising, what, {"total_strength": steps / most, "denoising_steps": list(each)})
    frames: dict[str, Method] = {"interpolation": Interpolation(), "previous": Previous(), "vae": RoundTrips()}
    return Chosen(frames.get(method.name), config, what, {})


def matched_steps(scheduler_config: Mapping[str, Any], config: RunConfig) -> int:
    """Denoising steps of the one edit whose noising keeps no more of the input than N rounds of PIE do.

    A round noises its latent to sqrt(abar) z + sqrt(1 - abar) eps and so keeps the share sqrt(abar) of it; N rounds
    keep sqrt(abar)^N of the input, as far as noising goes. The edit is the weakest one, of k of the T steps, that keeps
    no more, and of all T where none does. (The blend with beta2 puts some of the input back, which this leaves out: the
    match bounds the strength from above.)

    Args:
        scheduler_config: the checkpoint's.
    """
    scheduler, total = config.scheduler or "ddim", config.num_inference_steps
    schedule = build_schedule(scheduler_config, name=scheduler, num_inference_steps=total, denoising_steps=total)
    kept = schedule.signal / np.hypot(schedule.signal, schedule.noise)  # also of those that let the variance grow
    order = getattr(make_scheduler(scheduler_config, scheduler), "order", 1)
    entry = [float(kept[(total - steps) * order]) for steps in range(1, total + 1)]
    limit = entry[config.denoising_steps - 1] ** config.steps
    return next((steps for steps, share in enumerate(entry, 1) if share <= limit or math.isclose(share, limit)), total)


def rising_steps(total: int, frames: int) -> tuple[int, ...]:
    """Denoising steps of frames 1 to N, rising evenly to `total`; at least 1."""
    return tuple(max(1, total * number // frames) for number in range(1, frames + 1))


def rising_schedule(steps: Sequence[int], num_inference_steps: int) -> RoundSchedule:
    """One round for each of `steps`, with the least strength that runs so many of the T denoising steps."""
    strengths = [
        min(1.0, math.nextafter(k / num_inference_steps, 2.0)) for k in steps
    ]  # int(T * gamma) must not lose one
    return RoundSchedule(tuple(RoundRange(n, n, strength=strength) for n, strength in enumerate(strengths, 1)))


def _computed(config: RunConfig) -> tuple[int, ...]:
    """Indices of the edits that differ from the one before: with one noise, those of another strength."""
    kinds = [one.kind for one in config.rounds]
    fresh = config.noise == "fresh" and config.inversion == "noise"
    return tuple(index for index, kind in enumerate(kinds) if fresh or index == 0 or kind != kinds[index - 1])


def _edit(plan: Plan, eps: Tensor, on_step: OnStep) -> None:
    """The input, noised with eps and denoised by the plan's sampler, into the plan's x; the outside is the input's."""
    b = plan.buffers
    if b.weight is not None and b.mask is not None:
        b.weight.copy_(b.mask)  # beta2 = 1 and beta1 = 0, also where regions have betas of their own
    b.x.copy_(plan.original_latent)
    b.eps.copy_(eps)
    enter(plan)
    run_steps(plan, partial(_run, plan), on_step)


def _run(plan: Plan, part: Part) -> None:
    part(plan)


def _noise(plan: Plan, batch: Batch, config: RunConfig, index: int | None) -> Tensor:
    """The items' noises, [B, 4, h, w] on the plan's device: PIE's own, of one round or shared."""
    noises = [item_noise(plan.shape.latent, config.seed, item, index) for item in batch.item_ids]
    return torch.stack(noises).to(plan.buffers.eps)
