"""Locks between processes, and between the threads of one.

They are the system's own, on files that are removed with them. The kernel lifts a lock when its holder dies, however it
dies and in whatever container, so nothing has to be guessed from process numbers, which are given out again, or from
times. File systems without locks (some network ones) let everybody in at once.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


def hidden(path: Path, what: str) -> Path:
    """A hidden name beside `path`, which tells what it is for; of a long name, a hash."""
    name = path.name
    if len(os.fsencode(name)) > 180:  # file systems take 255 bytes
        name = hashlib.sha256(os.fsencode(name)).hexdigest()[:32]
    return path.with_name(f".{name}.{what}")


def take(lock: Path, *, wait: bool, make: bool = True) -> int | None:
    """Hold a lock: its open descriptor, or None if another holds it and `wait` is False.

    Args:
        make: the file, if there is none.

    Raises:
        OSError: the file cannot be opened; or, without `make`, its file system has no locks. With it, that passes for
            holding one.
    """
    flags = os.O_RDWR | os.O_NOFOLLOW | (os.O_CREAT if make else 0)  # a link may lead to somebody's file
    while True:
        descriptor = os.open(lock, flags, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            os.close(descriptor)
            return None
        except BaseException as error:
            if make and isinstance(error, OSError) and error.errno in _NO_LOCKS:
                return descriptor
            os.close(descriptor)
            raise
        # Its holder removed the file while this one waited for it: that one guards nothing any more.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), lock.stat()):
                return descriptor
        os.close(descriptor)


def release(lock: Path, descriptor: int) -> None:
    """Let the next one have it."""
    with contextlib.suppress(OSError):
        lock.unlink()  # before it is open to others, who then make a new one
    with contextlib.suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_UN)  # a process that forked meanwhile holds the descriptor too
    os.close(descriptor)


@contextlib.contextmanager
def turn(path: Path) -> Iterator[None]:
    """Wait until nobody else looks at, or replaces, what is at `path`; others wait until the block ends.

    Raises:
        OSError: the folder around it cannot be written.
    """
    lock = hidden(path, "turn.lock")
    with holding(lock, take(lock, wait=True)):
        yield


@contextlib.contextmanager
def holding(lock: Path, descriptor: int | None) -> Iterator[None]:
    """Release what `take` gave when the block ends."""
    assert descriptor is not None
    try:
        yield
    finally:
        release(lock, descriptor)
