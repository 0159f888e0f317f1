"""A bundle's ONNX graphs in ONNX Runtime, bound to torch buffers without copies."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pie_engine.config import COMPONENTS
from pie_engine.errors import BackendError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from pie_engine.bundle import Bundle

_ELEMENT = {"torch.float32": np.float32, "torch.float16": np.float16, "torch.int64": np.int64}
# Inputs and outputs of each graph, as `pie_engine.export.components` names them.
_NAMES = {
    "text_encoder": ("ids", "embeddings"),
    "vae_encoder": ("pixels", "moments"),
    "unet": ("sample", "timestep", "context", "prediction"),
    "vae_decoder": ("latent", "pixels"),
}


class OnnxBackend:
    """The four graphs of a bundle.

    Raises:
        BackendError: ONNX Runtime is not installed, or cannot run these graphs.
    """

    name = "onnxruntime"

    def __init__(self, bundle: Bundle, *, threads: int | None = None):
        import torch

        self._ort = import_onnxruntime()
        self.model = bundle.model
        self.device = torch.device("cpu")
        self.precision = bundle.precision
        self._threads = threads
        # All four now, while the files are those that were verified.
        self._text_encoder, self._vae_encoder, self._unet, self._vae_decoder = (
            self._session(bundle.graph(name), name) for name in COMPONENTS
        )

    def encode_text(self, ids: Tensor) -> Tensor:
        import torch

        dtype = self._output_dtype(self._text_encoder)
        output = torch.empty(*ids.shape, self.model.text_width, dtype=dtype)
        self._run(self._text_encoder, {"ids": ids}, {"embeddings": output})
        return output

    def encode_image(self, pixels: Tensor) -> Tensor:
        import torch

        batch, _, height, width = pixels.shape
        scale, channels = self.model.vae_scale, self.model.latent_channels
        output = torch.empty(batch, 2 * channels, height // scale, width // scale)
        self._run(self._vae_encoder, {"pixels": pixels}, {"moments": output})
        return output

    def decode_latent(self, latent: Tensor) -> Tensor:
        import torch

        batch, _, height, width = latent.shape
        scale = self.model.vae_scale
        output = torch.empty(batch, 3, height * scale, width * scale)
        self._run(self._vae_decoder, {"latent": latent}, {"pixels": output})
        return output

    def bind_unet(self, batch: int, height: int, width: int) -> _BoundUNet:
        import torch

        info = self.model
        dtype = self._output_dtype(self._unet)
        shape = (batch, info.latent_channels, height, width)
        call = _BoundUNet(
            self._unet,
            sample=torch.zeros(shape, dtype=dtype),
            timestep=torch.zeros(1),
            context=torch.zeros(batch, info.max_tokens, info.text_width, dtype=dtype),
            output=torch.zeros(shape, dtype=dtype),
        )
        inputs = {"sample": call.sample, "timestep": call.timestep, "context": call.context}
        _bind(call.binding, inputs, {"prediction": call.output})
        return call

    def _session(self, path: Path, component: str) -> Any:
        options = self._ort.SessionOptions()
        options.log_severity_level = 3
        # Planning memory as one block adds 2.7 GB to a full-size U-Net at 512 x 512, and no speed was measured from it.
        options.enable_mem_pattern = False
        if self._threads is not None:
            options.intra_op_num_threads = self._threads
        try:
            session = self._ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's exceptions share no other base
            reason = (str(error).splitlines() or ["unknown reason"])[0]
            raise BackendError(
                f"onnxruntime {self._ort.__version__} cannot load {path} ({reason}); "
                "upgrade onnxruntime, or rebuild the bundle"
            ) from None
        found = tuple(node.name for node in (*session.get_inputs(), *session.get_outputs()))
        if found != _NAMES[component]:
            raise BackendError(
                f"{path} takes and gives {', '.join(found)} ({', '.join(_NAMES[component])} expected); "
                "rebuild the bundle"
            )
        return session

    def _output_dtype(self, session: Any) -> torch.dtype:
        import torch

        return torch.float16 if session.get_outputs()[0].type == "tensor(float16)" else torch.float32

    def _run(self, session: Any, inputs: dict[str, Tensor], outputs: dict[str, Tensor]) -> None:
        binding = session.io_binding()
        _bind(binding, inputs, outputs)
        session.run_with_iobinding(binding)


class _BoundUNet:
    """The U-Net with its addresses bound once; each call reads and writes the same memory."""

    def __init__(self, session: Any, *, sample: Tensor, timestep: Tensor, context: Tensor, output: Tensor):
        self._session = session
        self.binding = session.io_binding()
        self.sample, self.timestep, self.context, self.output = sample, timestep, context, output

    def __call__(self) -> None:
        self._session.run_with_iobinding(self.binding)


def _bind(binding: Any, inputs: dict[str, Tensor], outputs: dict[str, Tensor]) -> None:
    for bind, tensors in ((binding.bind_input, inputs), (binding.bind_output, outputs)):
        for name, tensor in tensors.items():
            if not tensor.is_contiguous():
                raise BackendError(f"{name} of strides {tensor.stride()} is not contiguous; pass {name}.contiguous()")
            bind(name, "cpu", 0, _ELEMENT[str(tensor.dtype)], tuple(tensor.shape), tensor.data_ptr())


def import_onnxruntime() -> Any:
    """The module. Raises BackendError with the command that installs it."""
    try:
        import onnxruntime
    except ImportError:
        raise BackendError(
            "backend 'onnxruntime' is not installed; pip install 'pie-engine[cpu]', or pass --backend torch"
        ) from None
    return onnxruntime
