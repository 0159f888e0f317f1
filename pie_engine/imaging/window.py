"""Stored values to grey: DICOM's window functions (PS3.3 C.11.2) the full range, and what provenance says."""

from __future__ import annotations

from typing import Any

import numpy as np

from pie_engine.errors import InputError

FUNCTIONS = ("LINEAR", "LINEAR_EXACT", "SIGMOID")


def apply_window(values: np.ndarray, center: float, width: float, function: str = "LINEAR_EXACT") -> np.ndarray:
    """Map values to [0, 1] as PS3.3 C.11.2.1.2 and C.11.2.1.3 do: any shape, float64 out.

    LINEAR counts whole numbers, so that `width` of them, from center - width / 2 on, lie between black and white: a
    width of 1 is a threshold. LINEAR_EXACT treats values as continuous.
    """
    values = values.astype(np.float64)
    if function == "SIGMOID":
        with np.errstate(over="ignore"):
            return np.asarray(1 / (1 + np.exp(-4 * (values - center) / width)))
    if function == "LINEAR":
        center, width = center - 0.5, width - 1
    if width == 0:
        return (values > center).astype(np.float64)
    return np.clip((values - center) / width + 0.5, 0, 1)


def window_mapping(
    values: np.ndarray, window: tuple[float, float], function: str, source: str
) -> tuple[np.ndarray, dict[str, Any]]:
    """Windowed values in [0, 1], and the mapping as provenance states it."""
    center, width = window
    facts = {"function": function, "window_center": center, "window_width": width, "source": source}
    return apply_window(values, center, width, function), facts


def range_mapping(values: np.ndarray, low: float, high: float, source: str) -> tuple[np.ndarray, dict[str, Any]]:
    """low -> 0, high -> 1; where they are equal there is nothing to see, and all is black."""
    scale = high - low
    grey = np.clip((values.astype(np.float64) - low) / scale, 0, 1) if scale > 0 else np.zeros(values.shape)
    return grey, {"function": "full range", "low": float(low), "high": float(high), "source": source}


def check_finite(values: np.ndarray, what: str) -> None:
    """Refuse NaN and infinity. Raises InputError."""
    if not np.issubdtype(values.dtype, np.floating):
        return
    wrong = int((~np.isfinite(values)).sum())
    if wrong:
        raise InputError(
            f"{what} has {wrong} of {values.size} values that are not finite (NaN or infinity); replace them first"
        )


def to_bytes(grey: np.ndarray) -> np.ndarray:
    """[0, 1] -> uint8, rounded."""
    return np.round(np.clip(grey, 0, 1) * 255).astype(np.uint8)
