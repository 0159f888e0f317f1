"""Everything of a progression that is the same in every round: schedules, buffers, the U-Net bound to them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pie_engine.runtime.buffers import Buffers, Shape
from pie_engine.runtime.sampler import Region, Sampler
from pie_engine.schedule import build_inversion, build_schedule

if TYPE_CHECKING:
    from torch import Tensor

    from pie_engine.backends import Backend
    from pie_engine.config import RunConfig
    from pie_engine.kernels.dispatch import Kernels


@dataclass(frozen=True)
class Batch:
    """The items of one progression, stacked.

    Attributes:
        pixels: [B, 3, H, W] float32 in [-1, 1].
        mask: [B, 1 or 4, h, w] float32, 1 = may change, or None. All items of a batch have one, or none has.
        prompts, item_ids: B strings each.
        inside: [B, 1, h, w] float32, the blend inside the mask where regions may have betas of their own; None: beta2.
    """

    pixels: Tensor
    mask: Tensor | None
    prompts: list[str]
    item_ids: list[str]
    inside: Tensor | None = None


class Plan:
    """Schedules, buffers and bound U-Nets for one batch shape and one set of settings; batches are loaded into it.

    Attributes:
        buffers: every tensor that a round reads or writes.
        inversion: DDIM inversion, or None where a round enters by noising.
        kernels: the implementation of the fused operations.
    """

    inversion: Sampler | None

    def __init__(self, backend: Backend, shape: Shape, config: RunConfig, kernels: Kernels):
        self.backend, self.shape, self.kernels = backend, shape, kernels
        self._guided = config.guided
        self.official = config.semantics == "official"
        self.buffers = Buffers.allocate(shape, backend.device, official=self.official)
        scheduler_config = backend.model.scheduler_config
        self._schedule = build_schedule(
            scheduler_config,
            name=config.scheduler or (None if self.official else "ddim"),
            num_inference_steps=config.num_inference_steps,
            denoising_steps=config.denoising_steps,
            corrector=shape.mask_channels is None or self.official,
        )
        self._inversion = None
        if config.inversion == "ddim":
            start, distinct = float(self._schedule.timesteps[0]), len(np.unique(self._schedule.timesteps))
            self._inversion = build_inversion(scheduler_config, start, config.num_inference_steps, distinct)
        self._context: Tensor | None = None
        self._empty_context: Tensor | None = None
        self._sampler: Sampler | None = None
        self.bind()

    @staticmethod
    def key(shape: Shape, config: RunConfig) -> tuple[object, ...]:
        """What a plan is good for: any batch and settings with an equal key."""
        return (
            shape, config.semantics, config.scheduler, config.num_inference_steps, config.denoising_steps,
            config.inversion, config.guided,
        )  # fmt: skip

    @property
    def sampler(self) -> Sampler:
        """The denoising steps, with the U-Net as it was bound last."""
        assert self._sampler is not None, "bind first"
        return self._sampler

    def unbind(self) -> None:
        """Let go of the U-Net and its buffers."""
        self._sampler = self.inversion = None

    def bind(self) -> None:
        """Bind the U-Net's current weights and precision to buffers, unless it is bound."""
        if self._sampler is not None:
            return
        batch, (_, height, width), buffers = self.shape.batch, self.shape.latent, self.buffers
        unet = self.backend.bind_unet(batch * (2 if self._guided else 1), height, width)
        self._sampler = Sampler(self._schedule, unet, self.kernels, guidance=buffers.guidance if self._guided else None)
        self.inversion = None
        if self._inversion is not None:
            empty = self.backend.bind_unet(batch, height, width)
            self.inversion = Sampler(self._inversion, empty, self.kernels, guidance=None, inverting=True)
        self._fill_contexts()

    def load(self, batch: Batch, config: RunConfig, checked: Checked) -> None:
        """Copy a batch in: prompts and images are encoded here, once per progression."""
        buffers, count = self.buffers, len(batch.prompts)
        buffers.flags.zero_()
        prompts = [config.negative_prompt] * count + batch.prompts if config.guided else batch.prompts
        inverting = self._inversion is not None
        unique = list(dict.fromkeys([*prompts, ""] if inverting else prompts))  # a cohort shares few prompts
        tokens = self.backend.model.tokenize(unique)
        embeddings = checked("text_encoder", lambda: self.backend.encode_text(tokens))
        self._context = embeddings[[unique.index(prompt) for prompt in prompts]]
        self._empty_context = embeddings[[unique.index("")] * count] if inverting else None
        self._fill_contexts()
        buffers.guidance.fill_(config.guidance_scale)
        buffers.moments.copy_(checked("vae_encoder", lambda: self.backend.encode_image(batch.pixels)))
        buffers.z0.copy_(self.original_latent)
        buffers.x.copy_(buffers.z0)
        if buffers.mask is not None and buffers.weight is not None and batch.mask is not None:
            buffers.mask.copy_(batch.mask)
            inside = config.beta2 * batch.mask if batch.inside is None else batch.inside
            buffers.weight.copy_(config.beta1 * (1 - batch.mask) + inside)

    @property
    def evaluations(self) -> int:
        """U-Net calls of one round."""
        return self._schedule.steps + (self._inversion.steps if self._inversion else 0)

    @property
    def original_latent(self) -> Tensor:
        """z0 = scaling factor * posterior mean, [B, 4, h, w] float32."""
        return self.buffers.moments.chunk(2, dim=1)[0] * self.backend.model.scaling_factor

    @property
    def region(self) -> Region | None:
        b = self.buffers
        if b.mask is None or b.weight is None:
            return None
        return Region(b.mask, b.weight, b.z0, b.z0_background, b.eps_background)

    def _fill_contexts(self) -> None:
        if self._context is not None:
            self.sampler.unet.context.copy_(self._context)
        if self._empty_context is not None and self.inversion is not None:
            self.inversion.unet.context.copy_(self._empty_context)


# Called with a component's name and a function that runs it; gives its output, which is finite.
Checked = Callable[[str, Callable[[], "Tensor"]], "Tensor"]
