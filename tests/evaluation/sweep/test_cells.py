"""Cells of a sweep made by hand: intervals, the stable ranges, what the mask is worth, and the words for it."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from pie_engine.evaluation.measures import Measured
from pie_engine.evaluation.sweep import runs
from pie_engine.evaluation.sweep.cells import CellSummary, front, mask_effects, ranges_by_axis, summarise_cell
from pie_engine.evaluation.sweep.grid import Cell, make_cells
from pie_engine.evaluation.sweep.recipes import conclude
from pie_engine.evaluation.sweep.runs import Progress
from pie_engine.metrics.tradeoff import Stable

LIMITS = Stable(confidence=0.5, similarity=0.7)


def run_of(patient: str, confidence: float, similarity: float, leakage: float | None = None) -> Measured:
    """Two rounds, the second with half the increment of the first."""
    series: dict[str, Any] = {
        "confidence: x": [0.1, (0.1 + confidence) / 2, confidence],
        "ssim_inside": [1.0, (1 + similarity) / 2, similarity],
        "increment_inside": [None, 0.4, 0.2],
        "decoded_leakage": [None, leakage, leakage],
    }
    run: Any = SimpleNamespace(rounds=2, patient=patient, settings={})
    return Measured(run, {"x": series["confidence: x"]}, series, {})


def cell_of(cell: Cell, *runs: Measured) -> CellSummary:
    return summarise_cell(cell, runs, "ssim_inside", LIMITS, 0)


def test_means_are_over_patients() -> None:
    """Two runs of one patient are averaged first; of two patients' means, resampled, there are three values."""
    cell = cell_of(Cell({"steps": 2}), run_of("p", 0.5, 0.9), run_of("p", 0.7, 0.9), run_of("q", 0.8, 0.7))
    last = cell.confidence["x"][-1]
    assert (last.mean, last.low, last.high, last.n) == (pytest.approx(0.7), pytest.approx(0.6), pytest.approx(0.8), 2)
    assert cell.confidence["x"][0].mean == pytest.approx(0.1)
    assert (cell.rise["x"].mean, cell.rise["x"].low) == (pytest.approx(0.6), pytest.approx(0.5))
    assert cell.ratio is not None and cell.ratio.mean == pytest.approx(0.5)
    assert cell.point == (pytest.approx(0.8), pytest.approx(0.7))
    assert cell.stable and cell.leakage == [None] * 3 and cell.final["decoded_leakage"] is None
    assert cell.to_dict()["values"] == {"steps": "2"}
    far = cell_of(Cell({"steps": 2}), run_of("p", 0.9, 0.6), run_of("q", 0.4, 0.9))
    assert far.reasons == ["confidence (x) from 0.4 up, below 0.5", "similarity from 0.6 up, below 0.7"]


def grid_of(points: dict[tuple[float, str], tuple[float, float]]) -> tuple[dict[str, Any], list[CellSummary]]:
    """Cells over strength and scheduler, of one patient."""
    grid: dict[str, Any] = {name: tuple(dict.fromkeys(key[i] for key in points)) for i, name in enumerate(
        ("strength", "scheduler"))}  # fmt: skip
    cells = make_cells(grid)
    return grid, [
        cell_of(cell, run_of("p", *points[cell.values["strength"], cell.values["scheduler"]]))  # type: ignore[index]
        for cell in cells
    ]


def test_ranges_along_an_axis_the_others_held() -> None:
    good, shy, far = (0.9, 0.8), (0.3, 0.9), (0.95, 0.5)
    grid, cells = grid_of(
        {
            (0.3, "ddim"): good, (0.1, "ddim"): shy, (0.2, "ddim"): good, (0.4, "ddim"): far,
            (0.3, "euler"): shy, (0.1, "euler"): good, (0.2, "euler"): shy, (0.4, "euler"): good,
        }
    )  # fmt: skip
    found = ranges_by_axis(grid, cells)
    # The grid names 0.3 first; a range is along the axis, not along the list.
    assert found == [
        {"axis": "strength", "from": 0.2, "to": 0.3, "cells": 2, "at": {"scheduler": "ddim"}},
        {"axis": "strength", "from": 0.1, "to": 0.1, "cells": 1, "at": {"scheduler": "euler"}},
        {"axis": "strength", "from": 0.4, "to": 0.4, "cells": 1, "at": {"scheduler": "euler"}},
    ]
    text = conclude(None, grid, cells, "ssim_inside", 0)
    assert text.startswith(
        "4 of 8 cells are stable. Stable from strength 0.2 to 0.3, scheduler ddim. Stable at strength"
    )


def test_the_front_is_of_the_means() -> None:
    _, cells = grid_of({(0.1, "ddim"): (0.2, 0.9), (0.2, "ddim"): (0.6, 0.8), (0.3, "ddim"): (0.5, 0.7)})
    assert front(cells) == [True, True, False]


def test_what_the_mask_is_worth() -> None:
    """Patient by patient: 5 - 1 and 8 - 2; the mean of two resampled differences is 4, 5 or 6."""
    on, off = make_cells({"mask": ("on", "off")})
    cells = [
        cell_of(on, run_of("p", 0.9, 0.8, 1.0), run_of("q", 0.9, 0.8, 2.0)),
        cell_of(off, run_of("p", 0.9, 0.8, 4.0), run_of("p", 0.9, 0.8, 6.0), run_of("q", 0.9, 0.8, 8.0)),
    ]
    ((first, second, less),) = mask_effects(cells, 0)
    assert (first, second) == (cells[0], cells[1])
    assert (less.mean, less.low, less.high, less.n) == (5, 4, 6, 2)
    text = conclude("mask", {"mask": ("on", "off")}, cells, "ssim_inside", 0)
    assert "The region keeps the rest of the anatomy: before compositing, 1.5 [1, 2] grey levels change" in text
    assert "without it 6.5 [5, 8], 5 [4, 6] more" in text
    less_sure = [cells[0], cell_of(off, run_of("p", 0.9, 0.8, 0.5), run_of("q", 0.9, 0.8, 8.0))]
    assert "The region is not shown to keep" in conclude("mask", {"mask": ("on", "off")}, less_sure, "ssim_inside", 0)
    bare = [cell_of(cell, run_of("p", 0.9, 0.8)) for cell in (on, off)]
    assert mask_effects(bare, 0) == []
    assert "No cell with the region has one without it" in conclude("mask", {}, bare, "ssim_inside", 0)


def test_verdicts_in_words() -> None:
    (cell,) = make_cells({})
    steady = cell_of(cell, run_of("p", 0.8, 0.8), run_of("q", 0.6, 0.9))
    assert conclude("healthy", {}, [steady], "ssim_inside", 0) == (
        "Asked: does a healthy image stay recognisable while confidence in the finding rises? "
        "With the settings as given, over 2 rounds, confidence (x) rises, from 0.1 [0.1, 0.1] by 0.6 [0.5, 0.7] to "
        "0.7 [0.6, 0.8]; ssim_inside ends at 0.85 [0.8, 0.9]. It is stable."
    )
    flat = cell_of(cell, run_of("p", 0.05, 0.8), run_of("q", 0.3, 0.9))
    text = conclude("healthy", {}, [flat], "ssim_inside", 0)
    assert "is not shown to rise" in text
    assert text.endswith("It is not stable: confidence (x) from 0.05 up, below 0.5.")
    grid, cells = grid_of({(0.1, "ddim"): (0.2, 0.9), (0.2, "ddim"): (0.3, 0.5)})
    text = conclude("strength", grid, cells, "ssim_inside", 0)
    assert "None of the 2 cells is stable. The fewest limits are missed with strength 0.1, scheduler ddim: conf" in text


def test_what_is_left_is_told_at_the_rate_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten evaluations in five seconds after the first: the other 89 take 44.5."""
    times = iter([100.0, 105.0, 110.0])
    monkeypatch.setattr(runs.time, "monotonic", lambda: next(times))
    told: list[Progress] = []
    clock = runs._Clock(2, 100, told.append)
    clock.tell(1)
    clock.tell(11)
    clock.finish(1, 50)
    assert told[0] == Progress(0, 2, 1, 100, None)
    assert told[1] == Progress(0, 2, 11, 100, pytest.approx(44.5))
    assert (told[2].runs, told[2].evaluations) == (1, 50)


def test_an_even_pace_need_not_settle() -> None:
    """Its increments are equal on purpose."""
    even = run_of("p", 0.9, 0.9)
    even.series["increment_inside"][2] = 0.4
    assert cell_of(Cell({}), even).reasons == ["increments do not shrink (ratio up to 1)"]
    even.run.settings["pace"] = "even"
    found = cell_of(Cell({}), replace(even, unevenness=0.01))
    assert found.stable and found.unevenness is not None and found.unevenness.mean == 0.01
