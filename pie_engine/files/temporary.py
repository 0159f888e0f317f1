"""Hidden names to write under until all is there, and what killed commands left under theirs.

Beside `out` a write has `.out.partial-1a2b3c4d` and, from before it is made until after it is gone, the lock
`.out.partial-1a2b3c4d.lock`. Whoever comes later and gets that lock knows that its owner is dead.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pie_engine.files.locks import hidden, holding, release, take, turn
from pie_engine.files.places import first_missing, resolve
from pie_engine.files.refusals import writing

_LOCK = re.compile(r"\..+\.(partial-[0-9a-f]{8}|turn|held)\.lock")
_OLD = ".old"


@dataclass(frozen=True)
class Leftover:
    """What a command has, or had, beside or in place of what it writes.

    Attributes:
        lock: its lock file.
        paths: what there is of it on the disk, without the lock: unfinished files or folders, an earlier result.
        size: of these, in bytes.
        owner: "process 17 on host", or empty if it did not come to say so.
        alive: whether it still runs; where the file system has no locks, it may.
    """

    lock: Path
    paths: tuple[Path, ...]
    size: int
    owner: str
    alive: bool


@contextlib.contextmanager
def temporary_name(path: Path) -> Iterator[Path]:
    """A hidden name beside `path`, free to be written and renamed; what has it when the block ends is removed.

    What killed commands left in the same folder is removed before.

    Raises:
        OSError: the folder cannot be written.
    """
    sweep_once(path.parent)
    descriptor = None
    while descriptor is None:
        partial = hidden(path, f"partial-{secrets.token_hex(4)}")
        descriptor = take(lock_of(partial), wait=False)
    try:
        owner = {"pid": os.getpid(), "host": os.uname().nodename, "writes": path.name}
        os.write(descriptor, json.dumps(owner).encode())
        yield partial
    finally:
        try:
            _clear(partial, path)
        finally:
            _release(partial, descriptor)


def beside(partial: Path, suffix: str) -> Path:
    return partial.with_name(partial.name + suffix)


def lock_of(partial: Path) -> Path:
    return beside(partial, ".lock")


def set_aside(partial: Path) -> Path:
    """The name for what stood where `partial` goes, while nothing stands there."""
    return beside(partial, _OLD)


def remove(path: Path) -> None:
    """A file, a link or a folder with all that is in it, as far as the system lets it be removed."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def _clear(partial: Path, place: Path) -> None:
    """Remove what there is under a hidden name; what was set aside goes back to its place if nothing else is there."""
    old = set_aside(partial)
    if os.path.lexists(old):
        with turn(place):
            if not os.path.lexists(place):
                old.rename(place)
        remove(old)
    remove(partial)


def _release(partial: Path, descriptor: int) -> None:
    """Give up a hidden name. Its lock stays while something is left under it, so that it is swept one day."""
    if os.path.lexists(partial) or os.path.lexists(set_aside(partial)):
        os.close(descriptor)
    else:
        release(lock_of(partial), descriptor)


_swept: set[tuple[int, Path]] = set()


def sweep_once(folder: Path) -> None:
    """Remove what killed commands left, the first time that this process writes into a folder.

    Not each time, as a cohort's folder may hold thousands of patients.
    """
    key = (os.getpid(), folder)
    if key not in _swept:
        find_leftovers(folder, remove=True)
        _swept.add(key)


def find_leftovers(folder: Path, *, of: str | None = None, remove: bool = False) -> list[Leftover]:
    """What commands have, or left, directly in a folder.

    Args:
        of: the name that they write, or wrote; None: any.
        remove: also remove what dead ones left, and put back an earlier result that one had set aside. What cannot be
            removed is passed over.
    """
    found = []
    for partial in _names(folder):
        if of is not None and (partial.name.rpartition(".")[0] != hidden(folder / of, "").name[:-1]):
            continue
        descriptor = None
        try:
            descriptor = take(lock_of(partial), wait=False, make=False)
            leftover = _describe(partial, alive=descriptor is None)
            if remove and descriptor is not None:
                _clear(partial, _place(partial))
        except FileNotFoundError:  # it ended just now
            continue
        except OSError:  # no locks on this file system, or no right to remove it
            leftover = _describe(partial, alive=True)
        finally:
            if descriptor is not None:
                (_release if remove else _close)(partial, descriptor)
        found.append(leftover)
    return found


def clean(path: Path, *, remove: bool) -> list[Leftover]:
    """`find_leftovers` of `path` (a folder, a file, or what was to become one), in it, and in folders below it."""
    path = first_missing(resolve(path))
    found = find_leftovers(path.parent, of=path.name, remove=remove)
    for folder, below, _ in os.walk(path):
        found += find_leftovers(Path(folder), remove=remove)
        hidden_names = {partial.name for partial in _names(Path(folder))}
        below[:] = sorted(set(below) - hidden_names)
    return found


def _close(partial: Path, descriptor: int) -> None:
    os.close(descriptor)


def _names(folder: Path) -> list[Path]:
    """The hidden names in a folder that have a lock."""
    try:
        with os.scandir(folder) as entries:
            locks = sorted(entry.name for entry in entries if entry.name[:1] == "." and _LOCK.fullmatch(entry.name))
    except OSError:
        return []
    return [folder / lock.removesuffix(".lock") for lock in locks]


def _describe(partial: Path, *, alive: bool) -> Leftover:
    paths = tuple(path for path in (partial, set_aside(partial)) if os.path.lexists(path))
    said = _read(partial)
    owner = f"process {said['pid']} on {said['host']}" if {"pid", "host"} <= said.keys() else ""
    return Leftover(lock_of(partial), paths, sum(map(_size, paths)), owner, alive)


def _size(path: Path) -> int:
    with contextlib.suppress(OSError):  # it may end while it is measured
        files = (file for file in path.rglob("*") if not file.is_dir()) if path.is_dir() else (path,)
        return sum(file.lstat().st_size for file in files)
    return 0


def _place(partial: Path) -> Path:
    """What the owner was writing, as it said, or as its hidden name says, which of a long name holds but a hash."""
    name = _read(partial).get("writes")
    if not isinstance(name, str) or not name or name != Path(name).name:
        name = partial.name[1:].rpartition(".")[0]
    return partial.with_name(name)


def _read(partial: Path) -> dict[str, object]:
    """What the owner wrote into its lock."""
    try:
        said = json.loads(lock_of(partial).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return said if isinstance(said, dict) else {}


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold `path`, in the cache, against other processes for as long as the block takes.

    Raises:
        OutputError: the folder cannot be written.
    """
    lock = hidden(path, "held.lock")
    with writing(path):
        lock.parent.mkdir(parents=True, exist_ok=True)
        sweep_once(lock.parent)
        descriptor = take(lock, wait=True)
    with holding(lock, descriptor):
        yield
