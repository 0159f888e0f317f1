"""Tables of studies: as data, as plain text, as CSV and as LaTeX."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# What an estimate is written as, after the columns that say what it is of.
ESTIMATE = ("measure", "mean", "low", "high", "n")
_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
}  # fmt: skip


@dataclass(frozen=True)
class Table:
    """Rows of text under headings.

    Attributes:
        columns: the headings.
        rows: as many cells each.
        heading: a line above, or nothing.
        notes: lines below.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    heading: str = ""
    notes: Sequence[str] = ()

    def __str__(self) -> str:
        """As plain text, in aligned columns."""
        rows = [self.columns, *self.rows]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join([*([self.heading] if self.heading else []), *lines, *self.notes])


def to_latex(table: Table) -> str:
    r"""A LaTeX table for \usepackage{booktabs}: the heading is its caption, the notes stand below its rows."""
    lines = [r"\begin{table}", r"  \centering"]
    if table.heading:
        lines.append(rf"  \caption{{{_escape(table.heading)}}}")
    lines += [rf"  \begin{{tabular}}{{{'l' * len(table.columns)}}}", r"    \toprule", _latex_row(table.columns)]
    lines += [r"    \midrule", *map(_latex_row, table.rows), r"    \bottomrule", r"  \end{tabular}"]
    lines += [rf"  \par\smallskip {_escape(note)}" for note in table.notes]
    return "\n".join([*lines, r"\end{table}"])


def _latex_row(cells: Sequence[str]) -> str:
    # LaTeX takes a bracket after \\ for an option of it, so no row may begin with one.
    first, *others = (_escape(cell) for cell in cells)
    first = f"{{{first}}}" if first.startswith("[") else first
    return "    " + " & ".join([first, *others]) + r" \\"


def _escape(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)


def to_csv(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A CSV file's text; None is an empty cell."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return text.getvalue()


def column_names(measures: Sequence[str]) -> list[str]:
    """Measures as columns of a CSV file, in snake case: "confidence: Lung opacity" is confidence_lung_opacity.

    Those that would become equal are numbered from the second on.
    """
    names: list[str] = []
    for measure in measures:
        name = column = re.sub(r"[^\w]+", "_", measure).strip("_").lower() or "measure"
        number = 1
        while column in names:
            number += 1
            column = f"{name}_{number}"
        names.append(column)
    return names


def means_of(rounds: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[list[Any]]:
    """Means by measure and round, as `summarise` has them under "rounds": rows of round and `ESTIMATE`."""
    return [
        [entry["round"], column, *estimate_cells(entry)]
        for column, entries in zip(column_names(list(rounds)), rounds.values(), strict=True)
        for entry in entries
    ]


def estimate_cells(estimate: Mapping[str, Any]) -> list[Any]:
    """Mean, low, high and n of an `Estimate` as a dict."""
    return [estimate[name] for name in ESTIMATE[1:]]


def interval_text(estimate: Mapping[str, Any] | None, digits: str, missing: str = "") -> str:
    """A mean and its interval in words, such as "0.4 [0.2, 0.6]".

    Args:
        digits: how a number is written, such as ".3f".
        missing: what stands for no estimate.
    """
    if estimate is None:
        return missing
    text = f"{estimate['mean']:{digits}}"
    low, high = estimate["low"], estimate["high"]
    return text if low is None else f"{text} [{low:{digits}}, {high:{digits}}]"
