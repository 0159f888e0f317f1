"""The Pareto front, the stable region and the ratio of increments, each worked out by hand."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from pie_engine.errors import ConfigError, InputError
from pie_engine.metrics.bootstrap import Estimate
from pie_engine.metrics.tradeoff import Stable, pareto_front, shrinking, stable_ranges, unstable

SURE = Estimate(0.9, 0.8, 0.95, 10)


def test_the_front_by_hand() -> None:
    """More is better in both: (3, 1), (2, 2) and (1, 3) beat each other nowhere, the rest is beaten."""
    points = [(3, 1), (2, 2), (1, 3), (1, 1), (2, 1), (3, 0.5), (1, 2.9)]
    assert pareto_front(points) == [True, True, True, False, False, False, False]
    assert pareto_front([(1, 1), (1, 1), (0, 1)]) == [True, True, False]  # equal points stay together
    assert pareto_front([(0.2, 0.4)]) == [True]
    assert pareto_front([]) == []


def test_the_front_is_what_no_weighting_can_do_without() -> None:
    """Against its definition on random points: on the front are those without a better one, and they beat the rest."""
    points = [tuple(map(float, row)) for row in np.random.default_rng(0).integers(0, 12, (60, 2))]
    front = pareto_front(points)
    chosen = [point for point, best in zip(points, front, strict=True) if best]
    for point, best in zip(points, front, strict=True):
        beaten = any(a >= point[0] and b >= point[1] and (a > point[0] or b > point[1]) for a, b in chosen)
        assert beaten != best
    # Sorted by the one, the front falls in the other.
    ordered = sorted(set(chosen))
    assert all(left[1] > right[1] for left, right in itertools.pairwise(ordered))


@pytest.mark.parametrize(
    ("increments", "expected"),
    [
        ([1.0, 0.5], 0.5),
        ([0.8, 0.4, 0.2], 0.5),
        ([1.0, 3.0, 0.25], 0.5),  # the middle one telescopes away
        ([0.1, 0.1, 0.1], 1.0),
        ([0.1, 0.4], 4.0),
        ([0.3], None),
        ([], None),
        ([0.0, 0.2], None),
        ([0.2, 0.0], None),
    ],
)
def test_ratio_of_increments(increments: list[float], expected: float | None) -> None:
    assert shrinking(increments) == (None if expected is None else pytest.approx(expected))


def test_increments_that_are_no_norms() -> None:
    for wrong in ([1.0, -0.1], [math.nan, 1.0], [1.0, math.inf]):
        with pytest.raises(InputError, match="pass step norms"):
            shrinking(wrong)


def test_stable_is_decided_at_the_unfavourable_ends() -> None:
    limits, shrinks = Stable(confidence=0.5, similarity=0.7), Estimate(0.6, 0.5, 0.9, 10)
    assert unstable({"a": SURE, "b": SURE}, SURE, shrinks, limits) == []
    doubtful = Estimate(0.9, 0.49, 0.95, 10)
    assert unstable({"a": SURE, "b": doubtful}, SURE, shrinks, limits) == ["confidence (b) from 0.49 up, below 0.5"]
    far = Estimate(0.75, 0.69, 0.8, 10)
    assert unstable({"a": SURE}, far, shrinks, limits) == ["similarity from 0.69 up, below 0.7"]
    grows = Estimate(0.9, 0.8, 1.0, 10)
    assert unstable({"a": SURE}, SURE, grows, limits) == ["increments do not shrink (ratio up to 1)"]
    assert unstable({"a": SURE}, SURE, None, limits) == ["increments: fewer than two rounds that change anything"]
    assert len(unstable({"a": doubtful}, far, grows, limits)) == 3


def test_one_patient_is_taken_at_the_value() -> None:
    alone = Estimate(0.5, None, None, 1)
    assert unstable({"a": alone}, alone, alone, Stable(0.5, 0.5)) == []
    assert len(unstable({"a": alone}, alone, Estimate(1.0, None, None, 1), Stable(0.51, 0.51))) == 3


def test_thresholds_are_checked() -> None:
    for confidence, similarity, name in ((1.1, 0.7, "Stable.confidence"), (0.5, -2.0, "Stable.similarity")):
        with pytest.raises(ConfigError, match=name):
            Stable(confidence, similarity)
    with pytest.raises(ConfigError, match=r"Stable\.confidence nan is not a finite number"):
        Stable(confidence=math.nan)


def test_stable_ranges() -> None:
    assert stable_ranges([]) == stable_ranges([False, False]) == []
    assert stable_ranges([True, True, False, True, False, False, True, True, True]) == [(0, 1), (3, 3), (6, 8)]
