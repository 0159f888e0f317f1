"""DICOM's window functions (PS3.3 C.11.2), and the last step to 8 bits."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pie_engine.errors import InputError
from pie_engine.imaging.blocks import count_not_finite

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


def check_finite(values: np.ndarray, what: str, forward: Callable[[np.ndarray], np.ndarray] | None = None) -> None:
    """Refuse NaN and infinity in [H, W] values, or in what `forward` makes of them. Raises InputError."""
    if forward is None and not np.issubdtype(values.dtype, np.floating):
        return
    wrong = count_not_finite(values, forward)
    if wrong:
        raise InputError(
            f"{what} has {wrong} of {values.size} values that are not finite (NaN or infinity); replace them first"
        )


def to_bytes(grey: np.ndarray) -> np.ndarray:
    """[0, 1] -> uint8, rounded."""
    return np.round(np.clip(grey, 0, 1) * 255).astype(np.uint8)
