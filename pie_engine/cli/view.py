"""`pie-engine view`: open the report of a run."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any


def add_parser(commands: Any) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "view",
        help="open the report of a run in the browser",
        description="Open report.html of a folder that pie-engine run wrote, and print its path. A run that was made "
        "with --no-report gets its report now. The page needs no network and no server.",
        allow_abbrev=False,
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder that pie-engine run or demo wrote")
    parser.add_argument("--no-browser", action="store_true", help="only print the path")
    return parser


def main(arguments: argparse.Namespace) -> int:
    import webbrowser

    from pie_engine.cli.progress import say
    from pie_engine.outputs.report import find_report

    path, written = find_report(arguments.folder)
    if written:
        say("the report was missing and has been written")
    sys.stdout.write(f"{path}\n")
    if not arguments.no_browser and not webbrowser.open(path.as_uri()):
        say("no browser could be started here; open this file in one")
    return 0
