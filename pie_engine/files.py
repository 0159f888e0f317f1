"""Files that appear whole or not at all, and their content hashes."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
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
        elif error.errno == errno.ENAMETOOLONG:
            reason, remedy = "its name is too long", "choose a shorter one"
        else:
            reason, remedy = error.strerror or str(error), "choose another folder"
        raise OutputError(f"{path} cannot be written ({reason}); {remedy}") from error


def check_folder(path: Path, *, replaceable: str) -> None:
    """Refuse an output folder that `new_folder` would refuse, before any work is done.

    Raises:
        OutputError: `path` is a file, holds something else than an earlier result, or cannot be written.
    """
    with writing(path):
        path = _resolve(path)
        if path.is_dir():
            _check_replaceable(path, replaceable)
        elif path.exists():
            raise FileExistsError
        parent = next(folder for folder in path.parents if folder.exists())
        if not parent.is_dir():
            raise NotADirectoryError
        # Tried, as permissions alone do not tell (a read-only disk, a folder of the system's): hours may depend on it.
        with tempfile.TemporaryDirectory(prefix=".pie-engine.partial-", dir=parent):
            pass


def _resolve(path: Path) -> Path:
    # Through links, so that a result lands on the disk that a link points to. What Python says of a loop, and whether
    # it says anything, depends on its version: the system is asked.
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


def _check_replaceable(path: Path, marker: str) -> None:
    """Replacing deletes, so an earlier result goes only if it holds nothing but the files that its marker lists."""
    if path == Path.cwd() or path in Path.cwd().parents:
        raise OutputError(f"{path} is the current folder or one above it; name a folder below it")
    held = {str(file.relative_to(path)) for file in path.rglob("*") if not file.is_dir() or file.is_symlink()}
    if not held and not any(path.iterdir()):
        return
    if marker not in held:
        raise OutputError(f"{path} is not empty and holds no {marker} of an earlier result; choose another folder")
    try:
        own = {marker, *json.loads((path / marker).read_text())["files"]}
    except (OSError, ValueError, KeyError, TypeError):
        own = {marker}
    if held - own:
        raise OutputError(
            f"{path} holds {min(held - own)}, which is not of the earlier result; move it, or choose another folder"
        )


@contextlib.contextmanager
def new_folder(path: Path, *, replaceable: str) -> Iterator[Path]:
    """A temporary folder beside `path` that takes its place on success and vanishes on failure.

    Args:
        replaceable: name of the JSON file that marks an earlier result of the same kind and lists its files under
            "files": a folder that holds those alone (or is empty) is replaced, any other is left alone.

    Raises:
        OutputError: `path` holds something else, or cannot be written.
    """
    check_folder(path, replaceable=replaceable)
    path = _resolve(path)
    missing = [folder for folder in path.parents if not folder.exists()]
    partial: Path | None = None
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = Path(tempfile.mkdtemp(prefix=f".{path.name[:64]}.partial-", dir=path.parent))
            partial.chmod(0o777 & ~_umask())
            yield partial
            if path.is_dir():
                _check_replaceable(path, replaceable)  # hours may have passed
            _replace(path, partial)
    except BaseException:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)
        for folder in missing:  # the deepest first
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise


def _replace(path: Path, partial: Path) -> None:
    """Give `partial` the name `path`. An exception or a signal leaves the old folder or the new one there."""
    if not path.is_dir():
        partial.rename(path)
        return
    # rename(2) does not replace a non-empty folder; the old one steps aside first.
    aside = Path(tempfile.mkdtemp(prefix=f".{path.name[:64]}.old-", dir=path.parent))
    try:
        path.rename(aside / "old")
        partial.rename(path)
    finally:
        if not path.exists():
            (aside / "old").rename(path)
        shutil.rmtree(aside, ignore_errors=True)


def check_file(path: Path, *, suffix: str) -> None:
    """Refuse a name that `write_file` could not write, before any work is done.

    Args:
        suffix: such as ".json"; a slip of the tongue must not replace a file of another kind.

    Raises:
        OutputError: another suffix, a folder, or a place that cannot be written.
    """
    if path.suffix != suffix:
        raise OutputError(f"{path} does not end in {suffix}; pass another name")
    with writing(path):
        if path.is_dir():
            raise OutputError(f"{path} is a folder; pass the name of a file")
        if not path.parent.is_dir():
            raise OutputError(
                f"{path} cannot be written (there is no folder {path.parent}); make it, or write elsewhere"
            )
        if not os.access(path.parent, os.W_OK | os.X_OK):
            raise PermissionError


def write_file(path: Path, content: str | bytes) -> None:
    """Write a file (text as UTF-8), or leave what was there.

    Raises:
        OutputError: it cannot be written.
    """
    with writing(path):
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name[:64]}.partial-", dir=path.parent)
        partial = Path(name)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content.encode() if isinstance(content, str) else content)
            partial.chmod(0o666 & ~_umask())
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock beside `path` against other processes; the system lifts it when a process dies.

    Raises:
        OutputError: the folder cannot be written.
    """
    import fcntl

    lock = path.with_name(f"{path.name}.lock")
    with writing(lock):
        lock.parent.mkdir(parents=True, exist_ok=True)
        file = lock.open("w")
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def link_or_copy(source: Path, target: Path) -> None:
    """A hard link where the file system has them (weights are large), else a copy."""
    try:
        target.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, target)


def _umask() -> int:
    # Setting it is the only portable way to read it; milliseconds at most, and restored.
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
