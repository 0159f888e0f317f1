"""Rounds that change nothing: when an item of a batch has come to rest, so that what is left repeats its last round.

Increments of rounds that are alike fall geometrically. Of round n, inside the region,

    d_n   the root mean square of latent_n - latent_(n-1)
    g_n   the largest change of a pixel from the frame before, both as decoded, in 8 bits
    G_n   what bounds that change before rounding

Rounded frames tell a change to within one grey level, which is little of four and all of one. So G_n = g_n + 1, but
where g_n is less than four G_(n-1) d_n / d_(n-1), if that is less: latents go on shrinking where frames no longer tell.
The rate of what is to come is taken as q = q0 + (1 - q0) / 8, with q0 the largest of the last four ratios d_n / d_(n-1)
and of the last one with its last rise once more, as ratios rise over the rounds, less and less. Then the next round
changes no pixel by more than q G_n, and all that are left together by no more than q G_n / (1 - q): bounds as long as
ratios rise no further than that, which docs/convergence.md has the figures of.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pie_engine.metrics.change import grey_differences, inside_region, root_mean_square

if TYPE_CHECKING:
    from pie_engine.config import RunConfig
    from pie_engine.imaging.item import PreparedItem
    from pie_engine.rounds.loop import Round
    from pie_engine.rounds.plan import Plan

# So that there are two ratios.
LEAST_ROUNDS = 3
# How many of the last ratios are looked at: with inversion they fall and rise again.
RATIOS = 4
# Grey levels from which on a rounded change is known to a quarter.
TOLD = 4
# The share of what a ratio lacks to 1 that it may still rise by.
MARGIN = 1 / 8


class _Settling:
    """One item's rounds, and whether they have come to rest.

    Attributes:
        stopped: what provenance says of it; None while its rounds go on.
    """

    def __init__(self, tolerance: float, item: PreparedItem, original_latent: np.ndarray):
        """original_latent: [4, h, w]."""
        mask = item.mask
        self._tolerance = tolerance
        self._inside = inside_region(original_latent.shape, None if mask is None else mask.latent)
        self._pixels = None if mask is None or not mask.pixels.any() else mask.pixels
        self._latent = original_latent
        self._frame: np.ndarray | None = None
        self._increment, self._grey = 0.0, np.inf
        self._ratios: deque[float] = deque(maxlen=RATIOS)
        self.stopped: dict[str, Any] | None = None

    def add(self, number: int, latent: np.ndarray, frame: np.ndarray) -> None:
        """Round `number`, from 1: its latent [4, h, w] and its frame [H, W, 3] uint8 as decoded."""
        increment = root_mean_square((latent - self._latent)[self._inside])
        # A round that changes nothing is followed by one that changes nothing.
        ratio = increment / self._increment if self._increment else 0.0
        if self._frame is not None:
            differences = grey_differences(frame, self._frame)
            grey = int((differences if self._pixels is None else differences[self._pixels]).max())
            self._grey = grey + 1 if grey >= TOLD else min(grey + 1, self._grey * ratio)
            self._ratios.append(ratio)
        self._latent, self._frame, self._increment = latent, frame, increment
        if number < LEAST_ROUNDS:
            return
        rate = max(*self._ratios, 2 * self._ratios[-1] - self._ratios[-2])
        rate += MARGIN * (1 - rate)
        if rate < 1 and rate * self._grey < self._tolerance:
            bound = rate * self._grey
            self.stopped = {
                "after": number,
                "tolerance": self._tolerance,
                "bound": round(bound, 4),
                "rate": round(rate, 4),
                "drift": round(bound / (1 - rate), 4),
            }


class Stopping:
    """Which items of a batch have come to rest. Without a tolerance none ever does.

    A batch goes on until the last of its items has; those that have repeat their last round meanwhile, so that each
    gets what it gets alone.
    """

    def __init__(self, config: RunConfig, items: Sequence[PreparedItem], original_latents: np.ndarray):
        """original_latents: [B, 4, h, w]."""
        self._steps, self._count = config.steps, 0
        self._held: Round | None = None
        self._items: list[_Settling] = []
        if config.tolerance is not None:
            self._items = [_Settling(config.tolerance, *pair) for pair in zip(items, original_latents, strict=True)]

    @property
    def over(self) -> bool:
        """Whether all items have come to rest before their last round."""
        return bool(self._items) and all(self.stopped)

    @property
    def stopped(self) -> list[dict[str, Any] | None]:
        """What provenance says of each item that came to rest: grey levels are those before rounding.

        "after" (the round that is repeated), "tolerance", "bound" (what the next round would have changed at most),
        "rate" (q) and "drift" (what all that are left would have changed at most).
        """
        return [one.stopped for one in self._items]

    def watch(self, rounds: Generator[Round, None, None]) -> Iterator[Round]:
        """The next rounds as they are to be kept, until all items have come to rest; then `rounds` is closed."""
        with closing(rounds):
            if self.over:
                return
            for result in rounds:
                yield self._take(result)
                if self.over:
                    return

    def repeated(self) -> Iterator[Round]:
        """The last round, for each that was not computed."""
        while self.over and self._count < self._steps:
            assert self._held is not None
            self._count += 1
            yield self._held

    def evaluations(self, plan: Plan, *, ahead: int) -> int:
        """U-Net calls of the rounds that were computed, and of those that were begun ahead and let go."""
        last = max(one["after"] for one in self.stopped if one is not None)
        return sum(map(plan.evaluations_of, range(min(self._steps, last + ahead))))

    def _take(self, result: Round) -> Round:
        """The round with the rows of items that came to rest before it as they were then."""
        held, self._count = self._held, self._count + 1
        still = torch.tensor([one is not None for one in self.stopped])[:, None, None, None]
        if held is not None and still.any():
            latents, frames = held.latents.where(still, result.latents), held.frames.where(still, result.frames)
            result = replace(result, latents=latents, frames=frames)
        for one, latent, frame in zip(self._items, result.latents.numpy(), result.frames.numpy(), strict=False):
            if one.stopped is None and self._count < self._steps:
                one.add(self._count, latent, frame)
        if self._items:
            self._held = result
        return result
