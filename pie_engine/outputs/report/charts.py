"""Line plots over the rounds as inline SVG: drawn here, so that the page needs no script for them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

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


def line_plot(title: str, unit: str, lines: Sequence[Series], rounds: int, top: float | None = None) -> str:
    """A figure: rounds 0 to `rounds` to the right, `unit` upwards from 0, or from below where a value is below 0.

    Args:
        unit: what the upward axis measures, and in what.
        lines: at least one; each with a colour, a dash and a marker of its own.
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

    across = f'x1="{_LEFT}" x2="{_WIDTH - _RIGHT}"'
    parts = []
    for value in upward:
        parts += [
            f'<line class="grid" {across} y1="{y(value):.2f}" y2="{y(value):.2f}"/>',
            f'<text class="up" x="{_LEFT - 6}" y="{y(value) + 4:.2f}" text-anchor="end">{_figure(value)}</text>',
        ]
    parts += [
        f'<text x="{x(number):.2f}" y="{bottom + 16}" text-anchor="middle">{number}</text>'
        for number in round_ticks(rounds)
    ]
    middle = (over + bottom) / 2
    parts += [
        f'<line class="axis" {across} y1="{bottom}" y2="{bottom}"/>',
        f'<text x="{(_LEFT + _WIDTH - _RIGHT) / 2:.1f}" y="{height - 6}" text-anchor="middle">round</text>',
        f'<text transform="translate(13 {middle:.1f}) rotate(-90)" text-anchor="middle">{escape(unit)}</text>',
    ]
    for index, line in enumerate(lines):
        parts += _line(line, index % len(_MARKERS), x, y)
        parts += _key(line.name, index % len(_MARKERS), 12 + _KEY_LINE * index)
    parts += [
        f'<g class="cursor" data-zero="{x(0):.2f}" data-step="{x(1) - x(0):.4f}" '
        f'transform="translate({x(rounds):.2f} 0)"><line x1="0" x2="0" y1="{over - 4}" y2="{bottom}"/></g>'
    ]
    spoken = "; ".join(
        f"{line.name}: {line.values[0]:.3g} at round {line.first}, "
        f"{line.values[-1]:.3g} at round {line.first + len(line.values) - 1}"
        for line in lines
    )
    return (
        f"<figure><figcaption>{escape(title)}</figcaption>"
        f'<svg class="plot" viewBox="0 0 {_WIDTH} {height}" role="img" '
        f'aria-label="{escape(f"{title}, {unit}. {spoken}")}">{"".join(parts)}</svg></figure>'
    )


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


def _line(line: Series, index: int, x: Callable[[float], float], y: Callable[[float], float]) -> list[str]:
    points = [(x(line.first + number), y(value)) for number, value in enumerate(line.values)]
    path = " ".join(f"{across:.2f},{up:.2f}" for across, up in points)
    parts = [f'<polyline class="curve series-{index}" stroke-dasharray="{_DASHES[index]}" points="{path}"/>']
    if len(points) <= _MOST_MARKERS:
        parts += [
            f'<path class="series-{index}" transform="translate({across:.2f} {up:.2f})" d="{_MARKERS[index]}"/>'
            for across, up in points
        ]
    return parts


def _key(name: str, index: int, up: float) -> list[str]:
    return [
        f'<line class="series-{index}" stroke-width="2" stroke-dasharray="{_DASHES[index]}" '
        f'x1="{_LEFT}" x2="{_LEFT + 28}" y1="{up}" y2="{up}"/>',
        f'<path class="series-{index}" transform="translate({_LEFT + 14} {up})" d="{_MARKERS[index]}"/>',
        f'<text class="key" x="{_LEFT + 35}" y="{up + 4}">{escape(name)}</text>',
    ]


def _figure(value: float) -> str:
    return f"{value:.10g}"
