"""Tables of the report, as rows of text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

from pie_engine.config import RunConfig
from pie_engine.config.settings import declared
from pie_engine.outputs.report.charts import Series

_ROUND = {
    "prompt": "Towards", "strength": "Strength", "guidance_scale": "Guidance", "denoising_steps": "Denoising steps",
}  # fmt: skip
# Shown elsewhere on the page.
_SHOWN = {"settings", "change", "confidence", "similarity", "statement", "synthetic", "files"}


def settings_rows(provenance: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The run's settings, by their names in words."""
    labels = {name: setting.label for name, setting in declared(RunConfig) if setting.label}
    return [
        (labels.get(name, name), "default" if value is None else _plain(value))
        for name, value in provenance["settings"].items()
        if name != "schedule"  # as `schedule_table`
    ]


def schedule_table(rounds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What each round of a schedule ran with, equal neighbours as one row: columns, and rows of a name and cells."""
    rows = []
    for values, alike in groupby(rounds, key=lambda one: [one[name] for name in _ROUND]):
        numbers = [one["round"] for one in alike]
        name = f"{numbers[0]}" if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"
        rows.append((name, [_plain(value) for value in values]))
    return {"columns": ["Rounds", *_ROUND.values()], "rows": rows}


def provenance_rows(provenance: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Everything else of a provenance, nested names joined by dots."""
    return [row for key, value in provenance.items() if key not in _SHOWN for row in _flatten(key, value)]


def measures_table(groups: Sequence[tuple[str, str, Sequence[Series]]], rounds: int) -> dict[str, Any]:
    """One row per round from 0 on, one column per line of a plot, under the plot's title and unit.

    Args:
        groups: title, unit and lines of each plot.
    """
    lines = [line for _, _, group in groups for line in group]
    rows = []
    for number in range(rounds + 1):
        cells = []
        for line in lines:
            place = number - line.first
            cells.append(f"{line.values[place]:.4g}" if 0 <= place < len(line.values) else "")
        rows.append(("input" if number == 0 else str(number), cells))
    heads = [(title, unit, len(group)) for title, unit, group in groups]
    return {"groups": heads, "columns": [line.name for line in lines], "rows": rows}


def _flatten(name: str, value: Any) -> Iterable[tuple[str, str]]:
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _flatten(f"{name}.{key}", inner)
    elif isinstance(value, list) and value and isinstance(value[0], Mapping):
        for index, inner in enumerate(value, 1):
            yield from _flatten(f"{name}.{index}", inner)
    else:
        yield name, _plain(value)


def _plain(value: Any) -> str:
    if value is None or value == [] or value == {} or value == "":
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.10g}"
    if isinstance(value, list):
        return ", ".join(_plain(inner) for inner in value)
    return str(value)
