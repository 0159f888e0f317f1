"""What is measured: each subject is made once (loading counts as such) and then run as often as it is told.

A subject has `run() -> facts`, which may take what to run, and where they differ from a processor's `device`, `stream`
and `calls`, the calls within the last run.
"""

from __future__ import annotations

import collections
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pie_engine import Item, PieEngine, RunConfig, RuntimeConfig
from pie_engine.benchmarks.harness.measure import clock
from pie_engine.imaging import fit, prepare_mask, to_image

# glibc keeps what was freed instead of giving it back: on a virtual machine page faults are dear.
KEEP_FREED_MEMORY = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1),
    "MALLOC_TOP_PAD_": str(2**28),
}
PROMPT = "cardiomegaly"


def make_item(resolution: int, item_id: str = "0") -> Item:
    """An item of `make_pixels`."""
    pixels, mask = make_pixels(resolution)
    return Item(pixels, PROMPT, mask, item_id)


def make_pixels(resolution: int) -> tuple[np.ndarray, np.ndarray]:
    """Noise and a mask, a square of half the side: what is drawn does not change the time."""
    pixels = np.random.default_rng(0).integers(0, 256, (resolution, resolution, 3), np.uint8)
    mask = np.zeros((resolution, resolution), np.uint8)
    mask[resolution // 4 : 3 * resolution // 4, resolution // 4 : 3 * resolution // 4] = 255
    return pixels, mask


class Eager:
    """The eager reference: PyTorch and diffusers, one call after another.

    Args:
        checkpoint: folder.
        config: of `RunConfig`; semantics "official" is the computation as published.
        dtype: "fp32", "fp16" or "bf16".
        compile: compile the U-Net and the VAE's decoder with torch.compile.
        unet, lora: over the checkpoint; LoRA as text ("FILE:SCALE").
    """

    def __init__(
        self,
        checkpoint: str | None,
        config: dict[str, Any],
        dtype: str = "fp32",
        device: str = "cpu",
        compile: bool = False,
        unet: str | None = None,
        lora: Sequence[str] = (),
    ):
        import torch

        from pie_engine.backends.torch_backend import torch_dtype
        from pie_engine.checkpoint import LoraSpec, load_checkpoint

        self.device = device
        self._config = RunConfig(**config)
        self._checkpoint = load_checkpoint(checkpoint, unet=unet, lora=[LoraSpec.parse(text) for text in lora])
        parts = (self._checkpoint.unet, self._checkpoint.vae, self._checkpoint.text_encoder)
        for module in parts:
            torch.nn.Module.to(module, device, torch_dtype(dtype))
        if compile:
            for module in parts[:2]:
                module.forward = torch.compile(module.forward)
            parts[1].decode = torch.compile(parts[1].decode)
        side = self._config.resolution or 0
        pixels, mask = make_pixels(side)
        self._image = fit(to_image(pixels), side)
        official = self._config.semantics == "official"
        self._mask = prepare_mask(to_image(mask), self._image.size, side, official=official).latent

    def run(self) -> dict[str, Any]:
        from pie_engine.reference import progress_engine, progress_official

        progress = progress_official if self._config.semantics == "official" else progress_engine
        rounds = progress(self._checkpoint, self._image, self._mask, PROMPT, self._config)
        ((_, frame),) = collections.deque(rounds, maxlen=1)
        return {"frame": _encode(frame)}


class Engine:
    """A whole progression of one or more items on the engine.

    Args:
        source: `engine` or `checkpoint` of `PieEngine.load`, and its other arguments.
        config: of `RunConfig`.
        runtime: of `RuntimeConfig`.
        batch: items that run at once.
    """

    def __init__(
        self,
        source: dict[str, Any],
        config: dict[str, Any],
        runtime: dict[str, Any] | None = None,
        batch: int = 1,
    ):
        self._engine = load_engine(source, RuntimeConfig(**(runtime or {})))
        self._config = RunConfig(**config)
        side = self._config.resolution or self._engine.backend.model.default_resolution
        self._config = replace(self._config, resolution=side)
        self._batch = batch
        self._items = [make_item(side, str(number)) for number in range(batch)]
        self.device = str(self._engine.backend.device)
        self.facts = {"precisions": self._engine.backend.precisions}

    def run(self, batch: int | None = None) -> dict[str, Any]:
        """Args: batch: instead of the own one."""
        size = batch or self._batch
        for number in range(len(self._items), size):  # at the first run, which does not count
            self._items.append(make_item(self._config.resolution or 0, str(number)))
        result = self._engine.run(self._items[:size], self._config)[0]
        seconds, runtime = result.provenance["seconds"], result.provenance["runtime"]
        return {
            "frame": _encode(result.frames[-1]),
            "round_s": statistics.median(seconds["rounds"][1:] or seconds["rounds"]),
            "reruns": len(result.provenance["reruns"]),
            "runtime": runtime,
        }


class Components:
    """The components of the model on a backend, one at a time, each on its bound buffers.

    The first run of a component binds and warms it and does not count; a short one is then repeated within a run.

    Args:
        source: arguments of `PieEngine.load`.
        compile: compile the U-Net with torch.compile.
        batch: items; a guided U-Net evaluation and the text encoder have two samples per item.
    """

    def __init__(self, source: dict[str, Any], resolution: int, batch: int = 1, compile: bool = False):
        engine = load_engine(source, RuntimeConfig(compile=compile))
        self._backend, self._resolution, self._batch = engine.backend, resolution, batch
        self.device, self.stream = str(self._backend.device), self._backend.stream
        self.facts = {"precisions": self._backend.precisions}
        self.calls = 1
        self._bound: dict[str, tuple[Callable[[], Any], int]] = {}

    def run(self, component: str) -> None:
        """Args: one of `pie_engine.config.COMPONENTS`."""
        import torch

        with torch.inference_mode():
            if component in self._bound:
                call, self.calls = self._bound[component]
                for _ in range(self.calls):
                    call()
                return
            self.calls = 1
            call = self._bind(component)
            call()
            seconds = min(clock(call, self.device, self.stream)[0] for _ in range(2))
        # A fifth of a second at least: what is shorter drowns in the clock and in the machine's other work.
        self._bound[component] = call, max(1, int(0.2 / seconds))

    def _bind(self, name: str) -> Callable[[], Any]:
        import torch

        backend, info, resolution = self._backend, self._backend.model, self._resolution
        side, guided = resolution // info.vae_scale, 2 * self._batch
        generator = torch.Generator().manual_seed(0)

        def draw(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=generator).to(backend.device)

        if name == "unet":
            unet = backend.bind_unet(guided, side, side)
            for tensor in (unet.sample, unet.context):
                tensor.copy_(draw(*tensor.shape))
            unet.timestep.fill_(481)
            return unet
        if name == "text_encoder":
            ids = info.tokenize([PROMPT] * guided)
            return lambda: backend.encode_text(ids)
        if name == "vae_encoder":
            pixels = draw(self._batch, 3, resolution, resolution)
            return lambda: backend.encode_image(pixels)
        latent = draw(self._batch, info.latent_channels, side, side)
        return lambda: backend.decode_latent(latent)


def load_engine(source: Mapping[str, Any], runtime: RuntimeConfig) -> PieEngine:
    """Args: source: arguments of `PieEngine.load`, LoRA as text ("FILE:SCALE")."""
    from pie_engine.checkpoint import LoraSpec

    loras = [LoraSpec.parse(text) for text in source.get("lora", ())]
    return PieEngine.load(**{**source, "lora": loras}, runtime=runtime)


def _encode(frame: Any) -> str:
    """A frame [H, W, 3] uint8 as base64, to be compared in another process."""
    import base64

    return base64.b64encode(np.ascontiguousarray(frame).tobytes()).decode()


def psnr(frame: str, reference: str) -> float:
    """Peak signal-to-noise ratio in dB of two encoded frames; infinite if equal."""
    import base64

    a, b = (np.frombuffer(base64.b64decode(text), np.uint8).astype(float) for text in (frame, reference))
    error = float(np.mean((a - b) ** 2))
    return float("inf") if error == 0 else 10 * float(np.log10(255**2 / error))


def model_folder(name: str) -> Path:
    """The checkpoint of a model: "demo", "sd" (random weights of Stable Diffusion v1.4's shape, written once into the
    cache), or a folder of the user's."""
    from pie_engine.files import cache_root, locked, new_folder

    if name == "demo":
        from pie_engine.demo.assets import CHECKPOINT

        return CHECKPOINT
    if name != "sd":
        return Path(name)
    import torch

    from pie_engine.benchmarks.random_checkpoint import write

    folder = cache_root() / "benchmarks" / "sd-v1.4-random"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        if not (folder / "model_index.json").exists():
            torch.manual_seed(0)
            with new_folder(folder, replaceable="model_index.json") as partial:
                write(partial, "cuda" if torch.cuda.is_available() else "cpu")
    return folder
