"""Where every random number comes from. All of them are drawn on the CPU in float32, whatever device runs the model."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Generator, Tensor


def item_noise(shape: tuple[int, int, int], seed: int, item_id: str, round_index: int | None = None) -> Tensor:
    """The noise of one item, [4, h, w] float32, and of one round of it if `round_index` is given.

    Seeded by SHA-256(seed, item id[, round]), so that an item's result does not depend on its batch, shard,
    device or place in a manifest.
    """
    import torch

    parts = [str(seed), item_id] + ([] if round_index is None else [str(round_index)])
    digest = hashlib.sha256("\x1f".join(parts).encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    return torch.randn(shape, generator=generator)


def official_generator(seed: int) -> Generator:
    """The stream that `torch.manual_seed(seed)` gives the published code on the CPU."""
    import torch

    return torch.Generator().manual_seed(seed)
