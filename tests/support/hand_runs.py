"""Runs' folders made by hand, as far as evaluations read them; no model runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def provenance(patient: int, prompt: str, rounds: int, **settings: Any) -> dict[str, Any]:
    return {
        "item_id": f"p{patient}",
        "input": {"image_sha256": f"{patient:064d}"},
        "settings": {"steps": rounds, "seed": 0, **settings},
        "simulated": {"prompt": prompt, "prompt_cut_off": None},
        "change": {"increment_inside": [0.1] * rounds},
    }


def write_run(folder: Path, patient: int, prompt: str, rounds: int = 2, **settings: Any) -> Path:
    """What `pie-engine run` writes, as far as it is read here; frames differ by patient, prompt and round."""
    (folder / "frames").mkdir(parents=True)
    y, x, c = np.mgrid[:32, :32, :3]
    for index in range(rounds + 1):
        phase = patient + index * (1 + len(prompt)) / 7
        grey = 128 + 60 * np.sin(x / 5 + c + phase) + 50 * np.cos(y / (4 + index))
        Image.fromarray(grey.round().astype(np.uint8)).save(folder / "frames" / f"{index:03d}.png")
    (folder / "provenance.json").write_text(json.dumps(provenance(patient, prompt, rounds, **settings)))
    return folder
