"""A cohort's pictures against a set of real ones, as distributions of features: KID and FID."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pie_engine.errors import InputError
from pie_engine.evaluation.runs import Run
from pie_engine.files import sha256_file
from pie_engine.imaging import fit, read_image
from pie_engine.metrics.clip import ClipEncoder
from pie_engine.metrics.distribution import fid, kid_interval

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".dcm")
_BATCH = 16  # pictures whose features are computed at once


def find_pictures(folder: str | Path) -> list[Path]:
    """The pictures that lie in a folder, by their names' endings; folders in it are not searched.

    Raises:
        InputError: no folder, or fewer than two pictures in it.
    """
    path, remedy = Path(folder), "pass a folder of real pictures"
    if not path.is_dir():
        raise InputError(f"real pictures: {path} is {'a file' if path.exists() else 'not a folder'}; {remedy}")
    found = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES and file.is_file())
    if len(found) < 2:
        raise InputError(f"folder {path} holds {len(found)} pictures ({', '.join(SUFFIXES)}), 2 needed; {remedy}")
    return found


def check_real_pictures(runs: Sequence[Run], pictures: Sequence[Path]) -> None:
    """Refuse a set that holds a run's input: a picture that is compared with itself brings the two sets together.

    Raises:
        InputError: it does.
    """
    inputs = {run.patient: run for run in runs}
    for path in pictures:
        if (run := inputs.get(sha256_file(path))) is not None:
            raise InputError(
                f"{path} is the input of {run.name}, and both sets need pictures of their own; leave it out"
            )


def compare_with_real_pictures(
    runs: Sequence[Run],
    pictures: Sequence[Path],
    encoder: ClipEncoder,
    seed: int,
) -> dict[str, Any]:
    """KID and FID of the runs' inputs and of their last frames against real pictures, over CLIP's image features.

    Real pictures are read and fitted as the inputs were (the first run's fit and size). Of several runs on one input
    the first counts: both measures need independent pictures.

    Returns:
        "pictures", "patients", "features" (their number), "sha256" (of the real files' hashes), and "input" and
        "final", each with "kid" (value, low, high, or None) and "fid" (or None); with a reason where one is missing.

    Raises:
        InputError: a picture cannot be read, or a run's frames are damaged.
    """
    chosen = list({run.patient: run for run in reversed(runs)}.values())[::-1]
    how, side = str(chosen[0].provenance["settings"]["fit"]), 0
    ends, real = [], []
    for run in chosen:
        frames = run.frames()
        side = side or frames.shape[1]
        ends.append(encoder.features(frames[[0, -1]]))
    for start in range(0, len(pictures), _BATCH):
        some = [_read(path, side, how) for path in pictures[start : start + _BATCH]]
        real.append(encoder.features(np.stack(some)))
    theirs, simulated = np.concatenate(real), np.stack(ends)  # [M, D], [P, 2, D]
    fewest, features = min(len(simulated), len(theirs)), theirs.shape[1]
    missing: dict[str, str] = {}
    if len(simulated) < 2:
        missing["kid"] = "1 patient; KID needs 2"
    if fewest <= features:
        missing["fid"] = f"{fewest} pictures with {features} features; FID needs more pictures than features"
    found: dict[str, Any] = {
        "pictures": len(theirs),
        "patients": len(simulated),
        "features": features,
        "sha256": hashlib.sha256("".join(sha256_file(path) for path in pictures).encode()).hexdigest(),
        "missing": missing,
    }
    for index, name in enumerate(("input", "final")):
        one = simulated[:, index]
        found[name] = {
            "kid": None if "kid" in missing else kid_interval(one, theirs, seed=seed).to_dict(),
            "fid": None if "fid" in missing else fid(one, theirs),
        }
    return found


def to_lines(found: dict[str, Any]) -> list[str]:
    """The comparison as plain text."""
    lines = [f"against {found['pictures']} real pictures, n = {found['patients']} patients:"]
    for name in ("input", "final"):
        parts = []
        if found[name]["kid"] is not None:
            kid = found[name]["kid"]
            interval = "" if kid["low"] is None else f" [{kid['low']:.4g}, {kid['high']:.4g}]"
            parts.append(f"KID {kid['value']:.4g}{interval}")
        if found[name]["fid"] is not None:
            parts.append(f"FID {found[name]['fid']:.4g}")
        if parts:
            lines.append(f"  {name}: {', '.join(parts)}")
    return [*lines, *(f"  no {name.upper()}: {reason}" for name, reason in found["missing"].items())]


def _read(path: Path, side: int, how: str) -> np.ndarray:
    """[side, side, 3] uint8."""
    image, _ = read_image(path)
    return np.asarray(fit(image, side, how))
