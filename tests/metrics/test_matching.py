"""Curves at equal x: every value below is computed by hand."""

from __future__ import annotations

import pytest

from pie_engine.errors import InputError
from pie_engine.metrics.matching import Matched, match_curves


def test_straight_lines() -> None:
    # At 0.8 they give 0.5 and 0.25, at 0.6 they give 0.9 and 0.5: apart by 0.25 and 0.4.
    first = [(0.9, 0.3), (0.8, 0.5), (0.6, 0.9)]
    second = [(0.8, 0.25), (0.4, 0.75)]
    found = match_curves(first, second, falling=True)
    assert found == Matched(*(pytest.approx(value) for value in ((0.25 + 0.4) / 2, 0.4, 0.8, 0.6)))
    back = match_curves(second, first, falling=True)
    assert back is not None
    assert back.mean == pytest.approx(-0.325)
    assert (back.start_x, back.end_x) == pytest.approx((0.8, 0.6))


def test_the_mean_weighs_every_x_the_same() -> None:
    # A kink at 0.9: nothing apart at 1.0, 0.4 at 0.9 and at 0.5. (0.2 * 0.1 + 0.4 * 0.4) / 0.5 = 0.36.
    found = match_curves([(1.0, 0.0), (0.9, 0.4), (0.5, 0.4)], [(1.0, 0.0), (0.5, 0.0)], falling=True)
    assert found is not None
    assert found.mean == pytest.approx(0.36)
    assert found.end == pytest.approx(0.4)


def test_rising() -> None:
    # Similarity at equal confidence: at 0.2 it is 0.9 and 0.8, at 0.6 it is 0.7 and 0.5.
    found = match_curves([(0.2, 0.9), (0.6, 0.7)], [(0.0, 0.95), (0.2, 0.8), (0.8, 0.35)], falling=False)
    assert found == Matched(*(pytest.approx(value) for value in (0.15, 0.2, 0.2, 0.6)))


def test_a_curve_that_comes_back_counts_once() -> None:
    """0.85 and 0.8 again are no records: from 0.8 the line goes on to 0.6."""
    first = [(0.9, 0.1), (0.8, 0.3), (0.85, 0.9), (0.8, 0.8), (0.6, 0.5)]
    flat = [(0.95, 0.0), (0.5, 0.0)]
    found = match_curves(first, flat, falling=True)
    # (0.1 + 0.3) / 2 over 0.1 and (0.3 + 0.5) / 2 over 0.2.
    assert found is not None
    assert found.mean == pytest.approx((0.2 * 0.1 + 0.4 * 0.2) / 0.3)
    assert found.end == pytest.approx(0.5)
    assert (found.start_x, found.end_x) == pytest.approx((0.9, 0.6))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ([(0.9, 0.1), (0.8, 0.2)], [(0.7, 0.5), (0.6, 0.6)]),  # one ends before the other has a frame
        ([(0.9, 0.1), (0.8, 0.2)], [(1.0, 0.0), (1.0, 0.0)]),  # one never leaves the input
        ([(0.9, 0.1), (0.8, 0.2)], [(0.8, 0.5), (0.6, 0.6)]),  # they touch in one point
        ([(0.9, 0.1)], [(1.0, 0.0), (0.5, 0.6)]),  # a single frame spans no range
    ],
)
def test_not_defined(first: list[tuple[float, float]], second: list[tuple[float, float]]) -> None:
    assert match_curves(first, second, falling=True) is None
    assert match_curves(second, first, falling=True) is None


@pytest.mark.parametrize("points", [[], [(0.9, float("nan"))], [(0.9, 0.1, 0.2)], [(float("inf"), 0.1)]])
def test_refusals(points: list[tuple[float, ...]]) -> None:
    with pytest.raises(InputError, match="a curve of") as caught:
        match_curves(points, [(0.9, 0.1), (0.8, 0.2)], falling=True)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
