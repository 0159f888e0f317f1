"""`pie-engine clean`: remove what killed commands left."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pie_engine.cli.doctor import size
from pie_engine.cli.terminal import print_lines

if TYPE_CHECKING:
    from pie_engine.files import Leftover


def add_parser(commands: Any) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "clean",
        help="remove what killed commands left",
        description="Remove unfinished files and folders (and lock files) of commands that were killed, and put back "
        "an earlier result that one had set aside. What a running command writes is left alone, and so is everything "
        "that is finished. The next command that writes beside them does the same.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "folders", nargs="*", type=Path, metavar="FOLDER",
        help="folders of results, with those below them, or what a command was writing (default: the cache and the "
        "temporary folder)",
    )  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="only print what would be removed")
    return parser


def main(arguments: argparse.Namespace) -> int:
    import tempfile

    from pie_engine.errors import InputError
    from pie_engine.files import cache_root, clean, find_leftovers

    remove = not arguments.dry_run
    found = []
    for folder in arguments.folders:
        found += (beside := clean(folder, remove=remove))
        if not beside and not folder.exists():
            raise InputError(
                f"there is no {folder}, and nothing unfinished of it; pass a folder that commands write to"
            )
    if not arguments.folders:
        found += clean(cache_root(), remove=remove)
        found += find_leftovers(Path(tempfile.gettempdir()), remove=remove)
    dead = [leftover for leftover in found if not leftover.alive]
    lines = [_line("removed" if remove else "found", leftover) for leftover in dead]
    lines += [_line("left alone, as its owner may be writing it", one) for one in found if one.alive]
    done = "removed" if remove else "to remove"
    lines.append(f"{len(dead)} leftover{'s' * (len(dead) != 1)} {done}, {size(sum(one.size for one in dead))}")
    print_lines(*lines)
    return 0


def _line(what: str, leftover: Leftover) -> str:
    paths = ", ".join(map(str, leftover.paths or (leftover.lock,)))
    return f"{what}: {paths}" + (f" (of {leftover.owner})" if leftover.owner else "")
