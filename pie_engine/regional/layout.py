"""What a recording holds, told from a network's configuration: before anything is computed, and without its modules.

    for entry in unet_entries(config): entry.shapes(windows, batch)

in the order of the walk (`pie_engine.regional.walk`), two tensors each. And what a box costs of the whole picture.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pie_engine.regional.windows import WIDE, Window

Shape = tuple[int, ...]
# Settings of a configuration in which diffusers' modules are those that the walk knows; what is left out is one of
# these, too.
_KNOWN = {
    "act_fn": ("silu",), "addition_embed_type": (None,), "attention_type": ("default",),
    "center_input_sample": (False,), "class_embed_type": (None,), "conv_in_kernel": (3,),
    "conv_out_kernel": (3,), "cross_attention_norm": (None,),
    "downsample_padding": (1,), "dual_cross_attention": (False,), "encoder_hid_dim_type": (None,),
    "mid_block_only_cross_attention": (None, False), "mid_block_scale_factor": (1,), "norm_type": ("group",),
    "num_class_embeds": (None,), "only_cross_attention": (False,), "resnet_out_scale_factor": (1.0,),
    "resnet_skip_time_act": (False,), "resnet_time_scale_shift": ("default",), "time_cond_proj_dim": (None,),
    "time_embedding_act_fn": (None,), "timestep_post_act": (None,),
}  # fmt: skip
_BLOCKS = {
    "CrossAttnDownBlock2D", "DownBlock2D", "CrossAttnUpBlock2D", "UpBlock2D", "UNetMidBlock2DCrossAttn",
    "DownEncoderBlock2D", "UpDecoderBlock2D",
}  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """One thing that a recording keeps, as two tensors.

    Attributes:
        part: "ring" (across and along), "norm" (mean and standard deviation) or "token" (keys and values).
        level: of the network, 0 the finest.
        channels: of both; of a norm its groups.
        wide: of a ring.
    """

    part: str
    level: int
    channels: int
    wide: int = 1

    def shapes(self, windows: Sequence[Window], batch: int) -> tuple[Shape, Shape]:
        """Of the two tensors for boxes that lie so, windows finest first."""
        at = windows[self.level]
        if self.part == "norm":
            return (batch, self.channels), (batch, self.channels)
        if self.part == "token":
            outside = at.rows * at.columns - at.height * at.width
            return (batch, outside, self.channels), (batch, outside, self.channels)
        across = (batch, self.channels, 2 * self.wide, at.width + 2 * self.wide)
        return across, (batch, self.channels, at.height, 2 * self.wide)

    def count(self, windows: Sequence[Window], batch: int) -> int:
        """Numbers in both."""
        return sum(map(math.prod, self.shapes(windows, batch)))


def obstacle(config: Mapping[str, Any]) -> str:
    """What of a configuration the walk does not know, or an empty string."""
    for name, known in _KNOWN.items():
        if name in config and config[name] not in known:
            return f"{name} is {config[name]!r}"
    blocks = [config.get("mid_block_type"), *config.get("down_block_types", ()), *config.get("up_block_types", ())]
    unknown = [block for block in blocks if block is not None and block not in _BLOCKS]
    return f"a block is {unknown[0]}" if unknown else ""


def unet_entries(config: Mapping[str, Any]) -> list[Entry]:
    """What a U-Net's walk records, in its order."""
    widths, groups = list(config["block_out_channels"]), int(config.get("norm_num_groups", 32))
    layers, depths = (_each(config.get(name, n), len(widths)) for name, n in (("layers_per_block", 2), (_DEPTH, 1)))
    down = [kind.startswith("CrossAttn") for kind in config["down_block_types"]]
    up = [kind.startswith("CrossAttn") for kind in config["up_block_types"]]
    found = [Entry("ring", 0, int(config.get("in_channels", 4)))]
    skips, channels, last = [widths[0]], widths[0], len(widths) - 1
    for level, width in enumerate(widths):
        for _ in range(layers[level]):
            found += _resnet(level, channels, width, groups)
            found += _transformer(level, width, depths[level] if down[level] else 0, groups)
            channels = width
            skips.append(width)
        if level < last:
            found.append(Entry("ring", level, width, WIDE))
            skips.append(width)
    found += [
        *_resnet(last, channels, channels, groups), *_transformer(last, channels, depths[last], groups),
        *_resnet(last, channels, channels, groups),
    ]  # fmt: skip
    for index, level in enumerate(reversed(range(len(widths)))):
        for _ in range(layers[level] + 1):
            found += _resnet(level, channels + skips.pop(), widths[level], groups)
            found += _transformer(level, widths[level], depths[level] if up[index] else 0, groups)
            channels = widths[level]
        if level > 0:
            found.append(Entry("ring", level - 1, channels))
    return [*found, Entry("norm", 0, groups), Entry("ring", 0, channels)]


def decoder_entries(config: Mapping[str, Any]) -> list[Entry]:
    """What a VAE decoder's walk records, in its order."""
    widths, layers = list(config["block_out_channels"]), int(config.get("layers_per_block", 1)) + 1
    last, channels, groups = len(widths) - 1, widths[-1], int(config.get("norm_num_groups", 32))
    found = [Entry("ring", last, int(config.get("latent_channels", 4))), *_resnet(last, channels, channels, groups)]
    if config.get("mid_block_add_attention", True):
        found += [Entry("norm", last, groups), Entry("token", last, channels)]
    found += _resnet(last, channels, channels, groups)
    for level in reversed(range(len(widths))):
        for _ in range(layers):
            found += _resnet(level, channels, widths[level], groups)
            channels = widths[level]
        if level > 0:
            found.append(Entry("ring", level - 1, channels))
    return [*found, Entry("norm", 0, groups), Entry("ring", 0, channels)]


def tape_shapes(entries: Sequence[Entry], windows: Sequence[Window], batch: int) -> list[Shape]:
    """Of all tensors that a recording holds of one evaluation."""
    return [shape for entry in entries for shape in entry.shapes(windows, batch)]


def numbers_by_part(entries: Sequence[Entry], windows: Sequence[Window], batch: int) -> dict[str, int]:
    """How many numbers a recording holds of one evaluation, of each part."""
    found = dict.fromkeys(("ring", "norm", "token"), 0)
    for entry in entries:
        found[entry.part] += entry.count(windows, batch)
    return found


def multiply_adds(entries: Sequence[Entry], windows: Sequence[Window]) -> float:
    """Of a whole picture's 3x3 convolutions, about: as many channels are taken for those that come out as go in."""
    sizes = ((entry, windows[entry.level]) for entry in entries if entry.part == "ring")
    return float(sum(9 * entry.channels**2 * at.rows * at.columns for entry, at in sizes))


def share_of_work(entries: Sequence[Entry], windows: Sequence[Window]) -> float:
    """What a box computes of what the whole picture takes, by the multiplications of 3x3 convolutions.

    Convolutions and projections of a level go with the square of its width and with its area. Attention, whose keys
    stay all of the picture's, goes with the area of its queries, so that the same share holds for it.
    """
    whole = part = 0.0
    for entry in entries:
        if entry.part == "ring":
            at = windows[entry.level]
            weight = entry.channels**2
            whole += weight * at.rows * at.columns
            part += weight * at.height * at.width
    return part / whole


_DEPTH = "transformer_layers_per_block"


def _resnet(level: int, channels: int, width: int, groups: int) -> list[Entry]:
    return [
        Entry("norm", level, groups), Entry("ring", level, channels),
        Entry("norm", level, groups), Entry("ring", level, width),
    ]  # fmt: skip


def _transformer(level: int, channels: int, depth: int, groups: int) -> list[Entry]:
    return [Entry("norm", level, groups), *[Entry("token", level, channels)] * depth] if depth else []


def _each(value: int | Sequence[int], count: int) -> list[int]:
    return [value] * count if isinstance(value, int) else list(value)


def named(entries: Sequence[Entry]) -> Iterator[tuple[str, Entry]]:
    """A name for each of a recording's tensors, in order, and the entry that it belongs to."""
    halves = {"ring": ("across", "along"), "norm": ("mean", "deviation"), "token": ("keys", "values")}
    for number, entry in enumerate(entries):
        for half in halves[entry.part]:
            yield f"{entry.part}{number}_{half}", entry
