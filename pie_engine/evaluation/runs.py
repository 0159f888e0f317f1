"""The folders that `pie-engine run` and `Result.save` write, read again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from PIL.Image import Image

from pie_engine.errors import InputError, argument

PROVENANCE = "provenance.json"
_REMEDY = "pass a folder that pie-engine run wrote, or one that holds such folders"


@dataclass(frozen=True)
class Run:
    """One progression as it lies on the disk; frames are read when they are asked for.

    Attributes:
        name: the folder as it was named.
        provenance: as in provenance.json.
    """

    folder: Path
    name: str
    provenance: dict[str, Any]

    @property
    def rounds(self) -> int:
        return int(self.provenance["settings"]["steps"])

    @property
    def patient(self) -> str:
        """SHA-256 of the input's file: runs on one file are one patient's, whatever their seeds, slices and prompts."""
        return str(self.provenance["input"]["image_sha256"])

    @property
    def labels(self) -> tuple[str, str, str]:
        """Name, item id and patient, as tables begin a row with them."""
        return self.name, str(self.provenance.get("item_id", "")), self.patient[:12]

    @property
    def settings(self) -> dict[str, Any]:
        """The settings as they were resolved: the scheduler by the class that computed, where provenance names it."""
        schedule = self.provenance.get("schedule")
        scheduler = schedule.get("class") if isinstance(schedule, dict) else None
        return {**self.provenance["settings"], **({"scheduler": scheduler} if scheduler else {})}

    def frames(self) -> np.ndarray:
        """[N + 1, H, W, 3] uint8, the input first.

        Raises:
            InputError: a frame is missing or damaged, or they differ in size.
        """
        frames = [_picture(self.folder / "frames" / f"{index:03d}.png", "RGB") for index in range(self.rounds + 1)]
        if len({frame.shape for frame in frames}) > 1:
            raise InputError(f"the frames of {self.name} differ in size; run pie-engine run again")
        return np.stack(frames)

    def mask(self) -> np.ndarray | None:
        """[H, W] bool, True = inside the region of interest, or None without one.

        Raises:
            InputError: mask.png is damaged, or missing although there was a region.
        """
        path = self.folder / "mask.png"
        written = path.name in self.provenance.get("files", ())
        return _picture(path, "L") > 127 if written or path.is_file() else None


def find_runs(paths: Sequence[str | Path]) -> list[Run]:
    """Every run below `paths`, see `find_folders`.

    Raises:
        InputError: a path holds no run, a run is damaged or marked, or is named twice.
    """
    return [_open(folder) for folder in find_folders(paths)]


def find_folders(paths: Sequence[str | Path]) -> list[Path]:
    """The folders of all runs below `paths`: each a run's, or one that holds such, a sweep's too (three folders deep).

    Raises:
        InputError: a path holds no run, or a run is named twice.
    """
    found: dict[Path, Path] = {}
    for path in paths:
        folder = Path(path)
        if not folder.is_dir():
            raise InputError(f"{path} is {'a file' if folder.exists() else 'not a folder'}; {_REMEDY}")
        below: dict[Path, None] = {}
        for depth in ("", "*/", "*/*/", "*/*/*/"):
            for one in sorted(file.parent for file in folder.glob(depth + PROVENANCE)):
                # What lies in a run's folder belongs to it; a hidden one is left of a run that was killed.
                hidden = any(part.startswith(".") for part in one.relative_to(folder).parts)
                if not hidden and below.keys().isdisjoint(one.parents):
                    below[one] = None
        if not below:
            raise InputError(f"{path} holds no {PROVENANCE}, nor does a folder in it; {_REMEDY}")
        for one in below:
            if one.resolve() in found:
                raise InputError(f"run {one} is named twice; name each run once")
            found[one.resolve()] = one
    if not found:
        raise InputError(f"no folder is given; {_REMEDY}")
    return list(found.values())


def read_structures(folder: str | Path | None, runs: Sequence[Run]) -> list[np.ndarray | None]:
    """The map of each run, ITEM_ID.png in `folder`: [H, W] float64 in 0 to 1, or None without a folder.

    Raises:
        InputError: there is no such folder, a run has no map or it is damaged or not grey, or runs on several inputs
            have one item id.
    """
    if folder is None:
        return [None] * len(runs)
    if not Path(folder).is_dir():
        raise InputError(f"structures {folder} is not a folder; pass one that holds ITEM_ID.png for every run")
    files = {file.name for file in Path(folder).iterdir()}
    found: list[np.ndarray | None] = []
    served: dict[str, Run] = {}
    for run in runs:
        name = f"{run.provenance.get('item_id', '')}.png"
        if name not in files:
            raise InputError(
                f"{folder} holds no {name[:80]}, the map of {run.name}; add it, or leave {argument('structures')} out"
            )
        other = served.setdefault(name, run)
        if other.patient != run.patient:
            raise InputError(
                f"{name} would serve both {other.name} and {run.name}, which are of different inputs; run them again "
                f"with an {argument('item_id')} each"
            )
        found.append(_map(Path(folder) / name))
    return found


def _open(folder: Path) -> Run:
    try:
        provenance = json.loads((folder / PROVENANCE).read_text(encoding="utf-8"))
        run = Run(folder, str(folder), provenance)
        change = provenance["change"]
        counts = {len(values) for values in change.values() if values}
        complete = counts == {run.rounds} and len(run.patient) == 64
        marked = "visible_mark" in provenance
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise InputError(f"{folder / PROVENANCE} is not a run's ({type(error).__name__}); {_REMEDY}") from error
    if not complete:
        raise InputError(f"{folder / PROVENANCE} does not describe every round and the input; run pie-engine run again")
    if marked:
        # The mark would count as change, and could sway a classifier.
        raise InputError(f"the frames of {folder} carry a visible mark; run it again without {argument('mark')}")
    return run


def _map(path: Path) -> np.ndarray:
    """[H, W] float64 in 0 to 1, of 1, 8 or 16 bits."""
    image = _open_png(path, "pass a PNG")
    if image.mode in ("1", "L"):
        return np.asarray(image.convert("L")) / 255
    if image.mode.startswith("I"):
        return np.asarray(image) / 65535
    raise InputError(f"{path} is a PNG of mode {image.mode}; save it as grey levels, black where there is no structure")


def _picture(path: Path, mode: str) -> np.ndarray:
    return np.asarray(_open_png(path, "run pie-engine run again").convert(mode))


def _open_png(path: Path, remedy: str) -> Image:
    """Read the whole file, so that damage is noticed here."""
    try:
        with PIL.Image.open(path, formats=["PNG"]) as image:
            image.load()
            return image
    except (OSError, ValueError, SyntaxError, PIL.Image.DecompressionBombError) as error:
        raise InputError(f"{path} is missing or damaged ({type(error).__name__}); {remedy}") from error
