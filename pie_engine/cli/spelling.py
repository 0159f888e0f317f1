"""How the command line spells what messages call by its name in Python. Nobody else knows an option's spelling."""

from __future__ import annotations

import ast
import logging
import re
import shlex
import unicodedata
from copy import copy
from typing import Any

from pie_engine.errors import Notice

# Where an option is not its name in Python with hyphens.
_OPTIONS = {
    "Region.prompt": "finding",
    "Stable.confidence": "min-confidence",
    "Stable.similarity": "min-similarity",
    "batches": "batch",
    "capabilities": "compute-capability",
    "classifiers": "classifier",
    "components": "mask-components",
    "count": "phantoms",
    "distances": "distance",
    "each_finding": "findings",
    "flavour": "backend",
    "label": "mask-label",
    "latents": "save-latents",
    "resolutions": "resolution",
}
_SHAPE = re.compile(r"(Box|Ellipse|Polygon)\((.*)\)")


def as_option(name: str, value: str | None) -> str:
    """A setting as `pie-engine` takes it: a `pie_engine.errors.Spelling`."""
    option = _OPTIONS.get(name, name.replace("_", "-"))
    if value is None:
        return option
    if value in ("", "True"):
        return f"--{option}"
    if value == "False":
        return f"--no-{option}"
    if shape := _SHAPE.fullmatch(value):
        return f"--{option}-{shape[1].lower()} {shape[2].replace(' ', '')}"
    return f"--{option} {_word(value)}"


def told(data: Any) -> Any:
    """What a function found, with every notice in it spelled for the command line."""
    if isinstance(data, Notice):
        return data.told(as_option)
    if isinstance(data, dict):
        return {key: told(value) for key, value in data.items()}
    return [told(value) for value in data] if isinstance(data, list | tuple) else data


def plain(text: str) -> str:
    """The text without what a terminal would take for a command: names in manifests may hold anything."""
    return "".join(char if char == "\n" or _is_shown(char) else ascii(char)[1:-1] for char in text)


def _is_shown(char: str) -> bool:
    return char.isprintable() or unicodedata.category(char) == "Zs"  # spaces of other widths, which names may hold


def one_line(text: str) -> str:
    """`plain`, in one line: a line break in a name begins no line of its own."""
    return plain(text).replace("\n", "\\n")


class LogFormatter(logging.Formatter):
    """Spells the settings in what is logged, and lets no name in it command the terminal."""

    def format(self, record: logging.LogRecord) -> str:
        record = copy(record)
        record.msg = told(record.msg)
        record.msg, record.args = one_line(record.getMessage()), None
        return super().format(record)


def _word(value: str) -> str:
    """A Python literal as a shell's word, a list with commas; what is no literal, such as FILE, as it is."""
    if value == "...":
        return value
    try:
        literal = ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return value
    return shlex.quote(",".join(map(str, literal)) if isinstance(literal, list | tuple) else str(literal))
