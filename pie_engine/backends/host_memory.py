"""How much memory the machine has to give, and whether the process keeps what it has been given."""

from __future__ import annotations

import ctypes
import functools
import os
from pathlib import Path
from typing import Any

# glibc's numbers of what `mallopt` sets: from how many free bytes on the end of the heap is given back, how many more
# than needed are asked for, and how many blocks may be mapped by themselves.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
_KEPT_BYTES, _PAD_BYTES = 2**31 - 1, 2**28
_OWN_WORDS = ("MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_")


@functools.cache
def keep_freed_memory() -> bool:
    """Have the C library keep up to 2 GB that are freed for whoever asks next, once for the process.

    Without, glibc maps every large tensor by itself and hands it back when it is freed, and the system clears the next
    one page by page: a fifth of PyTorch's time on a processor.

    Returns:
        Whether it does: not where the C library is another, or where the environment says what it is to do.
    """
    if any(word in os.environ for word in _OWN_WORDS) or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return False
    mallopt = _glibc("mallopt")
    if mallopt is None:
        return False
    values = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, _KEPT_BYTES), (_TOP_PAD, _PAD_BYTES))
    return all(mallopt(what, value) == 1 for what, value in values)


def give_back_freed_memory() -> None:
    """Hand what is kept back to the system, where the C library can."""
    trim = _glibc("malloc_trim")
    if trim is not None:
        trim(0)


def _glibc(name: str) -> Any:
    """A function of glibc, or None where the process runs on another C library."""
    try:
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version  # noqa: B018
        return getattr(library, name)
    except (OSError, AttributeError, TypeError):
        return None


def available_memory() -> int | None:
    """Bytes of host memory that a new program can take, or None where the system does not say."""
    return proc_bytes("/proc/meminfo", "MemAvailable")


def proc_bytes(file: str, field: str) -> int | None:
    """A field of a file below /proc, in bytes; None where there is none."""
    try:
        lines = Path(file).read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), None)
