"""PieEngine: load a model once, simulate progressions with it."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pie_engine.config import DTYPES, BuildConfig, RunConfig, check_resolution
from pie_engine.errors import ConfigError, InputError
from pie_engine.imaging import Mask, fit, open_image, prepare_mask, to_image
from pie_engine.metrics import measure_change
from pie_engine.outputs import Result
from pie_engine.outputs.provenance import describe_run

if TYPE_CHECKING:
    from PIL.Image import Image

    from pie_engine.backends import Backend
    from pie_engine.checkpoint import LoraSpec

# Called with (evaluations done, evaluations in all) after each U-Net evaluation.
OnProgress = Callable[[int, int], None]
BACKENDS = ("auto", "torch", "onnxruntime")


@dataclass(frozen=True)
class Item:
    """One patient's image and what to simulate in it.

    Attributes:
        image: path, PIL image, or array [H, W] or [H, W, 3] of uint8 or uint16.
        prompt: the clinical report or finding that the progression moves towards.
        mask: region of interest, white = may change; the same forms as the image, of the same aspect ratio.
        item_id: names the item in its noise's seed, so that a result does not depend on its place in a batch.
    """

    image: str | Path | Image | np.ndarray
    prompt: str
    mask: str | Path | Image | np.ndarray | None = None
    item_id: str = "0"


@dataclass(frozen=True)
class _Prepared:
    item: Item
    image: Image
    mask: Mask | None
    hashes: dict[str, str | None]


class PieEngine:
    """A model on a backend, ready to simulate progressions."""

    def __init__(self, backend: Backend, *, source: dict[str, Any] | None = None):
        self.backend = backend
        self._source = source or {}

    @classmethod
    def load(
        cls,
        engine: str | Path | None = None,
        *,
        checkpoint: str | Path | None = None,
        unet: str | Path | None = None,
        lora: Sequence[LoraSpec] = (),
        backend: str = "auto",
        device: str | None = None,
        dtype: str | None = None,
        threads: int | None = None,
        on_component: Callable[[str], None] = lambda line: None,
    ) -> PieEngine:
        """Load a bundle (`engine`) or a checkpoint (with `unet` over it and `lora` fused into it).

        Args:
            backend: "onnxruntime" runs a bundle; for a checkpoint it builds one in the cache first. "torch" runs a
                checkpoint as it is. "auto" takes onnxruntime for a bundle and torch for a checkpoint.
            device: "cpu", "cuda", "cuda:1", ...; None takes a GPU if the torch backend finds one.
            dtype: "fp32", "fp16" or "bf16" (torch only); None means fp32 for a checkpoint and a bundle's own precision.
            threads: processor threads of the model; None leaves it to the backend.
            on_component: called with one line of progress per component that is built.

        Raises:
            ConfigError: contradicting arguments. CheckpointError, BundleError, BackendError: see each.
        """
        if backend not in BACKENDS:
            raise ConfigError(f"backend {backend!r} is unknown (one of {', '.join(BACKENDS)})")
        if dtype is not None and dtype not in DTYPES:
            raise ConfigError(f"dtype {dtype!r} is unknown (one of {', '.join(DTYPES)})")
        if device is not None and not re.fullmatch(r"cpu|cuda(:\d+)?", device):
            raise ConfigError(f"device {device!r} is unknown (cpu, cuda or cuda:N); pass --device cpu")
        if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
            raise ConfigError(f"threads {threads!r} is not a whole number of at least 1; pass --threads 1")
        given = checkpoint is not None or unet is not None
        if (engine is None) != given:
            found = "both" if given else "neither"
            raise ConfigError(
                f"one of a bundle and a checkpoint is needed ({found} given); pass --engine or --checkpoint"
            )
        if engine is not None:
            if lora:
                raise ConfigError(
                    "a LoRA cannot be fused into a bundle; build one with it: pie-engine build --lora FILE"
                )
            if backend == "torch":
                raise ConfigError(
                    "backend torch runs checkpoints, not bundles; pass --checkpoint, or --backend onnxruntime"
                )
            return cls._load_bundle(engine, device, dtype, threads)
        return cls._load_checkpoint(checkpoint, unet, lora, backend, device, dtype, threads, on_component)

    @classmethod
    def _load_bundle(cls, path: str | Path, device: str | None, dtype: str | None, threads: int | None) -> PieEngine:
        from pie_engine.backends.onnx_backend import OnnxBackend
        from pie_engine.bundle import open_bundle

        _cpu_only(device)
        bundle = open_bundle(path)
        if dtype not in (None, bundle.precision):
            raise ConfigError(
                f"dtype {dtype} is not this bundle's ({bundle.precision}); "
                f"build one: pie-engine build --precision {dtype}"
            )
        return cls(OnnxBackend(bundle, threads=threads), source={"bundle": str(path), **bundle.manifest["sources"]})

    @classmethod
    def _load_checkpoint(
        cls,
        path: str | Path | None,
        unet: str | Path | None,
        lora: Sequence[LoraSpec],
        backend: str,
        device: str | None,
        dtype: str | None,
        threads: int | None,
        on_component: Callable[[str], None],
    ) -> PieEngine:
        from pie_engine.backends.onnx_backend import OnnxBackend
        from pie_engine.backends.torch_backend import TorchBackend
        from pie_engine.build import cached_bundle, model_info
        from pie_engine.checkpoint import load_checkpoint

        precision = dtype or "fp32"
        if backend == "onnxruntime":
            _cpu_only(device)
            if precision == "bf16":
                raise ConfigError("backend onnxruntime has no bf16 on the CPU; pass --dtype fp32 or fp16")
        elif device is not None and device.startswith("cuda"):
            _check_gpu(device)  # before a checkpoint of gigabytes is read
        loaded = load_checkpoint(path, unet=unet, lora=lora)
        if backend == "onnxruntime":
            bundle = cached_bundle(loaded, BuildConfig(precision=precision), on_component=on_component)
            return cls(OnnxBackend(bundle, threads=threads), source=loaded.sources)
        import torch

        if threads is not None:
            torch.set_num_threads(threads)
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        return cls(TorchBackend(loaded, model_info(loaded), device=device, precision=precision), source=loaded.sources)

    def run(self, item: Item, config: RunConfig | None = None, *, on_progress: OnProgress | None = None) -> Result:
        """Simulate one progression; see `run_batch`."""
        return self.run_batch([item], config, on_progress=on_progress)[0]

    def run_batch(
        self, items: Sequence[Item], config: RunConfig | None = None, *, on_progress: OnProgress | None = None
    ) -> list[Result]:
        """Simulate the progression of several items at once. Each result is what the item alone would give.

        Args:
            items: with and without masks; the two kinds run one after the other.
            config: settings for all of them.
            on_progress: called with (evaluations done, in all) after each U-Net evaluation.

        Returns:
            One result per item, in order.

        Raises:
            ConfigError, InputError: a setting or an input cannot be used; nothing has run then.
            BackendError: the model gave values that are not finite.
        """
        import torch

        config = config or RunConfig()
        if config.resolution is None:
            config = replace(config, resolution=self.backend.model.default_resolution)
        check_resolution(config.resolution or 0, self.backend.model.resolution_multiple)
        prepared = [self._prepare_item(item, config) for item in items]
        masked = [i for i, p in enumerate(prepared) if p.mask is not None]
        bare = [i for i, p in enumerate(prepared) if p.mask is None]
        groups = [group for group in (masked, bare) if group]
        results: dict[int, Result] = {}
        with torch.inference_mode():
            for number, group in enumerate(groups):

                def report(step: int, total: int, number: int = number) -> None:
                    if on_progress is not None:
                        on_progress(number * total + step, len(groups) * total)

                results.update(zip(group, self._run_group([prepared[i] for i in group], config, report), strict=True))
        return [results[i] for i in range(len(items))]

    def _prepare_item(self, item: Item, config: RunConfig) -> _Prepared:
        official = config.semantics == "official"
        resolution = config.resolution
        assert resolution is not None
        _check_text("prompt", item.prompt)
        _check_text("item-id", item.item_id)
        image = _read(item.image)
        mask = None
        if item.mask is not None:
            scale = self.backend.model.vae_scale
            mask = prepare_mask(_read(item.mask, "mask"), image.size, resolution, official=official, scale=scale)
        hashes = {"image_sha256": _hash(item.image), "mask_sha256": None if item.mask is None else _hash(item.mask)}
        return _Prepared(item, fit(image, resolution), mask, hashes)

    def _run_group(self, prepared: list[_Prepared], config: RunConfig, report: OnProgress) -> list[Result]:
        import torch

        from pie_engine.progression import Batch, decode, prepare, rounds

        start = time.monotonic()
        inputs = np.stack([np.asarray(p.image) for p in prepared])  # [B, H, W, 3]
        masks = [torch.from_numpy(p.mask.latent) for p in prepared if p.mask is not None]
        batch = Batch(
            pixels=torch.from_numpy(inputs.astype(np.float32) / 127.5 - 1).permute(0, 3, 1, 2).contiguous(),
            mask=torch.stack(masks) if masks else None,
            prompts=[p.item.prompt for p in prepared],
            item_ids=[p.item.item_id for p in prepared],
        )
        plan = prepare(self.backend, batch, config)
        decoded_original = _to_uint8(decode(self.backend, plan.original_latent))
        seconds: dict[str, Any] = {"prepare": round(time.monotonic() - start, 4), "rounds": []}
        step = 0

        def on_step() -> None:
            nonlocal step
            step += 1
            report(step, plan.evaluations)

        latents, decoded = [], []
        last = time.monotonic()
        for result in rounds(plan, on_step):
            latents.append(result.latents.float().cpu().numpy())
            decoded.append(_to_uint8(result.pixels))
            seconds["rounds"].append(round(time.monotonic() - last, 4))
            last = time.monotonic()
        original = plan.original_latent.float().cpu().numpy()
        results = []
        for i, item in enumerate(prepared):
            own = np.stack([frames[i] for frames in decoded])
            own_latents = np.stack([z[i] for z in latents])
            frames = np.concatenate(
                [inputs[i : i + 1], composite(own, inputs[i], item.mask) if config.composite else own]
            )
            latent_mask, pixels = (None, None) if item.mask is None else (item.mask.latent, item.mask.pixels)
            change = measure_change(own_latents, original[i], own, decoded_original[i], frames, latent_mask, pixels)
            provenance = {
                **describe_run(config),
                "item_id": item.item.item_id,
                "input": item.hashes,
                "simulated": {
                    "prompt": item.item.prompt,
                    "prompt_cut_off": self.backend.model.cut_off(item.item.prompt) or None,
                    "roi_share": None if pixels is None else float(pixels.mean()),
                },
                "schedule": {
                    "class": plan.sampler.schedule.name,
                    "timesteps": plan.sampler.schedule.timesteps.tolist(),
                    "unet_evaluations": plan.evaluations,
                },
                "model": {"hashes": self.backend.model.hashes, "source": self._source},
                "backend": {
                    "name": self.backend.name,
                    "precision": self.backend.precision,
                    "device": str(self.backend.device),
                    "batch": len(prepared),
                },
                "seconds": seconds,
                "change": change.to_dict(),
            }
            results.append(Result(frames, own_latents, original[i], pixels, change, config, provenance))
        return results


def composite(decoded: np.ndarray, original: np.ndarray, mask: Mask | None) -> np.ndarray:
    """w decoded + (1 - w) input: [N, H, W, 3] uint8, bit for bit the input where w is 0; unchanged without a mask."""
    if mask is None:
        return decoded
    weight = mask.weight[..., None]
    return np.round(weight * decoded + (1 - weight) * original).astype(np.uint8)


def _to_uint8(pixels: Any) -> np.ndarray:
    """[B, 3, H, W] tensor in [-1, 1] -> [B, H, W, 3] uint8, clamped and rounded half to even."""
    return (pixels / 2 + 0.5).clamp(0, 1).mul(255).round().byte().permute(0, 2, 3, 1).cpu().numpy()


def _read(source: str | Path | Image | np.ndarray, kind: str = "image") -> Image:
    return open_image(source, kind) if isinstance(source, str | Path) else to_image(source, kind)


def _check_text(name: str, text: object) -> None:
    if not isinstance(text, str):
        raise InputError(f"{name} of type {type(text).__name__} is not text; pass a string")
    try:
        text.encode()
    except UnicodeEncodeError:  # bytes of another encoding on the command line
        raise InputError(f"{name} {text!a} is not UTF-8; pass it in that encoding") from None


def _hash(source: str | Path | Image | np.ndarray) -> str:
    if isinstance(source, str | Path):
        return hashlib.sha256(Path(source).read_bytes()).hexdigest()
    array = np.asarray(source)
    return hashlib.sha256(f"{array.dtype} {array.shape} ".encode() + array.tobytes()).hexdigest()


def _check_gpu(device: str) -> None:
    import torch

    if not torch.cuda.is_available():
        raise ConfigError(f"device {device!r} needs an NVIDIA GPU and this machine shows none; pass --device cpu")
    if int(device.partition(":")[2] or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device {device!r} is not one of {torch.cuda.device_count()} GPUs; pass --device cuda:0")


def _cpu_only(device: str | None) -> None:
    if device not in (None, "cpu"):
        raise ConfigError(f"device {device!r} is not one that backend onnxruntime runs on (cpu); pass --backend torch")
