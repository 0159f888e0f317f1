"""A progression that was stopped: what is left of it, and how its rounds go on."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pie_engine.equality import ByContent
from pie_engine.errors import ConfigError

if TYPE_CHECKING:
    from pie_engine.rounds.loop import Loop, Round


class Interrupted(KeyboardInterrupt):
    """A run was interrupted after its first round.

    Args:
        results: what is finished, item by item: whole progressions, and those of the batch that was running with the
            rounds that they have.
        args: of the interrupt.
    """

    def __init__(self, results: Sequence[Any], *args: Any):
        super().__init__(*args)
        self.results = list(results)


@dataclass(frozen=True, eq=False)
class Finished(ByContent):
    """The rounds that one item has already been through.

    Attributes:
        latents: [k, 4, h, w] float32, the final latents of each; k is at least 1.
        original_latent: [4, h, w] float32, the input's latent.
        seconds: what each took.
        blends: [R, 1] of each, the b that even pace blended with; empty for constant pace.
    """

    latents: np.ndarray
    original_latent: np.ndarray
    seconds: tuple[float, ...] = ()
    blends: tuple[np.ndarray, ...] = ()

    @property
    def rounds(self) -> int:
        """k."""
        return len(self.latents)


def restore(loop: Loop, finished: Finished) -> Generator[Round, None, None]:
    """The finished rounds of the loaded batch of one item: their latents as they are, their frames decoded again.

    Raises:
        ConfigError: the input is encoded otherwise now, so that the rest would not be what it was to be.
    """
    now = loop.plan.original_latent.cpu().numpy()
    if not np.array_equal(now, finished.original_latent[None]):
        raise ConfigError(
            "the input's latent is not the one that the interrupted run began with: this machine or its libraries "
            "compute otherwise; run it again from the start"
        )
    for number, latent in enumerate(finished.latents, 1):

        def enter(latent: np.ndarray = latent) -> None:
            loop.plan.buffers.x.copy_(torch.from_numpy(latent[None]))

        yield loop.compute(number, enter)
