"""Where every random number comes from. All of them are drawn on the CPU in float32, whatever device runs the model."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from torch import Generator, Tensor


def item_noise(shape: tuple[int, int, int], seed: int, item_id: str, round_index: int | None = None) -> Tensor:
    """The noise of one item, [4, h, w] float32, and of one round of it if `round_index` is given.

    Seeded by SHA-256(seed, item id[, round]), so that an item's result does not depend on its batch, shard, device or
    place in a manifest. 128 bits of it key a Philox generator: PyTorch's own on the CPU keeps 32 bits of a seed, and
    among 100,000 patients two would share a noise more often than not.
    """
    name = json.dumps([seed, item_id] if round_index is None else [seed, item_id, round_index])
    key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:16], "big")
    generator = np.random.Generator(np.random.Philox(key=key))
    return torch.from_numpy(generator.standard_normal(shape, dtype=np.float32))


def official_generator(seed: int) -> Generator:
    """The stream that `torch.manual_seed(seed)` gives the published code on the CPU."""
    return torch.Generator().manual_seed(seed)
