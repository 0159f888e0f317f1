"""Tables on stdout: drawn by rich on a terminal, as plain text or LaTeX elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

from pie_engine.cli.spelling import one_line
from pie_engine.cli.terminal import print_lines, print_text

if TYPE_CHECKING:
    from pie_engine.evaluation.tables import Table


def show(tables: Iterable[Table], *lines: str) -> None:
    """Print tables with an empty line between them, and `lines` below."""
    tables = [_harmless(table) for table in tables]
    if sys.stdout.isatty():
        _show_on_terminal(tables)
    else:
        print_text("\n\n".join(map(str, tables)))
    print_lines(*lines)


def show_latex(tables: Iterable[Table]) -> None:
    """Print tables for a paper that uses booktabs, and nothing else."""
    from pie_engine.evaluation.tables import to_latex

    print_text("% \\usepackage{booktabs}\n" + "\n\n".join(to_latex(_harmless(table)) for table in tables))


def _harmless(table: Table) -> Table:
    """The table with each text in one line, before columns are aligned: classifiers and runs are named by strangers."""
    from pie_engine.evaluation.tables import Table

    rows = [[one_line(cell) for cell in row] for row in table.rows]
    columns, notes = [one_line(name) for name in table.columns], [one_line(note) for note in table.notes]
    return Table(columns, rows, one_line(table.heading), notes)


def _show_on_terminal(tables: Iterable[Table]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table as Drawn
    from rich.text import Text

    console = Console()
    for table in tables:
        drawn = Drawn(box=SIMPLE_HEAD, pad_edge=False, header_style="bold")
        for column in table.columns:
            drawn.add_column(Text(column), overflow="fold")
        for row in table.rows:
            drawn.add_row(*map(Text, row))  # as text: a bracket is no markup
        if table.heading:
            console.print(Text(table.heading))
        console.print(drawn)
        for note in table.notes:
            console.print(Text(note))
