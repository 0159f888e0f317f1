"""Schedules kept in the user's cache: numbers that depend on settings and versions alone need no diffusers again.

Importing diffusers takes seconds, more than a small model's whole progression. What is kept is what was computed, to
the last bit; another version of a library, or of the code that computes, computes anew.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import logging
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy as np

from pie_engine.errors import OutputError
from pie_engine.files import cache_root, write_file
from pie_engine.packages import installed

log = logging.getLogger(__name__)

T = TypeVar("T")
P = ParamSpec("P")
# Packages that decide what a schedule's numbers are.
_COMPUTE = ("diffusers", "torch", "numpy", "scipy")


def kept(cls: type[T], source: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Keep what a function gives by its arguments, which are JSON.

    Args:
        cls: what it gives: a dataclass of text and arrays.
        source: the file that computes it.
    """

    def keep(compute: Callable[P, T]) -> Callable[P, T]:
        @functools.wraps(compute)
        def look_up(*values: P.args, **named: P.kwargs) -> T:
            path = _path(compute.__name__, source, values, named)
            found = None if path is None else _read(cls, path)
            if found is None:
                found = compute(*values, **named)
                if path is not None:
                    _write(found, path)
            return found

        return look_up

    return keep


def _path(name: str, source: str, values: Any, named: Any) -> Path | None:
    """Where a result is kept; None where its arguments are no JSON."""
    try:
        arguments = json.dumps([[dict(v) if hasattr(v, "keys") else v for v in values], named], sort_keys=True)
    except TypeError:
        return None
    facts = [name, arguments, _versions(source)]
    return cache_root() / "schedules" / f"{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]}.npz"


@functools.cache
def _versions(source: str) -> str:
    code = hashlib.sha256(Path(source).read_bytes()).hexdigest()
    return json.dumps([code, *(installed(package) for package in _COMPUTE)])


def _read(cls: type[T], path: Path) -> T | None:
    try:
        with np.load(path, allow_pickle=False) as file:
            found = {field.name: file[field.name] for field in fields(cls)}  # type: ignore[arg-type]
    except FileNotFoundError:
        return None
    except Exception as error:  # numpy and zipfile raise many types on a damaged file
        log.debug("schedule %s cannot be read (%s); computed anew", path, error)
        return None
    return cls(**{name: str(value) if value.dtype.kind == "U" else value for name, value in found.items()})


def _write(found: Any, path: Path) -> None:
    content = io.BytesIO()
    arrays: dict[str, Any] = {field.name: np.asarray(getattr(found, field.name)) for field in fields(found)}
    np.savez(content, **arrays)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, content.getvalue())
    except (OSError, OutputError) as error:  # a cache that cannot be written is none
        log.debug("schedule not kept (%s)", error)
