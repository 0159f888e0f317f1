"""The sections of the GPU check: each tells one JSON object per line, as soon as it has it. See gpu_check.py."""

from __future__ import annotations

import argparse
import faulthandler
import platform
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from pie_engine.benchmarks.gpu_rungs import Rung, emit, run_rungs
from pie_engine.benchmarks.harness.machine import device_name

NO_GPU = 3  # exit code
# How much of what is left of a section one rung may take: a rung that compiles for a minute does not hang.
RUNG_SHARES = {"compiled": 0.85, "batch": 0.8, "parity": 0.75}
PACKAGES = (
    "triton", "diffusers", "transformers", "huggingface_hub", "accelerate", "onnx", "onnxruntime-gpu", "onnxruntime",
    "tensorrt", "tensorrt-rtx", "numpy", "pytest-xdist", "pytest-timeout",
)  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("section", choices=["environment", "tensorrt", *SECTIONS])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--deadline", type=float, default=time.time() + 3600, help="Unix time of the section's end")
    parser.add_argument("--start", type=int, default=0, help="the first rung, where a process goes on for another")
    parser.add_argument("--failed", action="store_true", help="a rung before it failed")
    arguments = parser.parse_args()
    faulthandler.enable(sys.stdout)  # a crash in a library leaves at least where it was called from
    torch.set_grad_enabled(False)
    on_gpu = arguments.device == "cuda"
    if not on_gpu:
        torch.set_num_threads(1)  # tiny tensors gain nothing from more, and lose much on a busy machine
    if on_gpu and not torch.cuda.is_available():
        sys.stdout.write("this machine shows no NVIDIA GPU\n")
        return NO_GPU
    if arguments.start == 0:
        emit(environment=environment(arguments.device))
    if arguments.section == "environment":
        return 0
    if arguments.section == "tensorrt":
        from pie_engine.benchmarks.gpu_tensorrt import check

        return check(arguments.device, emit)
    rungs = SECTIONS[arguments.section](arguments.device)
    share = RUNG_SHARES.get(arguments.section, 0.6) if on_gpu else 1.0
    return run_rungs(rungs, arguments.start, arguments.deadline, share) or int(arguments.failed)


def environment(device: str) -> dict[str, Any]:
    """What this machine is."""
    # torch's own name of its build: a wheel's metadata may lack the CUDA version that it was built for.
    versions: dict[str, str | None] = {"torch": torch.__version__}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    described: dict[str, Any] = {"device": device_name(device), "python": platform.python_version()}
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        described |= {
            "capability": f"{properties.major}.{properties.minor}",
            "memory_gib": round(properties.total_memory / 2**30, 1),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
    return described | {"versions": versions}


def _full_size(device: str) -> list[Rung]:
    from pie_engine.benchmarks import gpu_full
    from pie_engine.benchmarks.gpu_subject import Size

    return gpu_full.rungs(Size(device))


def _parity(device: str) -> list[Rung]:
    from pie_engine.benchmarks import gpu_parity

    return gpu_parity.rungs(device)


def _regional(device: str) -> list[Rung]:
    from pie_engine.benchmarks import gpu_regional
    from pie_engine.benchmarks.gpu_subject import Size

    return gpu_regional.rungs(Size(device))


def _more(name: str) -> Callable[[str], list[Rung]]:
    def rungs(device: str) -> list[Rung]:
        from pie_engine.benchmarks import gpu_more
        from pie_engine.benchmarks.gpu_subject import Size

        rungs: list[Rung] = getattr(gpu_more, name)(Size(device))
        return rungs

    return rungs


SECTIONS: dict[str, Callable[[str], list[Rung]]] = {
    "full_size": _full_size,
    "parity": _parity,
    "regional": _regional,
    **{name: _more(name) for name in ("kernels", "compiled", "batch", "eager_fp32")},
}

if __name__ == "__main__":
    sys.exit(main())
