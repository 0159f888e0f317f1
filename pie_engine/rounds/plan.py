"""Everything that the rounds of a progression share: schedules, buffers, the U-Net bound to them, encoded prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from pie_engine.regional.windows import Box, enlarged
from pie_engine.rounds.boxed import DECODER_MARGIN, BoxedDecoder, BoxedUNet
from pie_engine.rounds.buffers import Buffers, Pacing, Shape
from pie_engine.rounds.findings import RegionalUNet
from pie_engine.rounds.sampler import Background, Sampler
from pie_engine.rounds.schedule import build_inversion, build_schedule

if TYPE_CHECKING:
    from pie_engine.backends import Backend, UNetCall
    from pie_engine.config import RoundKind, RoundSettings, RunConfig
    from pie_engine.kernels.dispatch import Kernels
    from pie_engine.rounds.schedule import Schedule


@dataclass(frozen=True, eq=False)
class Batch:
    """The items of one progression, stacked.

    Attributes:
        pixels: [B, 3, H, W] float32 in [-1, 1].
        mask: [B, 1 or 4, h, w] float32, 1 = may change, or None. All items of a batch have one, or none has.
        prompts: J B strings, the first finding's of all items, then the second's; J is 1 but with several findings.
        item_ids: B strings.
        beta_map: [B, 1, h, w] float32, the blend inside the mask where regions may have their own betas; None: beta2.
        finding_weights: [J, B, 1, h, w] float32, each finding's share of a latent, 1 in all; None where J is 1.
        boxes: B boxes of one size that rounds compute alone, or None for whole pictures.
    """

    pixels: Tensor
    mask: Tensor | None
    prompts: list[str]
    item_ids: list[str]
    beta_map: Tensor | None = None
    finding_weights: Tensor | None = None
    boxes: Sequence[Box] | None = None


@dataclass(frozen=True, eq=False)
class Boxed:
    """The networks of a plan whose rounds compute boxes.

    Attributes:
        decoder: None where its boxes, which are larger, would be the whole picture.
    """

    unet: BoxedUNet
    decoder: BoxedDecoder | None


class Plan:
    """Schedules, buffers and bound U-Nets for one batch shape and the kinds of round that the settings ask for.

    Batches are loaded into it; rounds are entered one after the other. Rounds of all kinds share the buffers, and one
    sampler with guidance and one without it, whichever are needed.

    Attributes:
        buffers: every tensor that a round reads or writes.
        kernels: the implementation of the fused operations.
        kind: of the round that was entered last.
        first_edit: [B, C, h, w], x after the first round's last step, where a pilot has run it; so it is not run again.
        boxed: U-Net and decoder of rounds that compute boxes, as they are bound; else None.
    """

    def __init__(self, backend: Backend, shape: Shape, config: RunConfig, kernels: Kernels):
        self.backend, self.shape, self.kernels = backend, shape, kernels
        self.official = config.semantics == "official"
        self.buffers = Buffers.allocate(shape, backend.device, official=self.official, even=config.even)
        self._rounds = config.rounds
        self.kind = self._rounds[0].kind
        self._schedules = {kind: self._build(config, kind) for kind in _kinds(config)}
        # Per distinct row of prompts: [J B or (1 + J) B, 77, D]. What each bound U-Net holds, by whether it is guided.
        self._contexts: dict[tuple[str, ...], Tensor] = {}
        self._held: dict[bool, tuple[str, ...]] = {}
        self._empty_context: Tensor | None = None
        self._index = 0
        self._targets: Tensor | None = None
        self.first_edit: Tensor | None = None
        self._samplers: dict[bool, Sampler] = {}  # by whether they are guided
        self._inversion: Sampler | None = None
        self.boxed: Boxed | None = None
        self._boxes: Sequence[Box] = ()

    @staticmethod
    def key(shape: Shape, config: RunConfig) -> tuple[object, ...]:
        """What a plan is good for: any batch and settings with an equal key."""
        return (
            shape, config.semantics, config.scheduler, config.num_inference_steps, config.inversion, config.even,
            _kinds(config),
        )  # fmt: skip

    @property
    def sampler(self) -> Sampler:
        """The denoising steps of the round that was entered last, with the U-Net as it was bound last."""
        assert self._samplers, "bind first"
        return self._samplers[self.kind.guided]

    @property
    def inversion(self) -> Sampler | None:
        """That round's DDIM inversion, or None where a round enters by noising."""
        return self._inversion

    @property
    def evaluations(self) -> int:
        """U-Net calls of that round."""
        return self._evaluations(self.kind)

    def evaluations_of(self, index: int) -> int:
        """U-Net calls of round `index` of the settings that were loaded last, counted from 0."""
        if index == 0 and self.first_edit is not None:
            return 0
        return self._evaluations(self._rounds[index].kind)

    @property
    def total_evaluations(self) -> int:
        """U-Net calls of all rounds."""
        return sum(map(self.evaluations_of, range(len(self._rounds))))

    @property
    def timesteps(self) -> dict[str, list[float]]:
        """The timesteps that are denoised, by how many there are in a round."""
        return {str(kind.denoising_steps): table.timesteps.tolist() for kind, (table, _) in self._schedules.items()}

    def unbind(self) -> None:
        """Let go of the U-Net and its buffers."""
        self._samplers.clear()
        self._inversion = self.boxed = None
        self._held.clear()

    def bind(self) -> None:
        """Bind the U-Net's current weights and precision to buffers, unless it is bound."""
        if self._samplers:
            return
        batch, (_, height, width), buffers = self.shape.batch, self.shape.latent, self.buffers
        for guided in sorted({kind.guided for kind in self._schedules}):
            rows = batch * (self.shape.findings + guided)
            unet = self.backend.bind_unet(rows, height, width) if self.shape.box is None else self._bind_boxed(rows)
            if buffers.finding_weights is not None:
                unet = RegionalUNet(unet, buffers.finding_weights, guided=guided)
            tables = {kind: denoising for kind, (denoising, _) in self._schedules.items() if kind.guided == guided}
            self._samplers[guided] = Sampler(tables, unet, self.kernels, guidance=buffers.guidance if guided else None)
        inverting = {kind: table for kind, (_, table) in self._schedules.items() if table is not None}
        if inverting:
            unet = self.backend.bind_unet(batch, height, width)
            self._inversion = Sampler(inverting, unet, self.kernels, guidance=None, inverting=True)
        if self._contexts:
            self._fill_empty_context()
            self.enter(self._index)

    def bind_decoder(self) -> None:
        """Bind the decoder's current weights, where rounds compute boxes."""
        if self.boxed is not None:
            self.boxed = replace(self.boxed, decoder=self._boxed_decoder())

    def load(self, batch: Batch, config: RunConfig, checked: Checked) -> None:
        """Copy a batch in and enter its first round: prompts and images are encoded here, once per progression.

        The U-Net is bound after that, at the first load: it may still be being opened.
        """
        buffers = self.buffers
        buffers.flags.zero_()
        self._boxes = batch.boxes or ()
        self._targets = self.first_edit = None  # until the batch's pilot has run
        self._rounds, self._prompts = config.rounds, tuple(batch.prompts)
        self._encode_prompts(config, checked)
        buffers.moments.copy_(checked("vae_encoder", lambda: self.backend.encode_image(batch.pixels)))
        known = self.boxed  # what is bound now has its boxes from the start
        self.bind()
        self.enter(0)
        if known is not None and self.boxed is not None:
            if self.boxed.decoder is not None:
                self.boxed.decoder.place(self._boxes)
            self.boxed.unet.place(self._rows_of(self._boxes))
        buffers.z0.copy_(self.original_latent)
        buffers.x.copy_(buffers.z0)
        if buffers.mask is not None and buffers.weight is not None and batch.mask is not None:
            buffers.mask.copy_(batch.mask)
            if buffers.pace is None:
                beta_map = config.beta2 * batch.mask if batch.beta_map is None else batch.beta_map
                buffers.weight.copy_(config.beta1 * (1 - batch.mask) + beta_map)
            else:
                buffers.weight.fill_(1.0)  # the last step blends nothing: the pace does, once it has seen it
        if buffers.finding_weights is not None and batch.finding_weights is not None:
            buffers.finding_weights.copy_(batch.finding_weights)
        if buffers.pace is not None:
            self._load_pace(buffers.pace, batch, config)

    def _load_pace(self, pace: Pacing, batch: Batch, config: RunConfig) -> None:
        """The regions that move evenly; without a mask, the whole picture. Regions of less beta move less with them."""
        mask = torch.ones_like(pace.outside) if batch.mask is None else batch.mask.to(pace.outside)
        betas = config.beta2 * mask if batch.beta_map is None else batch.beta_map.to(mask)
        pace.outside.copy_(config.beta1 * (1 - mask))
        pace.constant.copy_(pace.outside + betas)
        part = mask
        if batch.beta_map is not None:
            part = betas / (betas / mask.clamp(min=1e-6)).amax((1, 2, 3), keepdim=True).clamp(min=1e-6)
        pace.parts.copy_(part if batch.finding_weights is None else part * batch.finding_weights.to(part))
        pace.blended.copy_(pace.parts * pace.parts.sum(0))

    def pace(self, targets: np.ndarray) -> None:
        """Take the displacements to reach, [N, R, B] (`pie_engine.rounds.pace.targets`), to where rounds read them."""
        self._targets = torch.from_numpy(targets.astype(np.float32)).to(self.backend.device)

    def enter(self, index: int) -> None:
        """Make the buffers hold what round `index` runs with, counted from 0: its guidance, and its prompts.

        It runs between rounds, where they run, and never within one: captured parts read what they find here.
        """
        settings = self._rounds[index]
        self.kind, self._index = settings.kind, index
        self.buffers.guidance.fill_(settings.guidance_scale)
        if self.buffers.pace is not None and self._targets is not None:
            self.buffers.pace.target.copy_(self._targets[index])
        self.sampler.choose(settings.kind)
        if self._inversion is not None:
            self._inversion.choose(settings.kind)
        prompts = self._prompts_of(settings)
        if self._held.get(settings.kind.guided) != prompts:
            unet = self.sampler.unet
            unet.condition(self._contexts[prompts][-len(unet.context) :])  # without guidance no negative prompts
            self._held[settings.kind.guided] = prompts

    @property
    def rounds(self) -> int:
        """N of the settings that were loaded last."""
        return len(self._rounds)

    def decode(self, latent: Tensor) -> Tensor:
        """Latents divided by the scaling factor [B, 4, h, w] -> pixels [B, 3, H, W] float32, of the whole picture."""
        decoder = None if self.boxed is None else self.boxed.decoder
        return self.backend.decode_latent(latent) if decoder is None else decoder.whole(latent)

    @property
    def original_latent(self) -> Tensor:
        """z0 = scaling factor * posterior mean, [B, 4, h, w] float32."""
        return self.buffers.moments.chunk(2, dim=1)[0] * self.backend.model.scaling_factor

    @property
    def background(self) -> Background | None:
        b = self.buffers
        if b.mask is None or b.weight is None:
            return None
        return Background(b.mask, b.weight, b.z0, b.z0_background, b.eps_background)

    def _bind_boxed(self, rows: int) -> UNetCall:
        assert self.shape.box is not None
        _, height, width = self.shape.latent
        unet = BoxedUNet(self.backend.bind_boxed("unet", rows, height, width, self.shape.box))
        if self._boxes:
            unet.place(self._rows_of(self._boxes))
        self.boxed = Boxed(unet, self._boxed_decoder() if self.boxed is None else self.boxed.decoder)
        return unet

    def _boxed_decoder(self) -> BoxedDecoder | None:
        assert self.shape.box is not None
        batch, (_, height, width) = self.shape.batch, self.shape.latent
        _, _, *size = enlarged(Box(0, 0, *self.shape.box), DECODER_MARGIN, (height, width))
        if size == [height, width]:
            return None
        network = self.backend.bind_boxed("vae_decoder", batch, height, width, (size[0], size[1]))
        decoder = BoxedDecoder(network, self.shape.scale)
        if self._boxes:
            decoder.place(self._boxes)
        return decoder

    def _rows_of(self, boxes: Sequence[Box]) -> list[Box]:
        """Of the U-Net's latents: without a prompt, then of one finding after the other."""
        return list(boxes) * (self.shape.findings + self.kind.guided)

    def _evaluations(self, kind: RoundKind) -> int:
        denoising, inverting = self._schedules[kind]
        return denoising.steps + (0 if inverting is None else inverting.steps)

    def _build(self, config: RunConfig, kind: RoundKind) -> tuple[Schedule, Schedule | None]:
        """The tables of one kind's denoising and, if rounds enter by it, inversion."""
        scheduler_config, total = self.backend.model.scheduler_config, config.num_inference_steps
        denoising = build_schedule(
            scheduler_config,
            name=config.scheduler or (None if self.official else "ddim"),
            num_inference_steps=total,
            denoising_steps=kind.denoising_steps,
            corrector=self.shape.mask_channels is None or self.official,
        )
        if config.inversion != "ddim":
            return denoising, None
        start, distinct = float(denoising.timesteps[0]), len(np.unique(denoising.timesteps))
        return denoising, build_inversion(scheduler_config, start, total, distinct)

    def _prompts_of(self, settings: RoundSettings) -> tuple[str, ...]:
        """What a round moves the items towards, J B prompts."""
        return self._prompts if settings.prompt is None else (settings.prompt,) * len(self._prompts)

    def _encode_prompts(self, config: RunConfig, checked: Checked) -> None:
        """Each distinct prompt of all rounds, once; then the contexts of every round."""
        rows = list(dict.fromkeys(self._prompts_of(one) for one in self._rounds))
        negative = [config.negative_prompt] if any(one.kind.guided for one in self._rounds) else []
        inverting = config.inversion == "ddim"
        # A cohort shares few prompts.
        unique = list(dict.fromkeys([*negative, *(prompt for row in rows for prompt in row), *([""] * inverting)]))
        tokens, count = self.backend.model.tokenize(unique), self.shape.batch
        most = 2 * count + 1  # that many at once are what an engine for B items is compiled for

        def encode() -> Tensor:
            # Cloned, since a backend may overwrite what it returned with its next call.
            return torch.cat([self.backend.encode_text(part).clone() for part in tokens.split(most)])

        embeddings = checked("text_encoder", encode)
        self._contexts = {
            row: embeddings[[unique.index(prompt) for prompt in [*(negative * count), *row]]] for row in rows
        }
        self._held.clear()
        self._empty_context = embeddings[[unique.index("")] * count] if inverting else None
        self._fill_empty_context()

    def _fill_empty_context(self) -> None:
        """Kinds of round share the U-Net that inverts."""
        if self._inversion is not None and self._empty_context is not None:
            self._inversion.unet.condition(self._empty_context)


def _kinds(config: RunConfig) -> tuple[RoundKind, ...]:
    """Those of the rounds, each once."""
    return tuple(sorted({one.kind for one in config.rounds}))


# Called with a component's name and a function that runs it; gives its output, which is finite.
Checked = Callable[[str, Callable[[], "Tensor"]], "Tensor"]
