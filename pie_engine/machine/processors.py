"""How many processors this process may use: those it is bound to, and what its container's quota comes to."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")


def usable_processors() -> int:
    """At least 1."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([bound, *(math.ceil(quota) for quota in _quotas())]))


def _quotas() -> Iterator[float]:
    """Processors' worth of time that each of this process's control groups may take."""
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, name = line.split(":", 2)
        if controllers == "":  # version 2
            top, file = _CGROUPS, "cpu.max"
        elif "cpu" in controllers.split(","):
            top, file = _CGROUPS / "cpu", "cpu.cfs_quota_us"
        else:
            continue
        # Within a container, the group's name may be the one that it has outside.
        group = top / name.lstrip("/")
        for folder in [place for place in (group, *group.parents) if place.is_relative_to(top)]:
            with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
                yield from _quota(folder / file)


def _quota(file: Path) -> Iterator[float]:
    quota, _, period = file.read_text(encoding="ascii").strip().partition(" ")  # "max 100000" or "150000 100000"
    period = period or file.with_name("cpu.cfs_period_us").read_text(encoding="ascii")
    if quota != "max" and int(quota) > 0:  # version 1 says -1
        yield int(quota) / int(period)
