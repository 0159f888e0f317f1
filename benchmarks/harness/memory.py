"""Peaks of memory of this process, from one moment to another."""

from __future__ import annotations

import contextlib
import resource
import sys
from pathlib import Path


class Peaks:
    """Starts to watch when it is made.

    Host memory is the resident set, which counts pages of mapped files too. Device memory is what torch's allocator
    held at most; where another library allocates for itself, the fall of the device's free memory since then is added.
    """

    def __init__(self, device: str):
        self._device = device
        self._free = 0
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # Linux: forget the peak so far
        if device != "cpu":
            import torch

            torch.cuda.reset_peak_memory_stats(device)
            self._reserved = torch.cuda.memory_reserved(device)
            self._free = torch.cuda.mem_get_info(device)[0]

    def host(self) -> int:
        """Bytes at most since then; where the system cannot forget (not Linux), since the process began."""
        with contextlib.suppress(OSError, StopIteration):
            lines = Path("/proc/self/status").read_text().splitlines()
            return 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmHWM")))
        unit = 1 if sys.platform == "darwin" else 1024
        return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def device(self) -> int:
        """Bytes of device memory at most; 0 on a processor."""
        if self._device == "cpu":
            return 0
        import torch

        grown = torch.cuda.memory_reserved(self._device) - self._reserved
        elsewhere = self._free - torch.cuda.mem_get_info(self._device)[0] - grown
        return torch.cuda.max_memory_allocated(self._device) + max(0, elsewhere)
