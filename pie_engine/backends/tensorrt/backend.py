"""A bundle's TensorRT engines, bound to the loop's buffers and run on whatever stream is current."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pie_engine.backends.graph_backend import GraphBackend
from pie_engine.backends.tensorrt.engine import BoundEngine, Engine, read_plan
from pie_engine.backends.tensorrt.fingerprint import buckets, obstacle
from pie_engine.config import COMPONENTS
from pie_engine.errors import BundleError, ConfigError, use

if TYPE_CHECKING:
    from torch import Tensor

    from pie_engine.model.bundle import Bundle


class TensorRTBackend(GraphBackend):
    """The engines of one flavour ("tensorrt" or "tensorrt-rtx") in a bundle.

    Raises:
        BundleError: the bundle has no such engines, or they are not for this machine; the line names the rebuild.
        BackendError: the library refuses one of them.
    """

    def __init__(self, bundle: Bundle, flavour: str, *, device: str = "cuda:0"):
        import torch

        self.name, self._bundle = flavour, bundle
        self._entries = check_engines(bundle, flavour, torch.device(device).index or 0)
        # Every shape of the VAE that was used: captured rounds hold the addresses of their own.
        self._kept: dict[tuple[Any, ...], BoundEngine] = {}
        super().__init__(bundle, device, {name: self._entries[name]["precision"] for name in COMPONENTS})

    def _find_obstacle(self) -> str:
        return "engines of TensorRT are compiled for whole pictures"

    def batch_sizes(self, resolution: int) -> tuple[int, ...]:
        entry = self._entries["unet"]
        if resolution not in entry["resolutions"]:
            sides = ",".join(map(str, sorted({*entry["resolutions"], resolution})))
            command = self._bundle.build_command(resolution=sides)
            raise ConfigError(
                f"resolution {resolution} has no engine in {self._bundle.path} (compiled for {buckets([entry])}); pass "
                f"{use('resolution', entry['resolutions'][0])}, or build it: {command}",
                field="resolution",
                value=resolution,
                limit=buckets([entry]),
            )
        return tuple(entry["batches"])

    def raise_precision(self, component: str) -> str | None:
        return None  # another precision is another engine

    def release(self) -> None:
        super().release()
        self._kept.clear()

    def _open(self, component: str) -> Engine:
        entry, bundle = self._entries[component], self._bundle
        data = read_plan(bundle.path / entry["file"], bundle.manifest["files"][entry["file"]]["sha256"])
        engine = Engine(self.name, data, component, self.device)
        if entry["weights_hash"] != bundle.weights_hash(component):
            engine.refit(bundle.graph(component))
        return engine

    def _bind(
        self, graph: Engine, shapes: Mapping[str, tuple[int, ...]], tensors: Mapping[str, Tensor] | None = None
    ) -> BoundEngine:
        if not graph.name.startswith("vae"):
            return BoundEngine(graph, shapes)
        key = (graph.name, *shapes.values())
        if key not in self._kept:
            self._kept[key] = BoundEngine(graph, shapes)
        return self._kept[key]


def check_engines(bundle: Bundle, flavour: str, index: int = 0) -> dict[str, dict[str, Any]]:
    """The engines of a flavour by component, if all are there and match this machine.

    Raises:
        BundleError: they are not, with the reason and the command that builds them.
    """
    entries = {entry["component"]: entry for entry in bundle.engines(flavour)}
    if set(entries) != set(COMPONENTS):
        raise BundleError(
            f"bundle {bundle.path} holds no {flavour} engines; build them: {bundle.build_command(backend=flavour)}"
        )
    for name in COMPONENTS:
        reason = obstacle(entries[name], index)
        if entries[name]["weights"] == "fixed" and entries[name]["weights_hash"] != bundle.weights_hash(name):
            reason = f"{name} was compiled with another checkpoint's weights"
        if reason is not None:
            raise BundleError(
                f"the {flavour} engines of {bundle.path} do not run here: {reason}; "
                f"rebuild it: {bundle.build_command(backend=flavour)}, or pass "
                f"{use('backend', 'onnxruntime')}",
                field="backend",
                value=flavour,
            )
    return entries
