"""What commands say: results on stdout, what they are doing on stderr.

File names, item ids and prompts come from strangers. Everything that holds them passes through here, or through the
log's formatter, so that no name commands the terminal or begins a line of its own; JSON escapes them by itself.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from pie_engine.cli.spelling import one_line, plain


def print_lines(*lines: str) -> None:
    """Lines of a result on stdout."""
    sys.stdout.write("".join(f"{one_line(line)}\n" for line in lines))


def print_text(text: str) -> None:
    """Several lines that are a file of their own, such as LaTeX, on stdout."""
    sys.stdout.write(plain(text) + "\n")


def print_json(data: Any) -> None:
    """A result as one JSON object, on stdout."""
    sys.stdout.write(json.dumps(data) + "\n")


def say(line: str) -> None:
    """One line of progress on stderr."""
    sys.stderr.write(one_line(line) + "\n")
    sys.stderr.flush()
