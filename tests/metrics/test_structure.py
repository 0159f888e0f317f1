"""How much is left of the patient's own structure: against contrasts that the pictures were made with."""

from __future__ import annotations

import numpy as np
import pytest

from pie_engine.demo.domain import load_domain
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
    # Everything is linear in the contrast, and on a flat background the surroundings are the background.
    np.testing.assert_allclose(structure_kept(frames, stripes()), [1, 0.75, 0.25, 0, -0.5], atol=1e-9)


def test_light_and_shading_do_not_count() -> None:
    """Half the light leaves half the contrast, and the same depth."""
    ramp = np.linspace(0.7, 1, SIZE)[None, :, None]
    shaded = np.rint(picture(200, 50, stripes()) * ramp).astype(np.uint8)
    frames = np.stack([picture(200, 50, stripes()), picture(100, 25, stripes()), shaded])
    np.testing.assert_allclose(structure_kept(frames, stripes()), 1, atol=0.01)


def test_a_black_frame_keeps_nothing() -> None:
    frames = np.stack([picture(180, 80, stripes()), np.zeros((SIZE, SIZE, 3), np.uint8)])
    np.testing.assert_array_equal(structure_kept(frames, stripes()), [1, 0])


@pytest.mark.parametrize(("name", "tolerance"), [("fundus", 0.05), ("skin", 0.15)])
def test_the_disease_itself_costs_little(name: str, tolerance: float) -> None:
    """True twins: all of a phantom's structure is in either, drawn over a healthy and a diseased picture.

    0.05: what the disease draws is not smooth, and so can lie along the map by chance. 0.15: hairs are not black but of
    19 grey levels, so that they take 0.90 of the light of skin (190 grey levels) and 0.76 of a dark lesion's (80).
    """
    own = load_domain(name)
    for index in range(6):
        twins = [own.phantom(index, diseased=diseased, split="validation") for diseased in (False, True)]
        frames = np.stack([own.render(twin) for twin in twins])
        assert own.structure is not None
        structure, inside = own.structure(twins[0]), own.roi_mask(twins[0]) > 127
        assert structure_kept(frames, structure, inside)[1] == pytest.approx(1, abs=tolerance)
        assert structure_kept(frames[::-1], structure, inside)[1] == pytest.approx(1, abs=tolerance)


def test_what_is_covered_counts_as_gone_however_dark_the_cover() -> None:
    """Half of every line is under it; a tenth more or less, as the surroundings change at the cover's edge."""
    frames = [picture(180, 80, stripes())]
    for level in (200, 180, 120, 60):
        covered = frames[0].copy()
        covered[:, : SIZE // 2] = level
        frames.append(covered)
    np.testing.assert_allclose(structure_kept(np.stack(frames), stripes())[1:], 0.5, atol=0.05)


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
        (np.zeros((64, 64)), picture(180, 80, stripes())[None], "the map is the same everywhere"),
        (stripes() / 255, picture(180, 80, stripes())[None], "the map's brightest value is 1 of 255"),
        (stripes(), picture(180, 1, stripes())[None], "shows the map's structure by 1 grey levels, below 2"),
    ],
)
def test_refusals(structure: np.ndarray, frames: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        structure_kept(frames, structure)
