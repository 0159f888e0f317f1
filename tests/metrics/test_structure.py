"""How much is left of the patient's own structure: against contrasts that the pictures were made with."""

from __future__ import annotations

import numpy as np
import pytest

from pie_engine.errors import InputError
from pie_engine.metrics.structure import structure_kept

SIZE = 64


def stripes(offset: int = 0) -> np.ndarray:
    """Lines of two pixels, one in every thirteen: [64, 64] in 0 to 1."""
    rows = np.arange(SIZE)[:, None] + offset
    return np.broadcast_to((rows % 13 < 2).astype(np.float64), (SIZE, SIZE)).copy()


def picture(background: float, contrast: float, drawn: np.ndarray) -> np.ndarray:
    return np.repeat((background - contrast * drawn).astype(np.uint8)[..., None], 3, axis=2)


def test_the_share_is_that_of_the_contrasts() -> None:
    frames = np.stack([picture(180, contrast, stripes()) for contrast in (80, 60, 20, 0, -40)])
    # Everything is linear in the contrast, and a flat background has no detail.
    np.testing.assert_allclose(structure_kept(frames, stripes()), [1, 0.75, 0.25, 0, -0.5], atol=1e-9)


def test_brightness_and_shading_do_not_count() -> None:
    ramp = np.linspace(0, 60, SIZE)[None].astype(np.uint8)[..., None]
    frames = np.stack([picture(200, 50, stripes()), picture(120, 50, stripes()), picture(120, 50, stripes()) + ramp])
    np.testing.assert_allclose(structure_kept(frames, stripes()), 1, atol=0.01)


def test_what_is_drawn_elsewhere_is_not_kept() -> None:
    frames = np.stack([picture(180, 80, stripes()), picture(180, 80, stripes(6)), picture(180, 80, stripes().T)])
    kept = structure_kept(frames, stripes())
    assert kept[0] == 1
    assert abs(kept[1]) < 0.25 and abs(kept[2]) < 0.1


def test_only_the_region_counts() -> None:
    inside = np.zeros((SIZE, SIZE), bool)
    inside[:, :32] = True
    changed = stripes()
    changed[:, 32:] = 0
    frames = np.stack([picture(180, 80, stripes()), picture(180, 80, changed)])
    assert structure_kept(frames, stripes(), inside)[1] == pytest.approx(1, abs=0.02)  # the blur sees over the edge
    assert structure_kept(frames, stripes(), ~inside)[1] == pytest.approx(0, abs=0.02)


def test_luma_weighs_the_channels() -> None:
    """Green has 0.587 of the luma: without it in the lines 0.413 of the contrast is left."""
    grey = picture(180, 80, stripes())
    without = grey.copy()
    without[..., 1] = 180
    np.testing.assert_allclose(structure_kept(np.stack([grey, without]), stripes()), [1, 0.413], atol=1e-9)


@pytest.mark.parametrize(
    ("structure", "frames", "message"),
    [
        (np.zeros((32, 64)), picture(180, 80, stripes())[None], "a map of 64 x 32 does not fit frames of 64 x 64"),
        (np.zeros((64, 64)), picture(180, 80, stripes())[None], "the map shows nothing"),
        (stripes(), picture(180, 1, stripes())[None], "shows the map's structure by 1 grey levels, below 2"),
    ],
)
def test_refusals(structure: np.ndarray, frames: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        structure_kept(frames, structure)
