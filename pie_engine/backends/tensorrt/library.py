"""One shim over `tensorrt` and `tensorrt_rtx`: installed or not, which version, imported only when it is needed.

Written to TensorRT 11 (strongly typed networks: precision lies in the ONNX graph); 10.16 and later are accepted.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
from importlib.metadata import PackageNotFoundError, requires, version
from typing import Any

from pie_engine.backends.gpu import Gpu, numbers, probe
from pie_engine.errors import BackendError, use

_MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
_OLDEST = {"tensorrt": (10, 16), "tensorrt-rtx": (1, 4)}
# What tensorrt-rtx 1.7 builds for; its enumeration holds more names than these on some platforms.
RTX_CAPABILITIES = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")


def install_command(flavour: str) -> str:
    return f"pip install 'pie-engine[{flavour}]'"


def installed_version(flavour: str) -> str | None:
    """The version that is installed, without importing it; None if it is not."""
    if importlib.util.find_spec(_MODULES[flavour]) is None:
        return None
    try:
        return version(_MODULES[flavour])
    except PackageNotFoundError:  # from a system package, which carries no metadata
        return getattr(importlib.import_module(_MODULES[flavour]), "__version__", None)


def import_library(flavour: str) -> Any:
    """The module of a flavour.

    Raises:
        BackendError: not installed, its libraries do not load, or too old; with the command that installs it.
    """
    try:
        library = importlib.import_module(_MODULES[flavour])
    except ImportError as error:
        reason = "is not installed" if error.name == _MODULES[flavour] else f"does not load ({first_line(error)})"
        raise BackendError(
            f"backend '{flavour}' {reason}; {install_command(flavour)}, or pass {use('backend', 'onnxruntime')}",
            field="backend",
            value=flavour,
        ) from None
    if numbers(library.__version__)[:2] < _OLDEST[flavour]:
        oldest = ".".join(map(str, _OLDEST[flavour]))
        raise BackendError(
            f"{flavour} {library.__version__} is too old ({oldest} or later needed); {install_command(flavour)}"
        )
    return library


def require_gpu(flavour: str, index: int = 0) -> Gpu:
    """The GPU that an engine is to run on. Without a driver, touching the library's runtime can kill the process.

    Raises:
        BackendError: this machine shows no GPU, or not that one.
    """
    machine = probe()
    if not machine.gpus:
        raise BackendError(
            f"backend '{flavour}' runs on an NVIDIA GPU and this machine shows none ({machine.reason}); "
            f"pass {use('backend', 'onnxruntime')}",
            field="backend",
            value=flavour,
        )
    if index >= len(machine.gpus):
        raise BackendError(
            f"device 'cuda:{index}' is not one of {len(machine.gpus)} GPUs; pass {use('device', 'cuda:0')}",
            field="device",
            value=f"cuda:{index}",
            limit=f"cuda:0 to cuda:{len(machine.gpus) - 1}",
        )
    return machine.gpus[index]


def driver_floor(flavour: str) -> str | None:
    """The oldest CUDA version that a driver must serve, "13.0" for a build against CUDA 13; None if not known."""
    pattern = re.compile(rf"{_MODULES[flavour]}[-_]cu(\d+)", re.IGNORECASE)
    try:  # what the installed package stands for; another CUDA's may be left over beside it
        names = requires(_MODULES[flavour]) or []
    except PackageNotFoundError:
        names = []
    majors = [found[1] for name in names if (found := pattern.match(name))]
    return f"{max(map(int, majors))}.0" if majors else None


def make_logger(library: Any, errors: list[str]) -> Any:
    """A logger that collects errors; it must outlive what is made with it."""

    class Collector(library.ILogger):
        def __init__(self) -> None:
            library.ILogger.__init__(self)

        def log(self, severity: Any, text: str) -> None:
            if severity.name in ("INTERNAL_ERROR", "ERROR"):
                errors.append(text)

    return Collector()


def first_line(error: BaseException) -> str:
    """An error's message, for a sentence."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
