"""Blocks in documents that a script fills, and numbers in them that somebody typed."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from pie_engine.benchmarks.report_rows import ReportError

_OPEN = re.compile(r"<!-- (table|plot|value): ([^\n]*?) -->")
_CLOSE = "<!-- end -->"
# Units that only a measurement has; "512 x 512" is a size.
_TYPED = re.compile(
    r"(?<![\w.])\d+(?:\.\d+)? ?"
    r"(?:s|ms|us|µs|min|minutes|seconds|hours|GB|MB|GiB|MiB|[GT]B/s|[MGT]FLOP(?:/s)?|dB|%|times|x(?! ?\d))(?![\w/])"
)


@dataclass(frozen=True)
class Block:
    """One block: what is asked for, and where its text lies."""

    kind: str
    request: str
    start: int
    end: int

    @property
    def name(self) -> str:
        """As the marker has it."""
        return f"{self.kind}: {self.request}"


def blocks(text: str) -> list[Block]:
    """The blocks of a document, in order.

    Raises:
        ReportError: a block does not end before the next one begins.
    """
    found = []
    openings = list(_OPEN.finditer(text))
    for i, opening in enumerate(openings):
        limit = openings[i + 1].start() if i + 1 < len(openings) else len(text)
        end = text.find(_CLOSE, opening.end(), limit)
        if end < 0:
            raise ReportError(f"marker {opening[0]} has no {_CLOSE}")
        found.append(Block(opening[1], opening[2], opening.end(), end))
    return found


def fill(text: str, content: Callable[[Block], str]) -> str:
    """The document with each block's text made anew; figures stand in their line, all else on lines of its own."""
    parts, place = [], 0
    for block in blocks(text):
        made = content(block)
        parts += [text[place : block.start], made if block.kind == "value" else f"\n{made}\n"]
        place = block.end
    return "".join([*parts, text[place:]])


def differing(text: str, filled: str) -> list[str]:
    """Names of the blocks whose text differs between a document and the same one filled."""
    pairs = zip(blocks(text), blocks(filled), strict=True)
    return [old.name for old, new in pairs if text[old.start : old.end] != filled[new.start : new.end]]


def typed_numbers(text: str, section: str = "") -> Iterator[str]:
    """Measured numbers outside of blocks, commands and links, each with its line.

    Args:
        section: look only below this second-level heading.
    """
    plain = fill(text, lambda block: "")
    if section:
        found = re.search(rf"^## {re.escape(section)}$(.*?)(?=^## |\Z)", plain, re.MULTILINE | re.DOTALL)
        plain = found[1] if found else ""
    plain = re.sub(r"```.*?```|`[^`\n]*`|\]\([^)\n]*\)|^ {4}.*$", "", plain, flags=re.MULTILINE | re.DOTALL)
    for line in plain.splitlines():
        for number in _TYPED.finditer(line):
            yield f"{number[0]!r} in {line.strip()[:80]!r}"
