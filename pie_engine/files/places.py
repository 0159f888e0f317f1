"""Where things are kept, and where a name leads."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

from pie_engine.errors import OutputError


def cache_root() -> Path:
    """Where exported components are kept: $PIE_ENGINE_CACHE, or pie-engine in the user's cache folder."""
    chosen = os.environ.get("PIE_ENGINE_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "pie-engine"


def resolve(path: Path) -> Path:
    """The place that a folder's name leads to, through links: a result lands on the disk that a link points to.

    Raises:
        OutputError: the name leads in a circle, or is none.
    """
    # What Python says of a loop, and whether it says anything, depends on its version: the system is asked.
    try:
        real = Path(os.path.realpath(path))
        with contextlib.suppress(FileNotFoundError):
            real.stat()
    except ValueError:
        reason = "it holds a null byte"
    except OSError as error:
        if error.errno != errno.ELOOP:
            return real  # whoever writes there is told
        reason = "its links lead in a circle"
    else:
        return real
    raise OutputError(f"{str(path)!r} is not a folder's name ({reason}); choose another folder")


def first_missing(path: Path) -> Path:
    """`path` itself if the folder around it exists, else the outermost of the folders around it that do not."""
    return next(place for place in (path, *path.parents) if place.parent.exists())
