"""The PIE rounds over any backend, in both semantics: one function per equation of design and paper.

A round (arXiv 2309.11745, algorithm 1): noise or invert the previous frame's latent to the first of k timesteps;
k guided denoising steps with the outside of the region of interest (ROI) replaced between them; blend with the
original latent. Its parts work on static buffers alone, so that each can be captured once and replayed ever after.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pie_engine.rounds.boxed import Mode
from pie_engine.rounds.buffers import DECODE, DENOISE, ENCODE, INVERSION
from pie_engine.rounds.noise import item_noise, official_generator

if TYPE_CHECKING:
    from pie_engine.config import RunConfig
    from pie_engine.rounds.plan import Batch, Plan

OnStep = Callable[[], None]
# A part of a round, run on the plan's buffers.
Part = Callable[["Plan"], None]


def run_round(plan: Plan, run: Callable[[Part], None], on_step: OnStep = lambda: None) -> None:
    """x -> x: all parts of the round that the plan has entered, in order.

    Args:
        run: runs a part on the plan, or replays what it captured of it.
        on_step: called after each U-Net evaluation; on a GPU it has only been launched then.
    """
    if plan.inversion is not None:
        run_inversion(plan, run, on_step)
    if plan.boxed is not None:
        plan.boxed.unet.start(plan.buffers.x)
    run(enter_official if plan.official else enter)
    run_steps(plan, run, on_step)


def run_steps(plan: Plan, run: Callable[[Part], None], on_step: OnStep = lambda: None) -> None:
    """The denoising steps of a round that has been entered."""
    steps = plan.sampler.schedule.steps
    for _ in range(steps) if plan.boxed is None else plan.boxed.unet.steps(steps):
        run(step)
        on_step()


def run_inversion(plan: Plan, run: Callable[[Part], None], on_step: OnStep = lambda: None) -> None:
    """DDIM inversion of x, read back as the noise eps = (x_t - sqrt(abar) x) / sqrt(1 - abar)."""
    assert plan.inversion is not None
    run(enter_inversion)
    for _ in range(plan.inversion.schedule.steps):
        run(invert_step)
        on_step()
    run(read_noise_back)


def enter(plan: Plan) -> None:
    """x noised with eps to the first timestep: the engine's own semantics, latents carried from round to round."""
    b = plan.buffers
    plan.sampler.enter(b.x, b.x, b.eps, b.flags[DENOISE])


def enter_official(plan: Plan) -> None:
    """Posterior samples of the previous frame, noised, and of the original (twice), as published."""
    b, scaling = plan.buffers, plan.backend.model.scaling_factor
    assert b.draws is not None and b.frame_moments is not None
    b.x.copy_(posterior_sample(b.frame_moments, b.draws[0]) * scaling)
    b.z0.copy_(posterior_sample(b.moments, b.draws[1]) * scaling)
    b.z0_background.copy_(posterior_sample(b.moments, b.draws[2]) * scaling)
    enter(plan)


def step(plan: Plan) -> None:
    """One U-Net evaluation and what follows it; the last one of a round ends in its final blend."""
    b = plan.buffers
    plan.sampler.step(b.x, b.flags[DENOISE], plan.background)


def displacements(parts: Tensor, edit: Tensor) -> Tensor:
    """|p (x - z0)| of each region and item, [R, B] float32.

    Args:
        parts: p, [R, B, 1, h, w] float32.
        edit: x - z0, [B, C, h, w] float32.
    """
    return (parts * edit).flatten(2).norm(dim=2)


def blend_evenly(plan: Plan) -> None:
    """x -> z0 + (b p + beta1 (1 - m)) (x - z0), b so that each region's displacement is the round's target."""
    b = plan.buffers
    assert b.pace is not None
    pace, edit = b.pace, b.x - b.z0
    reach = displacements(pace.blended, edit)
    # A region in which nothing changed has nothing to scale: 0 / tiny is 0.
    torch.clamp(pace.target / reach.clamp(min=torch.finfo(torch.float32).tiny), max=1.0, out=pace.blend)
    weight = pace.outside + (pace.blend[:, :, None, None, None] * pace.parts).sum(0)
    torch.addcmul(b.z0, weight, edit, out=b.x)


def enter_inversion(plan: Plan) -> None:
    """The latent itself, to be inverted in eps, so that x stays."""
    b = plan.buffers
    assert plan.inversion is not None
    plan.inversion.enter(b.eps, b.x, None, b.flags[INVERSION])


def invert_step(plan: Plan) -> None:
    """One step of DDIM inversion."""
    b = plan.buffers
    assert plan.inversion is not None
    plan.inversion.step(b.eps, b.flags[INVERSION], None)


def read_noise_back(plan: Plan) -> None:
    """The noise between x and what its inversion arrived at."""
    b = plan.buffers
    assert plan.inversion is not None
    plan.kernels.noising(b.eps, None, None, None, None, b.x, b.eps, plan.inversion.read_back)


def decode_frames(plan: Plan) -> None:
    """The latents handed to the decoder -> frames [B, H, W, 3] uint8, clamped and rounded half to even."""
    b, latent = plan.buffers, plan.buffers.decoding / plan.backend.model.scaling_factor
    boxed = None if plan.boxed is None else plan.boxed.decoder
    if boxed is not None and boxed.mode is Mode.WHOLE:
        boxed = None
    pixels = plan.decode(latent) if boxed is None else boxed.inside(latent)
    b.decoding_flags[DECODE].copy_(~pixels.isfinite().flatten(1).all(1))
    frames = (pixels / 2 + 0.5).clamp(0, 1).mul(255).round().permute(0, 2, 3, 1).to(torch.uint8)
    if boxed is None:
        b.frames.copy_(frames)
    else:
        boxed.paste(b.frames, frames)


def encode_frames(plan: Plan) -> None:
    """The previous 8-bit frames -> their posterior: where a round of the published code starts from."""
    b = plan.buffers
    assert b.previous_frames is not None and b.frame_moments is not None
    pixels = (b.previous_frames.permute(0, 3, 1, 2).float() / 127.5 - 1).contiguous()
    b.frame_moments.copy_(plan.backend.encode_image(pixels))
    b.flags[ENCODE].copy_(~b.frame_moments.isfinite().flatten(1).all(1))


def posterior_sample(moments: Tensor, draw: Tensor) -> Tensor:
    """mean + std * draw of the VAE's diagonal Gaussian; the log-variance is clamped as diffusers does."""
    mean, log_variance = moments.chunk(2, dim=1)
    return mean + (0.5 * log_variance.clamp(-30.0, 20.0)).exp() * draw


class Noises:
    """The noises of one run, drawn on the host and copied into the buffers round by round.

    On a GPU they pass through pinned memory, so that the host does not wait for the rounds before; PyTorch's allocator
    keeps such memory until the copy has happened.
    """

    def __init__(self, plan: Plan, batch: Batch, config: RunConfig, *, skip: int = 0):
        """skip: rounds that were run before; what the published code drew for them is drawn and let go."""
        self._plan, self._ids, self._config = plan, batch.item_ids, config
        self._generators = [official_generator(config.seed) for _ in self._ids] if plan.official else []
        self._filled: int | None = None
        for _ in range(skip if plan.official else 0):
            self._draw_round()

    def fill(self, index: int) -> None:
        """Make the buffers hold round `index`'s noises; once more for a round that is run again."""
        if index == self._filled:
            return
        if self._plan.official:
            self._draw_official()
        elif self._plan.inversion is None and (self._filled is None or self._config.noise == "fresh"):
            self._draw_items(None if self._config.noise == "shared" else index)
        self._filled = index

    def _draw_items(self, round_index: int | None) -> None:
        shape = self._plan.shape.latent
        noises = [item_noise(shape, self._config.seed, item, round_index) for item in self._ids]
        self._copy([(self._plan.buffers.eps, torch.stack(noises))])

    def _draw_official(self) -> None:
        b, draws = self._plan.buffers, self._draw_round()
        first, eps, second, _, third, eps_background = (torch.stack(draw) for draw in zip(*draws, strict=True))
        assert b.draws is not None
        posteriors = torch.stack([first, second, third])
        self._copy([(b.draws, posteriors), (b.eps, eps), (b.eps_background, eps_background)])

    def _draw_round(self) -> list[list[Tensor]]:
        """Six draws per round and item, in the published order; see reference.progress_official."""
        import torch

        shape = self._plan.shape.latent
        return [[torch.randn(shape, generator=g) for _ in range(6)] for g in self._generators]

    def _copy(self, pairs: list[tuple[Tensor, Tensor]]) -> None:
        """Copy each (target, source)."""
        pin = self._plan.backend.device.type == "cuda"
        for target, source in pairs:
            target.copy_(source.pin_memory() if pin else source, non_blocking=True)
