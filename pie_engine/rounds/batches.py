"""From prepared items to batches: which items run together, and what their rounds read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from pie_engine.errors import ConfigError, use
from pie_engine.rounds.plan import Batch

if TYPE_CHECKING:
    from pie_engine.config import RunConfig
    from pie_engine.imaging.item import PreparedItem
    from pie_engine.regional.windows import Box


def group_items(
    items: Sequence[PreparedItem], boxes: Sequence[Box | None], sizes: tuple[int, ...] | None, config: RunConfig
) -> list[list[int]]:
    """Indices of the items of each batch: those without a mask, of other numbers of findings, and of boxes of another
    size, run by themselves.

    Args:
        boxes: what each item's rounds compute, or None for the whole picture.
        sizes: the numbers of items with one finding that a backend runs at once; None for any.

    Raises:
        ConfigError: none of the sizes does for an item's findings.
    """
    alike: dict[tuple[bool, int, tuple[int, ...]], list[int]] = {}
    for i, (item, box) in enumerate(zip(items, boxes, strict=True)):
        size = () if box is None else (box.height, box.width)
        alike.setdefault((item.mask is None, len(item.prompts), size), []).append(i)
    return [
        part
        for (_, findings, _), group in sorted(alike.items())
        for part in split_group(group, sizes_for(sizes, findings, config))
    ]


def make_batch(items: Sequence[PreparedItem], boxes: Sequence[Box] | None = None) -> Batch:
    """Items of one group, stacked. Args: boxes: of one size, what the items' rounds compute."""
    pictures = np.stack([np.asarray(item.image) for item in items])  # [B, H, W, 3]
    masks = [item.mask for item in items if item.mask is not None]
    beta_map = [torch.from_numpy(mask.beta_map) for mask in masks if mask.beta_map is not None]
    finding_weights = [torch.from_numpy(mask.finding_weights) for mask in masks if mask.finding_weights is not None]
    return Batch(
        pixels=torch.from_numpy(pictures.astype(np.float32) / 127.5 - 1).permute(0, 3, 1, 2).contiguous(),
        mask=torch.stack([torch.from_numpy(mask.latent) for mask in masks]) if masks else None,
        prompts=[prompt for finding in zip(*(item.prompts for item in items), strict=True) for prompt in finding],
        item_ids=[item.item_id for item in items],
        beta_map=torch.stack(beta_map) if beta_map else None,
        finding_weights=torch.stack(finding_weights, dim=1) if finding_weights else None,
        boxes=boxes,
    )


def sizes_for(sizes: tuple[int, ...] | None, findings: int, config: RunConfig) -> tuple[int, ...] | None:
    """The numbers of items that can run at once with so many findings each.

    Args:
        sizes: those with one finding, as `Backend.batch_sizes` has them; their U-Nets take each and twice each.

    Raises:
        ConfigError: none of them can.
    """
    if sizes is None or findings == 1:
        return sizes
    taken = {count for size in sizes for count in (size, 2 * size)}
    each = sorted({findings + one.kind.guided for one in config.rounds})
    fitting = tuple(size for size in sizes if taken.issuperset(size * count for count in each))
    if not fitting:
        build = tuple(sorted({1, *(count // 2 if count % 2 == 0 else count for count in each)}))
        raise ConfigError(
            f"{findings} findings ask the U-Net about {' and '.join(map(str, each))} latents at once, and the engines "
            f"take {', '.join(map(str, sorted(taken)))}; build them with {use('batches', build)}, or pass "
            f"{use('backend', 'onnxruntime')}"
        )
    return fitting


def split_group(group: list[int], sizes: tuple[int, ...] | None) -> list[list[int]]:
    """Cut a group into parts of the sizes that a backend runs, largest first; None leaves it whole.

    A rest smaller than every size is filled up by repeating its last member, whose result is then the same twice.
    """
    if sizes is None or not group:
        return [group] if group else []
    parts, rest = [], group
    while rest:
        fitting = [size for size in sizes if size <= len(rest)]
        size = max(fitting) if fitting else min(sizes)
        parts.append((rest + [rest[-1]] * size)[:size])
        rest = rest[size:]
    return parts
