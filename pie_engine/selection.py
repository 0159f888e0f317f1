"""Which backend `--backend auto` takes, and why not the ones before it."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pie_engine.config import FLAVOURS
from pie_engine.errors import BackendError, BundleError

if TYPE_CHECKING:
    from pie_engine.bundle import Bundle

log = logging.getLogger(__name__)

# In the order that `auto` tries: compiled engines, PyTorch on a GPU, ONNX Runtime, PyTorch on the processor.
BACKENDS = ("auto", *FLAVOURS, "torch", "onnxruntime")


@dataclass(frozen=True)
class Choice:
    """A backend, and one line that says why.

    Attributes:
        name: one of `BACKENDS`, but "auto".
        why: for provenance and the log.
    """

    name: str
    why: str


def choose_for_bundle(bundle: Bundle, device: str | None) -> Choice:
    """TensorRT's engines if the bundle holds ones for this machine, else ONNX Runtime."""
    import torch

    from pie_engine.backends.tensorrt.backend import check_engines
    from pie_engine.backends.tensorrt.library import import_library

    if device == "cpu":
        return Choice("onnxruntime", "onnxruntime, since --device cpu was asked for")
    if not bundle.engines():
        return Choice("onnxruntime", "onnxruntime; the bundle holds no compiled engines")
    passed: list[str] = []
    for flavour in FLAVOURS:
        if not bundle.engines(flavour):
            passed.append(f"no {flavour} engines in the bundle")
            continue
        try:
            check_engines(bundle, flavour, device_index(device))
            import_library(flavour)
            if not torch.cuda.is_available():
                raise BundleError(f"{flavour} runs on torch's buffers, and torch {torch.__version__} sees no GPU")
        except (BundleError, BackendError) as error:
            reason = str(error).partition("; ")[0]
            log.warning("%s; going on without them", reason)
            passed.append(reason)
        else:
            return Choice(flavour, "; ".join([f"{flavour}; the bundle holds engines for this GPU", *passed]))
    return Choice("onnxruntime", "; ".join(["onnxruntime", *passed]))


def choose_for_checkpoint(device: str | None, dtype: str | None, compile: bool) -> Choice:
    """PyTorch on a GPU, else ONNX Runtime: nothing is compiled unasked, and an export is kept for the next time."""
    import importlib.util

    import torch

    passed = "no engines are compiled unasked (pie-engine build --backend tensorrt does)"
    gpu = torch.cuda.is_available() if device is None else device.startswith("cuda")
    if gpu or compile:
        where = "a GPU" if gpu else "--compile"
        return Choice("torch", f"torch, for {where}; {passed}")
    if dtype == "bf16":
        return Choice("torch", "torch on the processor: onnxruntime has no bf16")
    if importlib.util.find_spec("onnxruntime") is None:
        return Choice("torch", "torch on the processor: onnxruntime is not installed (pip install 'pie-engine[cpu]')")
    return Choice("onnxruntime", f"onnxruntime, the fastest on a processor; {passed}")


def device_index(device: str | None) -> int:
    """The GPU that a device such as "cuda:1" names; 0 for one without a number."""
    return int((device or "").partition(":")[2] or 0)
