"""`pie-engine --print-completion SHELL`: completion of commands, options, choices, files and folders, by shtab."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from pie_engine.cli.parsing import commands_of

SHELLS = ("bash", "zsh", "tcsh")


def add_completion_option(parser: Any) -> None:
    """`--print-completion`."""
    parser.add_argument(
        "--print-completion", choices=SHELLS, action=_Print, help="print the shell's completion script and stop there"
    )


class _Print(argparse.Action):
    """Imports shtab only where it is asked for."""

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option: str | None = None) -> None:
        import shtab

        for command in commands_of(parser).values():
            for action in command._actions:
                metavar = action.metavar if isinstance(action.metavar, str) else ""
                if "FILE" in metavar or "BUNDLE" in metavar or "JSON" in metavar or action.dest == "image":
                    action.complete = shtab.FILE  # type: ignore[attr-defined]
                elif "DIR" in metavar:
                    action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
        # `shell` is the name of one; none is started.
        script = shtab.complete(parser, shell=str(values))  # nosec B604
        sys.stdout.write(script)
        parser.exit()
