"""Files that appear whole or not at all, and their content hashes."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from pie_engine.errors import OutputError


def cache_root() -> Path:
    """Where exported components are kept: $PIE_ENGINE_CACHE, or pie-engine in the user's cache folder."""
    own = os.environ.get("PIE_ENGINE_CACHE")
    if own:
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "pie-engine"


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn the operating system's refusals into one clear line about `path`.

    Raises:
        OutputError: not writable, disk full, or another refusal.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            reason, remedy = "the disk is full", "free some space or write elsewhere"
        elif isinstance(error, PermissionError) or error.errno == errno.EROFS:
            reason, remedy = "permission denied", "choose a folder that you may write to"
        elif isinstance(error, FileExistsError | NotADirectoryError):
            reason, remedy = "a file of that name is in the way", "choose another folder"
        else:
            reason, remedy = error.strerror or str(error), "choose another folder"
        raise OutputError(f"{path} cannot be written ({reason}); {remedy}") from error


def check_folder(path: Path, *, replaceable: str) -> None:
    """Refuse an output folder that `new_folder` would refuse, before any work is done.

    Raises:
        OutputError: `path` is a file, holds something else than an earlier result, or cannot be written.
    """
    path = path.absolute()
    if path.exists() and not path.is_dir():
        raise OutputError(f"{path} cannot be written (a file of that name is in the way); choose another folder")
    if path.is_dir() and any(path.iterdir()) and not (path / replaceable).is_file():
        raise OutputError(f"{path} is not empty and holds no {replaceable} of an earlier result; choose another folder")
    parent = next(folder for folder in path.parents if folder.exists())
    with writing(path):
        if not parent.is_dir():
            raise NotADirectoryError
        if not os.access(parent, os.W_OK | os.X_OK):
            raise PermissionError


@contextlib.contextmanager
def new_folder(path: Path, *, replaceable: str) -> Iterator[Path]:
    """A temporary folder beside `path` that takes its place on success and vanishes on failure.

    Args:
        replaceable: name of a file that marks an earlier result of the same kind: a folder that holds it (or
            is empty) is replaced, any other is left alone.

    Raises:
        OutputError: `path` holds something else, or cannot be written.
    """
    path = path.absolute()
    check_folder(path, replaceable=replaceable)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{path.name}.partial-", dir=path.parent))
        partial.chmod(0o777 & ~_umask())
    try:
        with writing(path):
            yield partial
            if path.is_dir():
                # rename(2) does not replace a non-empty folder; the old one steps aside first.
                aside = Path(tempfile.mkdtemp(prefix=f".{path.name}.old-", dir=path.parent))
                path.rename(aside / path.name)
                try:
                    partial.rename(path)
                except OSError:
                    (aside / path.name).rename(path)
                    raise
                finally:
                    shutil.rmtree(aside, ignore_errors=True)
            else:
                partial.rename(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def link_or_copy(source: Path, target: Path) -> None:
    """A hard link where the file system has them (weights are large), else a copy."""
    try:
        target.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, target)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
