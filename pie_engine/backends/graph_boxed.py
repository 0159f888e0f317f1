"""One graph for whole pictures and boxes, bound twice: what a whole picture leaves is what a box reads."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from pie_engine.backends.protocol import BoundGraph, BoxedNetwork
from pie_engine.export.regional import DENSE
from pie_engine.regional.layout import tape_shapes
from pie_engine.regional.surroundings import allocate
from pie_engine.regional.windows import Box, places

if TYPE_CHECKING:
    from torch import Tensor

    from pie_engine.export.regional import Ports

# Allocates tensors of these shapes and binds the graph to them and to others, both by name.
Bind = Callable[[Mapping[str, tuple[int, ...]], Mapping[str, "Tensor"]], "BoundGraph"]


@dataclass(frozen=True)
class Sizes:
    """Of what a boxed network is bound to.

    Attributes:
        latent: [B, C, h, w], of the whole pictures.
        box: height and width of the boxes in latents.
        context: [B, tokens, D], of the U-Net.
        scale: pixels of the decoder along one side of a latent.
    """

    latent: tuple[int, int, int, int]
    box: tuple[int, int]
    context: tuple[int, int, int]
    scale: int


class BoxedGraph(BoxedNetwork):
    """See `BoxedNetwork`.

    Args:
        ports: the network's.
        bind: binds its graph.
        dtype: of a recording.
    """

    def __init__(self, ports: Ports, bind: Bind, sizes: Sizes, *, dtype: torch.dtype, device: torch.device):
        batch, channels, *size = sizes.latent
        self._ports, self._batch, self._size = ports, batch, (size[0], size[1])
        box, everything = Box(0, 0, *sizes.box), Box(0, 0, *self._size)
        around, within = places([ports.windows(box, self._size)] * batch)
        _, whole_within = places([ports.windows(everything, self._size)] * batch)
        self._around = {name: at.to(device, copy=True) for name, at in ports.around(around).items()}
        self._within = {name: at.to(device, copy=True) for name, at in ports.within(within).items()}

        shapes = tape_shapes(ports.entries, ports.windows(box, self._size), batch)
        self.surroundings, parts = allocate(shapes, dtype, device)
        tape = dict(zip(ports.tape, parts, strict=True))
        # A whole picture lies in a ring of zeros, its norms are its own and nothing is outside: one zero serves all.
        shapes = tape_shapes(ports.entries, ports.windows(everything, self._size), batch)
        zeros = torch.zeros(max(map(math.prod, shapes)), dtype=dtype, device=device)
        blank = {name: zeros[: math.prod(shape)].view(shape) for name, shape in zip(ports.tape, shapes, strict=True)}

        inputs, output = DENSE[ports.component]
        first, scale = inputs[0], sizes.scale if ports.component == "vae_decoder" else 1
        outputs = 3 if ports.component == "vae_decoder" else channels
        own = dict(zip(inputs, (sizes.latent, (1,), sizes.context), strict=False))
        whole = bind(
            {**own, output: (batch, outputs, self._size[0] * scale, self._size[1] * scale)},
            {
                **{name: at.to(device) for name, at in ports.within(whole_within).items()},
                **self._around,
                **{f"take_{name}": part for name, part in blank.items()},
                **{f"keep_{name}": _as_kept(name, part) for name, part in tape.items()},
            },
        )
        inside = bind(
            {first: (batch, channels, *sizes.box), output: (batch, outputs, *(side * scale for side in sizes.box))},
            {
                **{name: whole.inputs[name] for name in inputs[1:]},
                **self._within,
                **{name: at.to(device) for name, at in ports.silence(batch).items()},
                **{f"take_{name}": part for name, part in tape.items()},
            },
        )
        self._whole, self._inside = whole, inside
        self.sample, self.output = whole.inputs[first], whole.outputs[output]
        self.box, self.box_output = inside.inputs[first], inside.outputs[output]
        self.timestep, self.context = whole.inputs.get("timestep"), whole.inputs.get("context")

    def place(self, boxes: Sequence[Box]) -> None:
        assert len(boxes) == self._batch, "a box for each latent"
        around, within = places([self._ports.windows(box, self._size) for box in boxes])
        for held, found in ((self._around, self._ports.around(around)), (self._within, self._ports.within(within))):
            for name, at in found.items():
                held[name].copy_(at)

    def whole(self) -> None:
        self._whole()

    def inside(self) -> None:
        self._inside()


def _as_kept(name: str, part: Tensor) -> Tensor:
    """A tensor of a recording as the graph gives it: rings are flat."""
    return part.flatten(2) if name.startswith("ring") else part
