"""A PyTorch U-Net or VAE decoder bound to whole pictures and to boxes within them: the walk over its own modules."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pie_engine.backends.protocol import BoxedNetwork
from pie_engine.regional.layout import decoder_entries, tape_shapes, unet_entries
from pie_engine.regional.surroundings import Record, Replay, allocate
from pie_engine.regional.walk import decode, unet
from pie_engine.regional.windows import Around, Box, Window, Within, magnified, places, windows


class BoxedModules(BoxedNetwork):
    """See `BoxedNetwork`. Index tensors and surroundings have fixed addresses, so that calls can be captured.

    Args:
        walk: `unet` or `decode` over its modules, once its `ops` and the sample are given.
        windows_of: a box's windows at the network's levels, finest first.
        level: where the walk begins.
        entries: what it records (`pie_engine.regional.layout`).
        shape: of `sample`.
        box: height and width of the boxes.
    """

    def __init__(
        self,
        walk: Callable[[Any, Tensor], Tensor],
        tuned: Callable[[], Any],
        *,
        windows_of: Callable[[Box], list[Window]],
        level: int,
        entries: Sequence[Any],
        shape: tuple[int, int, int, int],
        box: tuple[int, int],
        dtype: torch.dtype,
        device: torch.device,
    ):
        batch, channels, _, _ = shape
        self._walk, self._tuned, self._windows_of, self._level = walk, tuned, windows_of, level
        self.timestep: Tensor | None = None
        self.context: Tensor | None = None
        self.sample = torch.zeros(shape, device=device, dtype=dtype)
        self.box = torch.zeros((batch, channels, *box), device=device, dtype=dtype)
        self.output, self.box_output = self.sample, self.box  # replaced by the first calls
        first = Box(0, 0, *box)
        around, within = self._places([first] * batch)
        self._around = Around(*(_moved(each, device) for each in vars(around).values()))
        self._within = Within(*(_moved(each, device) for each in vars(within).values()))
        self.surroundings, self._tape = allocate(tape_shapes(entries, windows_of(first), batch), dtype, device)

    def place(self, boxes: Sequence[Box]) -> None:
        around, within = self._places(boxes)
        old, new = [*self._around.tensors(), *self._within.tensors()], [*around.tensors(), *within.tensors()]
        for mine, given in zip(old, new, strict=True):
            mine.copy_(given)

    def whole(self) -> None:
        record = Record(self._around, self._level)
        with self._tuned():
            self.output = self._walk(record, self.sample).contiguous()
        for mine, given in zip(self._tape, record.tape, strict=True):
            mine.copy_(given)

    def inside(self) -> None:
        with self._tuned():
            self.box_output = self._walk(Replay(self._tape, self._within, self._level), self.box).contiguous()

    def _places(self, boxes: Sequence[Box]) -> tuple[Around, Within]:
        return places([self._windows_of(box) for box in boxes])


def boxed_unet(
    net: Any,
    tuned: Callable[[], Any],
    *,
    context: tuple[int, int],
    shape: tuple[int, int, int, int],
    box: tuple[int, int],
    dtype: torch.dtype,
    device: torch.device,
) -> BoxedModules:
    """A U-Net of the walk's architecture, bound. Args: context: tokens and width of an embedding."""
    timestep = torch.zeros(1, device=device)
    embeddings = torch.zeros((shape[0], *context), device=device, dtype=dtype)
    levels = len(net.config.block_out_channels)
    bound = BoxedModules(
        lambda ops, sample: unet(net, ops, sample, timestep, embeddings),
        tuned,
        windows_of=lambda at: windows(at, shape[2:], levels),
        level=0,
        entries=unet_entries(net.config),
        shape=shape,
        box=box,
        dtype=dtype,
        device=device,
    )
    bound.timestep, bound.context = timestep, embeddings
    return bound


def boxed_decoder(
    vae: Any,
    tuned: Callable[[], Any],
    *,
    shape: tuple[int, int, int, int],
    box: tuple[int, int],
    dtype: torch.dtype,
    device: torch.device,
) -> BoxedModules:
    """A VAE's decoder of the walk's architecture, bound."""
    levels = len(vae.config.block_out_channels)
    return BoxedModules(
        lambda ops, sample: decode(vae, ops, sample),
        tuned,
        windows_of=lambda at: magnified(at, shape[2:], levels),
        level=levels - 1,
        entries=decoder_entries(vae.config),
        shape=shape,
        box=box,
        dtype=dtype,
        device=device,
    )


def _moved(value: list[Any], device: torch.device) -> list[Any]:
    """Index tensors, or pairs of them, in memory of their own."""
    return [
        tuple(part.to(device, copy=True) for part in each) if isinstance(each, tuple) else each.to(device, copy=True)
        for each in value
    ]
