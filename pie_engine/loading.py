"""From a bundle or a checkpoint to a backend that runs it, with every contradiction refused before weights are read."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pie_engine.config import DTYPES, BuildConfig
from pie_engine.errors import ConfigError

if TYPE_CHECKING:
    from pie_engine.backends import Backend
    from pie_engine.checkpoint import LoraSpec

BACKENDS = ("auto", "torch", "onnxruntime")


@dataclass(frozen=True)
class Source:
    """Where a model comes from: a bundle (`engine`), or a checkpoint with a U-Net over it and LoRA fused into it."""

    engine: str | Path | None
    checkpoint: str | Path | None
    unet: str | Path | None
    lora: tuple[LoraSpec, ...]


@dataclass(frozen=True)
class Opened:
    """A backend, and what provenance says of its model's origin."""

    backend: Backend
    provenance: dict[str, Any]


def open_backend(
    source: Source,
    *,
    backend: str,
    device: str | None,
    dtype: str | None,
    threads: int | None,
    on_component: Callable[[str], None],
) -> Opened:
    """See `PieEngine.load`, which documents the arguments."""
    if backend not in BACKENDS:
        raise ConfigError(f"backend {backend!r} is unknown (one of {', '.join(BACKENDS)})")
    if dtype is not None and dtype not in DTYPES:
        raise ConfigError(f"dtype {dtype!r} is unknown (one of {', '.join(DTYPES)})")
    if device is not None and not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        raise ConfigError(f"device {device!r} is unknown (cpu, cuda or cuda:N); pass --device cpu")
    if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
        raise ConfigError(f"threads {threads!r} is not a whole number of at least 1; pass --threads 1")
    given = source.checkpoint is not None or source.unet is not None
    if (source.engine is None) != given:
        found = "both" if given else "neither"
        raise ConfigError(f"one of a bundle and a checkpoint is needed ({found} given); pass --engine or --checkpoint")
    if source.engine is None:
        if backend == "onnxruntime":
            return _export_checkpoint(source, device, dtype or "fp32", threads, on_component)
        return _open_checkpoint(source, device, dtype or "fp32", threads)
    if source.lora:
        raise ConfigError("a LoRA cannot be fused into a bundle; build one with it: pie-engine build --lora FILE")
    if backend == "torch":
        raise ConfigError("backend torch runs checkpoints, not bundles; pass --checkpoint, or --backend onnxruntime")
    return _open_bundle(source.engine, device, dtype, threads)


def _open_bundle(path: str | Path, device: str | None, dtype: str | None, threads: int | None) -> Opened:
    from pie_engine.backends.onnx_backend import OnnxBackend
    from pie_engine.bundle import open_bundle

    _cpu_only(device)
    bundle = open_bundle(path)
    if dtype not in (None, bundle.precision):
        raise ConfigError(
            f"dtype {dtype} is not this bundle's ({bundle.precision}); build one: pie-engine build --precision {dtype}"
        )
    return Opened(OnnxBackend(bundle, threads=threads), {"bundle": str(path), **bundle.manifest["sources"]})


def _export_checkpoint(
    source: Source, device: str | None, dtype: str, threads: int | None, on_component: Callable[[str], None]
) -> Opened:
    from pie_engine.backends.onnx_backend import OnnxBackend, import_onnxruntime
    from pie_engine.build import cached_bundle
    from pie_engine.checkpoint import load_checkpoint

    _cpu_only(device)
    if dtype == "bf16":
        raise ConfigError("backend onnxruntime has no bf16 on the CPU; pass --dtype fp32 or fp16")
    import_onnxruntime()
    loaded = load_checkpoint(source.checkpoint, unet=source.unet, lora=source.lora)
    bundle = cached_bundle(loaded, BuildConfig(precision=dtype), on_component=on_component)
    return Opened(OnnxBackend(bundle, threads=threads), loaded.sources)


def _open_checkpoint(source: Source, device: str | None, dtype: str, threads: int | None) -> Opened:
    import torch

    from pie_engine.backends.torch_backend import TorchBackend
    from pie_engine.build import model_info
    from pie_engine.checkpoint import load_checkpoint

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device.startswith("cuda"):
        _check_gpu(device)  # before a checkpoint of gigabytes is read
    if threads is not None:
        torch.set_num_threads(threads)
    loaded = load_checkpoint(source.checkpoint, unet=source.unet, lora=source.lora)
    return Opened(TorchBackend(loaded, model_info(loaded), device=device, precision=dtype), loaded.sources)


def _check_gpu(device: str) -> None:
    import torch

    if not torch.cuda.is_available():
        raise ConfigError(f"device {device!r} needs an NVIDIA GPU and this machine shows none; pass --device cpu")
    if int(device.partition(":")[2] or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device {device!r} is not one of {torch.cuda.device_count()} GPUs; pass --device cuda:0")


def _cpu_only(device: str | None) -> None:
    if device not in (None, "cpu"):
        raise ConfigError(f"device {device!r} is not one that backend onnxruntime runs on (cpu); pass --backend torch")
