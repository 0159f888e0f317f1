"""A comparison as a picture: confidence over similarity and over rounds, one line per method."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from pie_engine.evaluation.measures import CLIP_I, CONFIDENCE, STRUCTURE
from pie_engine.outputs.figure import COLOURS, DASHES, MARKERS, encode_figures, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_WIDTH, _HEIGHT, _LEGEND = 4.8, 4.4, 1.4  # inches: a panel's, and what the legend takes beside them
_AXES = {
    CLIP_I: "CLIP-I against the input",
    "ssim_inside": "SSIM inside the region, against the input",
    STRUCTURE: "patient's own structure that is kept",
}


def draw_comparison(summary: dict[str, Any], figures: str = "png") -> dict[str, bytes]:
    """compare.png, and compare.svg or .pdf: one row per classifier, means over patients with intervals.

    Over similarity, the upper right is better.
    """
    methods = summary["methods"]
    measures = next(iter(methods.values()))["rounds"]
    confidences = [name for name in measures if name.startswith(CONFIDENCE)]
    similarities = [name for name in _AXES if name in measures]
    panels = len(similarities) + 1
    with new_figure(_WIDTH * panels + _LEGEND, _HEIGHT * len(confidences)) as figure:
        figure.set_layout_engine("constrained", rect=(0, 0.04, 1, 0.96))  # the statement stands below
        rows = figure.subplots(len(confidences), panels, squeeze=False)
        for name, (*lefts, right) in zip(confidences, rows, strict=True):
            for number, (method, found) in enumerate(methods.items()):
                style = _style(number)
                for left, similarity in zip(lefts, similarities, strict=True):
                    _over_similarity(left, found["rounds"][similarity], found["rounds"][name], style)
                _over_frames(right, method, found["rounds"][name], style)
            for left, similarity in zip(lefts, similarities, strict=True):
                left.set_xlabel(_AXES[similarity])
            right.set_xlabel("frame (PIE: round)")
            right.xaxis.get_major_locator().set_params(integer=True)
            for axes in (*lefts, right):
                axes.set_ylabel(name)
                axes.set_ylim(-0.03, 1.03)
            right.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
        counts = [found["patients"] for found in methods.values()]
        patients = max(counts)
        several = f"{patients}" if min(counts) == patients else f"{min(counts)} to {patients}"
        title = f"Mean of {several} patient{'s' * (patients != 1)}, a point per frame, * the input"
        rows[0, 0].set_title(title, loc="left", fontsize=10)
        rows[0, -1].set_title("95 % intervals over patients" * (patients > 1), loc="left", fontsize=10)
        return encode_figures(figure, "compare", figures)


def _style(number: int) -> dict[str, Any]:
    """Colour, marker and dashes of one method; beyond six, in other combinations."""
    turn, place = divmod(number, len(COLOURS))
    return {
        "color": COLOURS[place],
        "marker": MARKERS[(place + turn) % len(MARKERS)],
        "dashes": DASHES[(place + turn) % len(DASHES)],
        "markersize": 4.5,
    }


def _over_similarity(axes: Axes, x: list[dict[str, Any]], y: list[dict[str, Any]], style: dict[str, Any]) -> None:
    """Means per frame, intervals as bars along both axes. No line leads to the input: there are no frames between."""
    axes.plot([x[0]["mean"]], [y[0]["mean"]], "k*", markersize=9, zorder=3)
    axes.plot([one["mean"] for one in x[1:]], [one["mean"] for one in y[1:]], **style)
    bars = {"color": style["color"], "alpha": 0.35, "linewidth": 1}
    for across, up in zip(x[1:], y[1:], strict=True):
        if up["low"] is not None and across["low"] is not None:
            axes.plot([across["mean"]] * 2, [up["low"], up["high"]], **bars)
            axes.plot([across["low"], across["high"]], [up["mean"]] * 2, **bars)


def _over_frames(axes: Axes, method: str, y: list[dict[str, Any]], style: dict[str, Any]) -> None:
    """Means per frame, intervals as a band."""
    frames = [one["round"] for one in y]
    axes.plot(frames, [one["mean"] for one in y], label=method, **style)
    # A round that one patient alone has come to has no interval.
    lows, highs = ([math.nan if one[end] is None else one[end] for one in y] for end in ("low", "high"))
    axes.fill_between(frames, lows, highs, color=style["color"], alpha=0.12, linewidth=0)
