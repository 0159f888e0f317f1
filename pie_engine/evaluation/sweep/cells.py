"""Each cell of a sweep over its patients: its means, whether it is stable, and what cells say together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pie_engine.evaluation.measures import CONFIDENCE, Measured
from pie_engine.evaluation.summary import over_patients
from pie_engine.evaluation.sweep.grid import AXES, MASK, OFF, Cell, Grid, Value, show
from pie_engine.metrics.bootstrap import Estimate
from pie_engine.metrics.tradeoff import Stable, pareto_front, shrinking, stable_ranges, unstable

LEAKAGE = "decoded_leakage"
Pick = Callable[[Measured], float | None]


@dataclass(frozen=True)
class CellSummary:
    """One cell's means over patients, with intervals.

    Attributes:
        cell: which.
        measured: its runs.
        rounds: N.
        confidence: by classifier, a value per round from 0, the input, to N.
        similarity: the same, to the input.
        leakage: the same, grey levels outside the region before compositing; None where not defined.
        final: every measure after the last round.
        rise: by classifier, confidence after the last round less that of the input, patient by patient.
        unevenness: how far frames lie from an even way; None where not defined.
        ratio: `shrinking` of the increments inside the region; None where not defined.
        reasons: why the cell is not stable; empty where it is.
    """

    cell: Cell
    measured: Sequence[Measured]
    rounds: int
    confidence: dict[str, list[Estimate]]
    similarity: list[Estimate]
    leakage: list[Estimate | None]
    final: dict[str, Estimate | None]
    rise: dict[str, Estimate]
    unevenness: Estimate | None
    ratio: Estimate | None
    reasons: list[str]

    @property
    def stable(self) -> bool:
        return not self.reasons

    def place(self, axis: str) -> float:
        """Where on an axis whose values lie on a line."""
        value = self.cell.values[axis]
        assert isinstance(value, int | float), "only numbers lie on a line"
        return value

    @property
    def point(self) -> tuple[float, float]:
        """Similarity and the first classifier's confidence after the last round."""
        return self.similarity[-1].mean, next(iter(self.confidence.values()))[-1].mean

    def to_dict(self) -> dict[str, Any]:
        """For summary.json."""
        return {
            "cell": self.cell.name,
            "values": {name: show(value) for name, value in self.cell.values.items()},
            "runs": len(self.measured),
            "rounds": self.rounds,
            "stable": self.stable,
            "not_stable": self.reasons,
            "final": {name: _as_dict(estimate) for name, estimate in self.final.items()},
            "rise": {name: _as_dict(estimate) for name, estimate in self.rise.items()},
            "unevenness": _as_dict(self.unevenness),
            "increment_ratio": _as_dict(self.ratio),
            "by_round": {
                **{CONFIDENCE + name: list(map(_as_dict, series)) for name, series in self.confidence.items()},
                "similarity": list(map(_as_dict, self.similarity)),
                LEAKAGE: list(map(_as_dict, self.leakage)),
            },
        }


def _as_dict(estimate: Estimate | None) -> dict[str, Any] | None:
    return None if estimate is None else estimate.to_dict()


def summarise_cell(cell: Cell, measured: Sequence[Measured], similarity: str, limits: Stable, seed: int) -> CellSummary:
    """The means of one cell, whose runs all have as many rounds.

    Args:
        similarity: the measure of it: "clip_i" or "ssim_inside".
        limits: of the stable region.
        seed: of the bootstrap.
    """

    def estimate(pick: Pick) -> Estimate | None:
        return over_patients(((one.run.patient, pick(one)) for one in measured), seed)

    def defined(pick: Pick) -> Estimate:
        found = estimate(pick)
        assert found is not None, "a measure of every round"
        return found

    def at(name: str, index: int) -> Pick:
        return lambda one: one.series[name][index]

    def rise(name: str) -> Pick:
        return lambda one: one.confidence[name][-1] - one.confidence[name][0]

    rounds, classifiers = measured[0].run.rounds, list(measured[0].confidence)
    confidence = {name: [defined(at(CONFIDENCE + name, index)) for index in range(rounds + 1)] for name in classifiers}
    similarities = [defined(at(similarity, index)) for index in range(rounds + 1)]
    ratio = estimate(_ratio)
    last = {name: series[-1] for name, series in confidence.items()}
    return CellSummary(
        cell=cell,
        measured=measured,
        rounds=rounds,
        confidence=confidence,
        similarity=similarities,
        leakage=[estimate(at(LEAKAGE, index)) for index in range(rounds + 1)],
        final={name: estimate(at(name, -1)) for name in measured[0].series},
        rise={name: defined(rise(name)) for name in classifiers},
        unevenness=estimate(lambda one: one.unevenness),
        ratio=ratio,
        reasons=unstable(last, similarities[-1], ratio, limits, even=_even(measured[0])),
    )


def front(cells: Sequence[CellSummary]) -> list[bool]:
    """Which cells no other one beats in both similarity and confidence, by their means."""
    return pareto_front([summary.point for summary in cells])


def ranges_by_axis(grid: Grid, cells: Sequence[CellSummary]) -> list[dict[str, Any]]:
    """Along each axis whose values lie on a line, the unbroken ranges of stable cells, the other axes held fixed.

    Returns:
        "axis", "from" and "to" (its values), "cells" (how many), and "at" (the other axes' values).
    """
    found = []
    for axis in ordered_axes(grid):
        lines: dict[tuple[tuple[str, Value], ...], list[CellSummary]] = {}
        for summary in cells:
            others = tuple((name, value) for name, value in summary.cell.values.items() if name != axis)
            lines.setdefault(others, []).append(summary)
        for others, line in lines.items():
            line = sorted(line, key=lambda summary: summary.place(axis))
            for first, last in stable_ranges([summary.stable for summary in line]):
                ends = {"from": line[first].cell.values[axis], "to": line[last].cell.values[axis]}
                at = {name: show(value) for name, value in others}
                found.append({"axis": axis, **ends, "cells": last - first + 1, "at": at})
    return found


def ordered_axes(grid: Grid) -> list[str]:
    """The axes whose several values lie on a line."""
    return [name for name in AXES if AXES[name].ordered and len(grid.get(name, ())) > 1]


def mask_effects(cells: Sequence[CellSummary], seed: int) -> list[tuple[CellSummary, CellSummary, Estimate]]:
    """Cells with the region and without it that are otherwise alike, and how much less leaks with it.

    The difference is patient by patient, of grey levels after the last round before compositing. Pairs in which it is
    not defined are left out.
    """
    found = []
    for off in cells:
        if off.cell.values.get(MASK) != OFF:
            continue
        alike = {**off.cell.values, MASK: "on"}
        for on in cells:
            if on.cell.values == alike:
                with_region, without = _by_patient(on), _by_patient(off)
                differences = [
                    (patient, without[patient] - with_region[patient]) for patient in with_region if patient in without
                ]
                difference = over_patients(differences, seed)
                if difference is not None:
                    found.append((on, off, difference))
    return found


def _by_patient(summary: CellSummary) -> Mapping[str, float]:
    """Each patient's leakage after the last round, averaged over the seeds."""
    known: dict[str, list[float]] = {}
    for one in summary.measured:
        value = one.series[LEAKAGE][-1]
        if value is not None:
            known.setdefault(one.run.patient, []).append(value)
    return {patient: sum(values) / len(values) for patient, values in known.items()}


def _even(one: Measured) -> bool:
    return str(one.run.settings.get("pace", "constant")) != "constant"


def _ratio(one: Measured) -> float | None:
    return shrinking([value for value in one.series["increment_inside"][1:] if value is not None])
