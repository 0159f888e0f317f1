"""The fused operations in C++, for processors: one library of PyTorch's stable ABI, built once for many versions.

It is built with the package where there are a compiler and torch's headers, else by `python -m pie_engine.cpp_ext`.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pie_engine.errors import BackendError

LIBRARY = Path(__file__).with_name("_ops.so")
OLDEST_TORCH = (2, 11)  # what build.py compiles for


@dataclass(frozen=True)
class Operations:
    """The operations as torch knows them; their arguments are those of `pie_engine.kernels`' eager references."""

    denoise_step: Callable[..., None]
    noising: Callable[..., None]


_lock = threading.Lock()


def load() -> Operations:
    """Load the library into torch, once: from then on `torch.ops.pie_engine` has the operations.

    Raises:
        BackendError: the library is not built, or this torch cannot load it.
    """
    with _lock:  # torch refuses to register a fake twice
        return _load()


@functools.cache
def _load() -> Operations:
    import torch

    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < OLDEST_TORCH:
        needed = ".".join(map(str, OLDEST_TORCH))
        raise BackendError(
            f"torch {torch.__version__} is too old for the C++ operations; pip install 'torch>={needed}'"
        )
    if not LIBRARY.exists():
        raise BackendError(f"the C++ operations are not built ({LIBRARY.name}); run python -m pie_engine.cpp_ext")
    try:
        torch.ops.load_library(LIBRARY)
    except OSError as error:
        reason = str(error.__cause__ or error).partition("\n")[0]
        raise BackendError(f"{reason}; build it for this torch with python -m pie_engine.cpp_ext") from error
    operations = torch.ops.pie_engine
    for operation in (operations.denoise_step.default, operations.noising.default):
        # All they do is write into their arguments, which the schema says: there is nothing to make up for a tracer.
        torch.library.register_fake(operation, lambda *args, **kwargs: None)
    return Operations(operations.denoise_step.default, operations.noising.default)
