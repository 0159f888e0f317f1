"""A bundle's ONNX graphs in ONNX Runtime, on a processor or a GPU, bound to torch buffers without copies."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pie_engine.backends.graph_backend import GraphBackend
from pie_engine.backends.onnx_session import BoundGraph, open_session
from pie_engine.config import COMPONENTS
from pie_engine.files import temporary_name
from pie_engine.model.bundle import REGIONAL

if TYPE_CHECKING:
    from torch import Tensor

    from pie_engine.model.bundle import Bundle


class OnnxBackend(GraphBackend):
    """The four graphs of a bundle, each in the precision that it was exported in.

    Raises:
        BackendError: ONNX Runtime is not installed, or cannot run these graphs.
    """

    name = "onnxruntime"
    # Some of its operators stage sizes in pinned memory that a captured run would free again at every replay
    # (onnxruntime issue 26887, pull request 32081): the process aborts.
    capture_obstacle = "onnxruntime's work cannot be recorded into another library's graph"

    def __init__(
        self,
        bundle: Bundle,
        *,
        device: str = "cpu",
        threads: int | None = None,
        regional_graph: Callable[[str], Path] | None = None,
        later: Collection[str] = (),
    ):
        self._threads = threads
        # ONNX Runtime runs on the stream that a session was opened with: the loop has to run on the same one.
        self.stream = torch.cuda.Stream(torch.device(device)) if device.startswith("cuda") else None
        components = bundle.manifest["components"]
        super().__init__(
            bundle, device, {name: components[name]["precision"] for name in COMPONENTS}, regional_graph, later
        )

    def _open(self, name: str) -> Any:
        return self._session(name, self._paths[name])

    def _open_in_fp32(self, name: str) -> Any:
        from pie_engine.export.promote import to_single_precision

        with temporary_name(Path(tempfile.gettempdir()) / "pie-engine") as folder:
            folder.mkdir(mode=0o700)
            return self._session(name, to_single_precision(self._paths[name], folder))

    def _session(self, name: str, path: Path) -> Any:
        return open_session(
            path, self._expected(name), device=self.device, stream=self.stream, threads=self._threads,
            # The U-Net's convolutions are no faster in blocks of channels, into which its gigabytes of weights would be
            # brought at every start: eight of ten seconds.
            blocked=name.removesuffix(REGIONAL) != "unet",
        )  # fmt: skip

    def _bind(
        self, graph: Any, shapes: Mapping[str, tuple[int, ...]], tensors: Mapping[str, Tensor] | None = None
    ) -> BoundGraph:
        return BoundGraph(graph, shapes, self.device, tensors)
