"""From grey back to stored values: each step against values worked out by hand, and what has no way back."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pie_engine.imaging.mapping import Lookup, Mapping, Range, Rescale, VoiLookup, Window


@pytest.mark.parametrize(
    ("mapping", "stored", "grey"),
    [
        # LINEAR: black at c - 0.5 - (w - 1) / 2 = 0, white 4095 higher.
        (Mapping(Window(2048, 4096, "LINEAR")), [0, 819, 4095], [0, 0.2, 1]),
        (Mapping(Window(40, 400, "LINEAR_EXACT")), [-160, 40, 140, 240], [0, 0.5, 0.75, 1]),
        # 1 / (1 + exp(-4 (x - c) / w)): a quarter of w above c is 1 / (1 + 1/e).
        (Mapping(Window(100, 40, "SIGMOID")), [100, 110, 90], [0.5, 1 / (1 + 1 / math.e), 1 / (1 + math.e)]),
        (Mapping(Range(-100, 300)), [-100, 0, 300], [0, 0.25, 1]),
        # CT: 2 x - 24 is 40 +- 200 for x between -68 and 132.
        (Mapping(Window(40, 400, "LINEAR_EXACT"), Rescale(2, -24)), [-68, 32, 132], [0, 0.5, 1]),
        (Mapping(Range(0, 200), Rescale(-1, 200)), [200, 50, 0], [0, 0.75, 1]),
        (Mapping(Range(0, 4000), inverted=True), [0, 1000, 4000], [1, 0.75, 0]),
        # 10, 11, 12 -> 0, 100, 255 of 8 bits; and the same falling.
        (Mapping(VoiLookup(np.array([0, 102, 255]), 10, 8)), [10, 11, 12], [0, 0.4, 1]),
        (Mapping(VoiLookup(np.array([255, 102, 0]), 10, 8)), [10, 11, 12], [1, 0.4, 0]),
        # Stored 0..3 -> 0, 10, 20, 80 by the modality table, 0..80 shown.
        (Mapping(Range(0, 80), Lookup(np.array([0, 10, 20, 80]), 0, 16)), [0, 1, 2, 3], [0, 0.125, 0.25, 1]),
    ],
)
def test_both_ways_by_hand(mapping: Mapping, stored: list[int], grey: list[float]) -> None:
    assert mapping.invertible
    assert np.allclose(mapping.forward(np.array(stored, np.int16)), grey)
    # A sigmoid reaches black and white nowhere, so neither is among its values here.
    assert np.allclose(mapping.inverse(np.array(grey)), stored)


def test_a_threshold_takes_the_whole_numbers_beside_it() -> None:
    window = Window(100, 1, "LINEAR")  # PS3.3: black up to 99.5, white above
    assert window.inverse(np.array([0.0, 1.0])).tolist() == [99, 100]
    assert window.forward(window.inverse(np.array([0.0, 1.0]))).tolist() == [0, 1]


def test_a_sigmoid_is_followed_to_half_a_grey_level() -> None:
    window = Window(0, 4, "SIGMOID")
    stored = window.inverse(np.array([0.0, 1.0]))
    assert np.isfinite(stored).all()
    assert np.allclose(window.forward(stored) * 255, [0.5, 254.5])


def test_between_the_entries_of_a_table_and_on_its_plateaus() -> None:
    table = Lookup(np.array([0, 10, 10, 10, 20]), 100, 16)
    assert table.inverse(np.array([5.0]))[0] == pytest.approx(100.5)
    assert 101 <= table.inverse(np.array([10.0]))[0] <= 103
    assert table.inverse(np.array([-5.0, 99.0])).tolist() == [100, 104]


@pytest.mark.parametrize(
    "mapping",
    [
        Mapping(Range(5, 5)),
        Mapping(Range(0, 5), Rescale(0, 3)),
        Mapping(VoiLookup(np.array([0, 200, 100]), 0, 8)),
        Mapping(Range(0, 5), Lookup(np.array([7, 7, 7]), 0, 8)),
    ],
)
def test_what_has_no_way_back_says_so(mapping: Mapping) -> None:
    assert not mapping.invertible
