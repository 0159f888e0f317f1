"""Whether an engine runs on this machine, told from its manifest before a byte of it is given to a library."""

from __future__ import annotations

from typing import Any

from pie_engine.backends.gpu import numbers, probe
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
    if numbers(version)[:3] != numbers(entry["version"])[:3]:  # plans are not promised to load across releases
        return f"it was compiled by {flavour} {entry['version']}, and {version} is installed"
    machine = probe()
    if not machine.gpus:
        return f"this machine shows no GPU ({machine.reason})"
    if index >= len(machine.gpus):
        return f"this machine has no GPU {index}"
    gpu = machine.gpus[index]
    # TensorRT chooses kernels for one model of GPU: another of the same capability may lack their resources.
    same_model = entry["flavour"] == "tensorrt-rtx" or gpu.name == entry["gpu"]
    if gpu.capability not in entry["capabilities"] or not same_model:
        return f"it was compiled for {describe_target(entry)}, and {gpu.name} has {gpu.capability}"
    floor = entry["driver_floor"]
    if not machine.serves(floor):
        return f"it needs a driver for CUDA {floor} or later, and this one serves {machine.driver}"
    return None


def describe_target(entry: dict[str, Any]) -> str:
    """What an engine was compiled for, in words."""
    capabilities = "compute capability " + ", ".join(entry["capabilities"])
    return f"{entry['gpu']} ({capabilities})" if entry["flavour"] == "tensorrt" else capabilities


def buckets(entries: list[dict[str, Any]]) -> str:
    """The shapes of engines in words, for messages: "512, 768 pixels, batch 1, 4"."""
    resolutions = sorted({side for entry in entries for side in entry["resolutions"]})
    batches = sorted({batch for entry in entries for batch in entry["batches"]})
    return f"{', '.join(map(str, resolutions))} pixels, batch {', '.join(map(str, batches))}"
