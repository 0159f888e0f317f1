"""The report of a run's folder: made from the files that lie in it, so that it can also be made later."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from pie_engine.errors import InputError
from pie_engine.files import write_file
from pie_engine.outputs.differences import spaced
from pie_engine.outputs.report.page import Shown, build_page

REPORT = "report.html"
_PROVENANCE = "provenance.json"


def make_report(folder: Path, provenance: Mapping[str, Any]) -> str:
    """The page for a folder that holds frames/ and, with a region of interest, mask.png."""
    files = sorted((folder / "frames").glob("[0-9]*.png"), key=lambda file: int(file.stem))
    shown = [Shown(int(files[index].stem), files[index].read_bytes()) for index in spaced(len(files))]
    mask = folder / "mask.png"
    return build_page(shown, mask.read_bytes() if mask.is_file() else None, provenance)


def find_report(folder: Path) -> tuple[Path, bool]:
    """The report of a folder that `pie-engine run` or `Result.save` wrote; one that is missing is written.

    Returns:
        Its absolute path, and whether it was written now.

    Raises:
        InputError: no such folder, or none that a run wrote, or its files are damaged.
        OutputError: the report is missing and cannot be written.
    """
    remedy = "pass the folder that pie-engine run wrote"
    if folder.is_file():
        raise InputError(f"{folder} is a file; {remedy}")
    if not folder.is_dir():
        raise InputError(f"folder {folder} does not exist; {remedy}")
    path, marker = folder.resolve() / REPORT, folder.resolve() / _PROVENANCE
    if path.is_file():
        return path, False
    if not marker.is_file():
        raise InputError(f"{folder} holds no {REPORT}, and no {_PROVENANCE} to write one from; {remedy}")
    _write(folder, {})
    return path, True


def add_measures(
    folder: Path, confidence: Mapping[str, Sequence[float]], similarity: Mapping[str, Sequence[float]]
) -> None:
    """Write measures into a run's report.html and provenance.json; one of the same name is replaced.

    Args:
        confidence: by the classifier's name, a value in [0, 1] per frame, the input's first.
        similarity: to the input, by the measure's name, a value in [-1, 1] per frame, the input's first; 1 is equal.

    Raises:
        InputError: the run's files are damaged. OutputError: they cannot be written.
    """
    _write(folder, {"confidence": confidence, "similarity": similarity})


def _write(folder: Path, measures: Mapping[str, Mapping[str, Sequence[float]]]) -> None:
    """The report anew, and provenance that lists it."""
    marker = folder.resolve() / _PROVENANCE
    try:
        provenance = json.loads(marker.read_text(encoding="utf-8"))
        files = sorted({*provenance.pop("files"), REPORT})
        for kind, series in measures.items():
            if series:
                provenance[kind] = {**provenance.get(kind, {}), **series}
        page = make_report(folder.resolve(), provenance)
        listed = json.dumps({**provenance, "files": files}, indent=2)
        page.encode()
    except (OSError, ValueError, LookupError, TypeError, AttributeError, Image.DecompressionBombError) as error:
        raise InputError(
            f"{folder} cannot be shown ({type(error).__name__} in its files); run pie-engine run again"
        ) from error
    # The list comes first: a later run replaces a folder that holds no file but those listed.
    write_file(marker, listed + "\n")
    write_file(folder.resolve() / REPORT, page)
