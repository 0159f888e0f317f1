"""How much memory the machine has to give."""

from __future__ import annotations

from pathlib import Path


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
