"""What to say when memory runs out: how much was needed, and which setting lowers it."""

from __future__ import annotations

import gc
import re

import torch

from pie_engine.backends.host_memory import available_memory, give_back_freed_memory
from pie_engine.errors import BackendError, argument, use


class OutOfMemory(BackendError):
    """A run needed more memory than there was."""


_UNITS = {"bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
# PyTorch (on a GPU and on a processor) and ONNX Runtime: neither has a type of its own for all of its allocators.
_PATTERNS = (
    r"[Tt]ried to allocate ([\d.]+) (bytes|KiB|MiB|GiB)",
    r"Failed to allocate memory for requested buffer of size (\d+)()",
)


def requested_bytes(error: BaseException) -> int | None:
    """Bytes that could not be had, or None if `error` is about something else."""
    for pattern in _PATTERNS:
        found = re.search(pattern, str(error))
        if found:
            return int(float(found[1]) * _UNITS[found[2] or "bytes"])
    return None


def explain(error: BaseException, device: torch.device, *, batch: int, resolution: int, precision: str) -> str | None:
    """One line for an error of a run that is a lack of memory, else None."""
    needed = _needed(error, device)
    if needed is None:
        return None
    remedies = [f"lower {argument('resolution')}"]
    if batch > 1:
        remedies.append("run fewer items at once")
    if precision == "fp32":
        remedies.append(f"use fp16 ({argument('dtype')} or {argument('precision')})")
    items = "one item" if batch == 1 else f"{batch} items"
    return f"out of memory: {items} at {resolution} in {precision} needed {needed}; {', or '.join(remedies)}"


def explain_weights(error: BaseException, device: torch.device, precision: str) -> str | None:
    """One line for an error while weights are loaded that is a lack of memory, else None."""
    needed = _needed(error, device)
    if needed is None:
        return None
    remedy = (
        f"use fp16 ({argument('dtype')} or {argument('precision')})"
        if precision == "fp32"
        else f"pass {use('device', 'cpu')}"
    )
    return f"out of memory: the weights in {precision} needed {needed}; {remedy}"


def free_memory(device: torch.device) -> int | None:
    """Bytes that a run on the device can take, or None where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return available_memory()


def release(device: torch.device) -> None:
    """Give memory that nothing refers to any more back to the device."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
    give_back_freed_memory()


def _needed(error: BaseException, device: torch.device) -> str | None:
    requested = requested_bytes(error)
    if requested is None:
        return None
    needed = f"{requested / 2**30:.2f} GiB more"
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        needed += f" than the {(total - free) / 2**30:.2f} of {total / 2**30:.2f} GiB in use on {device}"
    return needed
