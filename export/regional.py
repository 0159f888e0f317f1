"""U-Net and VAE decoder for regional rounds: one graph that computes a whole picture, recorded, or a box within it.

Weights would be held twice by two graphs. A whole picture is a box whose ring is zero and outside of which nothing
lies, so the graph computes a box, always. Its inputs, in order (B latents, of one size, each with its box):

    sample, timestep, context    as the dense graph has them; of the decoder latent alone
    down0, up0 ...               how the levels' boxes lie within one another (`Within`); of the U-Net alone
    outside0 ...                 which share of the picture is not in the box; 0 of a whole one
    at_ring0_across ...          what to record (`Around`), each [B, n]; n may be 0
    at_inside0 ...               [B, n], the box itself, without which the rest is recorded; n may be 0
    take_ring0_across ...        a recording, in the order of `pie_engine.regional.layout`; tokens may be none

and its outputs: the prediction (of the decoder the pixels), and keep_ring0_across ..., the recording of this call, in
the same order. A ring is kept flat, [B, C, n]: the numbers are those of the layout's shape.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pie_engine.export.graph import parity_session, relative_error, write_graph
from pie_engine.export.regional_operators import operators, translations
from pie_engine.regional.layout import Entry, decoder_entries, named, tape_shapes, unet_entries
from pie_engine.regional.surroundings import Dense, Record, Replay
from pie_engine.regional.walk import decode, unet
from pie_engine.regional.windows import WIDE, Around, Box, Window, Within, magnified, places, windows

# The newest whose exported graphs hold no attention as a whole: keys of outside and inside are looked at together.
OPSET = 20
# Inputs of the dense graph, which come first, and its output.
DENSE = {"unet": (("sample", "timestep", "context"), "prediction"), "vae_decoder": (("latent",), "pixels")}
# Whose configuration and weights each network has.
MODELS = {"unet": "unet", "vae_decoder": "vae"}


@dataclass(frozen=True)
class Ports:
    """What the graph of one network takes and gives.

    Attributes:
        component: "unet" or "vae_decoder".
        levels: of the network.
        entries: what a recording holds, in order.
    """

    component: str
    levels: int
    entries: tuple[Entry, ...]

    @classmethod
    def of(cls, component: str, config: Mapping[str, Any]) -> Ports:
        """Of a network with this configuration: a U-Net's, or a whole VAE's."""
        entries = unet_entries(config) if component == "unet" else decoder_entries(config)
        return cls(component, len(config["block_out_channels"]), tuple(entries))

    @property
    def tape(self) -> list[str]:
        """Names of a recording's tensors, in order, without "take_" and "keep_"."""
        return [name for name, _ in named(self.entries)]

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of all inputs, in order."""
        places = [*self._within(), *self._around()]
        return (*DENSE[self.component][0], *places, *(f"take_{name}" for name in self.tape))

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of all outputs, in order."""
        return (DENSE[self.component][1], *(f"keep_{name}" for name in self.tape))

    def windows(self, box: Box, size: tuple[int, int]) -> list[Window]:
        """A box of latents at every level, finest first."""
        return (windows if self.component == "unet" else magnified)(box, size, self.levels)

    def within(self, within: Within) -> dict[str, Tensor]:
        """The index tensors that say how the levels' boxes lie within one another, by name."""
        parts = ("down", "up", "outside")
        every = {f"{part}{level}": at for part in parts for level, at in enumerate(getattr(within, part))}
        return {name: every[name] for name in self._within()}

    def around(self, around: Around) -> dict[str, Tensor]:
        """The tensors that say what is recorded, by name: indices, [B, n] each."""
        every = {f"at_outside{level}": at for level, at in enumerate(around.outside)}
        every |= {f"at_inside{level}": at for level, at in enumerate(around.inside)}
        for part in ("ring", "wide"):
            for level, pair in enumerate(getattr(around, part)):
                every |= {f"at_{part}{level}_{half}": at.flatten(1) for half, at in zip(_HALVES, pair, strict=True)}
        return {name: every[name] for name in self._around()}

    def silence(self, batch: int) -> dict[str, Tensor]:
        """In place of `around` what records nothing: no indices."""
        return {name: torch.zeros(batch, 0, dtype=torch.int64) for name in self._around()}

    def _within(self) -> list[str]:
        # The decoder magnifies its boxes exactly: there is nothing to say.
        levels = range(self.levels - 1 if self.component == "unet" else 0)
        parts = [f"{part}{level}" for part in ("down", "up") for level in levels]
        return parts + [f"outside{level}" for level in range(self.levels)]

    def _around(self) -> list[str]:
        rings = sorted({(entry.wide, entry.level) for entry in self.entries if entry.part == "ring"})
        tokens = sorted({entry.level for entry in self.entries if entry.part == "token"})
        parts = [f"at_{'ring' if wide == 1 else 'wide'}{level}_{half}" for wide, level in rings for half in _HALVES]
        parts += [f"at_outside{level}" for level in tokens]
        return parts + [f"at_inside{level}" for level in range(self.levels)]


_HALVES = ("across", "along")


class Either(Dense):
    """A box between the recording that is given, or a whole picture as such a box; and what to record of it.

    It calls the operators of `pie_engine.export.regional_operators`: it can be exported and not run.

    Args:
        ports: the network's.
        tensors: all inputs of the graph, by name.

    Attributes:
        tape: the recording of this walk, in order; rings are flat, [B, C, n].
    """

    def __init__(self, ports: Ports, tensors: Mapping[str, Tensor]):
        self.tape: list[Tensor] = []
        self._tensors = tensors
        self._taken: Iterator[Tensor] = iter([tensors[f"take_{name}"] for name in ports.tape])
        self._exact = ports.component != "unet"
        self._level = ports.levels - 1 if self._exact else 0

    def conv(self, conv: nn.Conv2d, x: Tensor, norm: nn.GroupNorm | None = None) -> Tensor:
        x = x if norm is None else F.silu(self.norm(norm, x))
        return F.conv2d(self._surround(x), conv.weight, conv.bias)

    def down(self, conv: nn.Conv2d, x: Tensor) -> Tensor:
        x = operators().pick(self._surround(x, WIDE), self._tensors[f"down{self._level}"])
        self._level += 1
        return F.conv2d(x, conv.weight, conv.bias, stride=2)

    def up(self, conv: nn.Conv2d, x: Tensor) -> Tensor:
        self._level -= 1
        if self._exact:
            return super().up(conv, x)
        return self.conv(conv, operators().pick(x, self._tensors[f"up{self._level}"]))

    def norm(self, norm: nn.GroupNorm, x: Tensor) -> Tensor:
        taken = next(self._taken), next(self._taken)
        outside, inside = (self._tensors[f"{name}{self._level}"] for name in ("outside", "at_inside"))
        y, *found = operators().norm(x, norm.weight, norm.bias, *taken, outside, inside, norm.num_groups, norm.eps)
        self.tape += found
        return y

    def tokens(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        at = self._tensors[f"at_outside{self._level}"]
        (keys, kept_keys), (values, kept_values) = (
            operators().join(next(self._taken), each, at) for each in (keys, values)
        )
        self.tape += [kept_keys, kept_values]
        return keys, values

    def _surround(self, x: Tensor, wide: int = 1) -> Tensor:
        name = f"at_{'ring' if wide == 1 else 'wide'}{self._level}"
        at = [self._tensors[f"{name}_{half}"] for half in _HALVES]
        padded, *kept = operators().surround(x, next(self._taken), next(self._taken), *at, wide)
        self.tape += kept
        return padded


def walk(ports: Ports, net: Any, ops: Dense, *inputs: Tensor) -> Tensor:
    """A network's output, of the dense graph's inputs. Latent and pixels are fp32 at the boundary of the VAE."""
    if ports.component == "unet":
        return unet(net, ops, *inputs)
    return decode(net, ops, inputs[0].to(net.decoder.conv_in.weight.dtype)).float()


class RegionalGraph(nn.Module):
    """A network as a module over the inputs of its graph, in order.

    Args:
        net: diffusers' U-Net, or what has the decoder and post_quant_conv of its VAE.
    """

    def __init__(self, ports: Ports, net: Any):
        super().__init__()
        self.ports, self.net = ports, net

    def forward(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        by_name = dict(zip(self.ports.inputs, tensors, strict=True))
        ops = Either(self.ports, by_name)
        return walk(self.ports, self.net, ops, *(by_name[name] for name in DENSE[self.ports.component][0])), *ops.tape


def export_regional(ports: Ports, net: Any, folder: Path, *, precision: str, opset: int) -> Path:
    """Write `folder`/model.onnx (and model.onnx.data where the weights are large).

    Args:
        net: the network, fp32, as `RegionalGraph` takes it; it is not changed.
        opset: at most `OPSET`.

    Returns:
        The path of the graph.
    """
    module = RegionalGraph(ports, copy.deepcopy(net).half() if precision == "fp16" else net).eval()
    # Which sizes vary is told by two examples; in neither are two sizes alike that need not be.
    example, other = (
        _example(ports, net, precision, boxes, size)
        for boxes, size in (([Box(1, 2, 24, 40)] * 2, (48, 64)), ([Box(1, 2, 30, 46)] * 3, (56, 80)))
    )
    dynamic = [
        {axis: torch.export.Dim.DYNAMIC for axis in range(one.ndim) if one.shape[axis] != two.shape[axis]}
        for one, two in zip(example, other, strict=True)
    ]
    return write_graph(
        module,
        (example,),
        folder,
        inputs=list(ports.inputs),
        outputs=list(ports.outputs),
        dynamic=(dynamic,),
        opset=opset,
        translations=translations(),
    )


def check_regional(ports: Ports, net: Any, path: Path, *, precision: str) -> float:
    """Run the graph in ONNX Runtime and compare with the template in fp32 PyTorch: on a whole picture and, between what
    it recorded, on boxes of other sizes and places than it was exported for.

    Returns:
        The relative error: the largest of the prediction's, of all that was recorded, and of the boxes' prediction.
    """
    side = max(2, 2 ** (ports.levels - 1)) if ports.component == "unet" else 2
    height, width = 2 * side + 1, 3 * side + 1
    size, boxes = (4 * side, 6 * side), [Box(side - 1, side + 1, height, width), Box(2 * side - 1, 0, height, width)]
    own = _own_inputs(ports, net, len(boxes), size)
    around, within = places([ports.windows(box, size) for box in boxes])
    level = 0 if ports.component == "unet" else ports.levels - 1
    inside = [torch.stack([each[:, t : t + h, s : s + w] for each, (t, s, h, w) in zip(own[0], boxes, strict=True)])]
    with torch.no_grad():
        record = Record(around, level)
        whole = walk(ports, net, record, *own)
        box = walk(ports, net, Replay(record.tape, within, level), *inside, *own[1:])
    session, half = parity_session(path), precision == "fp16"

    def run(own: list[Tensor], rest: list[Tensor]) -> list[Any]:
        values = [each.numpy() for each in (*_cast(ports, own, half), *rest)]
        return session.run(None, dict(zip(ports.inputs, values, strict=True)))

    _, everything = places([ports.windows(Box(0, 0, *size), size)] * len(boxes))
    nothing = [each.half() if half else each for each in _tape(ports, Box(0, 0, *size), size, len(boxes))]
    found = run(own, [*ports.within(everything).values(), *ports.around(around).values(), *nothing])
    tape = [torch.from_numpy(each).view(kept.shape) for each, kept in zip(found[1:], record.tape, strict=True)]
    silent = ports.silence(len(boxes)).values()
    replayed = run([*inside, *own[1:]], [*ports.within(within).values(), *silent, *tape])
    together = [np.concatenate([np.ravel(each) for each in part]) for part in (found[1:], record.tape)]
    return max(
        relative_error(found[0], whole.numpy()),
        relative_error(together[0], together[1]),
        relative_error(replayed[0], box.numpy()),
    )


def _example(ports: Ports, net: Any, precision: str, boxes: list[Box], size: tuple[int, int]) -> list[Tensor]:
    """Inputs in which nothing is empty: of boxes that are told to record, too."""
    around, within = places([ports.windows(box, size) for box in boxes])
    half, (box, *_) = precision == "fp16", boxes
    own = _cast(ports, _own_inputs(ports, net, len(boxes), (box.height, box.width)), half)
    tape = [each.half() if half else each for each in _tape(ports, box, size, len(boxes))]
    return [*own, *ports.within(within).values(), *ports.around(around).values(), *tape]


def _own_inputs(ports: Ports, net: Any, batch: int, size: tuple[int, int]) -> list[Tensor]:
    """The dense graph's inputs, fp32: random numbers."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    if ports.component == "unet":
        channels, width = int(net.config.in_channels), int(net.config.cross_attention_dim)
        return [
            normal(batch, channels, *size),
            torch.tensor([481.0]),
            normal(batch, 75 + batch, width),
        ]  # as many tokens as there are
    return [normal(batch, ports.entries[0].channels, *size)]


def _cast(ports: Ports, own: Sequence[Tensor], half: bool) -> list[Tensor]:
    """As `pie_engine.export.graph.cast_inputs`: the U-Net's sample and context follow the precision."""
    if not half or ports.component != "unet":
        return list(own)
    sample, timestep, context = own
    return [sample.half(), timestep, context.half()]


def _tape(ports: Ports, box: Box, size: tuple[int, int], batch: int) -> list[Tensor]:
    return [torch.zeros(shape) for shape in tape_shapes(ports.entries, ports.windows(box, size), batch)]
