"""Results as rows of a CSV: appended whole, keyed by machine, versions, configuration and revision."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pie_engine.benchmarks.harness.remote import BenchmarkError

FOLDER = Path(__file__).parents[1] / "results"


def append(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Add rows, which share their columns; floats with six significant digits.

    Raises:
        BenchmarkError: the file has other columns.
    """
    rows = list(rows)
    columns = list(rows[0])
    before = path.read_text(encoding="utf-8") if path.exists() else ""
    if before and (header := next(csv.reader(io.StringIO(before)))) != columns:
        changed = ", ".join(sorted(set(header) ^ set(columns))) or "their order"
        raise BenchmarkError(f"{path} has other columns ({changed}); move it away, its rows cannot be compared")
    text = io.StringIO(before)
    text.seek(0, io.SEEK_END)
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    if not before:
        writer.writeheader()
    for row in rows:
        writer.writerow({name: f"{value:.6g}" if isinstance(value, float) else value for name, value in row.items()})
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text.getvalue(), encoding="utf-8")
    partial.replace(path)


def read(path: Path) -> list[dict[str, str]]:
    """All rows, in order; none where there is no file."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def newest(rows: list[dict[str, str]], *key: str) -> list[dict[str, str]]:
    """Of all rows that agree in `key`, those of the newest run: later rows of a file are newer."""
    last: dict[tuple[str, ...], tuple[str, str]] = {}
    for row in rows:
        last[tuple(row[name] for name in key)] = (row["date"], row["revision"])
    return [row for row in rows if last[tuple(row[name] for name in key)] == (row["date"], row["revision"])]
