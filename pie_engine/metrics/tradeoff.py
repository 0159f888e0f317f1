"""Confidence against similarity over many settings: which are not beaten, and where a simulation is stable."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pie_engine.config.checks import number
from pie_engine.errors import InputError, mention, use
from pie_engine.metrics.bootstrap import Estimate


@dataclass(frozen=True)
class Stable:
    """When one setting counts as stable; see `unstable`.

    Attributes:
        confidence: the lower end of every classifier's interval after the last round is at least this, in [0, 1].
        similarity: the lower end of the similarity's interval after the last round is at least this, in [-1, 1].

    Raises:
        ConfigError: a threshold is out of range.
    """

    confidence: float = 0.5
    similarity: float = 0.7

    def __post_init__(self) -> None:
        number(mention("Stable.confidence"), self.confidence, 0.0, 1.0, f"pass {use('Stable.confidence', 0.5)}")
        number(mention("Stable.similarity"), self.similarity, -1.0, 1.0, f"pass {use('Stable.similarity', 0.7)}")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def unstable(
    confidence: Mapping[str, Estimate],
    similarity: Estimate,
    ratio: Estimate | None,
    limits: Stable,
    *,
    even: bool = False,
) -> list[str]:
    """Why one setting is not stable; nothing where it is.

    Stable is where the finding is shown (every classifier's confidence), the patient is still recognised (similarity to
    the input), and the progression settles (increments shrink). Each has to hold for the unfavourable end of its
    interval; with one patient, who has none, for the value itself.

    Args:
        confidence: after the last round, by classifier.
        similarity: after the last round.
        ratio: `shrinking` of the increments; None where it is not defined.
        even: whether the pace is even, so that increments are not to shrink, and the end is given.
    """
    reasons = []
    for name, estimate in confidence.items():
        if _low(estimate) < limits.confidence:
            reasons.append(f"confidence ({name}) from {_low(estimate):.3g} up, below {limits.confidence:g}")
    if _low(similarity) < limits.similarity:
        reasons.append(f"similarity from {_low(similarity):.3g} up, below {limits.similarity:g}")
    if even:
        return reasons
    if ratio is None:
        reasons.append("increments: fewer than two rounds that change anything")
    elif (high := ratio.mean if ratio.high is None else ratio.high) >= 1:
        reasons.append(f"increments do not shrink (ratio up to {high:.3g})")
    return reasons


def shrinking(increments: Sequence[float]) -> float | None:
    """The mean ratio of an increment to the one before: (last / first)^(1 / (N - 1)); below 1 where they shrink.

    The geometric mean of the N - 1 ratios, which telescope. None with fewer than two rounds, or where the first or the
    last changes nothing.

    Args:
        increments: N step norms, not negative.

    Raises:
        InputError: one is negative or not finite.
    """
    if any(not math.isfinite(value) or value < 0 for value in increments):
        raise InputError(f"increments {list(increments)} hold one that is negative or not finite; pass step norms")
    if len(increments) < 2 or not increments[0] or not increments[-1]:
        return None
    return float((increments[-1] / increments[0]) ** (1 / (len(increments) - 1)))


def pareto_front(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Which points no other one beats: at least as good in both and better in one. More is better in both.

    Equal points are on the front together, or off it.
    """

    def beats(other: tuple[float, float], point: tuple[float, float]) -> bool:
        return other[0] >= point[0] and other[1] >= point[1] and other != point

    return [not any(beats(other, point) for other in points) for point in points]


def stable_ranges(flags: Sequence[bool]) -> list[tuple[int, int]]:
    """First and last index of every unbroken range of True, in order."""
    found: list[tuple[int, int]] = []
    for index, flag in enumerate(flags):
        if flag and found and found[-1][1] == index - 1:
            found[-1] = (found[-1][0], index)
        elif flag:
            found.append((index, index))
    return found


def _low(estimate: Estimate) -> float:
    return estimate.mean if estimate.low is None else estimate.low
