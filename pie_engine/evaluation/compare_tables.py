"""A comparison as tables: every frame, means, each method's last frames, and PIE minus each baseline."""

from __future__ import annotations

from typing import Any

from pie_engine.evaluation.measures import CLIP_I, CONFIDENCE, SHARPNESS, STRUCTURE, Measured
from pie_engine.evaluation.tables import ESTIMATE, Table, column_names, interval_text, means_of, to_csv

_SHOWN = (CLIP_I, "ssim_inside", "ssim_outside", STRUCTURE)


def to_tables(summary: dict[str, Any]) -> list[Table]:
    """Of `compare`'s summary: last frames; how evenly frames come; confidence at equal similarity, and the reverse."""
    return [
        _last_frames(summary),
        _evenness(summary),
        _matched(summary, "confidence", "similarity"),
        _matched(summary, "similarity", "confidence"),
    ]


def frames_csv(methods: dict[str, list[Measured]]) -> str:
    """One line per run and round; a cell is empty where a measure is not defined."""
    names = list(next(iter(methods.values()))[0].series)
    return to_csv(
        ["method", "run", "item_id", "patient", "round", *column_names(names)],
        (
            [method, *one.run.labels, index, *(one.series[name][index] for name in names)]
            for method, group in methods.items()
            for one in group
            for index in range(one.run.rounds + 1)
        ),
    )


def means_csv(summary: dict[str, Any]) -> str:
    """One line per method, round and measure: its mean over patients, the interval, and over how many patients."""
    rows = [[name, *row] for name, method in summary["methods"].items() for row in means_of(method["rounds"])]
    return to_csv(["method", "round", *ESTIMATE], rows)


def _last_frames(summary: dict[str, Any]) -> Table:
    methods = summary["methods"]
    measures = next(iter(methods.values()))["final"]
    shown = [name for name in measures if name.startswith(CONFIDENCE) or name in _SHOWN]
    rows = [
        [name, str(method["patients"]), *(_cell(method["final"][measure]) for measure in shown)]
        for name, method in methods.items()
    ]
    return Table(["last frame", "patients", *shown], rows)


def _evenness(summary: dict[str, Any]) -> Table:
    """How evenly each method's frames come, and how sharp the one half-way is."""
    methods = summary["methods"]
    trends = [name for name in next(iter(methods.values()))["monotonicity"] if name.startswith(CONFIDENCE)]
    columns = [f"{what} of {name}" for name in trends for what in ("rho", "R2")]
    rows = []
    for name, method in methods.items():
        half = (max(entry["round"] for entry in method["rounds"][SHARPNESS]) + 1) // 2
        sharp = next((one for one in method["rounds"][SHARPNESS] if one["round"] == half), None)
        risen = [_cell(method["monotonicity"][one][what]) for one in trends for what in ("rho", "linearity")]
        rows.append([name, _cell(method["unevenness"]), *risen, _cell(sharp)])
    return Table(["evenness", "displacement off n/N", *columns, "sharpness half-way"], rows)


def _matched(summary: dict[str, Any], measure: str, equal: str) -> Table:
    """PIE minus each baseline in `measure`, where they are equal in the other and have come equally far."""
    several = len({row["pie"] for row in summary["matched"]}) > 1
    rows = []
    for row in summary["matched"]:
        difference = row[measure]
        name = f"{row['pie']} minus {row['method']}" if several else row["method"]
        patients = f"{difference['defined']} of {row['patients']}"
        measured_by = f"{row['classifier']}, {row['similarity_measure']}"
        rows.append([name, _cell(difference["mean"]), _cell(difference["end"]), patients, measured_by])
    first = "difference" if several else "PIE minus"
    return Table([first, f"{measure} at equal {equal}", "as far as both come", "patients", "measured by"], rows)


def _cell(estimate: dict[str, Any] | None) -> str:
    return interval_text(estimate, ".3f", "not defined")
