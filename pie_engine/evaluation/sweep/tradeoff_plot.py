"""The plots of a sweep: confidence against similarity, and both along an axis and over the rounds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pie_engine.evaluation.measures import CLIP_I
from pie_engine.evaluation.sweep.cells import CellSummary, ordered_axes
from pie_engine.evaluation.sweep.grid import Grid, show
from pie_engine.metrics.bootstrap import Estimate
from pie_engine.metrics.tradeoff import Stable
from pie_engine.outputs.figure import COLOURS, DASHES, MARKERS, encode_figures, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Lines in one plot that a reader can still distinguish; more are left to the table.
MOST_LINES = 12
_GREY, _GREEN, _LIGHT = "#545d68", "#007a5a", "#e3f1ea"
_BAR: dict[str, Any] = {"capsize": 2, "elinewidth": 0.8, "capthick": 0.8, "markersize": 6}


def draw_plots(
    grid: Grid,
    cells: Sequence[CellSummary],
    on_front: Sequence[bool],
    similarity: str,
    limits: Stable,
    figures: str = "png",
) -> dict[str, bytes]:
    """Files by name: pareto.png; over-AXIS.png for each axis on a line; rounds.png; and the same as .svg or .pdf.

    Those with a line per cell are left out above `MOST_LINES` lines.

    Raises:
        OutputError: matplotlib is not installed.
    """
    drawn = _pareto(grid, cells, on_front, similarity, limits, figures)
    for axis in ordered_axes(grid):
        lines = _lines(cells, axis)
        if len(lines) <= MOST_LINES:
            drawn |= _over(axis, lines, similarity, limits, figures)
    if len(cells) <= MOST_LINES:
        drawn |= _rounds(cells, similarity, limits, figures)
    return drawn


def _pareto(
    grid: Grid,
    cells: Sequence[CellSummary],
    on_front: Sequence[bool],
    similarity: str,
    limits: Stable,
    figures: str,
) -> dict[str, bytes]:
    """A point per cell; those of one line along the first axis share a colour and are joined."""
    along = next(iter(ordered_axes(grid)), None)
    lines = _lines(cells, along)
    named = len(lines) <= MOST_LINES
    with new_figure(7.2, 5.0) as figure:
        _leave_room(figure)
        axes = figure.subplots()
        for index, (label, line) in enumerate(lines.items()):
            x, y = ([summary.point[i] for summary in line] for i in (0, 1))
            style = _style(index) | {"linewidth": 0.9 if along else 0}
            errors = [_bars([_last(summary, i) for summary in line]) for i in (0, 1)]
            label = label if named else ""
            axes.errorbar(x, y, xerr=errors[0], yerr=errors[1], label=label or None, alpha=0.9, **style, **_BAR)
        edge = sorted((summary.point for summary, best in zip(cells, on_front, strict=True) if best), reverse=True)
        # A step: what is beaten lies below and to the left of it.
        xs = [x for x, _ in edge for _ in (0, 1)][1:]
        ys = [y for _, y in edge for _ in (0, 1)][:-1]
        axes.plot(xs, ys, color=_GREY, linewidth=1.6, linestyle=":", zorder=1, label="Pareto front")
        _ring(axes, [summary.point for summary in cells if summary.stable])
        axes.margins(0.08)
        _shade(axes, limits)
        axes.set_xlabel(f"{_named(similarity)}, after the last round")
        axes.set_ylabel(f"confidence: {next(iter(cells[0].confidence))}")
        _legend(axes, f"numbers: {along}" if along and named else "")
        axes.set_title(_title(cells, "bars"))
        texts = [
            show(summary.cell.values[along]) if along and named else "" if named else summary.cell.label
            for summary in cells
        ]
        _write_beside(figure, axes, [summary.point for summary in cells], texts)
        return encode_figures(figure, "pareto", figures)


def _over(
    axis: str, lines: dict[str, list[CellSummary]], similarity: str, limits: Stable, figures: str
) -> dict[str, bytes]:
    """Confidence and similarity along one axis, a line for each setting of the others."""
    with new_figure(6.8, 6.2) as figure:
        _leave_room(figure)
        upper, lower = figure.subplots(2, 1, sharex=True)
        for index, (label, line) in enumerate(lines.items()):
            line = sorted(line, key=lambda summary: summary.place(axis))
            x = [summary.place(axis) for summary in line]
            for axes, which in ((upper, 1), (lower, 0)):
                values = [_last(summary, which) for summary in line]
                axes.errorbar(x, [value.mean for value in values], yerr=_bars(values), label=label or None,
                              **_style(index), **_BAR)  # fmt: skip
                _ring(axes, [(at, value.mean) for at, value, cell in zip(x, values, line, strict=True) if cell.stable])
        upper.axhline(limits.confidence, color=_GREY, linewidth=0.8, linestyle="--")
        lower.axhline(limits.similarity, color=_GREY, linewidth=0.8, linestyle="--")
        first = next(iter(lines.values()))
        upper.set_ylabel(f"confidence: {next(iter(first[0].confidence))}")
        lower.set_ylabel(_named(similarity))
        lower.set_xlabel(axis)
        _legend(upper, "")
        upper.set_title(_title(first, "bars"))
        return encode_figures(figure, f"over-{axis}", figures)


def _rounds(cells: Sequence[CellSummary], similarity: str, limits: Stable, figures: str) -> dict[str, bytes]:
    """Confidence, similarity and leakage over the rounds, a line per cell; bands are the intervals."""
    series = [
        (
            f"confidence: {next(iter(cells[0].confidence))}",
            lambda summary: next(iter(summary.confidence.values())),
            limits.confidence,
        ),
        (_named(similarity), lambda summary: summary.similarity, limits.similarity),
        ("change outside before\ncompositing, grey levels", lambda summary: summary.leakage, None),
    ]
    if all(value is None for summary in cells for value in summary.leakage):
        series.pop()
    # More bands than these would hide one another.
    banded = len(cells) <= 4 and all(summary.similarity[-1].low is not None for summary in cells)
    with new_figure(6.8, 2.6 * len(series) + 0.6) as figure:
        _leave_room(figure)
        panels = figure.subplots(len(series), 1, sharex=True)
        for axes, (label, pick, threshold) in zip(panels, series, strict=True):
            for index, summary in enumerate(cells):
                known = [(n, value) for n, value in enumerate(pick(summary)) if value is not None]
                if not known:
                    continue
                x, values = [n for n, _ in known], [value for _, value in known]
                style = _style(index)
                axes.plot(x, [value.mean for value in values], label=summary.cell.label, markersize=4, **style)
                if banded:
                    low, high = ([getattr(value, end) for value in values] for end in ("low", "high"))
                    axes.fill_between(x, low, high, color=style["color"], alpha=0.15, linewidth=0)
            if threshold is not None:
                axes.axhline(threshold, color=_GREY, linewidth=0.8, linestyle="--")
            axes.set_ylabel(label)
        panels[-1].set_xlabel("round")
        panels[-1].xaxis.get_major_locator().set_params(integer=True)
        if len(cells) > 1:
            _legend(panels[0], "")
        panels[0].set_title(_title(cells, "bands" if banded else ""))
        return encode_figures(figure, "rounds", figures)


def _lines(cells: Sequence[CellSummary], along: str | None) -> dict[str, list[CellSummary]]:
    """Cells by what they share apart from the axis `along`; without one, a line each."""
    lines: dict[str, list[CellSummary]] = {}
    for summary in cells:
        if along is None:
            label = summary.cell.label
        else:
            label = ", ".join(f"{name} {show(value)}" for name, value in summary.cell.values.items() if name != along)
        lines.setdefault(label, []).append(summary)
    return lines


def _style(index: int) -> dict[str, Any]:
    colour, turn = index % len(COLOURS), index // len(COLOURS)
    dash = DASHES[(colour + turn) % len(DASHES)]
    return {"color": COLOURS[colour], "marker": MARKERS[(colour + turn) % len(MARKERS)], "linestyle": (0, dash)}


def _last(summary: CellSummary, which: int) -> Estimate:
    """0: similarity, 1: the first classifier's confidence, after the last round."""
    return next(iter(summary.confidence.values()))[-1] if which else summary.similarity[-1]


def _bars(values: Sequence[Estimate]) -> list[list[float]]:
    """Lengths of the intervals' halves, as matplotlib takes them; 0 without an interval."""
    low = [0.0 if value.low is None else max(value.mean - value.low, 0.0) for value in values]
    high = [0.0 if value.high is None else max(value.high - value.mean, 0.0) for value in values]
    return [low, high]


def _leave_room(figure: Figure) -> None:
    """For the note in the lower right corner, which the layout does not know of."""
    figure.set_layout_engine("constrained", rect=(0, 0.035, 1, 0.965))


def _write_beside(figure: Figure, axes: Axes, points: Sequence[tuple[float, float]], texts: Sequence[str]) -> None:
    """Write a text near each point where it hides no point and no other text, with a line to it if that is further off.

    A text for which there is no such place is left out.
    """
    figure.draw_without_rendering()  # only then is it known where points lie
    scale = figure.dpi / 72
    centres = [axes.transData.transform(point) / scale for point in points]
    taken = [(x - 6, y - 6, x + 6, y + 6) for x, y in centres]
    for point, (x, y), text in zip(points, centres, texts, strict=True):
        if not text:
            continue
        width, height = 4.8 * len(text) + 2, 9.0
        for distance, angle in ((d, a) for d in (15, 22, 32, 44) for a in (-45, 45, -90, 90, -135, 135, 0, 180)):
            turn = math.radians(angle)
            dx, dy = distance * math.cos(turn), distance * math.sin(turn)
            left, bottom = x + dx - width / 2, y + dy - height / 2
            box = (left, bottom, left + width, bottom + height)
            if not any(_overlap(box, other) for other in taken):
                taken.append(box)
                line = {"arrowstyle": "-", "color": _GREY, "linewidth": 0.5, "shrinkA": 1, "shrinkB": 4}
                axes.annotate(text, point, (dx, dy), textcoords="offset points", fontsize=8, ha="center", va="center",
                              arrowprops=line if distance > 15 else None)  # fmt: skip
                break


def _overlap(one: tuple[float, float, float, float], other: tuple[float, float, float, float]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _ring(axes: Axes, stable: Sequence[tuple[float, float]]) -> None:
    """Mark the points of stable cells; named once in the legend."""
    if stable:
        name = None if "stable" in axes.get_legend_handles_labels()[1] else "stable"
        x, y = zip(*stable, strict=True)
        axes.scatter(x, y, s=150, facecolors="none", edgecolors=_GREEN, linewidths=1.6, zorder=4,
                     label=name)  # fmt: skip


def _shade(axes: Axes, limits: Stable) -> None:
    """The quarter in which a cell's interval has to lie to be stable, as far as the plot reaches."""
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    if limits.similarity < right and limits.confidence < top:
        axes.fill_between([max(left, limits.similarity), right], max(bottom, limits.confidence), top, color=_LIGHT,
                          zorder=0, linewidth=0, label="within the limits")  # fmt: skip
    axes.set_xlim(left, right)
    axes.set_ylim(bottom, top)


def _legend(axes: Axes, title: str) -> None:
    if axes.get_legend_handles_labels()[1]:
        axes.legend(title=title or None, loc="upper left", bbox_to_anchor=(1.01, 1.0), fontsize=8, title_fontsize=8)


def _title(cells: Sequence[CellSummary], drawn: str) -> str:
    """How many patients; `drawn` is what their intervals are drawn as."""
    patients = len({one.run.patient for one in cells[0].measured})
    shown = f", {drawn}: 95 % intervals over them" if drawn and patients > 1 else ""
    return f"Mean of {patients} patients{shown}" if patients > 1 else "1 patient, no intervals"


def _named(similarity: str) -> str:
    return "CLIP-I to the input" if similarity == CLIP_I else "SSIM inside the region"
