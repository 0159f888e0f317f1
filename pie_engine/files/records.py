"""What the cache remembers of files that have not been touched since: their states, and small records by them."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pie_engine.errors import OutputError
from pie_engine.files.one_file import write_file

log = logging.getLogger(__name__)
# A file that was written a moment ago can be written again without looking any different: stamps have grains, of two
# seconds at most. Such a file is not remembered.
GRAIN_NS = 2_000_000_000
_MOST_RECORDS = 256


def file_state(path: Path) -> list[int]:
    """What differs after any write: nobody sets the time of the last change of a file's own record.

    Raises:
        OSError: the file is not there, or its folder cannot be read.
    """
    facts = path.stat()
    return [facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns]


def is_settled(state: Iterable[int], now: int) -> bool:
    """Whether a file of this state could not have been written again since without looking different.

    Args:
        now: `time.time_ns()` from before the state was read.
    """
    *_, modified, changed = state
    return max(modified, changed) < now - GRAIN_NS


def read_record(path: Path) -> dict[str, Any]:
    """A record; empty where there is none that can be read."""
    try:
        known = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return known if isinstance(known, dict) else {}


def write_record(path: Path, known: Mapping[str, Any]) -> None:
    """Write a record; of those in its folder the latest are kept. A cache that cannot be written costs time alone."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, json.dumps(known).encode())
        records = sorted(path.parent.glob("*.json"), key=lambda record: record.stat().st_mtime)
    except (OSError, OutputError) as error:
        log.debug("nothing is remembered in %s: %s", path.parent, error)
        return
    for old in records[:-_MOST_RECORDS]:  # of what nobody opens any more
        with contextlib.suppress(OSError):
            old.unlink()
