"""Runs that differ in their noise alone, together: the mean of each round's frames, and how much they differ."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pie_engine.equality import ByContent
from pie_engine.errors import InputError, argument
from pie_engine.evaluation.runs import Run
from pie_engine.files import new_folder
from pie_engine.outputs.animation import save_gif
from pie_engine.outputs.colours import colourise
from pie_engine.outputs.differences import luminance, spaced
from pie_engine.outputs.frames import STATEMENT, contact_sheet, png_metadata, save_frames

MARKER = "ensemble.json"
# The map's darkest red is the least of these grey levels that no more than 0.5 % of its pixels inside exceed.
_LIMITS = (1, 2, 5, 10, 15, 20, 30, 40, 50, 60, 80, 100, 128)
_WITHIN = 99.5


@dataclass(frozen=True, eq=False, repr=False)
class Ensemble(ByContent):
    """Several runs of one patient.

    Attributes:
        mean: [N + 1, H, W, 3] uint8, of the frames, rounded half to even; frame 0 is the input.
        deviation: [N + 1, H, W] float32, standard deviation of the grey levels (ITU-R BT.601) with S - 1 below.
        mask: [H, W] bool, or None.
        facts: what is common to the runs, their seeds, and the deviation per round; JSON.
    """

    mean: np.ndarray
    deviation: np.ndarray
    mask: np.ndarray | None
    facts: dict[str, Any]

    def __repr__(self) -> str:
        rounds, height, width = len(self.mean) - 1, *self.mean.shape[1:3]
        return f"Ensemble({len(self.facts['members'])} runs of {rounds} rounds, {height} x {width})"

    def save(self, output: str | Path) -> dict[str, Any]:
        """Write mean frames, their animation and contact sheet, the deviation as a picture and as numbers.

        An earlier ensemble in `output` is replaced; a folder that holds anything else is refused.

        Returns:
            Paths by name.

        Raises:
            OutputError: the folder cannot be written.
        """
        output = Path(output)
        count = len(self.facts["members"])
        labels = ["input", *(f"round {n}" for n in range(1, len(self.mean)))]
        with new_folder(output, replaceable=MARKER) as folder:
            info = png_metadata(simulated=True, Content=f"mean of {count} simulations")
            save_frames(self.mean, folder / "frames")
            save_gif(self.mean, folder / "progression.gif")
            contact_sheet(self.mean, labels, self.mask, note=f"mean of {count} runs").save(
                folder / "sheet.png", pnginfo=info
            )
            self._draw_deviation(labels).save(folder / "deviation.png", pnginfo=info)
            np.save(folder / "deviation.npy", self.deviation)
            files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
            (folder / MARKER).write_text(json.dumps({**self.facts, "files": files}, indent=2) + "\n")
        return {"output": str(output), **{name: str(output / name) for name in ("sheet.png", "deviation.png", MARKER)}}

    def _draw_deviation(self, labels: list[str]) -> Any:
        rounds = [1 + index for index in spaced(len(self.mean) - 1)]
        inside = self.deviation[1:] if self.mask is None else self.deviation[1:, self.mask]
        bound = float(np.percentile(inside, _WITHIN))
        limit = next((limit for limit in _LIMITS if limit >= bound), _LIMITS[-1])
        note = f"standard deviation over {len(self.facts['members'])} runs: light grey 0, dark red {limit} grey levels"
        return contact_sheet(colourise(self.deviation[rounds] / limit), [labels[n] for n in rounds], note=note)


def gather(runs: Sequence[Run]) -> Ensemble:
    """Put runs together.

    Args:
        runs: at least two, of one image, mask, prompt, model and settings; seeds or item ids differ.

    Raises:
        InputError: they do not belong together, or a file is damaged.
    """
    if len(runs) < 2:
        raise InputError(f"{len(runs)} run is not an ensemble; pass two or more, of different {argument('seed')}")
    first = runs[0]
    members: dict[tuple[int, str], Run] = {}
    for run in runs:
        for name, value in _common(run).items():
            if value != _common(first)[name]:
                raise InputError(
                    f"{run.name} and {first.name} differ in their {name}; pass runs that differ in {argument('seed')}"
                )
        member = (run.provenance["settings"]["seed"], run.provenance["item_id"])
        if member in members:
            raise InputError(
                f"{run.name} and {members[member].name} have the same noise (seed {member[0]}, item {member[1]}); "
                f"pass another {argument('seed')}",
                field="seed",
                value=member[0],
            )
        members[member] = run
    mask = first.mask()
    # One run after the other (Welford), so that memory holds one of them.
    count, mean, deviation, average = 0, np.zeros(()), np.zeros(()), np.zeros(())
    for run in runs:
        frames = run.frames()
        grey = luminance(frames).astype(np.float64)
        if count and grey.shape != mean.shape:
            raise InputError(f"the frames of {run.name} and {first.name} differ in size; run them again")
        count += 1
        before = grey - mean
        mean = mean + before / count
        deviation = deviation + before * (grey - mean)
        average = average + (frames - average) / count
    spread = np.sqrt(deviation / (count - 1)).astype(np.float32)
    facts = {
        "statement": STATEMENT,
        "synthetic": True,
        "what": f"mean and standard deviation of {count} simulations that differ in their noise",
        "members": [{"seed": seed, "item_id": item} for seed, item in members],
        **{name.replace(" ", "_"): value for name, value in _common(first).items()},
        "deviation": _describe(spread[1:], mask),
    }
    return Ensemble(np.round(average).astype(np.uint8), spread, mask, facts)


def _common(run: Run) -> dict[str, Any]:
    """What has to agree. Raises InputError: provenance lacks it."""
    provenance = run.provenance
    try:
        settings = {name: value for name, value in run.settings.items() if name != "seed"}
        return {
            "image": provenance["input"]["image_sha256"],
            "region of interest": provenance["input"].get("roi"),
            "prompt": provenance["simulated"]["prompt"],
            "settings": settings,
            "method": provenance.get("method", {"name": "pie"}),
            "model": provenance["model"]["hashes"],
        }
    except (LookupError, TypeError, AttributeError) as error:
        raise InputError(
            f"{run.name} does not hold what a run writes ({type(error).__name__}); run pie-engine run again"
        ) from error


def _describe(spread: np.ndarray, mask: np.ndarray | None) -> dict[str, Any]:
    """Grey levels per round: means inside and outside (None without an outside), and the largest."""
    inside = np.ones(spread.shape[1:], bool) if mask is None else mask
    outside = ~inside
    return {
        "mean_inside": [float(one[inside].mean()) for one in spread],
        "mean_outside": [float(one[outside].mean()) for one in spread] if outside.any() else None,
        "largest": [float(one.max()) for one in spread],
    }
