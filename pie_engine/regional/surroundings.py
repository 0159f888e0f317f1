"""What a layer does to its surroundings: computes everything, keeps what a box needs of it, or computes the box alone.

Only five things in these networks look beyond a pixel, and each needs something of the outside:

    3x3 convolution    the ring of pixels around the box, after norm and activation; beyond the image it is zero
    downsampling       the same, `WIDE` pixels wide, because the coarser box begins at every other pixel
    upsampling         the same as a convolution, at the finer level
    GroupNorm          mean and deviation of the outside's part of each group, merged with the box's own
    self-attention     keys and values of the tokens outside; the order of keys does not matter, so they go in front

A replay knows neither the size nor the place of its box: sizes are those of its tensors, and the places of the levels'
boxes within one another are index tensors. So one exported graph serves every box, and batches of boxes of one size.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pie_engine.regional.windows import WIDE, Around, Within


def pick(x: Tensor, index: Tensor) -> Tensor:
    """x [B, C, H, W], index [B, r, c] into its flat maps -> [B, C, r, c]."""
    found = x.flatten(2).gather(2, index.flatten(1)[:, None].expand(-1, x.shape[1], -1))
    return found.unflatten(2, index.shape[1:])


def surround(x: Tensor, across: Tensor, along: Tensor, wide: int = 1) -> Tensor:
    """x [B, C, h, w] inside its ring -> [B, C, h + 2 wide, w + 2 wide]."""
    middle = torch.cat([along[..., :wide], x, along[..., wide:]], 3)
    return torch.cat([across[:, :, :wide], middle, across[:, :, wide:]], 2)


def statistics(norm: nn.GroupNorm, x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of each of the norm's groups, [B, G] float32 (float64 of float64)."""
    variance, mean = torch.var_mean(_precise(x.unflatten(1, (norm.num_groups, -1)).flatten(2)), 2, correction=0)
    return mean, variance


def outside_statistics(
    norm: nn.GroupNorm, x: Tensor, mean: Tensor, variance: Tensor, inside: Tensor
) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each group over the pixels outside a box, [B, G] in x's dtype: what is left of the
    whole groups without the box, of deviations from their mean, which lose fewer digits.

    Args:
        mean, variance: of the whole groups, `statistics`.
        inside: [B, n], `Around.inside`.
    """
    box = _precise(pick(x, inside[:, None])).unflatten(1, (norm.num_groups, -1)).flatten(2) - mean[..., None]
    each = x.shape[1] // norm.num_groups
    total = each * x.shape[2] * x.shape[3]
    left = max(1, total - each * inside.shape[1])
    first = -box.sum(2) / left
    second = (total * variance - box.square().sum(2)) / left
    return (mean + first).to(x.dtype), (second - first.square()).clamp(min=0).sqrt().to(x.dtype)


def merged(
    mean: Tensor, variance: Tensor, outside_mean: Tensor, deviation: Tensor, outside: Tensor
) -> tuple[Tensor, Tensor]:
    """Mean and variance of whole groups from those of the box, [B, G] float32, and what was recorded outside of it.

    Args:
        outside: [1], the share of the picture that is not in the box.
    """
    apart = _precise(outside_mean) - mean
    # Of two parts: their variances, and what lies between their means.
    within = (1 - outside) * variance + outside * _precise(deviation).square()
    return mean + outside * apart, within + outside * (1 - outside) * apart.square()


def normalised(norm: nn.GroupNorm, x: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """x by such statistics of its groups: one factor and one summand for each channel."""
    each = norm.num_channels // norm.num_groups
    scale = (variance + norm.eps).rsqrt().repeat_interleave(each, 1) * norm.weight
    shift = norm.bias - mean.repeat_interleave(each, 1) * scale
    return x * scale[..., None, None].to(x.dtype) + shift[..., None, None].to(x.dtype)


def _precise(x: Tensor) -> Tensor:
    """In float32 at least: statistics of half precision lose what a norm is for."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def allocate(
    shapes: Sequence[tuple[int, ...]], dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, list[Tensor]]:
    """Memory for a recording of one evaluation, zero and in one piece, and its tensors as views of it."""
    sizes = [math.prod(shape) for shape in shapes]
    flat = torch.zeros(sum(sizes), dtype=dtype, device=device)
    return flat, [part.view(shape) for part, shape in zip(flat.split(sizes), shapes, strict=True)]


class Dense:
    """Everything, as diffusers computes it."""

    def conv(self, conv: nn.Conv2d, x: Tensor, norm: nn.GroupNorm | None = None) -> Tensor:
        """A 3x3 convolution of x, or of silu(norm(x))."""
        return conv(x if norm is None else F.silu(self.norm(norm, x)))

    def down(self, conv: nn.Conv2d, x: Tensor) -> Tensor:
        """A 3x3 convolution of stride 2, to the next coarser level."""
        return conv(x)

    def up(self, conv: nn.Conv2d, x: Tensor) -> Tensor:
        """Each pixel doubled both ways, to the next finer level, and a 3x3 convolution."""
        return self.conv(conv, F.interpolate(x, scale_factor=2.0, mode="nearest"))

    def norm(self, norm: nn.GroupNorm, x: Tensor) -> Tensor:
        """A group norm over the whole picture."""
        return norm(x)

    def tokens(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """What self-attention looks at, from the keys and values of what is computed, [B, T, C] both."""
        return keys, values


class Record(Dense):
    """Everything; and what a box needs of it, in the order of the walk, in `tape`. Each has the batch first.

    Args:
        around: where the batch's boxes lie.
        level: where the walk begins: 0, the finest, for the U-Net; the last for the decoder.

    Attributes:
        tape: as `pie_engine.regional.layout` foretells it.
    """

    def __init__(self, around: Around, level: int = 0):
        self.tape: list[Tensor] = []
        self._around, self._level = around, level

    def conv(self, conv: nn.Conv2d, x: Tensor, norm: nn.GroupNorm | None = None) -> Tensor:
        x = x if norm is None else F.silu(self.norm(norm, x))
        self._ring(x)
        return conv(x)

    def down(self, conv: nn.Conv2d, x: Tensor) -> Tensor:
        self._ring(x, WIDE)
        self._level += 1
        return conv(x)

    def up(self, conv: nn.Conv2d, x: Tensor) -> Tensor:
        self._level -= 1
        return super().up(conv, x)

    def norm(self, norm: nn.GroupNorm, x: Tensor) -> Tensor:
        mean, variance = statistics(norm, x)
        self.tape += outside_statistics(norm, x, mean, variance, self._around.inside[self._level])
        return normalised(norm, x, mean, variance)

    def tokens(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        index = self._around.outside[self._level][..., None]
        self.tape += [each.gather(1, index.expand(-1, -1, each.shape[2])) for each in (keys, values)]
        return keys, values

    def _ring(self, x: Tensor, wide: int = 1) -> None:
        padded = F.pad(x, (wide,) * 4)
        rings = self._around.ring if wide == 1 else self._around.wide
        self.tape += [pick(padded, index) for index in rings[self._level]]


class Replay(Dense):
    """The box alone, between what `Record` kept.

    Args:
        tape: what it kept, in order.
        within: how the levels' boxes lie within one another.
        level: see `Record`.
    """

    def __init__(self, tape: Sequence[Tensor], within: Within, level: int = 0):
        self._tape: Iterator[Tensor] = iter(tape)
        self._within, self._level = within, level

    def conv(self, conv: nn.Conv2d, x: Tensor, norm: nn.GroupNorm | None = None) -> Tensor:
        x = x if norm is None else F.silu(self.norm(norm, x))
        return F.conv2d(surround(x, next(self._tape), next(self._tape)), conv.weight, conv.bias)

    def down(self, conv: nn.Conv2d, x: Tensor) -> Tensor:
        x = pick(surround(x, next(self._tape), next(self._tape), WIDE), self._within.down[self._level])
        self._level += 1
        return F.conv2d(x, conv.weight, conv.bias, stride=2)

    def up(self, conv: nn.Conv2d, x: Tensor) -> Tensor:
        self._level -= 1
        return self.conv(conv, pick(x, self._within.up[self._level]))

    def norm(self, norm: nn.GroupNorm, x: Tensor) -> Tensor:
        outside = next(self._tape), next(self._tape)
        return normalised(norm, x, *merged(*statistics(norm, x), *outside, self._within.outside[self._level]))

    def tokens(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        return torch.cat([next(self._tape), keys], 1), torch.cat([next(self._tape), values], 1)
