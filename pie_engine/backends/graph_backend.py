"""What backends that run a bundle's ONNX graphs have in common: graphs that are bound to torch buffers once."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pie_engine.backends.protocol import BoundGraph, BoxedNetwork, UNetCall
from pie_engine.config import COMPONENTS
from pie_engine.errors import BackendError
from pie_engine.model.bundle import REGIONAL

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from pie_engine.export.regional import Ports
    from pie_engine.model.bundle import Bundle

# Inputs and outputs of each graph, as `pie_engine.export.components` names them, the output last. They are opened in
# this order: as a run needs them, but the U-Net, which takes as long as the others together, comes early.
NAMES = {
    "text_encoder": ("ids", "embeddings"),
    "unet": ("sample", "timestep", "context", "prediction"),
    "vae_encoder": ("pixels", "moments"),
    "vae_decoder": ("latent", "pixels"),
}
_OPENERS = 2


def check_names(path: Path, expected: tuple[str, ...], found: tuple[str, ...]) -> None:
    """Raises BackendError unless a graph takes and gives what is expected, in that order."""
    if found != expected:
        raise BackendError(
            f"{path} takes and gives {', '.join(found)} ({', '.join(expected)} expected); rebuild the bundle"
        )


class GraphBackend:
    """The four graphs of a bundle, and two more for regional rounds; how one is opened and bound is the subclass's.

    On a processor they are opened in threads, beside whatever comes next: who needs one waits for it, and is told then
    if it cannot be opened.

    Of a network that can compute boxes, one graph is held at a time, as both hold the weights: the other is let go
    when it is needed, and opened again when that one is. What was bound to it before keeps it until it is let go, too.

    Args:
        precisions: what each component computes in.
        regional_graph: where the graph of "unet" or "vae_decoder" for regional rounds is, verified; it may be made at
            this call. None where the backend has none.
        later: components that are opened when they are needed, and their files verified again then: those that another
            graph may take the place of.

    Raises:
        BackendError: on a GPU, a graph cannot be opened.
    """

    name = ""
    capture_obstacle = ""
    stream: torch.cuda.Stream | None = None

    def __init__(
        self,
        bundle: Bundle,
        device: str,
        precisions: Mapping[str, str],
        regional_graph: Callable[[str], Path] | None = None,
        later: Collection[str] = (),
    ):
        import torch

        self.model = bundle.model
        self.device = torch.device(device)
        self.precisions = dict(precisions)
        self._bundle, self._regional_graph = bundle, regional_graph
        self._paths = {name: bundle.graph(name) for name in COMPONENTS}
        self.regional_obstacle = self._find_obstacle()
        self._raised: set[str] = set()
        # Now, while the files are those that were verified.
        now = [name for name in NAMES if name not in later]
        self._graphs: dict[str, Any] = {}
        self._opening: dict[str, Future[Any]] = {}
        if self.device.type == "cpu":
            openers = ThreadPoolExecutor(_OPENERS, thread_name_prefix="pie-engine-open")
            self._opening = {name: openers.submit(self._open, name) for name in now}
            openers.shutdown(wait=False)
        else:
            self._graphs = {name: self._open(name) for name in now}
        self._bound: dict[str, tuple[tuple[int, ...], BoundGraph]] = {}

    def _open(self, name: str) -> Any:
        """The graph `name` as its file and `precisions` say, ready to be bound: a component's, or one for boxes."""
        raise NotImplementedError

    def _open_in_fp32(self, name: str) -> Any:
        """The same in single precision, with nothing of half precision left but what its weights were rounded to."""
        raise NotImplementedError

    def _bind(
        self, graph: Any, shapes: Mapping[str, tuple[int, ...]], tensors: Mapping[str, Tensor] | None = None
    ) -> BoundGraph:
        """Allocate tensors of these shapes, by name, and bind an opened graph to them and to those that are given.

        Outputs that are named in neither are computed for nobody.
        """
        raise NotImplementedError

    def _graph(self, name: str) -> Any:
        """The opened graph `name`. Its files are verified again if it has to be opened."""
        if name in self._opening:
            self._graphs[name] = self._opening.pop(name).result()
        if name not in self._graphs:
            component = name.removesuffix(REGIONAL)
            self._close(component)
            if name == component:
                self._bundle.check_unchanged(component)
            else:
                assert self._regional_graph is not None
                self._paths[name] = self._regional_graph(component)
            self._graphs[name] = self._open_in_fp32(name) if component in self._raised else self._open(name)
        return self._graphs[name]

    def _close(self, component: str) -> None:
        """Let go of a component's graphs."""
        self._bound.pop(component, None)
        self._opening.pop(component, None)
        for name in (component, component + REGIONAL):
            self._graphs.pop(name, None)

    def _expected(self, name: str) -> tuple[str, ...]:
        """What the graph `name` takes and gives."""
        if not name.endswith(REGIONAL):
            return NAMES[name]
        ports = self._ports(name.removesuffix(REGIONAL))
        return (*ports.inputs, *ports.outputs)

    def _ports(self, component: str) -> Ports:
        from pie_engine.export.regional import MODELS, Ports

        return Ports.of(component, self.model.architecture[MODELS[component]])

    def _find_obstacle(self) -> str:
        """What `regional_obstacle` says."""
        from pie_engine.regional.layout import obstacle

        if self._regional_graph is None:
            return f"{self.name} has no graphs that compute a box"
        for model in ("unet", "vae"):
            if model not in self.model.architecture:
                return f"the bundle holds no configuration of its {model}; rebuild it: {self._bundle.build_command()}"
            found = obstacle(self.model.architecture[model])
            if found:
                return f"the bundle's {model} is not known in boxes: {found}"
        return ""

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
        return _BoundUNet(self._bind(self._graph("unet"), shapes))

    def bind_boxed(self, component: str, batch: int, height: int, width: int, box: tuple[int, int]) -> BoxedNetwork:
        import torch

        from pie_engine.backends.graph_boxed import BoxedGraph, Sizes

        if self.regional_obstacle:
            raise BackendError(f"{self.regional_obstacle}; run every round on the whole picture")
        graph, info = self._graph(component + REGIONAL), self.model
        sizes = Sizes(
            latent=(batch, info.latent_channels, height, width),
            box=box,
            context=(batch, info.max_tokens, info.text_width),
            scale=info.vae_scale,
        )
        dtype = torch.float16 if self.precisions[component] == "fp16" else torch.float32
        return BoxedGraph(
            self._ports(component), functools.partial(self._bind, graph), sizes, dtype=dtype, device=self.device
        )

    def batch_sizes(self, resolution: int) -> tuple[int, ...] | None:
        return None

    def release(self) -> None:
        self._bound.clear()

    def raise_precision(self, component: str) -> str | None:
        if self.precisions[component] == "fp32":
            return None
        self._close(component)
        self._raised.add(component)
        self.precisions[component] = "fp32"
        return "fp32"

    def _call(self, component: str, value: Tensor, output: tuple[int, ...]) -> Tensor:
        """Run a graph of one input and one output; the result is overwritten by the component's next call."""
        shape, bound = self._bound.get(component, (None, None))
        source, target = NAMES[component]
        if bound is None or shape != tuple(value.shape):
            bound = self._bind(self._graph(component), {source: tuple(value.shape), target: output})
            self._bound[component] = (tuple(value.shape), bound)
        bound.inputs[source].copy_(value)
        bound()
        return bound.outputs[target]


class _BoundUNet(UNetCall):
    """The U-Net bound to its static buffers."""

    def __init__(self, graph: BoundGraph):
        self._graph = graph
        self.sample, self.timestep, self.context = (graph.inputs[name] for name in ("sample", "timestep", "context"))
        self.output = graph.outputs["prediction"]

    def __call__(self) -> None:
        self._graph()
