"""Which backend "auto" takes, and why not the ones before it."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pie_engine import commands
from pie_engine.backends import openvino_session
from pie_engine.config import FLAVOURS
from pie_engine.errors import BackendError, BundleError

if TYPE_CHECKING:
    from pie_engine.model.bundle import Bundle

log = logging.getLogger(__name__)

# In the order that `auto` tries: compiled engines, PyTorch on a GPU, OpenVINO and ONNX Runtime on the processor.
BACKENDS = ("auto", *FLAVOURS, "torch", "openvino", "onnxruntime")
# docs/performance.md; whoever installed it, an extra, wants it.
_FASTEST = "openvino, the fastest at full size on the processor where it was measured"


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
    """TensorRT's engines if the bundle holds ones for this machine, else its graphs: OpenVINO, or ONNX Runtime."""
    import torch

    from pie_engine.backends.tensorrt.backend import check_engines
    from pie_engine.backends.tensorrt.library import import_library

    if device == "cpu":
        return _choose_for_graphs(device, "the processor was asked for")
    if not bundle.engines():
        return _choose_for_graphs(device, "the bundle holds no compiled engines")
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
            reason = error.problem
            log.warning("%s; going on without them", reason)
            passed.append(reason)
        else:
            return Choice(flavour, "; ".join([f"{flavour}; the bundle holds engines for this GPU", *passed]))
    return _choose_for_graphs(device, "; ".join(passed))


def _choose_for_graphs(device: str | None, passed: str) -> Choice:
    if openvino_session.installed() and not _wants_gpu(device):
        return Choice("openvino", f"{_FASTEST}; {passed}")
    return Choice("onnxruntime", f"onnxruntime; {passed}")


def choose_for_checkpoint(device: str | None, dtype: str | None, compile: bool) -> Choice:
    """PyTorch on a GPU, else OpenVINO, else ONNX Runtime, over an export that is kept for the next time.

    Nothing is compiled unasked. In bf16, which ONNX Runtime has not, OpenVINO needs a processor that has it.
    """
    import importlib.util

    passed = f"no engines are compiled unasked ({commands.build(backend='tensorrt')} does)"
    gpu = _wants_gpu(device)
    if gpu or compile:
        return Choice("torch", f"torch, {'for a GPU' if gpu else 'which compiles'}; {passed}")
    if importlib.util.find_spec("onnxruntime") is None:  # every export is compared with PyTorch in it
        return Choice("torch", "torch on the processor: onnxruntime is not installed (pip install 'pie-engine[cpu]')")
    absent = f"openvino is not installed ({openvino_session.INSTALL})"
    if dtype == "bf16":
        return _choose_for_bf16(absent, passed)
    if openvino_session.installed():
        return Choice("openvino", f"{_FASTEST}; {passed}")
    return Choice("onnxruntime", f"onnxruntime, faster than torch on a processor; {absent}; {passed}")


def _choose_for_bf16(absent: str, passed: str) -> Choice:
    if not openvino_session.installed():
        return Choice("torch", f"torch on the processor: onnxruntime has no bf16, and {absent}")
    try:
        openvino_session.check_bf16()
    except BackendError as error:
        reason = error.problem
        return Choice("torch", f"torch on the processor: onnxruntime has no bf16, and {reason}")
    return Choice("openvino", f"{_FASTEST}; {passed}")


def _wants_gpu(device: str | None) -> bool:
    import torch

    return torch.cuda.is_available() if device is None else device.startswith("cuda")


def device_index(device: str | None) -> int:
    """The GPU that a device such as "cuda:1" names; 0 for one without a number."""
    return int((device or "").partition(":")[2] or 0)
