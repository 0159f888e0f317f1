"""A bundle's TensorRT engines, bound to the loop's buffers and run on whatever stream is current."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pie_engine.backends.protocol import UNetCall
from pie_engine.backends.tensorrt.engine import BoundEngine, Engine, read_plan
from pie_engine.backends.tensorrt.fingerprint import buckets, obstacle
from pie_engine.config import COMPONENTS
from pie_engine.errors import BundleError, ConfigError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from pie_engine.model.bundle import Bundle


class TensorRTBackend:
    """The engines of one flavour ("tensorrt" or "tensorrt-rtx") in a bundle.

    Raises:
        BundleError: the bundle has no such engines, or they are not for this machine; the line names the rebuild.
        BackendError: the library refuses one of them.
    """

    # Its work goes to the current stream and can be captured there.
    stream: torch.cuda.Stream | None = None
    capture_obstacle = ""

    def __init__(self, bundle: Bundle, flavour: str, *, device: str = "cuda:0"):
        import torch

        self.name, self.model, self.device = flavour, bundle.model, torch.device(device)
        self._bundle = bundle
        self._entries = check_engines(bundle, flavour, self.device.index or 0)
        self.precisions = {name: self._entries[name]["precision"] for name in COMPONENTS}
        self._engines = {name: self._load(name) for name in COMPONENTS}
        # Every shape that was used: captured rounds hold the addresses of their own.
        self._bound: dict[str, dict[tuple[int, ...], BoundEngine]] = {name: {} for name in COMPONENTS}

    def encode_text(self, ids: Tensor) -> Tensor:
        return self._call("text_encoder", "ids", ids)

    def encode_image(self, pixels: Tensor) -> Tensor:
        return self._call("vae_encoder", "pixels", pixels)

    def decode_latent(self, latent: Tensor) -> Tensor:
        return self._call("vae_decoder", "latent", latent)

    def bind_unet(self, batch: int, height: int, width: int) -> _BoundUNet:
        info = self.model
        shapes = {
            "sample": (batch, info.latent_channels, height, width),
            "context": (batch, info.max_tokens, info.text_width),
        }
        return _BoundUNet(self._engines["unet"].bind(shapes))

    def batch_sizes(self, resolution: int) -> tuple[int, ...]:
        entry = self._entries["unet"]
        if resolution not in entry["resolutions"]:
            sides = ",".join(map(str, sorted({*entry["resolutions"], resolution})))
            command = self._bundle.build_command(resolution=sides)
            raise ConfigError(
                f"resolution {resolution} has no engine in {self._bundle.path} (compiled for {buckets([entry])}); pass "
                f"--resolution {entry['resolutions'][0]}, or build it: {command}"
            )
        return tuple(entry["batches"])

    def raise_precision(self, component: str) -> str | None:
        return None  # another precision is another engine

    def release(self) -> None:
        for kept in self._bound.values():
            kept.clear()

    def _load(self, name: str) -> Engine:
        entry = self._entries[name]
        data = read_plan(self._bundle.path / entry["file"], self._bundle.manifest["files"][entry["file"]]["sha256"])
        engine = Engine(self.name, data, name, self.device)
        if entry["weights_hash"] != self._bundle.weights_hash(name):
            engine.refit(self._bundle.graph(name))
        return engine

    def _call(self, component: str, name: str, value: Tensor) -> Tensor:
        """Run an engine of one input and one output; the result is overwritten by the next call of that shape."""
        kept, shape = self._bound[component], tuple(value.shape)
        bound = kept.get(shape)
        if bound is None:
            bound = self._engines[component].bind({name: shape})
            if component == "text_encoder":
                kept.clear()  # as many shapes as there are numbers of prompts, and none is ever captured
            kept[shape] = bound
        bound.inputs[name].copy_(value)
        bound()
        return next(iter(bound.outputs.values()))


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
                f"rebuild it: {bundle.build_command(backend=flavour)}, or pass --backend onnxruntime"
            )
    return entries


class _BoundUNet(UNetCall):
    """The U-Net bound to its static buffers."""

    def __init__(self, bound: BoundEngine):
        self._bound = bound
        self.sample, self.timestep, self.context = (bound.inputs[name] for name in ("sample", "timestep", "context"))
        self.output = bound.outputs["prediction"]

    def __call__(self) -> None:
        self._bound()
