"""Line plots over the rounds as inline SVG: drawn here, so that the page needs no script for them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from pie_engine.outputs.report.templates import render

_WIDTH, _HEIGHT = 330, 212
_LEFT, _RIGHT, _BOTTOM = 52, 12, 38
_KEY_LINE = 17  # of the legend above the axes
_MARKERS = (
    "M-3.5 0a3.5 3.5 0 1 0 7 0a3.5 3.5 0 1 0 -7 0Z",
    "M-3 -3h6v6h-6Z",
    "M0 -4L4 3h-8Z",
    "M0 -4L4 0L0 4L-4 0Z",
    "M-3.5 -1.2h7v2.4h-7Z",
)
_DASHES = ("none", "7 3", "2 3", "9 3 2 3", "4 4")
# Past this many points markers would hide the line.
_MOST_MARKERS = 60


@dataclass(frozen=True)
class Series:
    """One line: `values` of the rounds `first`, `first` + 1, ..."""

    name: str
    values: Sequence[float]
    first: int = 1


def line_plot(title: str, unit: str, lines: Sequence[Series], rounds: int, top: float | None = None) -> Markup:
    """A figure: rounds 0 to `rounds` to the right, `unit` upwards from 0, or from below where a value is below 0.

    Args:
        unit: what the upward axis measures, and in what.
        lines: at least one; each with a colour, a dash and a marker that tell it from the others.
        rounds: number of the last round, where the script's marker of the shown frame begins.
        top: end of the upward axis; None takes the first round number above all values.
    """
    least = min(min(line.values) for line in lines)
    upward = ticks(max(-least, max(max(line.values) for line in lines) if top is None else top))
    if least < 0:  # symmetric: what is below 0 is rare, and then the sign matters
        upward = [-value for value in upward[:0:-1]] + upward
    over = _KEY_LINE * len(lines) + 8
    height = over + _HEIGHT - 24
    bottom = height - _BOTTOM

    def x(number: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * number / max(rounds, 1)

    def y(value: float) -> float:
        return bottom - (bottom - over) * (value - upward[0]) / (upward[-1] - upward[0])

    def curve(number: int, line: Series) -> dict[str, Any]:
        place = number % len(_MARKERS)
        points = [(x(line.first + index), y(value)) for index, value in enumerate(line.values)]
        return {
            "number": place, "name": line.name, "dash": _DASHES[place], "marker": _MARKERS[place], "points": points,
            "marked": points if len(points) <= _MOST_MARKERS else [], "key": 12 + _KEY_LINE * number,
        }  # fmt: skip

    spoken = "; ".join(
        f"{line.name}: {line.values[0]:.3g} at round {line.first}, "
        f"{line.values[-1]:.3g} at round {line.first + len(line.values) - 1}"
        for line in lines
    )
    return render(
        "plot.html", title=title, unit=unit, spoken=f"{title}, {unit}. {spoken}", width=_WIDTH, height=height,
        left=_LEFT, right=_WIDTH - _RIGHT, top=over, bottom=bottom, zero=x(0), step=x(1) - x(0), last=x(rounds),
        upward=[(y(value), f"{value:.10g}") for value in upward],
        along=[(x(number), number) for number in round_ticks(rounds)],
        curves=[curve(number, line) for number, line in enumerate(lines)],
    )  # fmt: skip


def ticks(top: float) -> list[float]:
    """0 and up to five more round numbers at even distances, the last at least `top`."""
    if top <= 0:
        return [0.0, 1.0]
    power = 10.0 ** math.floor(math.log10(top / 4))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power * 5 >= top)
    return [float(f"{step * index:.10g}") for index in range(math.ceil(round(top / step, 9)) + 1)]


def round_ticks(rounds: int) -> range:
    """0 and up to eleven more rounds at even distances, round numbers."""
    power = 10 ** max(0, math.floor(math.log10(max(rounds, 1) / 10)))
    step = next(factor * power for factor in (1, 2, 5, 10, 20) if rounds <= factor * power * 11)
    return range(0, rounds + 1, step)
