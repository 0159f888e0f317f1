"""The steps of a round around the U-Net, on static buffers and with no decision of the host in between."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pie_engine.kernels.table import columns

if TYPE_CHECKING:
    from pie_engine.backends import UNetCall
    from pie_engine.kernels.dispatch import Kernels
    from pie_engine.rounds.schedule import Schedule


def pack(schedule: Schedule, history: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """A schedule as the kernels read it (`pie_engine.kernels.table`): entry [4] and table [k, columns(K)], float32.

    Args:
        history: K of the table, where it stands beside schedules that keep more; None: the schedule's own.
    """
    k, needed = schedule.steps, schedule.history
    kept = needed if history is None else history
    last = np.zeros(k)
    last[-1] = 1.0
    # What belongs to the step that follows; nothing follows the last, which blends with the original itself.
    following = [
        np.append(values[1:], end)
        for values, end in (
            (schedule.signal, 1.0),
            (schedule.noise, 0.0),
            (schedule.input_scale, 1.0),
            (schedule.timesteps, 0.0),
        )
    ]
    vectors = [np.pad(values, ((0, 0), (0, kept - needed))) for values in (schedule.c, schedule.p, schedule.q)]
    matrix = np.pad(schedule.P, ((0, 0), (0, kept - needed), (0, kept - needed))).reshape(k, -1)
    table = np.column_stack([schedule.a, schedule.b, *following, last, *vectors, matrix]).astype(np.float32)
    assert table.shape == (k, columns(kept))
    entry = [schedule.signal[0], schedule.noise[0], schedule.input_scale[0], schedule.timesteps[0]]
    return np.array(entry, np.float32), table


@dataclass(frozen=True, eq=False)
class Background:
    """What keeps the outside of the region of interest: tensors of `Buffers`, which documents them."""

    mask: Tensor
    weight: Tensor
    z0: Tensor
    z0_background: Tensor
    eps_background: Tensor


@dataclass(frozen=True, eq=False)
class _Prepared:
    """One schedule on the device: its first row [1] int32, its entry [4], and how its noise is read back [4]."""

    start: Tensor
    entry: Tensor
    read_back: Tensor


class Sampler:
    """The rows of one schedule or several on the device, and the U-Net that they drive.

    Which row a step takes stands in a counter on the device: `enter` sets it to the first row of the schedule that was
    chosen, each `step` advances it. So a captured entry and a captured step serve every schedule.

    Args:
        schedules: by any key, those that `choose` chooses from; the first is chosen.
        inverting: rounds are entered from the clean latent itself.

    Attributes:
        unet: the U-Net, bound to its buffers.
        schedule: the one that was chosen last, in numbers.
        read_back: [4] float32, the coefficients that turn a latent and what the steps arrived at into the noise between
            them: eps = (x - signal z) / noise, with the last row's factors.
    """

    def __init__(
        self,
        schedules: Mapping[Any, Schedule],
        unet: UNetCall,
        kernels: Kernels,
        *,
        guidance: Tensor | None,
        inverting: bool = False,
    ):
        self.unet, self._kernels, self._guidance = unet, kernels, guidance
        self._schedules = dict(schedules)
        kept = max(schedule.history for schedule in self._schedules.values())
        batch = len(unet.sample) // (1 if guidance is None else 2)
        device = unet.sample.device
        self._history = torch.zeros(kept, batch, *unet.sample.shape[1:], device=device)
        self._prepared: dict[object, _Prepared] = {}
        tables: list[np.ndarray] = []
        for key, schedule in self._schedules.items():
            entry, table = pack(schedule, kept)
            if inverting:
                entry[0], entry[1] = 1.0, 0.0
            signal, noise = schedule.signal[-1], schedule.noise[-1]
            back = [-signal / noise, 1 / noise, 1.0, 0.0] if noise else [0.0] * 4  # nothing is read back at noise 0
            self._prepared[key] = _Prepared(
                torch.tensor([sum(map(len, tables))], dtype=torch.int32, device=device),
                torch.from_numpy(entry).to(device),
                torch.tensor(back, dtype=torch.float32, device=device),
            )
            tables.append(table)
        self._table = torch.from_numpy(np.concatenate(tables)).to(device)
        first = next(iter(self._prepared.values()))
        self._start, self._entry, self.read_back = first.start.clone(), first.entry.clone(), first.read_back.clone()
        self._row = first.start.clone()
        self._chosen, self.schedule = next(iter(self._schedules.items()))
        times = np.concatenate([schedule.timesteps for schedule in self._schedules.values()])
        unet.follow(torch.from_numpy(times.astype(np.float32)).to(device), self._row)

    def choose(self, key: object) -> None:
        """Make the next round's schedule this one: between rounds, where they run."""
        if key != self._chosen:
            prepared = self._prepared[key]
            self._start.copy_(prepared.start)
            self._entry.copy_(prepared.entry)
            self.read_back.copy_(prepared.read_back)
            self._chosen, self.schedule = key, self._schedules[key]

    def enter(self, x: Tensor, z: Tensor, eps: Tensor | None, flags: Tensor) -> None:
        """Noise z [B, C, h, w] with eps to the first timestep.

        Args:
            x: [B, C, h, w] float32, overwritten with the result; may be z itself.
            eps: the noise, or None for none.
            flags: [B] int32, reset.
        """
        unet = self.unet
        self._row.copy_(self._start)
        self._kernels.noising(x, self._history, unet.sample, unet.timestep, flags, z, eps, self._entry)

    def step(self, x: Tensor, flags: Tensor, background: Background | None) -> None:
        """One denoising step.

        Args:
            x: [B, C, h, w] float32, overwritten with the next latent; after the last step, with the round's.
            flags: [B] int32, set for an item that is not finite.
            background: what keeps the outside of the region of interest, or None.
        """
        unet = self.unet
        unet()
        outside: tuple[Tensor, ...] = ()
        if background is not None:
            outside = (
                background.mask,
                background.z0_background,
                background.eps_background,
                background.weight,
                background.z0,
            )
        self._kernels.denoise_step(
            x, self._history, unet.sample, unet.timestep, flags, unet.output, self._table, self._row, self._guidance,
            *outside,
        )  # fmt: skip
