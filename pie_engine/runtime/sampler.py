"""The k steps of one schedule around the U-Net, on static buffers and with no decision of the host in between."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pie_engine.kernels.table import columns

if TYPE_CHECKING:
    from torch import Tensor

    from pie_engine.backends import UNetCall
    from pie_engine.kernels.dispatch import Kernels
    from pie_engine.schedule import Schedule


def pack(schedule: Schedule) -> tuple[np.ndarray, np.ndarray]:
    """A schedule as the kernels read it (`pie_engine.kernels.table`): entry [4] and table [k, columns(K)], float32."""
    k = schedule.steps
    # What belongs to the step that follows; nothing follows the last, whose background is z0 itself.
    following = [
        np.append(values[1:], last)
        for values, last in (
            (schedule.signal, 1.0),
            (schedule.noise, 0.0),
            (schedule.input_scale, 1.0),
            (schedule.timesteps, 0.0),
        )
    ]
    matrices = (schedule.c, schedule.p, schedule.q, schedule.P.reshape(k, -1))
    table = np.column_stack([schedule.a, schedule.b, *following, *matrices]).astype(np.float32)
    assert table.shape == (k, columns(schedule.history))
    entry = [schedule.signal[0], schedule.noise[0], schedule.input_scale[0], schedule.timesteps[0]]
    return np.array(entry, np.float32), table


@dataclass(frozen=True)
class Region:
    """What keeps the outside of the region of interest: tensors of `Buffers`, which documents them."""

    mask: Tensor
    weight: Tensor
    z0: Tensor
    z0_background: Tensor
    eps_background: Tensor


class Sampler:
    """A schedule's table on the device and the U-Net that it drives.

    Attributes:
        schedule: the schedule in numbers.
        unet: the U-Net, bound to its buffers.
        read_back: [4] float32, the coefficients that turn a latent and what the steps arrived at into the noise between
            them: eps = (x - signal z) / noise, with the last row's factors.
    """

    def __init__(
        self, schedule: Schedule, unet: UNetCall, kernels: Kernels, *, guidance: Tensor | None, inverting: bool = False
    ):
        import torch

        self.schedule, self.unet = schedule, unet
        self._kernels, self._guidance = kernels, guidance
        batch = len(unet.sample) // (1 if guidance is None else 2)
        device = unet.sample.device
        self._history = torch.zeros(schedule.history, batch, *unet.sample.shape[1:], device=device)
        entry, table = pack(schedule)
        if inverting:
            entry[0] = 1.0  # from the clean latent itself
        signal, noise = schedule.signal[-1], schedule.noise[-1]
        self.read_back = torch.tensor([-signal / noise, 1 / noise, 1.0, 0.0], dtype=torch.float32, device=device)
        self._entry, self._table = torch.from_numpy(entry).to(device), torch.from_numpy(table).to(device)

    def __call__(
        self,
        x: Tensor,
        z: Tensor,
        eps: Tensor | None,
        flags: Tensor,
        region: Region | None,
        on_step: Callable[[], None],
    ) -> None:
        """Noise z [B, C, h, w] with eps to the first timestep and run all k steps on it.

        Args:
            x: [B, C, h, w] float32, overwritten with the result; may be z itself.
            eps: the noise, or None for none.
            flags: [B] int32, reset, then set for an item that is not finite at any step.
            region: what keeps the outside of the region of interest, or None.
            on_step: called after each U-Net evaluation.
        """
        unet, kernels = self.unet, self._kernels
        kernels.noising(x, self._history, unet.sample, unet.timestep, flags, z, eps, self._entry)
        last = self.schedule.steps - 1
        for row in range(last + 1):
            unet()
            following = (unet.sample, unet.timestep) if row < last else (None, None)
            outside: tuple[Tensor | None, ...] = ()
            if region is not None and row < last:
                outside = (region.mask, region.z0_background, region.eps_background)
            elif region is not None:
                outside = (region.weight, region.z0)
            kernels.denoise_step(
                x, self._history, *following, flags, unet.output, self._table, row, self._guidance, *outside
            )
            on_step()
