"""Errors a user can act on. Every message names the value, the limit and the remedy, in one line.

The command line prints these without a traceback and exits with code 2; anything else is a bug and keeps its traceback.
A message mentions settings by what they are called in Python. Whoever calls from somewhere else spells them otherwise:
`PieError.told` renders the same message for the command line, say, and `Notice.told` what is logged.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

# A setting within a message: its name, and the value to pass, if there is one. Of Unicode's private use, so that no
# user's text holds them by accident.
_OPEN, _VALUE, _CLOSE = "\ue0f0", "\ue0f1", "\ue0f2"
_SETTING = re.compile(f"{_OPEN}([^{_CLOSE}{_VALUE}]*)(?:{_VALUE}([^{_CLOSE}]*))?{_CLOSE}")

MOST_QUOTED = 80

# Renders a setting's name, and the value that is to be passed for it, as Python writes it: None where the setting is
# only mentioned, "" where it is an argument whose value is not the point.
Spelling = Callable[[str, str | None], str]


def mention(name: str) -> str:
    """A setting's name within a message: "num_inference_steps" in Python, "num-inference-steps" on the command line."""
    return name if name.startswith(_OPEN) else f"{_OPEN}{name}{_CLOSE}"


def argument(name: str) -> str:
    """A setting as something that is passed or left out: "schedule" in Python, "--schedule" on the command line."""
    return f"{_OPEN}{name}{_VALUE}{_CLOSE}"


def use(name: str, value: object = "...") -> str:
    """A setting to pass, within a message: "strength=0.5" in Python, "--strength 0.5" on the command line.

    Args:
        value: text is put into quotes for Python, unless it is Python already ("0.5", "Box(0, 0, 8, 8)") or stands for
            something, in capitals ("FILE").
    """
    return f"{_OPEN}{name}{_VALUE}{_literal(value)}{_CLOSE}"


def _literal(value: object) -> str:
    text = str(value)
    if not isinstance(value, str | Path) or text.isupper():
        return text
    try:
        parsed = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError):
        return repr(text)
    return text if isinstance(parsed, ast.Constant | ast.Tuple | ast.List | ast.Call) else repr(text)


def quoted(text: str) -> str:
    """A user's text within a message, in quotes; of a longer one, its first `MOST_QUOTED` characters."""
    if len(text) <= MOST_QUOTED:
        return repr(text)
    return f"{text[:MOST_QUOTED]!r}... ({len(text):,} characters)"


def spelled(message: str, spelling: Spelling) -> str:
    """The message with its settings as `spelling` writes them."""
    return _SETTING.sub(lambda found: spelling(found[1], found[2]), message)


def in_python(name: str, value: str | None) -> str:
    """As a keyword argument."""
    return f"{name}={value}" if value else name


class Notice(str):
    """A text that is logged or kept, with settings in it by `mention`, `argument` and `use`.

    It reads as Python spells them, wherever it goes.
    """

    message: str

    def __new__(cls, message: str) -> Notice:
        text = super().__new__(cls, spelled(message, in_python))
        text.message = message
        return text

    def told(self, spelling: Spelling) -> str:
        """The text with settings spelled for somebody else."""
        return spelled(self.message, spelling)


class PieError(Exception):
    """Base of every error that pie-engine raises on purpose.

    Args:
        message: the problem, "; " and the remedy, where there is one; settings in it by `mention` and `use`.
        field: the setting that is at fault, by its name in Python.
        value: what was given for it.
        limit: what would have been right, in words, such as "(0, 1]".

    Attributes:
        problem, remedy: the two parts of the message, as Python spells settings.
    """

    def __init__(self, message: str, *, field: str | None = None, value: Any = None, limit: str | None = None):
        super().__init__(spelled(message, in_python))
        self.message, self.field, self.value, self.limit = message, field, value, limit

    @property
    def problem(self) -> str:
        return str(self).partition("; ")[0]

    @property
    def remedy(self) -> str:
        return str(self).partition("; ")[2]

    def told(self, spelling: Spelling) -> str:
        """The whole message with settings spelled for somebody else."""
        return spelled(self.message, spelling)

    def within(self, what: str) -> PieError:
        """The same error, whose message begins with what it happened in."""
        return _again(type(self), f"{what}: {self.message}", self.field, self.value, self.limit)

    def __reduce__(self) -> tuple[Any, ...]:
        return (_again, (type(self), self.message, self.field, self.value, self.limit))


def _again(kind: type[PieError], message: str, field: str | None, value: Any, limit: str | None) -> PieError:
    return kind(message, field=field, value=value, limit=limit)


class ConfigError(PieError, ValueError):
    """A setting is out of range, or two settings contradict each other."""


class InputError(PieError, ValueError):
    """An image, a mask or a prompt cannot be used."""


class CheckpointError(PieError):
    """A checkpoint is missing, corrupt, unsafe to load, or of an architecture that the engine does not run."""


class BuildError(PieError):
    """An exported component does not compute what its PyTorch module computes."""


class BundleError(PieError):
    """An engine bundle is missing, corrupt, or does not match this machine or this version."""


class BackendError(PieError):
    """A backend is not installed, or cannot run what was asked of it."""


class OutputError(PieError):
    """Results cannot be written."""
