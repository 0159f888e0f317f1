"""Increments over the rounds on a logarithmic axis: a geometric decay is a straight line there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pie_engine.errors import InputError, argument
from pie_engine.evaluation.converge import CheckedRun
from pie_engine.outputs.figure import COLOURS, DASHES, MARKERS, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_MARKERS = 60  # points, past which markers would hide the line
_MOST_NAMES = 12  # runs, past which a legend names none


@dataclass(frozen=True)
class Curve:
    """One line: (round, value) each; `marked` draws its points too. Values that are not positive are left out."""

    name: str
    points: Sequence[tuple[float, float]]
    marked: bool = False


def save_plot(runs: Sequence[CheckedRun], path: Path) -> None:
    """Draw the increments of one run with its fit and what beta predicts, or those of several; write the picture.

    Raises:
        InputError: no run changes anything. OutputError: matplotlib is not installed, or the file cannot be written.
    """
    if not any(value > 0 for run in runs for value in run.found.rounds.increments):
        where = runs[0].name if len(runs) == 1 else "none of the runs"
        verb = "has no change" if len(runs) == 1 else "has a change"
        raise InputError(f"{where} {verb} to plot in any round; leave out {argument('output')}")
    with new_figure(6.4, 4.0) as figure:
        figure.set_layout_engine("constrained", rect=(0, 0.04, 1, 0.96))  # the statement stands below
        draw_increments(figure.subplots(), runs)
        save_figure(figure, path)


def draw_increments(axes: Axes, runs: Sequence[CheckedRun]) -> None:
    """Curves, limits and texts of the plot; see `save_plot`."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, StrMethodFormatter

    curves = _curves(runs[0]) if len(runs) == 1 else [_measured(run, run.name) for run in runs]
    for number, curve in enumerate(curves):
        place = number % len(COLOURS)
        points = [(at, value) for at, value in curve.points if value > 0]
        marker = MARKERS[place] if curve.marked and len(points) <= _MOST_MARKERS else None
        axes.plot(
            [at for at, _ in points], [value for _, value in points],
            color=COLOURS[place], linestyle=(0, DASHES[place]), marker=marker, markersize=4, label=curve.name,
        )  # fmt: skip
    low, high = _limits(curves, 1 if len(runs) == 1 else len(curves))
    axes.set_yscale("log")
    axes.set_ylim(low, high)
    # Round numbers, and more of them where there are few decades.
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 1000 * low else (1,)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes.set_xlabel("round")
    axes.set_ylabel("increment, root mean square of latents")
    noises = sorted({run.noise for run in runs})
    noise = ", ".join(name if name == "inversion" else f"{name} noise" for name in noises)
    axes.set_title(f"Change per round inside the region of interest, {noise}", loc="left", fontsize=10)
    if len(curves) <= _MOST_NAMES:
        axes.legend(loc="lower left", fontsize=8)


def _measured(run: CheckedRun, name: str) -> Curve:
    return Curve(name, list(enumerate(run.found.rounds.increments, 1)), marked=True)


def _curves(run: CheckedRun) -> list[Curve]:
    """What was measured, its fit, and what a constant edit gives."""
    increments, decay = run.found.rounds.increments, run.found.trend.decay
    curves = [_measured(run, "measured")]
    if decay is not None:
        points = [(n, decay.start * decay.rate**n) for n in range(decay.first, decay.last + 1)]
        curves.append(Curve(f"fitted: r = {decay.rate:.3f} ({decay.low:.3f} to {decay.high:.3f})", points))
    if run.found.inside is not None:
        beta, first = run.found.inside.beta, increments[0]
        name = f"constant edit: beta2^n, beta2 = {beta:g}" if run.betas else "constant edit, no mask"
        curves.append(Curve(name, [(n, first * beta ** (n - 1)) for n in range(1, len(increments) + 1)]))
    return curves


def _limits(curves: Sequence[Curve], measured: int) -> tuple[float, float]:
    """Of the upward axis: room for every curve, but not for one that leaves the `measured` ones far behind."""
    values = [value for curve in curves for _, value in curve.points if value > 0]
    first = [value for curve in curves[:measured] for _, value in curve.points if value > 0]
    return max(min(values), min(first) / 5) / 1.5, min(max(values), max(first) * 5) * 1.5
