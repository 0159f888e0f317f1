"""A bundle's ONNX graphs in ONNX Runtime, on a processor or a GPU, bound to torch buffers without copies."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pie_engine.backends.onnx_session import BoundGraph, open_session
from pie_engine.config import COMPONENTS

if TYPE_CHECKING:
    from torch import Tensor

    from pie_engine.bundle import Bundle


class OnnxBackend:
    """The four graphs of a bundle.

    Raises:
        BackendError: ONNX Runtime is not installed, or cannot run these graphs.
    """

    name = "onnxruntime"
    # Some of its operators stage sizes in pinned memory that a captured run would free again at every replay
    # (onnxruntime issue 26887, pull request 32081): the process aborts.
    capture_obstacle = "onnxruntime's work cannot be recorded into another library's graph"

    def __init__(self, bundle: Bundle, *, device: str = "cpu", threads: int | None = None):
        import torch

        self.model = bundle.model
        self.device = torch.device(device)
        # ONNX Runtime runs on the stream that a session was opened with: the loop has to run on the same one.
        self.stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        self.precisions = {name: bundle.manifest["components"][name]["precision"] for name in COMPONENTS}
        self._threads = threads
        self._paths = {name: bundle.graph(name) for name in COMPONENTS}
        # All four now, while the files are those that were verified.
        self._sessions = {name: self._open(name, path) for name, path in self._paths.items()}
        self._bound: dict[str, tuple[tuple[int, ...], BoundGraph]] = {}

    def encode_text(self, ids: Tensor) -> Tensor:
        return self._call("text_encoder", ids, (*ids.shape, self.model.text_width))

    def encode_image(self, pixels: Tensor) -> Tensor:
        batch, _, height, width = pixels.shape
        scale, channels = self.model.vae_scale, self.model.latent_channels
        return self._call("vae_encoder", pixels, (batch, 2 * channels, height // scale, width // scale))

    def decode_latent(self, latent: Tensor) -> Tensor:
        batch, _, height, width = latent.shape
        scale = self.model.vae_scale
        return self._call("vae_decoder", latent, (batch, 3, height * scale, width * scale))

    def bind_unet(self, batch: int, height: int, width: int) -> _BoundUNet:
        info = self.model
        latent = (batch, info.latent_channels, height, width)
        context = (batch, info.max_tokens, info.text_width)
        shapes = {"sample": latent, "timestep": (1,), "context": context, "prediction": latent}
        return _BoundUNet(BoundGraph(self._sessions["unet"], shapes, self.device))

    def batch_sizes(self, resolution: int) -> tuple[int, ...] | None:
        return None

    def release(self) -> None:
        self._bound.clear()

    def raise_precision(self, component: str) -> str | None:
        from pie_engine.export.promote import to_single_precision

        if self.precisions[component] == "fp32":
            return None
        with tempfile.TemporaryDirectory(prefix="pie-engine-") as folder:
            self._sessions[component] = self._open(component, to_single_precision(self._paths[component], Path(folder)))
        self._bound.pop(component, None)
        self.precisions[component] = "fp32"
        return "fp32"

    def _open(self, component: str, path: Path) -> Any:
        return open_session(path, component, device=self.device, stream=self.stream, threads=self._threads)

    def _call(self, component: str, value: Tensor, output: tuple[int, ...]) -> Tensor:
        """Run a graph of one input and one output; the result is overwritten by the component's next call."""
        shape, bound = self._bound.get(component, (None, None))
        if bound is None or shape != tuple(value.shape):
            session = self._sessions[component]
            names = (session.get_inputs()[0].name, session.get_outputs()[0].name)
            bound = BoundGraph(session, dict(zip(names, (tuple(value.shape), output), strict=True)), self.device)
            self._bound[component] = (tuple(value.shape), bound)
        next(iter(bound.inputs.values())).copy_(value)
        bound()
        return next(iter(bound.outputs.values()))


class _BoundUNet:
    """The U-Net bound to its static buffers."""

    def __init__(self, graph: BoundGraph):
        self._graph = graph
        self.sample, self.timestep, self.context = (graph.inputs[name] for name in ("sample", "timestep", "context"))
        self.output = graph.outputs["prediction"]

    def __call__(self) -> None:
        self._graph()
