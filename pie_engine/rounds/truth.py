"""How far rounds in a box are from whole ones, watched while they run: some steps are computed both ways.

A box is exact but for what its surroundings would have answered otherwise since they were recorded, so its error grows
with how far the region has moved since then. The first round after a recording and the last one are checked; between
them the error is taken to grow with that distance. What rounds before left of theirs shrinks as the rounds' increments
do. A round that would be too far off is computed whole instead, and recorded anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pie_engine.imaging.item import PreparedItem
    from pie_engine.rounds.plan import Plan
    from pie_engine.rounds.schedule import Schedule

    Floats = NDArray[np.float64]

# Grey levels, at the 99.9th percentile of the region's values, that a frame may be from that of whole rounds, by this
# estimate; in docs/performance.md it is more than the frames' own difference.
LIMIT = 1.5
_PERCENTILE = 99.9
# After so many rounds that had to be computed again the rest are whole ones: boxes cost more than they save.
_MOST_FAILURES = 2


class Watch:
    """Decides before each round of a batch what it computes, and after it whether that was true enough.

    Args:
        plan: with boxes, and the batch loaded.
        items: of the batch.
        composited: whether frames fade into the input at the region's edge.
    """

    def __init__(self, plan: Plan, items: Sequence[PreparedItem], *, composited: bool):
        assert plan.boxed is not None
        self._plan = plan
        masks = [item.mask for item in items if item.mask is not None]
        weights = [mask.weight if composited else mask.pixels.astype(np.float32) for mask in masks]
        device = plan.backend.device
        self._weight = torch.from_numpy(np.stack(weights))[:, None].to(device)
        self._inside = torch.from_numpy(np.stack([mask.latent for mask in masks])).to(device)
        self._error, self._increment = np.zeros(len(items)), np.zeros(len(items))
        self._growth: Floats | None = None  # error of a round by distance, once it has been measured
        self._failures = 0
        self._distance, self._before = np.zeros(len(items)), torch.empty(0)
        self._whole: list[int] = []
        self._checked: list[int] = []

    def before(self, index: int) -> None:
        """Choose what round `index`, counted from 0, computes, from the latents that it starts from."""
        unet, b = self._boxed.unet, self._plan.buffers
        self._before, unet.check = b.x.clone(), False
        if unet.whole or not unet.recorded or unet.anchor is None:
            return
        self._distance = self._norm(b.x - unet.anchor)
        last = index == self._plan.rounds - 1
        if self._growth is not None and (self._error + self._growth * self._distance > LIMIT).any():
            unet.recorded = False
        else:
            unet.check = last or self._growth is None

    def after(self, index: int, latents: Tensor) -> bool:
        """Whether the round that has ended with these latents [B, 4, h, w] has to be computed again, recorded."""
        unet = self._boxed.unet
        increment = self._norm(latents.to(self._before) - self._before)
        shrinking = np.divide(increment, self._increment, out=np.ones_like(increment), where=self._increment > 0)
        error = np.minimum(shrinking, 1.0) * self._error
        if unet.was_whole:
            self._growth = None
            self._whole.append(index + 1)
        elif unet.check:
            found = self._judge(latents)
            error = error + found
            if not (error <= LIMIT).all():  # nor is NaN
                self._failures += 1
                unet.recorded, unet.whole = False, self._failures > _MOST_FAILURES
                return True
            self._growth = found / np.maximum(self._distance, 1e-12)
            self._checked.append(index + 1)
        elif self._growth is not None:
            error = error + self._growth * self._distance
        self._error, self._increment = error, increment
        return False

    @property
    def latents(self) -> tuple[int, int]:
        """Height and width of the whole picture."""
        return self._plan.shape.latent[1:]

    def describe(self, item: int) -> dict[str, Any]:
        """What provenance says of an item of the batch: rounds counted from 1, the last frame's error."""
        return {
            "whole": list(self._whole), "checked": list(self._checked), "failed": self._failures,
            "grey_levels": round(float(self._error[item]), 4), "limit": LIMIT,
        }  # fmt: skip

    @property
    def _boxed(self) -> Any:
        assert self._plan.boxed is not None
        return self._plan.boxed

    def _norm(self, latents: Tensor) -> Floats:
        found: Floats = (latents * self._inside).flatten(1).norm(dim=1).double().cpu().numpy()
        return found

    def _judge(self, latents: Tensor) -> Floats:
        """Grey levels that the round of the checked steps is off by, for each item.

        The differences of the checked steps, in their mean, are taken for those of all k, which the schedule carries to
        the end of the round; the latents that they lead to are decoded and compared.
        """
        b, boxed = self._plan.buffers, self._boxed
        noise = _guided(self._plan, boxed.unet.difference / boxed.unet.checks)
        weight = b.mask if b.pace is not None else b.weight
        assert weight is not None and b.mask is not None
        change = weight * b.mask * noise * carried(self._plan.sampler.schedule)
        scaling = self._plan.backend.model.scaling_factor
        x = latents.to(change)
        decode, weights = self._plan.decode, self._weight
        if boxed.decoder is not None:
            decode, weights = boxed.decoder.inside, boxed.decoder.cut(weights)
        # A copy, as the second call overwrites what the first gave.
        before = decode(x / scaling).clone()
        grey = (decode((x + change) / scaling) - before).abs() * 127.5
        found = []
        for values, each in zip((grey * weights).cpu().numpy(), weights.cpu().numpy(), strict=True):
            inside = values[:, each[0] > 0]
            found.append(np.percentile(inside, _PERCENTILE) if inside.size else 0.0)
        return np.array(found)


def carried(schedule: Schedule) -> float:
    """What a noise that is 1 too large in every step changes in the latent that the round ends with."""
    x, history = 0.0, np.zeros(schedule.history)
    for i in range(schedule.steps):
        following = schedule.P[i] @ history + schedule.p[i] * x + schedule.q[i]
        x = schedule.a[i] * x + schedule.b[i] + schedule.c[i] @ history
        history = following
    return float(x)


def _guided(plan: Plan, rows: Tensor) -> Tensor:
    """The U-Net's rows -> the noise that a step takes, [B, C, h, w]: u + g (sum_j w_j c_j - u)."""
    b, batch = plan.buffers, plan.shape.batch
    conditional = rows[-plan.shape.findings * batch :].unflatten(0, (plan.shape.findings, batch))
    found = conditional.sum(0) if b.finding_weights is None else (conditional * b.finding_weights).sum(0)
    if not plan.kind.guided:
        return found
    return rows[:batch] + b.guidance[:, None, None, None] * (found - rows[:batch])
