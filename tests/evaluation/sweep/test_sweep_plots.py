"""Plots of sweeps: which are drawn, that stable cells are ringed, and that texts can be read."""

from __future__ import annotations

import io
import itertools
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pie_engine.evaluation.sweep.cells import CellSummary, front
from pie_engine.evaluation.sweep.grid import make_cells
from pie_engine.evaluation.sweep.tradeoff_plot import _write_beside, draw_plots
from pie_engine.metrics.bootstrap import Estimate
from pie_engine.metrics.tradeoff import Stable
from pie_engine.outputs.figure import new_figure

GREEN = (0, 122, 90)  # of the rings, and of the third line


def cells_of(grid: dict[str, Any], *, stable: bool = False, leakage: float | None = 1.0) -> list[CellSummary]:
    """Confidence and similarity that go opposite ways over the cells, of two patients."""
    found, cells = [], make_cells(grid)
    runs: Any = [SimpleNamespace(run=SimpleNamespace(patient=name)) for name in "pq"]
    for index, cell in enumerate(cells):
        value = (index + 1) / (len(cells) + 1)
        sure = [Estimate(0.0, 0.0, 0.0, 2), Estimate(value, value - 0.05, value + 0.05, 2)]
        similar = [Estimate(1.0, 1.0, 1.0, 2), Estimate(1 - value / 2, 0.5, 1.0, 2)]
        leaks = [None, None if leakage is None else Estimate(leakage, leakage, leakage, 2)]
        reasons = [] if stable else ["shy"]
        found.append(CellSummary(cell, runs, 1, {"x": sure}, similar, leaks, {}, {}, None, None, reasons))
    return found


def _pixel() -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (1, 1)).save(data, "PNG")
    return data.getvalue()


PIXEL = _pixel()


def draw(grid: dict[str, Any], cells: list[CellSummary]) -> dict[str, np.ndarray]:
    pictures = draw_plots(grid, cells, front(cells), "ssim_inside", Stable())
    return {name: np.asarray(Image.open(io.BytesIO(data)).convert("RGB")) for name, data in pictures.items()}


def test_which_plots_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "pie_engine.evaluation.sweep.tradeoff_plot.encode_figures", lambda figure, name, figures: {f"{name}.png": PIXEL}
    )  # encoding takes longest
    axis = {"strength": (0.1, 0.2, 0.3)}
    assert list(draw(axis, cells_of(axis))) == ["pareto.png", "over-strength.png", "rounds.png"]
    pair = {"strength": (0.1, 0.2), "beta2": (0.5, 0.7)}
    assert list(draw(pair, cells_of(pair))) == ["pareto.png", "over-strength.png", "over-beta2.png", "rounds.png"]
    names = {"mask": ("on", "off")}
    assert list(draw(names, cells_of(names))) == ["pareto.png", "rounds.png"]
    many = {"strength": (0.1, 0.2), "shift": tuple((n, 0) for n in range(13))}
    assert list(draw(many, cells_of(many))) == ["pareto.png"]  # thirteen lines are too many for the others
    assert list(draw({}, cells_of({}))) == ["pareto.png", "rounds.png"]


def test_stable_cells_are_ringed() -> None:
    grid = {"strength": (0.1, 0.2)}
    counts = [
        sum((picture == GREEN).all(-1).sum() for name, picture in draw(grid, cells_of(grid, stable=stable)).items()
            if name != "rounds.png")
        for stable in (False, True)
    ]  # fmt: skip
    assert counts[0] == 0 < counts[1]


def test_a_panel_without_values_is_left_out() -> None:
    grid = {"mask": ("on", "off")}
    with_it, without = (draw(grid, cells_of(grid, leakage=leakage))["rounds.png"] for leakage in (1.0, None))
    assert with_it.shape[0] > 1.3 * without.shape[0]


@pytest.mark.parametrize("spread", [0.0, 0.005, 0.02])
def test_texts_hide_neither_points_nor_each_other(spread: float) -> None:
    from matplotlib.text import Text

    points = [(0.5 + spread * index, 0.5) for index in range(8)]
    with new_figure(7.2, 5.0) as figure:
        axes = figure.subplots()
        axes.set(xlim=(0, 1), ylim=(0, 1))
        _write_beside(figure, axes, points, [f"0.{index}" for index in range(8)])
        figure.draw_without_rendering()
        boxes = [Text.get_window_extent(text) for text in axes.texts]  # without the line to the point
        places = axes.transData.transform(points)
    assert len(boxes) == 8
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
    assert not any(box.contains(*place) for box in boxes for place in places)
