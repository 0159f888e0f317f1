"""Hashes that are checked once per state of a file: what has not been touched since it was hashed is not read again."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pie_engine.files.content import sha256_file
from pie_engine.files.places import cache_root
from pie_engine.files.records import file_state, is_settled, read_record, write_record


def find_mismatch(folder: Path, expected: Mapping[str, str], *, remembered: bool = True) -> tuple[str, str] | None:
    """The first file below `folder` whose SHA-256 is not the expected one, and the one that it has; None: all match.

    Args:
        expected: relative path -> SHA-256.
        remembered: a file of the same device, inode, size and times as when it last matched is taken to match.

    Raises:
        OSError: a file cannot be read.
    """
    record = _record(folder)
    stored = read_record(record)
    known = stored if remembered else {}
    now = time.time_ns()
    states = {name: file_state(folder / name) for name in expected}
    unknown = [name for name, digest in expected.items() if known.get(name) != [digest, *states[name]]]
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # hashing releases the interpreter lock
        for name, found in zip(unknown, pool.map(lambda name: sha256_file(folder / name), unknown), strict=True):
            if found != expected[name]:
                return name, found
    settled = {name for name, state in states.items() if is_settled(state, now)}
    if settled.intersection(unknown):
        write_record(record, stored | {name: [expected[name], *states[name]] for name in settled})
    return None


def _record(folder: Path) -> Path:
    name = hashlib.sha256(os.path.realpath(folder).encode(errors="surrogateescape")).hexdigest()[:32]
    return cache_root() / "verified" / f"{name}.json"
