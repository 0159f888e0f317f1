"""A bundle's ONNX graphs in OpenVINO on the processor, in fp32 or bf16, bound to torch buffers without copies."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pie_engine.backends.graph_backend import GraphBackend
from pie_engine.backends.openvino_session import BoundGraph, check_bf16, open_graph
from pie_engine.config import COMPONENTS
from pie_engine.model.bundle import REGIONAL

if TYPE_CHECKING:
    from torch import Tensor

    from pie_engine.model.bundle import Bundle


class OpenVINOBackend(GraphBackend):
    """The four graphs of a bundle, on buffers of float32.

    `precisions` says what is computed in. Weights keep what the bundle's precision rounded them to: one in fp16 runs
    in fp32 all the same, so that nothing overflows.

    Args:
        precision: "fp32" or "bf16", of all arithmetic.
        threads: of the processor; None leaves it to OpenVINO.

    Raises:
        BackendError: OpenVINO is not installed, cannot run these graphs, or finds no bf16 in this processor.
    """

    name = "openvino"

    def __init__(
        self,
        bundle: Bundle,
        *,
        precision: str = "fp32",
        threads: int | None = None,
        regional_graph: Callable[[str], Path] | None = None,
        later: Collection[str] = (),
    ):
        self._threads = threads
        if precision == "bf16":
            check_bf16()
        super().__init__(bundle, "cpu", dict.fromkeys(COMPONENTS, precision), regional_graph, later)

    def _open(self, name: str) -> Any:
        return self._compile(name, self.precisions[name.removesuffix(REGIONAL)])

    def _open_in_fp32(self, name: str) -> Any:
        return self._compile(name, "fp32")

    def _compile(self, name: str, precision: str) -> Any:
        return open_graph(self._paths[name], self._expected(name), precision=precision, threads=self._threads)

    def _bind(
        self, graph: Any, shapes: Mapping[str, tuple[int, ...]], tensors: Mapping[str, Tensor] | None = None
    ) -> BoundGraph:
        return BoundGraph(graph, shapes, tensors)
