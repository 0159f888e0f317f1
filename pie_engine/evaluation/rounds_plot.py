"""Measures over the rounds as one picture: small multiples, means over patients with their intervals."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pie_engine.evaluation.measures import CLIP_I, CONFIDENCE, DISTANCE, STRUCTURE
from pie_engine.evaluation.results import check_plots
from pie_engine.outputs.figure import COLOURS, DASHES, MARKERS, encode_figures, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLUMNS = 3
_MOST_MARKERS = 30  # rounds, past which markers would hide the line


@dataclass(frozen=True)
class _Panel:
    """One small plot: its title, what its axis measures, and its lines' names by measure; `top` ends the axis."""

    title: str
    unit: str
    lines: dict[str, str]
    bottom: float | None = 0.0
    top: float | None = None


def draw_rounds(summary: dict[str, Any], figures: str = "png") -> dict[str, bytes]:
    """The rounds of `summarise` as rounds.png, and rounds.svg or .pdf; measures that no run has are left out.

    Raises:
        OutputError: matplotlib is not installed.
    """
    panels = _panels(summary["rounds"])
    check_plots()
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    columns = min(_COLUMNS, len(panels))
    rows = math.ceil(len(panels) / columns)
    last = max(entry["round"] for entries in summary["rounds"].values() for entry in entries)
    with new_figure(3.6 * columns, 2.9 * rows + 0.4) as figure:
        grid = figure.subplots(rows, columns, squeeze=False)
        for index, axes in enumerate(grid.flat):
            if index < len(panels):
                _draw(axes, panels[index], summary["rounds"], last)
            else:
                axes.set_axis_off()
        figure.suptitle(_heading(summary), fontsize=10)
        # Room between the panels, and below them for the line that every figure ends with.
        figure.set_layout_engine(ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08, rect=(0, 0.03, 1, 0.97)))
        return encode_figures(figure, "rounds", figures)


def _panels(rounds: dict[str, Any]) -> list[_Panel]:
    def named(prefix: str) -> dict[str, str]:
        return {name: name.removeprefix(prefix) for name in rounds if name.startswith(prefix)}

    panels = [
        _Panel("Classifier's confidence", "0 to 1", named(CONFIDENCE), 0.0, 1.02),
        _Panel("CLIP-I against the input", "cosine, 1 is equal", {CLIP_I: "all of the frame"}, None),
        _Panel("Distance from the input", "the model's own", named(DISTANCE)),
        _Panel("Own structure that is kept", "share of the input's", {STRUCTURE: "inside"}, None),
        _Panel("SSIM against the input", "1 is equal", {"ssim_inside": "inside", "ssim_outside": "outside"}, None),
        _Panel("Change inside the region", "mean grey levels", {"change_inside": "inside"}),
        _Panel(
            "Leakage outside the region",
            "mean grey levels",
            {"decoded_leakage": "before compositing", "leakage_mean": "as written"},
        ),
        _Panel("Step size of each round", "latent units, RMS", {"increment_inside": "inside"}),
    ]
    kept = []
    for panel in panels:
        lines = {name: label for name, label in panel.lines.items() if rounds.get(name)}
        if lines:
            kept.append(_Panel(panel.title, panel.unit, lines, panel.bottom, panel.top))
    return kept


def _draw(axes: Axes, panel: _Panel, rounds: dict[str, Any], last: int) -> None:
    from matplotlib.ticker import MaxNLocator

    for index, (name, label) in enumerate(panel.lines.items()):
        place = index % len(COLOURS)
        entries = rounds[name]
        across, colour = [entry["round"] for entry in entries], COLOURS[place]
        marker = MARKERS[place] if len(entries) <= _MOST_MARKERS else None
        axes.plot(
            across, [entry["mean"] for entry in entries],
            color=colour, linestyle=(0, DASHES[place]), marker=marker, markersize=4, label=label,
        )  # fmt: skip
        # No interval for one patient: the band has a gap there.
        low, high = ([math.nan if entry[end] is None else entry[end] for entry in entries] for end in ("low", "high"))
        axes.fill_between(across, low, high, color=colour, alpha=0.18, linewidth=0)
    axes.set_title(panel.title, fontsize=10)
    axes.set_xlabel("round, 0 is the input")
    axes.set_ylabel(panel.unit)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlim(-0.04 * last, 1.04 * last)
    axes.set_ylim(bottom=panel.bottom, top=panel.top)
    if len(panel.lines) > 1 or next(iter(panel.lines)).startswith((CONFIDENCE, DISTANCE)):
        axes.legend(fontsize=8)


def _heading(summary: dict[str, Any]) -> str:
    counts = sorted({entry["n"] for entries in summary["rounds"].values() for entry in entries})
    runs, patients = summary["runs"], summary["patients"]
    head = f"{runs} run{'s' * (runs != 1)} of {patients} patient{'s' * (patients != 1)}"
    if len(counts) > 1:  # runs of fewer rounds, or measures that some of them lack
        head += f" (n from {counts[0]} to {counts[-1]}, by measure and round)"
    if patients == 1:
        return f"{head}; no interval with one patient"
    return f"{head}: mean over patients, band: {summary['interval']['level']:.0%} bootstrap interval"
