"""The golden cases: what the published implementation computed, and where."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pie_engine.config import RunConfig

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
CASES: dict[str, dict[str, Any]] = json.loads((GOLDEN / "cases.json").read_text())


@dataclass(frozen=True)
class Case:
    """A golden case: arguments and what the published implementation computed."""

    image: Path
    mask: Path | None
    prompt: str
    checkpoint: Path
    config: RunConfig
    frames: Path
    latents: np.ndarray


def golden_case(name: str) -> Case:
    case = CASES[name]
    settings = ("steps", "strength", "num_inference_steps", "guidance_scale", "beta1", "beta2", "seed", "resolution")
    return Case(
        image=GOLDEN / case["image"],
        mask=GOLDEN / case["mask"] if case["mask"] else None,
        prompt=case["prompt"],
        checkpoint=GOLDEN / case["checkpoint"],
        config=RunConfig(semantics="official", **{key: case[key] for key in settings}),
        frames=GOLDEN / "expected" / name,
        latents=np.load(GOLDEN / "expected" / name / "latents.npy"),
    )
