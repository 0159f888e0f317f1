"""OpenVINO: installed or not, one compiled model per graph, and torch tensors bound to it without copies."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pie_engine.backends.graph_backend import check_names
from pie_engine.backends.tensorrt.library import first_line
from pie_engine.errors import BackendError, use

if TYPE_CHECKING:
    from torch import Tensor

INSTALL = "pip install 'pie-engine[openvino]'"
_HINTS = {"fp32": "f32", "bf16": "bf16"}
_TORCH = {"f32": "float32", "i64": "int64"}
_REPORTER = "openvino_telemetry"
_importing = threading.Lock()


def installed() -> bool:
    """Whether OpenVINO is there, told without importing it."""
    return importlib.util.find_spec("openvino") is not None


def import_openvino() -> Any:
    """The module, kept from reporting over the network that it was imported.

    Raises:
        BackendError: not installed, or its libraries do not load; with the command that installs it.
    """
    with _importing:
        first = "openvino" not in sys.modules
        reporter = sys.modules.get(_REPORTER)
        try:
            if first:
                # OpenVINO sends an event when it is imported, unless somebody has objected before. Where this package
                # cannot be imported, it does without.
                sys.modules[_REPORTER] = None  # type: ignore[assignment]
            return importlib.import_module("openvino")
        except ImportError as error:
            reason = "is not installed" if error.name == "openvino" else f"does not load ({first_line(error)})"
            raise BackendError(
                f"backend 'openvino' {reason}; {INSTALL}, or pass {use('backend', 'onnxruntime')}",
                field="backend",
                value="openvino",
            ) from None
        finally:
            if first:
                del sys.modules[_REPORTER]
                if reporter is not None:
                    sys.modules[_REPORTER] = reporter


def capabilities() -> tuple[str, ...]:
    """What OpenVINO finds that this processor computes in, such as "FP32" and "BF16". Raises BackendError."""
    return tuple(_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"))


def check_bf16() -> None:
    """Raises BackendError where this processor has no bf16: OpenVINO would compute in fp32 without a word."""
    found = capabilities()
    if "BF16" not in found:
        raise BackendError(
            f"this processor has no bf16 (OpenVINO finds {', '.join(found)}); pass {use('dtype', 'fp32')}, or "
            f"{use('backend', 'torch')}",
            field="dtype",
            value="bf16",
        )


@functools.cache
def _core() -> Any:
    return import_openvino().Core()


def open_graph(path: Path, names: tuple[str, ...], *, precision: str, threads: int | None) -> Any:
    """One graph, compiled for the processor with inputs and outputs of float32 (ids: int64) and its own dynamic shapes.

    Args:
        names: what the graph takes and gives, in order.
        precision: "fp32" or "bf16", of its arithmetic, whatever its weights were rounded to.

    Raises:
        BackendError: OpenVINO is not installed, or cannot run this graph in this precision.
    """
    ov = import_openvino()
    options: dict[str, Any] = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": _HINTS[precision],  # left out, it is bf16 wherever the processor has that
    }
    if threads is not None:
        options["INFERENCE_NUM_THREADS"] = threads
    try:
        model = _core().read_model(path)
        check_names(path, names, _names(names, (*model.inputs, *model.outputs)))
        compiled = _core().compile_model(_in_single_precision(ov, model), "CPU", options)
    except BackendError:
        raise
    except Exception as error:  # OpenVINO's exceptions share no other base
        raise BackendError(
            f"openvino {_version(ov)} cannot load {path} ({_reason(error)}); upgrade openvino, rebuild the bundle, or "
            f"pass {use('backend', 'onnxruntime')}"
        ) from None
    taken = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
    if taken != _HINTS[precision]:  # a precision that it lacks is replaced by another
        raise BackendError(
            f"openvino {_version(ov)} computes in {taken} here, not in {precision}; pass {use('dtype', 'fp32')}",
            field="dtype",
            value=precision,
        )
    return compiled


def _names(expected: tuple[str, ...], ports: tuple[Any, ...]) -> tuple[str, ...]:
    """A name of each port: the expected one among its several, if it has that."""
    expected = (*expected, *[""] * len(ports))
    return tuple(
        name if name in port.get_names() else min(port.get_names(), default="(unnamed)")
        for name, port in zip(expected, ports, strict=False)
    )


def _in_single_precision(ov: Any, model: Any) -> Any:
    """The model with float32 where it takes and gives float16: nothing is rounded there, nor can it overflow."""
    steps = ov.preprocess.PrePostProcessor(model)
    for ports, at in ((model.inputs, steps.input), (model.outputs, steps.output)):
        for index, port in enumerate(ports):
            if port.get_element_type() == ov.Type.f16:
                at(index).tensor().set_element_type(ov.Type.f32)
    return steps.build()


class BoundGraph:
    """A compiled model with its addresses bound once: each call reads and writes the same tensors.

    Args:
        shapes: of tensors that are allocated, by name.
        tensors: others, by name. An output that is in neither is OpenVINO's own.

    Attributes:
        inputs, outputs: name -> tensor; zero at first, where it is allocated.
    """

    def __init__(
        self, compiled: Any, shapes: Mapping[str, tuple[int, ...]], tensors: Mapping[str, Tensor] | None = None
    ):
        self._request = compiled.create_infer_request()
        # Kept, as OpenVINO reads them in place and does not keep them alive.
        self.inputs = _bind(self._request.set_input_tensor, compiled.inputs, shapes, tensors or {})
        self.outputs = _bind(self._request.set_output_tensor, compiled.outputs, shapes, tensors or {})

    def __call__(self) -> None:
        self._request.infer(share_outputs=True)  # else the outputs are copied for a result that nobody reads


def _bind(
    bind: Any, ports: Any, shapes: Mapping[str, tuple[int, ...]], tensors: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    import torch

    ov = import_openvino()
    bound = {}
    for index, port in enumerate(ports):
        names = port.get_names()
        name = next((name for name in names if name in shapes or name in tensors), None)
        if name is None:
            continue
        if name in shapes:
            dtype = getattr(torch, _TORCH[port.get_element_type().to_string()])
            bound[name] = torch.zeros(shapes[name], dtype=dtype)
        else:
            bound[name] = tensors[name]
        bind(index, ov.Tensor(bound[name].numpy(), shared_memory=True))
    return bound


def _version(ov: Any) -> str:
    return ov.__version__.partition("-")[0]  # without the build's number and branch


def _reason(error: Exception) -> str:
    """The line of an error that says something: the ones before it say where OpenVINO was."""
    skipped = ("Exception from", "Check '", "FrontEnd API failed", "Model wasn't fully converted", "Summary:")
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    found = next((line for line in lines if not line.startswith(skipped)), first_line(error))
    return found.removeprefix("-- ").partition(" Please check")[0]
