"""Hashes that are checked once per state of a file: what has not been touched since it was hashed is not read again."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pie_engine.errors import OutputError
from pie_engine.files.content import sha256_file
from pie_engine.files.one_file import write_file
from pie_engine.files.places import cache_root

log = logging.getLogger(__name__)
# A file that was written a moment ago can be written again without looking any different: stamps have grains, of two
# seconds at most. Such a file is not remembered.
GRAIN_NS = 2_000_000_000
_MOST_RECORDS = 256


def find_mismatch(folder: Path, expected: Mapping[str, str], *, remembered: bool = True) -> tuple[str, str] | None:
    """The first file below `folder` whose SHA-256 is not the expected one, and the one that it has; None: all match.

    Args:
        expected: relative path -> SHA-256.
        remembered: a file of the same device, inode, size and times as when it last matched is taken to match.

    Raises:
        OSError: a file cannot be read.
    """
    record = _record(folder)
    stored = _read(record)
    known = stored if remembered else {}
    now = time.time_ns()
    states = {name: _state(folder / name) for name in expected}
    unknown = [name for name, digest in expected.items() if known.get(name) != [digest, *states[name]]]
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # hashing releases the interpreter lock
        for name, found in zip(unknown, pool.map(lambda name: sha256_file(folder / name), unknown), strict=True):
            if found != expected[name]:
                return name, found
    settled = {name for name, (*_, modified, changed) in states.items() if max(modified, changed) < now - GRAIN_NS}
    if settled.intersection(unknown):
        _write(record, stored | {name: [expected[name], *states[name]] for name in settled})
    return None


def _state(path: Path) -> list[int]:
    """What differs after any write: nobody sets the time of the last change of a file's own record."""
    facts = path.stat()
    return [facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns]


def _record(folder: Path) -> Path:
    name = hashlib.sha256(os.path.realpath(folder).encode(errors="surrogateescape")).hexdigest()[:32]
    return cache_root() / "verified" / f"{name}.json"


def _read(record: Path) -> dict[str, Any]:
    try:
        known = json.loads(record.read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return known if isinstance(known, dict) else {}


def _write(record: Path, known: Mapping[str, Any]) -> None:
    try:
        record.parent.mkdir(parents=True, exist_ok=True)
        write_file(record, json.dumps(known).encode())
        records = sorted(record.parent.glob("*.json"), key=lambda path: path.stat().st_mtime)
    except (OSError, OutputError) as error:  # a cache that cannot be written costs time alone
        log.debug("what was hashed is not remembered: %s", error)
        return
    for old in records[:-_MOST_RECORDS]:  # of bundles that nobody opens any more
        with contextlib.suppress(OSError):
            old.unlink()
