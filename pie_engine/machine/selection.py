"""Which backend "auto" takes, and why not the ones before it; what a backend that was asked for comes to."""

from __future__ import annotations

import importlib.util
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pie_engine.backends import onnx_session, openvino_session
from pie_engine.backends.gpu import probe
from pie_engine.backends.tensorrt import library
from pie_engine.backends.tensorrt.backend import check_engines
from pie_engine.config import FLAVOURS
from pie_engine.errors import BackendError, BundleError, use

if TYPE_CHECKING:
    from pie_engine.config import Placement
    from pie_engine.model.bundle import Bundle

# torch is imported in functions here: `pie-engine doctor` reads this module where torch is broken, to say so.

log = logging.getLogger(__name__)

# docs/performance.md
_OPENVINO = "openvino, the faster one on a processor with AVX-512, and the one with bf16"
_ONNX_RUNTIME = "onnxruntime, level with openvino on a processor without AVX-512, in two thirds of the memory"
_HALF = "in fp16, the default on a GPU, and again in fp32 where that is not finite (dtype fp32: all of it)"
_NO_RUNTIME = "torch on the processor: onnxruntime is not installed (pip install 'pie-engine[cpu]')"


@dataclass(frozen=True)
class Choice:
    """A backend, and one line that says why.

    Attributes:
        name: one of `pie_engine.config.BACKENDS`, but "auto".
        why: for provenance and the log.
        dtype: what torch computes in; None for other backends.
    """

    name: str
    why: str
    dtype: str | None = None


def choose_for_bundle(bundle: Bundle, placement: Placement) -> Choice:
    """TensorRT's engines if the bundle holds ones for this GPU, else PyTorch there, else ONNX Runtime there.

    The processor, where its graphs run in OpenVINO or ONNX Runtime, only if it is asked for or torch sees no GPU.

    Raises:
        BackendError: there is a GPU, and nothing runs the bundle on it.
    """
    precision = bundle.precision
    if placement.runtime.compile:
        return _torch("for torch.compile", placement, precision)
    if placement.device == "cpu":
        return _choose_on_processor(bundle, placement, "device cpu was asked for")
    flavour, passed = _choose_engines(bundle, placement)
    if flavour is not None:
        return Choice(flavour, "; ".join([f"{flavour}; the bundle holds engines for this GPU", *passed]))
    if not wants_gpu(placement.device):
        return _choose_on_processor(bundle, placement, "; ".join([*passed, *_unused_gpu()]))
    if not bundle.unknown_models:
        return _torch("for a GPU", placement, precision, *passed)
    _pass_over(f"the bundle holds no configuration of {', '.join(bundle.unknown_models)} for torch", passed, "torch")
    try:
        onnx_session.check_cuda_provider()
    except BackendError as error:
        passed.append(_reason(error))
        raise BackendError(
            f"nothing runs bundle {bundle.path} on this machine's GPU ({'; '.join(passed)}); "
            f"rebuild it: {bundle.build_command()}, or pass {use('device', 'cpu')}"
        ) from None
    return Choice("onnxruntime", "; ".join(["onnxruntime, for a GPU", *passed]))


def _choose_engines(bundle: Bundle, placement: Placement) -> tuple[str | None, list[str]]:
    """The flavour whose engines run here, or None, and why not the ones before it."""
    import torch

    if not bundle.engines():
        return None, ["the bundle holds no compiled engines"]
    if placement.dtype not in (None, bundle.precision):
        return None, [f"the bundle's engines are in {bundle.precision}"]
    passed: list[str] = []
    for flavour in FLAVOURS:
        if not bundle.engines(flavour):
            passed.append(f"no {flavour} engines in the bundle")
            continue
        try:
            check_engines(bundle, flavour, device_index(placement.device))
            library.import_library(flavour)
            if not torch.cuda.is_available():
                raise BundleError(f"{flavour} runs on torch's buffers, and torch {torch.__version__} sees no GPU")
        except (BundleError, BackendError) as error:
            _pass_over(_reason(error), passed)
        else:
            return flavour, passed
    return None, passed


def _pass_over(reason: str, passed: list[str], what: str = "them") -> None:
    log.warning("%s; going on without %s", reason, what)
    passed.append(reason)


def _choose_on_processor(bundle: Bundle, placement: Placement, passed: str) -> Choice:
    dtype, runtime = placement.dtype or bundle.precision, importlib.util.find_spec("onnxruntime") is not None
    if openvino_session.installed():
        return _choose_graphs(dtype, passed) if runtime else Choice("openvino", f"{_OPENVINO}; {passed}")
    if not runtime and not bundle.unknown_models:
        return Choice("torch", f"{_NO_RUNTIME}; {passed}", dtype)
    return Choice("onnxruntime", f"onnxruntime; {passed}")


def _choose_graphs(dtype: str, passed: str) -> Choice:
    """OpenVINO where it is worth its memory, or ONNX Runtime, which computes in half precision on no processor."""
    if dtype != "fp32" or _has_avx512():
        return Choice("openvino", f"{_OPENVINO}; {passed}")
    return Choice("onnxruntime", f"{_ONNX_RUNTIME}; {passed}")


def _has_avx512() -> bool:
    import torch

    return torch.backends.cpu.get_cpu_capability().startswith("AVX512")


def choose_for_checkpoint(placement: Placement) -> Choice:
    """PyTorch on a GPU, else OpenVINO or ONNX Runtime by the processor, over an export that is kept for the next time.

    Nothing is compiled unasked. In bf16, which ONNX Runtime has not, OpenVINO needs a processor that has it.
    """
    passed = ["no engines are compiled unasked (pie-engine build --backend tensorrt does)"]
    gpu, dtype = wants_gpu(placement.device), placement.dtype
    if gpu or placement.runtime.compile:
        return _torch("for a GPU" if gpu else "for torch.compile", placement, "fp32", *passed)
    passed += [] if placement.device == "cpu" else _unused_gpu()
    if importlib.util.find_spec("onnxruntime") is None:  # every export is compared with PyTorch in it
        return Choice("torch", _NO_RUNTIME, dtype or "fp32")
    absent = f"openvino is not installed ({openvino_session.INSTALL})"
    if dtype == "bf16":
        return _choose_for_bf16(absent, "; ".join(passed))
    if openvino_session.installed():
        return _choose_graphs(dtype or "fp32", "; ".join(passed))
    return Choice("onnxruntime", "; ".join(["onnxruntime, faster than torch on a processor", absent, *passed]))


def _choose_for_bf16(absent: str, passed: str) -> Choice:
    if not openvino_session.installed():
        return Choice("torch", f"torch on the processor: onnxruntime has no bf16, and {absent}", "bf16")
    try:
        openvino_session.check_bf16()
    except BackendError as error:
        return Choice("torch", f"torch on the processor: onnxruntime has no bf16, and {_reason(error)}", "bf16")
    return Choice("openvino", f"{_OPENVINO}; {passed}")


def choose_by_name(placement: Placement, precision: str = "fp32") -> Choice:
    """The backend that was asked for by its name.

    Args:
        precision: a bundle's; a checkpoint's is fp32.

    Raises:
        BackendError: it is onnxruntime, which is not installed.
    """
    backend = placement.backend
    if backend == "torch":
        return _torch("as asked", placement, precision)
    if backend == "onnxruntime" and placement.device is None and wants_gpu(None):
        try:
            onnx_session.check_cuda_provider()
        except BackendError as error:
            why = f"onnxruntime, as asked, and on the processor though there is a GPU: {_reason(error)}"
            return Choice(backend, f"{why} (pip install 'pie-engine[gpu]')")
    return Choice(backend, f"{backend}, as asked")


def _torch(reason: str, placement: Placement, precision: str, *passed: str) -> Choice:
    """PyTorch, in half precision on a GPU unless it is told otherwise."""
    half = placement.dtype is None and wants_gpu(placement.device)
    why = "; ".join([f"torch, {reason}", *([_HALF] if half else []), *passed])
    return Choice("torch", why, "fp16" if half else placement.dtype or precision)


def wants_gpu(device: str | None) -> bool:
    """Whether a device is a GPU; None is one where torch sees one."""
    import torch

    return torch.cuda.is_available() if device is None else device.startswith("cuda")


def _unused_gpu() -> list[str]:
    """Why a GPU of this machine is not used, where torch does not see it."""
    import torch

    try:
        gpus = probe().gpus
    except Exception:  # broken libraries raise what they like; doctor says so
        return []
    passed: list[str] = []
    if gpus and not torch.cuda.is_available():
        reason = f"torch {torch.__version__} cannot use {gpus[0].name} (pie-engine doctor says why)"
        _pass_over(reason, passed, "it")
    return passed


def device_index(device: str | None) -> int:
    """The GPU that a device such as "cuda:1" names; 0 for one without a number."""
    return int((device or "").partition(":")[2] or 0)


def _reason(error: Exception) -> str:
    return str(error).partition("; ")[0]
