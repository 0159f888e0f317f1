"""Which NVIDIA GPUs this machine shows, asked without touching a library that needs one."""

from __future__ import annotations

import functools
import importlib.util
import re
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Gpu:
    """One GPU.

    Attributes:
        index: its number, as in "cuda:0".
        name: as its driver gives it.
        capability: compute capability, such as "8.6".
        memory: bytes.
    """

    index: int
    name: str
    capability: str
    memory: int


@dataclass(frozen=True)
class Machine:
    """What a machine shows of its GPUs.

    Attributes:
        gpus: in the driver's order.
        driver: newest CUDA version that the driver serves, such as "13.0", or an empty string.
        reason: why there is no GPU, or an empty string.
    """

    gpus: tuple[Gpu, ...]
    driver: str
    reason: str

    def serves(self, floor: str | None) -> bool:
        """Whether the driver is new enough for a CUDA version; true where either is not known."""
        return not floor or not self.driver or numbers(self.driver) >= numbers(floor)


@functools.cache
def probe() -> Machine:
    """Ask the CUDA runtime (cuda-python), or PyTorch where cuda-python is not installed."""
    if importlib.util.find_spec("cuda") is not None:
        try:
            found = _ask_runtime()
        except ImportError:  # an older cuda-python, or one that is broken
            return _ask_torch()
        # A cuda-python that is newer than the driver sees no GPU, which an older build of torch may well use.
        if found.gpus or not found.driver:
            return found
        by_torch = _ask_torch()
        return replace(by_torch, driver=found.driver) if by_torch.gpus else found
    return _ask_torch()


def version_of(number: int) -> str:
    """CUDA's way of writing a version, 13020, as "13.2"."""
    return f"{number // 1000}.{number % 1000 // 10}"


def numbers(text: str) -> tuple[int, ...]:
    """A version's release as numbers: (2, 13, 0) for "2.13.0+cpu"."""
    found = re.match(r"\d+(\.\d+)*", text)
    return tuple(int(part) for part in found[0].split(".")) if found else ()


def _ask_runtime() -> Machine:
    from cuda.bindings import runtime

    def ask(result: tuple) -> int:
        error, *values = result
        return int(values[0]) if int(error) == 0 and values else 0

    driver = ask(runtime.cudaDriverGetVersion())
    count = ask(runtime.cudaGetDeviceCount())
    if not count:
        return Machine((), version_of(driver) if driver else "", "no GPU" if driver else "no NVIDIA driver")
    attribute = runtime.cudaDeviceAttr
    gpus = []
    for index in range(count):
        major = ask(runtime.cudaDeviceGetAttribute(attribute.cudaDevAttrComputeCapabilityMajor, index))
        minor = ask(runtime.cudaDeviceGetAttribute(attribute.cudaDevAttrComputeCapabilityMinor, index))
        properties = runtime.cudaGetDeviceProperties(index)[1]
        name = properties.name.decode(errors="replace").rstrip("\0")
        gpus.append(Gpu(index, name, f"{major}.{minor}", int(properties.totalGlobalMem)))
    return Machine(tuple(gpus), version_of(driver), "")


def _ask_torch() -> Machine:
    import torch

    if torch.version.cuda is None:
        return Machine((), "", "cuda-python is not installed and this torch was built without CUDA")
    if not torch.cuda.is_available():
        return Machine((), "", "no GPU that torch can use")
    gpus = []
    for index in range(torch.cuda.device_count()):
        found = torch.cuda.get_device_properties(index)
        gpus.append(Gpu(index, found.name, f"{found.major}.{found.minor}", found.total_memory))
    return Machine(tuple(gpus), "", "")  # the driver serves what torch was built for, and may serve more
