"""The convergence of a run, from the files in its folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors import SafetensorError
from safetensors.numpy import load_file

from pie_engine.errors import InputError, PieError
from pie_engine.evaluation.runs import find_folders
from pie_engine.metrics.convergence import Convergence, Rounds, check_convergence, measure_rounds
from pie_engine.metrics.decay import rounding_floor

_PROVENANCE, _LATENTS, _MASK = "provenance.json", "latents.safetensors", "mask.png"


@dataclass(frozen=True)
class CheckedRun:
    """What one run's folder says of its rounds.

    Attributes:
        name: the folder as it was named.
        found: the findings.
        beta1: the run's blend outside; betas: those inside, one for each that its regions have; none without a mask.
        noise: "shared" or "fresh" noise, or "inversion".
        official: whether it was run as published. Then nothing is compared with beta: the original and each frame are
            drawn anew in every round, so that the first displacement is no edit.
        source: "latents.safetensors" (latents wholly inside the region) or "provenance.json" (at least half inside).
    """

    name: str
    found: Convergence
    beta1: float
    betas: tuple[float, ...]
    noise: str
    official: bool
    source: str

    def to_dict(self) -> dict[str, Any]:
        settings = {"beta1": self.beta1, "betas_inside": list(self.betas), "noise": self.noise}
        return {
            "run": self.name,
            "settings": {**settings, "semantics": "official" if self.official else "engine"},
            "source": self.source,
            "paper_bound": None,  # its constants are no numbers of a run: docs/convergence.md
            **self.found.to_dict(),
        }


def check_run(folder: Path) -> CheckedRun:
    """Judge a folder that `pie-engine run`, `pie-engine demo` or `Result.save` wrote.

    Raises:
        InputError: no such folder, or none that a run wrote; damaged files; fewer than three rounds.
    """
    remedy = "pass the folder that pie-engine run wrote"
    if folder.is_file():
        raise InputError(f"{folder} is a file; {remedy}")
    if not folder.is_dir():
        raise InputError(f"folder {folder} does not exist; {remedy}")
    if not (folder / _PROVENANCE).is_file():
        raise InputError(f"{folder} holds no {_PROVENANCE} of a run; {remedy}")
    try:
        provenance = json.loads((folder / _PROVENANCE).read_text(encoding="utf-8"))
        method = provenance.get("method", {"name": "pie"})["name"]
        settings, change = provenance["settings"], provenance["change"]
        beta1, masked = float(settings["beta1"]), provenance["simulated"]["roi_share"] is not None
        betas = _betas(provenance, float(settings["beta2"])) if masked else ()
        rounds, source = _from_provenance(change), _PROVENANCE
        noise = "inversion" if settings["inversion"] == "ddim" else str(settings["noise"])
        official = settings["semantics"] == "official"
        floor = rounding_floor(provenance["backend"]["precision"])
        if (folder / _LATENTS).is_file():
            rounds, source = _from_latents(folder, len(rounds.increments), masked), _LATENTS
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise InputError(
            f"{folder} does not hold what a run writes ({type(error).__name__} in its files); run pie-engine run again"
        ) from error
    if settings.get("schedule"):
        raise InputError(f"{folder} ran on a schedule, and a decay is that of equal rounds; pass a run without one")
    if settings.get("pace", "constant") != "constant":
        raise InputError(f"{folder} has an even pace, whose increments are equal on purpose; pass a run without one")
    if settings.get("tolerance") is not None:
        raise InputError(f"{folder} has a tolerance, after which frames repeat; pass a run of all rounds, without one")
    if method not in ("pie", "control"):
        raise InputError(f"{folder} was made by method {method!r}, whose frames are not rounds; pass a run of PIE")
    # Without a mask nothing is blended, and a constant edit adds up in full.
    beta2 = 1.0 if not masked else betas[0] if len(betas) == 1 else None
    found = check_convergence(rounds, beta1=None if official else beta1, beta2=None if official else beta2, floor=floor)
    return CheckedRun(str(folder), found, beta1, betas, noise, official, source)


def check_runs(paths: Sequence[str | Path]) -> list[CheckedRun]:
    """`check_run` on all runs below `paths`, as `find_folders` finds them.

    Raises:
        InputError: a path holds no run, or see `check_run`; with several runs, the message names the one.
    """
    folders = find_folders(paths)
    checked = []
    for folder in folders:
        try:
            checked.append(check_run(folder))
        except PieError as error:
            raise error if len(folders) == 1 or str(folder) in str(error) else error.within(str(folder)) from error
    return checked


def _betas(provenance: dict[str, Any], run: float) -> tuple[float, ...]:
    regions = provenance["input"]["roi"]["regions"]
    return tuple(sorted({float(region.get("beta", run)) for region in regions}))


def _from_provenance(change: dict[str, Any]) -> Rounds:
    def numbers(values: list[Any]) -> list[float]:
        return [float(value) for value in values]

    outside = change["displacement_outside"]
    return Rounds(
        numbers(change["increment_inside"]),
        numbers(change["displacement_inside"]),
        None if outside is None else numbers(outside),
    )


def _from_latents(folder: Path, count: int, masked: bool) -> Rounds:
    """Raises ValueError: latents that do not fit one another, the mask or provenance."""
    try:
        arrays = load_file(folder / _LATENTS)
    except SafetensorError as error:
        raise ValueError(str(error)) from None
    latents, original = arrays["latents"], arrays["original_latent"]
    if latents.ndim != 4 or latents.shape != (count, *original.shape):
        raise ValueError(f"latents of shape {latents.shape}")
    return measure_rounds(latents, original, _latent_mask(folder, original.shape[1:]) if masked else None)


def _latent_mask(folder: Path, shape: tuple[int, int]) -> np.ndarray:
    """mask.png averaged over each latent's pixels, [h, w] in [0, 1]: what the engine's own semantics blend with."""
    with Image.open(folder / _MASK, formats=["PNG"]) as opened:
        pixels = np.asarray(opened.convert("L")) >= 128
    (height, width), (h, w) = pixels.shape, shape
    if height % h or width % w:
        raise ValueError(f"mask of shape {pixels.shape}")
    averaged: np.ndarray = pixels.reshape(h, height // h, w, width // w).mean((1, 3))
    return averaged
