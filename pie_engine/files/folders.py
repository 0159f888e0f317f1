"""An output folder: written under a hidden name, then put in its place, which an earlier result may have."""

from __future__ import annotations

import contextlib
import json
import stat
from collections.abc import Iterator
from pathlib import Path

from pie_engine.errors import OutputError
from pie_engine.files.exchange import exchange
from pie_engine.files.locks import turn
from pie_engine.files.places import first_missing, resolve
from pie_engine.files.refusals import writing
from pie_engine.files.temporary import set_aside, sweep_once, temporary_name


def check_folder(path: Path, *, replaceable: str) -> None:
    """Refuse an output folder that `new_folder` would refuse, before any work is done.

    Raises:
        OutputError: `path` is a file, holds something else than an earlier result, or cannot be written.
    """
    with writing(path):
        path, mode = resolve(path), None
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            mode = path.stat().st_mode  # one look: between two of them another command may put its result there
        if mode is not None:
            if not stat.S_ISDIR(mode):
                raise FileExistsError
            _check_replaceable(path, replaceable)
        made = first_missing(path)
        if not made.parent.is_dir():
            raise NotADirectoryError
        # Tried, as permissions alone do not tell (a read-only disk, a folder of the system's): hours may depend on it.
        with temporary_name(made) as trial:
            trial.mkdir()


def _check_replaceable(path: Path, marker: str) -> None:
    """Replacing deletes, so an earlier result goes only if it holds nothing but the files that its marker lists."""
    if path == Path.cwd() or path in Path.cwd().parents:
        raise OutputError(f"{path} is the current folder or one above it; name a folder below it")
    sweep_once(path)
    with turn(path):  # another command may be replacing it
        _check_content(path, marker)


def _check_content(path: Path, marker: str) -> None:
    held = {str(file.relative_to(path)) for file in path.rglob("*") if not file.is_dir() or file.is_symlink()}
    if not held and not any(path.iterdir()):
        return
    if marker not in held:
        raise OutputError(f"{path} is not empty and holds no {marker} of an earlier result; choose another folder")
    try:
        listed = {marker, *json.loads((path / marker).read_text())["files"]}
    except (OSError, ValueError, KeyError, TypeError):
        listed = {marker}
    if held - listed:
        raise OutputError(
            f"{path} holds {min(held - listed)}, which is not of the earlier result; move it, or choose another folder"
        )


@contextlib.contextmanager
def new_folder(path: Path, *, replaceable: str) -> Iterator[Path]:
    """A temporary folder beside `path` that takes its place on success and vanishes on failure.

    At every moment an earlier result or the new one is at `path`, whole, even if the process is killed; on file systems
    that cannot exchange two names there is a moment without either, and the next command that writes beside `path`
    mends it. Several writers of one folder take turns at its name: the one that is done last stays.

    Args:
        replaceable: name of the JSON file that marks an earlier result of the same kind and lists its files under
            "files": a folder that holds those alone (or is empty) is replaced, any other is left alone.

    Raises:
        OutputError: `path` holds something else, or cannot be written.
    """
    check_folder(path, replaceable=replaceable)
    path = resolve(path)
    missing = [folder for folder in path.parents if not folder.exists()]
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporary_name(path) as partial:
                partial.mkdir()
                yield partial
                with turn(path):
                    if path.is_dir():
                        _check_content(path, replaceable)  # hours may have passed
                    _put(path, partial)
    except BaseException:
        for folder in missing:  # the deepest first
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise


def _put(path: Path, partial: Path) -> None:
    """Give `partial` the name `path`, and what was there the name `partial`, or none."""
    if not path.is_dir():
        partial.rename(path)
    elif not exchange(partial, path):
        _put_in_two_steps(path, partial)


def _put_in_two_steps(path: Path, partial: Path) -> None:
    """Where names cannot be exchanged: rename(2) replaces no folder that holds something, so the old one steps aside.

    An exception or a signal leaves one of both there; after a kill in between, the next sweep puts the old one back.
    """
    old = set_aside(partial)
    try:
        path.rename(old)
        partial.rename(path)
    finally:
        if not path.exists():
            old.rename(path)
