"""A classifier made by hand: its confidence is the mean grey of the picture."""

from __future__ import annotations

import json
from pathlib import Path

import torch


class Bright(torch.nn.Module):
    """[N, 1, H, W] in [0, 1] to [N, 1]."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3))


def save_bright(folder: Path) -> Path:
    """Write it for pictures of 64 x 64; returns the JSON file that declares it as "bright"."""
    torch.jit.script(Bright()).save(str(folder / "m.pt"))
    spec = {"file": "m.pt", "name": "bright", "size": 64, "channels": 1, "grey": "mean", "range": [0, 1], "mean": 0}
    (folder / "bright.json").write_text(json.dumps({**spec, "std": 1, "activation": "none"}))
    return folder / "bright.json"
