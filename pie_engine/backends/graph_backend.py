"""What backends that run a bundle's ONNX graphs have in common: four graphs, each bound to torch buffers once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pie_engine.backends.protocol import UNetCall
from pie_engine.config import COMPONENTS
from pie_engine.errors import BackendError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from pie_engine.model.bundle import Bundle

# Inputs and outputs of each graph, as `pie_engine.export.components` names them; the output is the last.
NAMES = {
    "text_encoder": ("ids", "embeddings"),
    "vae_encoder": ("pixels", "moments"),
    "unet": ("sample", "timestep", "context", "prediction"),
    "vae_decoder": ("latent", "pixels"),
}


def check_names(path: Path, component: str, found: tuple[str, ...]) -> None:
    """Raises BackendError unless a graph takes and gives what a component does, in that order."""
    if found != NAMES[component]:
        raise BackendError(
            f"{path} takes and gives {', '.join(found)} ({', '.join(NAMES[component])} expected); rebuild the bundle"
        )


class BoundGraph(Protocol):
    """A graph with its addresses bound once: each call reads and writes the same tensors.

    Attributes:
        inputs, outputs: name -> tensor, zero at first.
    """

    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]

    def __call__(self) -> None: ...


class GraphBackend:
    """The four graphs of a bundle; how one is opened and bound is the subclass's.

    Args:
        precisions: what each component computes in.

    Raises:
        BackendError: a graph cannot be opened.
    """

    name = ""
    capture_obstacle = ""
    stream: torch.cuda.Stream | None = None

    def __init__(self, bundle: Bundle, device: str, precisions: Mapping[str, str]):
        import torch

        self.model = bundle.model
        self.device = torch.device(device)
        self.precisions = dict(precisions)
        self._paths = {name: bundle.graph(name) for name in COMPONENTS}
        # All four now, while the files are those that were verified.
        self._graphs = {name: self._open(name) for name in COMPONENTS}
        self._bound: dict[str, tuple[tuple[int, ...], BoundGraph]] = {}

    def _open(self, component: str) -> Any:
        """A component's graph as its file and `precisions` say, ready to be bound."""
        raise NotImplementedError

    def _open_in_fp32(self, component: str) -> Any:
        """The same in single precision, with nothing of half precision left but what its weights were rounded to."""
        raise NotImplementedError

    def _bind(self, graph: Any, shapes: Mapping[str, tuple[int, ...]]) -> BoundGraph:
        """Allocate tensors of these shapes, by name, and bind an opened graph to them."""
        raise NotImplementedError

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
        return _BoundUNet(self._bind(self._graphs["unet"], shapes))

    def batch_sizes(self, resolution: int) -> tuple[int, ...] | None:
        return None

    def release(self) -> None:
        self._bound.clear()

    def raise_precision(self, component: str) -> str | None:
        if self.precisions[component] == "fp32":
            return None
        self._graphs[component] = self._open_in_fp32(component)
        self._bound.pop(component, None)
        self.precisions[component] = "fp32"
        return "fp32"

    def _call(self, component: str, value: Tensor, output: tuple[int, ...]) -> Tensor:
        """Run a graph of one input and one output; the result is overwritten by the component's next call."""
        shape, bound = self._bound.get(component, (None, None))
        source, target = NAMES[component]
        if bound is None or shape != tuple(value.shape):
            bound = self._bind(self._graphs[component], {source: tuple(value.shape), target: output})
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
