"""What the commands that measure runs share: their options, and how they end."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pie_engine.cli.terminal import print_json, say
from pie_engine.errors import ConfigError

if TYPE_CHECKING:
    from pie_engine.evaluation.tables import Table

FIGURES = ("png", "svg", "pdf")
FORMATS = ("text", "latex")


def add_folders(parser: argparse.ArgumentParser) -> None:
    """The runs that are measured."""
    parser.add_argument(
        "folders", nargs="+", type=Path, metavar="DIR", help="folder that pie-engine run wrote, or one that holds such"
    )


def add_classifiers(parser: argparse.ArgumentParser, *, required: bool = False) -> None:
    """`--classifier`."""
    parser.add_argument(
        "--classifier", type=Path, action="append", default=None if required else [], required=required, metavar="JSON",
        help="file that declares a classifier (docs/evaluation.md); may be given several times",
    )  # fmt: skip


def add_structures(parser: argparse.ArgumentParser) -> None:
    """`--structures`."""
    parser.add_argument(
        "--structures", type=Path, metavar="DIR",
        help="folder of a map per run, ITEM_ID.png: features that the disease leaves alone (docs/evaluation.md)",
    )  # fmt: skip


def add_seed(parser: argparse.ArgumentParser, of: str = "the bootstrap") -> None:
    """`--seed`."""
    parser.add_argument("--seed", type=int, default=0, help=f"of {of} (0)")


def add_study_output(parser: Any, folder: str, *, formats: Sequence[str] = ("text",)) -> None:
    """Where a study is written, and what is printed of it."""
    parser.add_argument("--output", type=Path, default=Path(folder), metavar="DIR", help=f"folder ({folder})")
    add_figures(parser)
    if len(formats) > 1:
        printed = parser.add_mutually_exclusive_group()
        printed.add_argument("--format", choices=formats, help="of the printed tables: latex needs booktabs (text)")
    else:
        printed = parser
    printed.add_argument("--json", action="store_true", help="print the summary as one JSON object")
    parser.add_argument("--quiet", action="store_true", help="no progress")


def add_figures(parser: Any) -> None:
    """`--figures`."""
    parser.add_argument(
        "--figures", choices=FIGURES, default="png", help="plots are PNG files, and beside them svg or pdf (png)"
    )


def check_seed(arguments: argparse.Namespace) -> None:
    """Raises ConfigError: `--seed` is below 0."""
    if arguments.seed < 0:
        raise ConfigError(f"seed {arguments.seed} is below 0; pass --seed 0")


def progress(arguments: argparse.Namespace) -> Callable[[str], None]:
    """Says which run is measured, unless `--quiet` is given."""
    return (lambda name: None) if arguments.quiet else say


def end(arguments: argparse.Namespace, summary: dict[str, Any], tables: Sequence[Table], *notes: str) -> int:
    """Print a study as it was asked for: the summary as JSON, its tables as LaTeX, or tables, notes and files."""
    from pie_engine.cli.tables import show, show_latex

    files = f"{arguments.output}: {', '.join(summary['files'])}"
    if arguments.json:
        print_json({"output": str(arguments.output), **summary})
    elif getattr(arguments, "format", None) == "latex":
        show_latex(tables)
        if not arguments.quiet:
            say(files)
    else:
        show(tables, *notes, files)
    return 0
