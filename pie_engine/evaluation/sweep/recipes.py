"""The first experiments of the paper (arXiv 2309.11745) as ready grids, and what each of them asks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pie_engine.config.checks import one_of
from pie_engine.evaluation.sweep.cells import CellSummary, mask_effects, ranges_by_axis
from pie_engine.evaluation.sweep.grid import MASK, OFF, ON, Grid, Value, show
from pie_engine.evaluation.tables import interval_text
from pie_engine.metrics.bootstrap import Estimate


@dataclass(frozen=True)
class Recipe:
    """One experiment.

    Attributes:
        grid: its axes, which explicit ones override.
        question: what it asks.
    """

    grid: Grid
    question: str


RECIPES = {
    "healthy": Recipe({}, "does a healthy image stay recognisable while confidence in the finding rises?"),
    "strength": Recipe(
        {"strength": (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)}, "for which gamma is the progression stable?"
    ),
    "mask": Recipe({MASK: (ON, OFF)}, "does the region of interest keep the rest of the anatomy?"),
}


def with_recipe(name: str | None, grid: Grid) -> dict[str, Sequence[Value]]:
    """The grid of a recipe with explicit axes over it. Raises ConfigError: an unknown name."""
    if name is None:
        return dict(grid)
    one_of("recipe", name, tuple(RECIPES))
    return {**RECIPES[name].grid, **grid}


def conclude(name: str | None, grid: Grid, cells: Sequence[CellSummary], similarity: str, seed: int) -> str:
    """What a sweep found, in words, with the numbers; with a recipe, the answer to its question first."""
    answer: list[str] = []
    if name == "healthy":
        answer = [_rises(summary, similarity) for summary in cells]
    elif name == "mask":
        answer = _holds(cells, similarity, seed)
    asked = [f"Asked: {RECIPES[name].question}"] if name is not None else []
    return " ".join([*asked, *answer, *_region(grid, cells, similarity)])


def _rises(summary: CellSummary, similarity: str) -> str:
    parts = []
    for name, series in summary.confidence.items():
        rise = summary.rise[name]
        answer = "rises" if (rise.mean if rise.low is None else rise.low) > 0 else "is not shown to rise"
        parts.append(f"confidence ({name}) {answer}, from {say(series[0])} by {say(rise)} to {say(series[-1])}")
    joined = " and ".join(parts)
    ends = f"{similarity} ends at {say(summary.similarity[-1])}"
    return f"With {summary.cell.label}, over {summary.rounds} rounds, {joined}; {ends}."


def _holds(cells: Sequence[CellSummary], similarity: str, seed: int) -> list[str]:
    found = []
    for on, off, less in mask_effects(cells, seed):
        assert on.leakage[-1] is not None and off.leakage[-1] is not None
        others = ", ".join(f"{name} {show(value)}" for name, value in on.cell.values.items() if name != MASK)
        answer = "keeps" if (less.mean if less.low is None else less.low) > 0 else "is not shown to keep"
        found.append(
            f"{f'With {others}, the' if others else 'The'} region {answer} the rest of the anatomy: before "
            f"compositing, {say(on.leakage[-1])} grey levels change outside it, without it {say(off.leakage[-1])}, "
            f"{say(less)} more; {similarity} ends at {say(on.similarity[-1])}, without it at {say(off.similarity[-1])}."
        )
    return found or ["No cell with the region has one without it beside it in which the change outside is defined."]


def _region(grid: Grid, cells: Sequence[CellSummary], similarity: str) -> list[str]:
    stable = [summary for summary in cells if summary.stable]
    if len(cells) == 1:
        return ["It is stable." if stable else f"It is not stable: {'; '.join(cells[0].reasons)}."]
    if not stable:
        return [f"None of the {len(cells)} cells is stable. {_nearest(cells)}"]
    found = [f"{len(stable)} of {len(cells)} cells {'is' if len(stable) == 1 else 'are'} stable."]
    for part in ranges_by_axis(grid, cells):
        at = "".join(f", {name} {value}" for name, value in part["at"].items())
        first, last = show(part["from"]), show(part["to"])
        found.append(
            f"Stable from {part['axis']} {first} to {last}{at}."
            if first != last
            else f"Stable at {part['axis']} {first}{at}."
        )
    for summary in (cells[0], cells[-1]):
        name, series = next(iter(summary.confidence.items()))
        found.append(
            f"With {summary.cell.label}, confidence ({name}) ends at {say(series[-1])}, "
            f"{similarity} at {say(summary.similarity[-1])}."
        )
    return found


def _nearest(cells: Sequence[CellSummary]) -> str:
    nearest = min(cells, key=lambda summary: len(summary.reasons))
    return f"The fewest limits are missed with {nearest.cell.label}: {'; '.join(nearest.reasons)}."


def say(estimate: Estimate) -> str:
    """A mean and its interval."""
    return interval_text(estimate.to_dict(), ".3g")
