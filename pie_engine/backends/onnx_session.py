"""ONNX Runtime: installed or not, one session per graph, and torch tensors bound to it without copies."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pie_engine.backends.graph_backend import check_names
from pie_engine.errors import BackendError, use

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_ELEMENT = {"torch.float32": np.float32, "torch.float16": np.float16, "torch.int64": np.int64}
_TORCH = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(int64)": "int64"}


def import_onnxruntime() -> Any:
    """The module. Raises BackendError with the command that installs it."""
    try:
        import onnxruntime
    except ImportError:
        raise BackendError(
            f"backend 'onnxruntime' is not installed; pip install 'pie-engine[cpu]', or pass {use('backend', 'torch')}",
            field="backend",
            value="onnxruntime",
        ) from None
    return onnxruntime


def open_session(
    path: Path,
    names: tuple[str, ...],
    *,
    device: torch.device,
    stream: torch.cuda.Stream | None,
    threads: int | None,
    blocked: bool = True,
) -> Any:
    """A session for one graph on `device`; on a GPU all its work goes to `stream`.

    Args:
        names: what the graph takes and gives, in order.
        blocked: whether a processor computes convolutions on blocks of channels (ONNX Runtime's NCHWc), into which all
            their weights are brought here.

    Raises:
        BackendError: ONNX Runtime cannot load the graph, or has no GPU support here.
    """
    ort = import_onnxruntime()
    options = ort.SessionOptions()
    options.log_severity_level = 3
    # Planning memory as one block adds 2.7 GB to a full-size U-Net at 512 x 512, and no speed was measured from it.
    options.enable_mem_pattern = False
    if device.type == "cpu" and not blocked:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    # In the order of the graph. By default what only the caller reads, such as a recording, is computed last, and holds
    # all that it is computed from: 4 GB more in a decoder that records at 512 x 512.
    options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
    # Its threads would go on spinning after a call and take the cores from the step and the decoded frames' arithmetic:
    # 2.7 % of a round on two cores, 0.7 % without.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        # Without the fallback, an error of the GPU is reported as it is and not as a missing library.
        session = ort.InferenceSession(path, options, providers=_providers(ort, device, stream), enable_fallback=0)
    except BackendError:
        raise
    except Exception as error:  # ONNX Runtime's exceptions share no other base
        reason = (str(error).splitlines() or ["unknown reason"])[0]
        raise BackendError(
            f"onnxruntime {ort.__version__} cannot load {path} ({reason}); upgrade onnxruntime, or rebuild the bundle"
        ) from None
    if device.type == "cuda" and "CUDAExecutionProvider" not in session.get_providers():
        raise BackendError(
            f"onnxruntime {ort.__version__} could not start its CUDA provider (its CUDA or cuDNN libraries are missing "
            f"or of another version); pip install 'pie-engine[gpu]', or pass {use('device', 'cpu')}",
            field="device",
            value=str(device),
        )
    found = tuple(node.name for node in (*session.get_inputs(), *session.get_outputs()))
    check_names(path, names, found)
    return session


def check_cuda_provider() -> None:
    """Raises BackendError unless the installed ONNX Runtime was built for NVIDIA GPUs."""
    ort = import_onnxruntime()
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        raise BackendError(
            f"onnxruntime {ort.__version__} has no CUDA provider; pip uninstall onnxruntime and "
            f"pip install 'pie-engine[gpu]', or pass {use('device', 'cpu')}",
            field="device",
            value="cuda",
        )


def _providers(ort: Any, device: torch.device, stream: torch.cuda.Stream | None) -> list[Any]:
    if device.type == "cpu":
        return ["CPUExecutionProvider"]
    check_cuda_provider()
    assert stream is not None
    cuda = {
        "device_id": str(device.index or 0),
        "user_compute_stream": str(stream.cuda_stream),
        "use_tf32": "0",  # fp32 means fp32; a bundle in fp16 is not affected
    }
    return [("CUDAExecutionProvider", cuda), "CPUExecutionProvider"]


class BoundGraph:
    """A session with its addresses bound once: each call reads and writes the same tensors.

    Args:
        shapes: of tensors that are allocated, by name.
        tensors: others, by name. An output that is in neither is bound to nothing.

    Attributes:
        inputs, outputs: name -> tensor; zero at first, where it is allocated.
    """

    def __init__(
        self,
        session: Any,
        shapes: Mapping[str, tuple[int, ...]],
        device: torch.device,
        tensors: Mapping[str, Tensor] | None = None,
    ):
        import torch

        self._session, self._binding = session, session.io_binding()
        self._options = import_onnxruntime().RunOptions()
        if device.type == "cuda":
            # The loop orders work by its stream and waits where it reads.
            self._options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        nodes = dict(tensors or {})
        for node in (*session.get_inputs(), *session.get_outputs()):
            if node.name in shapes:
                dtype = getattr(torch, _TORCH[node.type])
                nodes[node.name] = torch.zeros(shapes[node.name], dtype=dtype, device=device)
        self.inputs = {node.name: nodes[node.name] for node in session.get_inputs()}
        self.outputs = {node.name: nodes[node.name] for node in session.get_outputs() if node.name in nodes}
        for bind, tensors in (
            (self._binding.bind_input, self.inputs),
            (self._binding.bind_output, self.outputs),
        ):
            for name, tensor in tensors.items():
                # An output of no numbers has no address, which is refused; nobody reads it.
                if tensor.numel() or tensors is self.inputs:
                    _bind(bind, name, tensor)

    def __call__(self) -> None:
        self._session.run_with_iobinding(self._binding, self._options)


def _bind(bind: Any, name: str, tensor: Tensor) -> None:
    device = tensor.device
    bind(
        name, device.type, device.index or 0, _ELEMENT[str(tensor.dtype)], tuple(tensor.shape), tensor.data_ptr()
    )  # fmt: skip
