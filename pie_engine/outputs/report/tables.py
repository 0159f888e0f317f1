"""Tables of the report. Every text in them is escaped: prompts, names and ids may hold anything."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
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


def settings_table(provenance: Mapping[str, Any]) -> str:
    """The run's settings, by their names in words."""
    settings = provenance["settings"]
    labels = {name: own.label for name, own in declared(RunConfig) if own.label}
    return rounds_table(provenance["simulated"].get("rounds", [])) + facts_table(
        (labels.get(name, name), "default" if value is None else _plain(value))
        for name, value in settings.items()
        if name != "schedule"  # as `rounds_table`
    )


def rounds_table(rounds: Sequence[Mapping[str, Any]]) -> str:
    """What each round of a schedule ran with, equal neighbours as one row; nothing without a schedule."""
    if not rounds:
        return ""
    rows = []
    for own, alike in groupby(rounds, key=lambda one: [one[name] for name in _ROUND]):
        numbers = [one["round"] for one in alike]
        name = f"{numbers[0]}" if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"
        cells = "".join(f"<td>{escape(_plain(value))}</td>" for value in own)
        rows.append(f'<tr><th scope="row">{name}</th>{cells}</tr>')
    head = "".join(f'<th scope="col">{escape(text)}</th>' for text in ("Rounds", *_ROUND.values()))
    body = f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody>"
    return f'<div class="scroll"><table class="rounds">{body}</table></div>'


def provenance_table(provenance: Mapping[str, Any]) -> str:
    """Everything else of a provenance, nested names joined by dots."""
    return facts_table(
        (name, text) for key, value in provenance.items() if key not in _SHOWN for name, text in _flatten(key, value)
    )


def facts_table(rows: Iterable[tuple[str, str]]) -> str:
    """Names and values, both plain text."""
    body = "".join(f'<tr><th scope="row">{escape(name)}</th><td>{escape(text)}</td></tr>' for name, text in rows)
    return f'<table class="facts"><tbody>{body}</tbody></table>'


def figures_table(groups: Sequence[tuple[str, str, Sequence[Series]]], rounds: int) -> str:
    """One row per round from 0 on, one column per line of a plot, under the plot's title and unit.

    Args:
        groups: title, unit and lines of each plot.
    """
    lines = [line for _, _, group in groups for line in group]
    over = "".join(
        f'<th scope="colgroup" colspan="{len(group)}">{escape(title)}<br><small>{escape(unit)}</small></th>'
        for title, unit, group in groups
    )
    names = "".join(f'<th scope="col">{escape(line.name)}</th>' for line in lines)
    rows = []
    for number in range(rounds + 1):
        cells = []
        for line in lines:
            place = number - line.first
            cells.append(f"<td>{line.values[place]:.4g}</td>" if 0 <= place < len(line.values) else "<td></td>")
        name = "input" if number == 0 else str(number)
        rows.append(f'<tr><th scope="row">{name}</th>{"".join(cells)}</tr>')
    return (
        f'<table class="figures"><thead><tr><th scope="col" rowspan="2">Round</th>{over}</tr><tr>{names}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table>"
    )


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
