"""Whole commands that are the remedy for something, from whatever language it was called: they are what to run."""

from __future__ import annotations

import shlex
from pathlib import Path


def build(output: str | Path | None = None, **options: str) -> str:
    """The command that builds a bundle, from a checkpoint at `output` or with options."""
    return with_options(
        "pie-engine build" + ("" if output is None else f" --checkpoint DIR --output {output}"), options
    )


def refit_with_lora() -> str:
    """The command that makes a bundle with a LoRA of one without."""
    return "pie-engine refit BUNDLE --unet X --lora FILE"


def with_options(command: str, options: dict[str, str]) -> str:
    """A command with options put last, where they win."""
    return command + "".join(f" {_option(name)} {shlex.quote(value)}" for name, value in options.items())


def has_option(command: str, name: str) -> bool:
    """Whether a command passes an option."""
    return _option(name) in shlex.split(command)


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"
