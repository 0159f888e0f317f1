"""What is installed here, and what of it is missing, too old or broken; told without importing what is heavy."""

from __future__ import annotations

import importlib
import os
import platform
import re
import shutil
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires
from typing import Any

from pie_engine import __version__
from pie_engine.backends.gpu import numbers
from pie_engine.backends.tensorrt import library
from pie_engine.backends.tensorrt.library import first_line
from pie_engine.config import FLAVOURS
from pie_engine.files import cache_root
from pie_engine.packages import installed

# They all install the module `onnxruntime`.
ONNXRUNTIME_PACKAGES = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-openvino")


@dataclass(frozen=True)
class Problem:
    """What keeps something from running here.

    Attributes:
        what: in words.
        remedy: a command, or what to do.
    """

    what: str
    remedy: str


def versions() -> dict[str, str | None]:
    """Version of everything that decides what runs; None for what is not installed."""
    by_package: dict[str, str | None] = {"pie-engine": __version__, "Python": platform.python_version()}
    for name in ("torch", "diffusers", "transformers", "onnx"):
        by_package[name] = installed(name)
    by_package["onnxruntime"] = next((installed(name) for name in onnxruntime_packages()), None)
    by_package["openvino"] = installed("openvino")
    for flavour in FLAVOURS:
        try:
            by_package[flavour] = library.installed_version(flavour)
        except Exception:  # a system package tells its version only when it is imported, and may be broken
            by_package[flavour] = installed(flavour)
    by_package["cuda-python"] = installed("cuda-python") or installed("cuda-bindings")
    by_package["triton"] = installed("triton") or installed("triton-windows")
    return by_package


def onnxruntime_packages() -> list[str]:
    """The packages that brought ONNX Runtime; more than one overwrite each other."""
    return [name for name in ONNXRUNTIME_PACKAGES if installed(name)]


def onnxruntime_providers() -> list[str]:
    """What the installed ONNX Runtime was built for; empty where it is not installed or does not load."""
    if import_failure("onnxruntime") is not None:
        return []
    return list(importlib.import_module("onnxruntime").get_available_providers())


def import_failure(module: str) -> str | None:
    """Why a module cannot be imported, or None if it can."""
    try:
        importlib.import_module(module)
    except Exception as error:  # a broken library raises what it likes
        return first_line(error)
    return None


def check_requirements() -> tuple[list[Problem], list[Problem]]:
    """What nothing runs without, and what is installed but older than pie-engine asks for."""
    broken: list[Problem] = []
    old: list[Problem] = []
    for line in _requirements():
        match = re.match(r"([\w.-]+)\s*>=\s*([\d.]+)", line)
        if match is None or re.search(r"extra == .(test|lint)\b", line):
            continue
        name, oldest = match.groups()
        here, remedy = installed(name), f"pip install '{name}>={oldest}'"
        if here is None and "extra ==" not in line:
            broken.append(Problem(f"{name} is not installed", remedy))
        elif here is not None and numbers(here) < numbers(oldest):
            lack = Problem(f"{name} {here} is too old ({oldest} or later needed)", remedy)
            old += [] if lack in old else [lack]  # several extras name the same package
    reason = import_failure("torch")
    if reason is not None and not any(lack.what.startswith("torch ") for lack in broken):
        broken.append(Problem(f"torch does not load ({reason})", "pip install --force-reinstall torch"))
    return broken, old


def _requirements() -> list[str]:
    try:
        return requires("pie-engine") or []
    except PackageNotFoundError:  # run from its sources
        return []


def processor_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cache_facts() -> dict[str, Any]:
    """The cache folder, whether it can be written or made, and the free space of its disk."""
    folder = cache_root().absolute()
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    return {
        "folder": str(folder),
        "writable": existing.is_dir() and os.access(existing, os.W_OK | os.X_OK),
        "free_bytes": shutil.disk_usage(existing).free,
    }
