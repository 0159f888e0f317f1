"""Several findings in one latent: the U-Net is asked about each, and each answers for its own regions."""

from __future__ import annotations

import torch
from torch import Tensor

from pie_engine.backends import UNetCall


class RegionalUNet(UNetCall):
    """A U-Net bound for (J + 1) B latents, or J B without guidance, that looks like one for 2 B or B to what drives it.

    With c_j what it predicts for finding j and w_j that finding's share of a latent, sum_j w_j = 1, it gives
    c = sum_j w_j c_j, so that a guided step's noise is e = u + g (c - u) = u + g sum_j w_j (c_j - u). That is the sum
    over concepts of composable diffusion (Liu et al. 2022, arXiv 2206.01714) with weights that vary over the image, as
    those of MultiDiffusion's regions do (Bar-Tal et al. 2023, arXiv 2302.08113).

    Args:
        unet: its batch holds the unconditional latents first, then those of one finding after the other.
        finding_weights: [J, B, 1, h, w] float32, w; read at each call.
    """

    def __init__(self, unet: UNetCall, finding_weights: Tensor, *, guided: bool):
        findings, batch = finding_weights.shape[:2]
        latent = unet.sample.shape[1:]
        first = batch * (2 if guided else 1)
        self._unet, self._weights, self._guided = unet, finding_weights, guided
        self.sample, self.timestep, self.context = unet.sample[:first], unet.timestep, unet.context
        self._others = unet.sample[first:].view(findings - 1, batch, *latent)
        self.output = torch.empty_like(self.sample)
        self._sum = torch.empty(batch, *latent, device=finding_weights.device)

    def condition(self, context: Tensor) -> None:
        self._unet.condition(context)

    def follow(self, timesteps: Tensor, row: Tensor) -> None:
        self._unet.follow(timesteps, row)

    def __call__(self) -> None:
        findings, batch = self._weights.shape[:2]
        self._others.copy_(self.sample[:batch])
        self._unet()
        conditional = self._unet.output[-findings * batch :].view(findings, batch, *self.sample.shape[1:])
        # In float32, whatever the U-Net computes in, and rounded once.
        self._sum.zero_()
        for prediction, weights in zip(conditional, self._weights, strict=True):
            self._sum.addcmul_(prediction.float(), weights)
        if self._guided:
            self.output[:batch].copy_(self._unet.output[:batch])
        self.output[-batch:].copy_(self._sum)
