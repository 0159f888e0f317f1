"""`pie-engine view`: open the reports of runs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from pie_engine.cli.studies import add_folders
from pie_engine.cli.terminal import print_lines, say

# More tabs than these help nobody.
_MOST_OPENED = 8


def add_parser(commands: Any) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "view",
        help="open the reports of runs in the browser",
        description="Open report.html of each run, and print its path; of many runs the first eight are opened. A run "
        "that was made with --no-report gets its report now. The page needs no network and no server.",
        allow_abbrev=False,
    )
    add_folders(parser)
    parser.add_argument("--no-browser", action="store_true", help="only print the paths")
    return parser


def main(arguments: argparse.Namespace) -> int:
    import webbrowser

    from pie_engine.outputs.report import find_report

    paths = []
    for folder in _folders(arguments.folders):
        path, written = find_report(folder)
        if written:
            say(f"the report of {folder} was missing and has been written")
        print_lines(str(path))
        paths.append(path)
    if arguments.no_browser:
        return 0
    opened = [webbrowser.open(path.as_uri()) for path in paths[:_MOST_OPENED]]
    if not all(opened):
        say(f"no browser could be started here; open {'this file' if len(paths) == 1 else 'these files'} in one")
    elif len(paths) > _MOST_OPENED:
        say(f"the first {_MOST_OPENED} of {len(paths)} reports are opened")
    return 0


def _folders(paths: list[Path]) -> list[Path]:
    """The folders of the runs; one that holds a report alone is taken too."""
    from pie_engine.evaluation.runs import find_folders
    from pie_engine.outputs.report import REPORT

    found: list[Path] = []
    for path in paths:
        found += [path] if (path / REPORT).is_file() else find_folders([path])
    return list(dict.fromkeys(found))
