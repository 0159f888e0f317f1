"""Outputs for which the source is read again: frames at its own geometry, and a DICOM series."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pie_engine.errors import InputError
from pie_engine.imaging import Stored
from pie_engine.outputs.dicom_series import check_series, save_series
from pie_engine.outputs.native import NativeFrames, check_native, save_native

if TYPE_CHECKING:
    from pie_engine.config import OutputConfig, RunConfig
    from pie_engine.outputs.result import Progression


def check_source(stored: Stored, config: RunConfig, outputs: OutputConfig) -> None:
    """Refuse outputs that this source does not allow, before anything is simulated.

    Raises:
        ConfigError, InputError, OutputError: see `check_native` and `check_series`.
    """
    if outputs.native_size:
        check_native(stored, config)
    if outputs.dicom:
        check_series(stored, outputs)


def write_clinical(
    result: Progression, shown: np.ndarray, folder: Path, outputs: OutputConfig
) -> tuple[dict[str, list[Path]], dict[str, Any]]:
    """Write folder/native and folder/dicom, if they are asked for.

    Args:
        shown: [N + 1, H, W, 3] uint8, the frames, with the visible mark if there is one.

    Returns:
        Paths by name, and what provenance says of them by the same names.

    Raises:
        InputError: the source is not there any more, or is not what it was; see `check_source` for others.
    """
    if not (outputs.native_size or outputs.dicom):
        return {}, {}
    if result.source is None:
        raise InputError("the result does not name its source image; leave out native_size and dicom")
    stored = result.source.read()
    check_source(stored, result.config, outputs)
    written: dict[str, list[Path]] = {}
    facts: dict[str, Any] = {}
    native = None
    if outputs.native_size:
        native = NativeFrames(stored, result.frames, result.roi, result.config.fit, mark=outputs.mark)
        written["native"], facts["native"] = save_native(native, folder / "native")
    if outputs.dicom:
        series = save_series(shown, folder / "dicom", stored, result.config, outputs, native)
        written["dicom"], facts["dicom"] = series
    return written, facts
