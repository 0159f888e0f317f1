"""One progression as files: each kind by one call, into a folder that appears whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from safetensors.numpy import save_file

from pie_engine.errors import ConfigError
from pie_engine.files import sha256_file
from pie_engine.outputs import video
from pie_engine.outputs.animation import interleave, save_gif
from pie_engine.outputs.clinical import write_clinical
from pie_engine.outputs.differences import save_differences
from pie_engine.outputs.frames import STATEMENT, contact_sheet, png_metadata, save_frames
from pie_engine.outputs.mark import describe_mark, mark_frames
from pie_engine.outputs.report import REPORT, make_report

if TYPE_CHECKING:
    from pie_engine.config import OutputConfig
    from pie_engine.outputs.result import Progression

PROVENANCE = "provenance.json"
LATENTS = "latents.safetensors"

Confidence = Mapping[str, Sequence[float]] | Sequence[float]


def check_outputs(outputs: OutputConfig) -> None:
    """Refuse what cannot be written on this machine, before any work is done.

    Raises:
        OutputError: a package is missing.
    """
    if outputs.mp4:
        video.check_installed()


def write_result(
    result: Progression,
    folder: Path,
    outputs: OutputConfig,
    *,
    captions: list[str] | None,
    note: str,
    confidence: dict[str, list[float]] | None,
) -> dict[str, Any]:
    """Write everything that `outputs` asks for into the empty `folder`.

    Returns:
        By name, the path or the list of paths below `folder`; see `Result.save`.
    """
    # Marks are drawn into what is written alone: arrays, measures and difference maps stay without them.
    shown = mark_frames(result.frames) if outputs.mark else result.frames
    labels = captions or ["input", *(f"{_noun(result)} {n}" for n in range(1, len(shown)))]
    written: dict[str, Any] = {"frames": save_frames(shown, folder / "frames")}
    per_round = 0 if result.between is None else result.between.shape[1]
    moving = shown if result.between is None else interleave(result.frames, result.between)
    if outputs.mark and result.between is not None:
        moving = mark_frames(moving)
    save_gif(moving, _named(written, "gif", folder / "progression.gif"), per_round, labels)
    if "partial" in result.provenance:
        rounds = result.provenance["partial"]
        note = f"{note} (interrupted after {rounds['rounds']} of {rounds['of']})".strip()
    if not note and _method(result) != "pie":  # sheets of several methods lie beside one another
        note = f"(method: {_method(result)})"
    contact_sheet(shown, labels, result.mask, note=note).save(
        _named(written, "sheet", folder / "sheet.png"), pnginfo=png_metadata(simulated=True)
    )
    save_differences(result.frames, result.mask, _named(written, "differences", folder / "differences.png"))
    if outputs.mp4:
        video.save_mp4(moving, _named(written, "mp4", folder / "progression.mp4"), per_round)
    if result.mask is not None:
        Image.fromarray(result.mask.astype(np.uint8) * 255).save(
            _named(written, "mask", folder / "mask.png"), pnginfo=png_metadata(simulated=False)
        )
    partial = result.provenance.get("partial")
    if outputs.latents or partial is not None:
        _save_latents(result, _named(written, "latents", folder / LATENTS))
    paths, clinical = write_clinical(result, shown, folder, outputs)
    written |= paths
    provenance = {
        **result.provenance,
        "outputs": outputs.to_dict(),
        **clinical,
        **({"interpolation": {"pictures_per_round": per_round, "of": "latents, linear"}} if per_round else {}),
        **({"visible_mark": describe_mark(*shown.shape[1:3])} if outputs.mark else {}),
        **({"confidence": confidence} if confidence else {}),
    }
    if partial is not None:  # so that a run goes on from nothing else
        provenance["partial"] = {**partial, "latents_sha256": sha256_file(folder / LATENTS)}
    if outputs.report:
        page = make_report(folder, provenance)
        _named(written, "report", folder / REPORT).write_text(page, encoding="utf-8")
    # The list of files is also what lets a later run into the same folder replace this result and nothing else.
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    text = json.dumps({**provenance, "files": files}, indent=2)
    _named(written, "provenance", folder / PROVENANCE).write_text(text + "\n")
    return written


def check_confidence(confidence: Confidence | None, frames: int) -> dict[str, list[float]] | None:
    """A classifier's confidence per frame, by the classifier's name.

    Args:
        confidence: `frames` values in [0, 1], the input's first; or several such lists by name.

    Raises:
        ConfigError: another number of values, or one outside [0, 1].
    """
    if confidence is None:
        return None
    named = confidence if isinstance(confidence, Mapping) else {"confidence": confidence}
    checked: dict[str, list[float]] = {}
    for name, values in named.items():
        series = [float(value) for value in values]
        if len(series) != frames:
            raise ConfigError(
                f"confidence {name!r} has {len(series)} values for {frames} frames; "
                "pass one per frame, the input's first"
            )
        for value in series:
            if not 0 <= value <= 1:  # also refuses what is not a number
                raise ConfigError(f"confidence {name!r} holds {value}, outside [0, 1]; pass probabilities")
        checked[str(name)] = series
    return checked


def _noun(result: Progression) -> str:
    """A baseline has frames, but no rounds."""
    return "round" if _method(result) in ("pie", "control") else "frame"


def _method(result: Progression) -> str:
    return str(result.provenance.get("method", {}).get("name", "pie"))


def _named(written: dict[str, Any], name: str, path: Path) -> Path:
    written[name] = path
    return path


def _save_latents(result: Progression, path: Path) -> None:
    arrays = {"latents": result.latents, "original_latent": result.original_latent}
    save_file(
        {name: np.ascontiguousarray(array) for name, array in arrays.items()},
        path,
        metadata={"synthetic": "true", "description": STATEMENT},
    )
