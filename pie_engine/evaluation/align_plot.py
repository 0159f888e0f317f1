"""The matrix of texts by rounds as a picture."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

import numpy as np

from pie_engine.evaluation.align_summary import NAMES
from pie_engine.evaluation.align_texts import EMPTY, NEGATED, OTHER, OWN, SHUFFLED
from pie_engine.outputs.colours import DIVERGING
from pie_engine.outputs.differences import spaced
from pie_engine.outputs.figure import encode_figures, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_PANELS = 6  # prompts with a matrix each; the others are in summary.json
_MOST_TEXTS = 12  # rows of other prompts and further lines in one matrix
_MOST_ROUNDS = 10
_LABEL_WIDTH = 42  # characters
_ROW, _COLUMN, _LABELS, _HEAD = 0.36, 0.62, 4.4, 0.75  # inches


def draw_alignment(summary: dict[str, Any], figures: str = "png") -> dict[str, bytes]:
    """align.png, and align.svg or .pdf: a matrix for each prompt, rows the texts, columns the rounds.

    Colours and numbers are rises of the similarity.

    Raises:
        OutputError: matplotlib is not installed.
    """
    panels = [(one["prompt"], _rows(one["texts"])) for one in summary["rounds"][:_MOST_PANELS]]
    limit = max(np.abs(np.subtract(r, r[0])).max() for _, rows in panels for _, _, r in rows) or 1.0
    columns = max(len(_shown(rows[0][2])) for _, rows in panels)
    heights = [len(rows) * _ROW + _HEAD for _, rows in panels]
    with new_figure(_LABELS + columns * _COLUMN, sum(heights) + 0.5) as figure:
        axes = figure.subplots(len(panels), squeeze=False, height_ratios=heights)[:, 0]
        for axis, (prompt, rows) in zip(axes, panels, strict=True):
            _draw(axis, rows, limit)
            made = textwrap.shorten(prompt, 70, placeholder=" ...") or "(an empty prompt)"
            axis.set_title(f"Runs towards: {made}", loc="left", fontsize=10, fontweight="bold")
        more = len(summary["rounds"]) - len(panels)
        note = f"; {more} more prompt{'s are' if more > 1 else ' is'} in summary.json" if more else ""
        # The line below keeps clear of the picture's own note.
        axes[-1].set_xlabel(f"similarity of the input, then its rise up to each round, mean over patients{note}\n")
        return encode_figures(figure, "align", figures)


_Row = tuple[str, str, list[float]]  # role, text, similarities


def _rows(texts: list[dict[str, Any]]) -> list[_Row]:
    """Own prompt, other texts, controls."""
    rows = [(one["role"], one["text"], one["similarity"]) for one in texts]
    controls = [row for row in rows if row[0] in (SHUFFLED, NEGATED, EMPTY)]
    return [*[row for row in rows if row not in controls][:_MOST_TEXTS], *controls]


def _shown(values: list[float]) -> list[int]:
    """Rounds that get a column."""
    most = len(values) - 1
    return [0, *(1 + index for index in spaced(most, _MOST_ROUNDS))] if most else [0]


def _draw(axis: Axes, rows: list[_Row], limit: float) -> None:
    from matplotlib.colors import LinearSegmentedColormap

    colours = LinearSegmentedColormap.from_list("differences", [tuple(c / 255 for c in colour) for colour in DIVERGING])
    shown = _shown(rows[0][2])
    values = np.array([row[2] for row in rows])[:, shown]  # [texts, columns]
    rises = values - values[:, :1]
    axis.imshow(rises, cmap=colours, vmin=-limit, vmax=limit, aspect="auto")
    for row, column in np.ndindex(*rises.shape):
        text = f"{values[row, 0]:.2f}" if column == 0 else f"{rises[row, column]:+.3f}".replace("-0.000", "+0.000")
        dark = abs(rises[row, column]) > 0.55 * limit
        axis.text(column, row, text, ha="center", va="center", fontsize=8, color="white" if dark else "#1b1f24")
    axis.set_xticks(range(len(shown)), ["input", *(str(index) for index in shown[1:])])
    axis.set_yticks(range(len(rows)), [_name(role, text) for role, text, _ in rows], fontsize=8.5)
    axis.get_yticklabels()[0].set_fontweight("bold")
    axis.axvline(0.5, color="white", linewidth=3)
    axis.axhline(0.5, color="white", linewidth=3)
    axis.grid(visible=False)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)


def _name(role: str, text: str) -> str:
    if role in (SHUFFLED, EMPTY):
        return NAMES[role]
    first = {OWN: "own: ", NEGATED: "negated: "}.get(role, "" if role == OTHER else "line: ")
    return "\n".join(textwrap.wrap(first + text, _LABEL_WIDTH, max_lines=2, placeholder=" ...")) or "(an empty prompt)"
