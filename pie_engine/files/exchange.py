"""Two names change places in one step, where the system can."""

from __future__ import annotations

import errno
import functools
import os
from collections.abc import Callable
from pathlib import Path

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
# The kernel, or the file system, does not have it.
_NOT_HERE = (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP)


def exchange(one: Path, other: Path) -> bool:
    """Give each the other's name at once: at no moment is one of the names free. False, and nothing done, if it cannot.

    Raises:
        OSError: the system refuses.
    """
    call = _renameat2()
    if call is None:
        return False
    number = call(os.fsencode(one), os.fsencode(other))
    if number in _NOT_HERE:
        return False
    if number:
        raise OSError(number, os.strerror(number), str(one), None, str(other))
    return True


@functools.cache
def _renameat2() -> Callable[[bytes, bytes], int] | None:
    """The system's call, of two paths to an error's number; None where there is none."""
    import ctypes  # here: what only reads needs none of it

    try:
        function = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):  # no such library, or an old one
        return None
    function.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint]

    def call(one: bytes, other: bytes) -> int:
        return ctypes.get_errno() if function(_AT_FDCWD, one, _AT_FDCWD, other, _RENAME_EXCHANGE) else 0

    return call
