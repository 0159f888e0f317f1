"""Rounds that compute a box around the region alone: what the first one recorded, and how the others read it.

In every round the same steps run on the same noise, and outside the region the sample is overwritten before each step
by the original, noised to that step. So the outside enters the U-Net alike in every round: the first computes all of it
and records, for each step, what it contributes to a box around the region; the others compute the box between those
recordings. What is inexact is only that a later round's outside would have answered otherwise.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from enum import Enum

import numpy as np
import torch
from torch import Tensor

from pie_engine.backends.protocol import BoxedNetwork, UNetCall
from pie_engine.regional.windows import Box, Window, enlarged

# Latents that the decoder's box takes in beyond the U-Net's: what it draws depends on as much around it.
DECODER_MARGIN = 6


class NotRecordable(Exception):
    """What the first round computes cannot be kept: rounds have to compute the whole picture."""


class Mode(Enum):
    """What a call of a boxed network does; the value tells it from others where it is captured."""

    WHOLE = ""
    RECORDING = ", recording"
    INSIDE = ", in the box"
    CHECKING = ", checking the box"


class BoxedUNet(UNetCall):
    """A U-Net that records the first round and computes boxes in those that follow; to a sampler it is one like any.

    Args:
        network: bound to B latents and as many boxes.

    Attributes:
        mode: of the next call: RECORDING, INSIDE, CHECKING, which computes both, or WHOLE.
        recorded: whether a whole round has been recorded for the boxes as they lie; without, the next one is.
        anchor: [B, C, h, w], the latents that the recorded round started from.
        check: whether two steps of the next round are to be checked, if it computes boxes.
        whole: whether rounds are to compute the whole picture from now on, and record nothing.
        difference: [B, C, h, w] float32, whole picture less box, summed over the calls that checked.
        checks: how many those were.
    """

    def __init__(self, network: BoxedNetwork):
        assert network.timestep is not None and network.context is not None
        self._network = network
        self.sample, self.timestep, self.context = network.sample, network.timestep, network.context
        self.output = torch.zeros_like(network.sample)
        self.difference = torch.zeros_like(network.sample, dtype=torch.float32)
        self._at = _Placed(network.sample.shape, network.box.shape, network.sample.device)
        self.mode, self.recorded, self.checks = Mode.RECORDING, False, 0
        self.check = self.whole = False
        self.anchor: Tensor | None = None
        self._row: Tensor | None = None
        self._rows = 0
        # Half precision holds what single computes to 5e-4, which changes no picture (docs/performance.md), and half
        # of the memory.
        self._kept: Tensor | None = None
        self._predictions: Tensor | None = None

    @property
    def recording_bytes(self) -> int:
        """Of all steps."""
        if self._kept is None or self._predictions is None:
            return 0
        return self._kept.nbytes + self._predictions.nbytes

    def place(self, boxes: Sequence[Box]) -> None:
        """Where the boxes lie from now on, one for each latent; nothing is recorded for them yet."""
        self._network.place(boxes)
        self._at.place(boxes)
        self.recorded = self.check = self.whole = False

    def follow(self, timesteps: Tensor, row: Tensor) -> None:
        self._rows, self._row = len(timesteps), row

    def start(self, x: Tensor) -> None:
        """Told before a round which latents [B, C, h, w] it starts from."""
        if not self.recorded:
            self.anchor = x.clone()

    def steps(self, steps: int) -> Iterator[None]:
        """Set the mode of each of a round's steps before it: pass on to the next one after each.

        Raises:
            NotRecordable: the round's values are beyond half precision's 65504.
        """
        usual = Mode.WHOLE if self.whole else Mode.INSIDE if self.recorded else Mode.RECORDING
        recording = usual is Mode.RECORDING
        checked = {steps // 3, 2 * steps // 3} if self.check and usual is Mode.INSIDE else set()
        if recording and self._kept is None:
            numbers, sample = self._network.surroundings.numel(), self.sample
            self._kept = torch.empty(self._rows, numbers, dtype=torch.float16, device=sample.device)
            self._predictions = sample.new_empty(self._rows, *sample.shape)
        if checked:
            self.difference.zero_()
            self.checks = len(checked)
        for index in range(steps):
            self.mode = Mode.CHECKING if index in checked else usual
            yield
        self.mode = usual
        if recording and not self._is_representable():
            raise NotRecordable("what surrounds the box is beyond half precision's 65504")
        self.recorded = self.recorded or recording

    @property
    def was_whole(self) -> bool:
        """Whether the round that ended last was computed whole: then its frames are decoded whole, too."""
        return self.mode is not Mode.INSIDE

    def forget(self) -> None:
        """Let go of the recording's memory."""
        self._kept = self._predictions = self.anchor = None
        self.recorded = False

    def __call__(self) -> None:
        network = self._network
        if self.mode in (Mode.RECORDING, Mode.WHOLE):
            network.whole()
            self.output.copy_(network.output)
            if self.mode is Mode.RECORDING:
                self._write()
            return
        network.box.copy_(self._at.cut(self.sample))
        self._read()
        network.inside()
        self._at.paste(self.output, network.box_output)
        if self.mode is Mode.CHECKING:
            network.whole()
            self.difference.add_(network.output.float() - self.output.float())

    def _is_representable(self) -> bool:
        """Whether half precision holds what was recorded; of values that are not finite themselves others are told."""
        assert self._kept is not None and self._predictions is not None
        # Least and largest pass NaN on, and take a thirtieth of the time of looking at each number.
        finite = all(bool(torch.stack(torch.aminmax(row)).isfinite().all()) for row in self._kept)
        return finite or not bool(self._predictions.isfinite().all())

    def _write(self) -> None:
        assert self._kept is not None and self._predictions is not None and self._row is not None
        pairs = ((self._kept, self._network.surroundings), (self._predictions, self.output))
        for kept, value in pairs:
            if on_host(kept.device):
                kept[int(self._row)].copy_(value)
            else:
                kept.index_copy_(0, self._row.long(), value.to(kept.dtype)[None])

    def _read(self) -> None:
        assert self._kept is not None and self._predictions is not None and self._row is not None
        pairs = ((self._network.surroundings, self._kept), (self.output, self._predictions))
        for value, kept in pairs:
            value.copy_(kept[int(self._row)] if on_host(kept.device) else kept.index_select(0, self._row)[0])


class BoxedDecoder:
    """The VAE's decoder, of whole latents or of boxes: the pixels around a box stay those that were decoded before.

    Args:
        network: bound to B latents and as many boxes.
        scale: pixels per latent along one side.

    Attributes:
        mode: of the next call: WHOLE or INSIDE.
        recorded: whether the last whole one was a round of what the boxes lie in.
    """

    def __init__(self, network: BoxedNetwork, scale: int):
        self._network, self._scale = network, scale
        batch, _, height, width = network.sample.shape
        whole = (batch, 3, height * scale, width * scale)
        inside = (batch, 3, network.box.shape[2] * scale, network.box.shape[3] * scale)
        self._at = _Placed(network.sample.shape, network.box.shape, network.sample.device)
        self._pixels_at = _Placed(whole, inside, network.sample.device)
        self.mode, self.recorded = Mode.WHOLE, False

    def place(self, boxes: Sequence[Box]) -> None:
        """Where the U-Net's boxes lie from now on, one for each item, in latents."""
        _, _, *size = self._network.sample.shape
        boxes = [enlarged(box, DECODER_MARGIN, (size[0], size[1])) for box in boxes]
        self._network.place(boxes)
        self._at.place(boxes)
        self._pixels_at.place([Box(*(n * self._scale for n in box)) for box in boxes])
        self.recorded = False

    @contextlib.contextmanager
    def of_round(self, *, whole: bool) -> Iterator[None]:
        """Within it a round's frames are decoded: in the boxes, where they have been whole before and need not be."""
        self.mode = Mode.INSIDE if self.recorded and not whole else Mode.WHOLE
        try:
            yield
        finally:
            self.mode, self.recorded = Mode.WHOLE, True

    def whole(self, latent: Tensor) -> Tensor:
        """Latents divided by the scaling factor [B, 4, h, w] -> pixels [B, 3, H, W] float32."""
        self._network.sample.copy_(latent)
        self._network.whole()
        return self._network.output.float()

    def inside(self, latent: Tensor) -> Tensor:
        """The same latents -> the pixels of the boxes alone, [B, 3, H', W'] float32."""
        self._network.box.copy_(self._at.cut(latent))
        self._network.inside()
        return self._network.box_output.float()

    def paste(self, frames: Tensor, pixels: Tensor) -> None:
        """Boxes [B, H', W', 3] into frames [B, H, W, 3]."""
        self._pixels_at.paste(frames.permute(0, 3, 1, 2), pixels.permute(0, 3, 1, 2))

    def cut(self, values: Tensor) -> Tensor:
        """Of [B, C, H, W] at the size of pixels what lies in the boxes, [B, C, H', W']."""
        return self._pixels_at.cut(values)


def on_host(device: torch.device) -> bool:
    """Whether the host can look up which row a step is at, and so read it where it lies: not while a GPU captures."""
    return device.type == "cpu"


class _Placed:
    """Boxes of one size in maps of one size: their pixels' places, at fixed addresses."""

    def __init__(self, whole: Sequence[int], box: Sequence[int], device: torch.device):
        self._size, self._box = tuple(whole[2:]), tuple(box[2:])
        self._index = torch.zeros(whole[0], math.prod(self._box), dtype=torch.int64, device=device)

    def place(self, boxes: Sequence[Box]) -> None:
        flat = [Window(*box, *self._size).inside() for box in boxes]
        self._index.copy_(torch.from_numpy(np.stack(flat)))

    def cut(self, values: Tensor) -> Tensor:
        """[B, C, h, w] -> [B, C, h', w']."""
        return values.flatten(2).gather(2, self._of(values)).unflatten(2, self._box)

    def paste(self, target: Tensor, values: Tensor) -> None:
        """Values [B, C, h', w'] into the target [B, C, h, w], whose rows follow one another."""
        target.view(*target.shape[:2], -1).scatter_(2, self._of(values), values.flatten(2))

    def _of(self, values: Tensor) -> Tensor:
        """Each channel's places, [B, C, h' w']."""
        return self._index[:, None].expand(-1, values.shape[1], -1)
