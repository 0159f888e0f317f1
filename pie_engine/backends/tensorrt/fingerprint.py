"""Whether an engine runs on this machine, told from its manifest before a byte of it is given to a library."""

from __future__ import annotations

from typing import Any

from pie_engine.backends.gpu import Gpu, numbers, probe
from pie_engine.backends.tensorrt import library


def obstacle(entry: dict[str, Any], index: int = 0) -> str | None:
    """Why an engine of a bundle cannot be loaded here, or None if its fingerprint matches.

    Args:
        entry: one of `manifest["engines"]`.
        index: the GPU that it is to run on.
    """
    flavour = entry["flavour"]
    version = library.installed_version(flavour)
    if version is None:
        return f"{flavour} is not installed ({library.install_command(flavour)})"
    if not same_release(version, entry["version"]):
        return f"it was compiled by {flavour} {entry['version']}, and {version} is installed"
    machine = probe()
    if not machine.gpus:
        return f"this machine shows no GPU ({machine.reason})"
    if index >= len(machine.gpus):
        return f"this machine has no GPU {index}"
    if not runs_on(entry, machine.gpus[index]):
        gpu = machine.gpus[index]
        return f"it was compiled for {describe_target(entry)}, and {gpu.name} has {gpu.capability}"
    floor = entry["driver_floor"]
    if not machine.serves(floor):
        return f"it needs a driver for CUDA {floor} or later, and this one serves {machine.driver}"
    return None


def runs_on(entry: dict[str, Any], gpu: Gpu) -> bool:
    """Whether an engine's compute capabilities, or its compatibility level, take this GPU in."""
    level = entry["hardware_compatibility"]
    if level == "ampere-plus":
        return numbers(gpu.capability) >= (8, 0)
    if level == "same-compute-capability" or entry["flavour"] == "tensorrt-rtx" or entry["gpu"] is None:
        return gpu.capability in entry["capabilities"]
    # TensorRT chooses kernels for one model of GPU: another of the same capability may lack their resources.
    return gpu.capability in entry["capabilities"] and gpu.name == entry["gpu"]


def describe_target(entry: dict[str, Any]) -> str:
    """What an engine was compiled for, in words."""
    if entry["hardware_compatibility"] == "ampere-plus":
        return "compute capability 8.0 and above"
    capabilities = "compute capability " + ", ".join(entry["capabilities"])
    bound = entry["flavour"] == "tensorrt" and entry["hardware_compatibility"] == "none" and entry["gpu"]
    return f"{entry['gpu']} ({capabilities})" if bound else capabilities


def buckets(entries: list[dict[str, Any]]) -> str:
    """The shapes of engines in words, for messages: "512, 768 pixels, batch 1, 4"."""
    resolutions = sorted({side for entry in entries for side in entry["resolutions"]})
    batches = sorted({batch for entry in entries for batch in entry["batches"]})
    return f"{', '.join(map(str, resolutions))} pixels, batch {', '.join(map(str, batches))}"


def same_release(version: str, other: str) -> bool:
    """Whether two versions share major, minor and patch: plans are not promised to load across those."""
    return numbers(version)[:3] == numbers(other)[:3]
