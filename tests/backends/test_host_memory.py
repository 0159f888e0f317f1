"""What PyTorch frees on a processor stays with the process: the next tensor is not cleared page by page."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from pie_engine.backends.host_memory import available_memory

LARGE = 64 * 2**20
# Page faults of ten large tensors, one after the other, once one of their size was there.
FAULTS = """
import resource, sys
import numpy as np
from pie_engine.backends import host_memory
kept = host_memory.keep_freed_memory()
def fill():
    np.empty(int(sys.argv[1]), np.uint8).fill(1)
fill()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    fill()
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
def resident():
    return int(open("/proc/self/statm").read().split()[1])
held = resident()
host_memory.give_back_freed_memory()
print(kept, faults, held - resident())
"""


def faults(**environment: str) -> tuple[bool, int, int]:
    """Whether memory is kept, page faults, and pages that are given back in the end."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_TUNABLES"))}
    done = subprocess.run(
        [sys.executable, "-c", FAULTS, str(LARGE)],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
        env=own | environment,
    )
    kept, count, given_back = done.stdout.split()
    return kept == "True", int(count), int(given_back)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library than glibc")
def test_what_is_freed_is_kept_until_it_is_given_back() -> None:
    pages = LARGE // os.sysconf("SC_PAGE_SIZE")
    kept, count, given_back = faults()
    assert kept and count < pages / 10 and given_back > pages / 2
    # Whoever says what malloc is to do has the last word.
    kept, _, _ = faults(MALLOC_TRIM_THRESHOLD_="131072")
    assert not kept
    kept, _, _ = faults(GLIBC_TUNABLES="glibc.malloc.mmap_max=65536")
    assert not kept


def test_available_memory() -> None:
    free = available_memory()
    assert free is None or free > 2**20
