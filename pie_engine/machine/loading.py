"""From a bundle or a checkpoint to a backend that runs it, with every contradiction refused before weights are read."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pie_engine import checkpoint as checkpoints
from pie_engine import commands
from pie_engine.backends import torch_backend
from pie_engine.backends.onnx_backend import OnnxBackend
from pie_engine.backends.openvino_backend import OpenVINOBackend
from pie_engine.backends.tensorrt import library
from pie_engine.backends.tensorrt.backend import TensorRTBackend, check_engines
from pie_engine.bundling import (
    Recalled,
    cached_bundle,
    check_restorable,
    model_info,
    regional_graph,
    restore_checkpoint,
)
from pie_engine.bundling.regional import NETWORKS
from pie_engine.config import COMPONENTS, FLAVOURS, BuildConfig, EngineConfig
from pie_engine.errors import BackendError, BundleError, ConfigError, argument, use
from pie_engine.machine.devices import check_gpu, check_openvino, limit_threads, onnx_device, torch_device
from pie_engine.machine.selection import Choice, choose_by_name, choose_for_bundle, choose_for_checkpoint, device_index
from pie_engine.model.bundle import open_bundle
from pie_engine.rounds.memory import explain_weights

if TYPE_CHECKING:
    from pie_engine.backends import Backend
    from pie_engine.checkpoint import Checkpoint, LoraSpec
    from pie_engine.config import Placement
    from pie_engine.model.bundle import Bundle
    from pie_engine.model.info import ModelInfo


@dataclass(frozen=True)
class Source:
    """Where a model comes from: a bundle (`engine`), or a checkpoint with a U-Net over it and LoRA fused into it."""

    engine: str | Path | None
    checkpoint: str | Path | None
    unet: str | Path | None
    lora: tuple[LoraSpec, ...]


@dataclass(frozen=True)
class OpenedBackend:
    """A backend, what provenance says of its model's origin, and why this backend was taken."""

    backend: Backend
    provenance: dict[str, Any]
    why: str


def open_backend(source: Source, placement: Placement, on_component: Callable[[str], None]) -> OpenedBackend:
    """See `PieEngine.load`, which documents the arguments."""
    placement = replace(placement, threads=limit_threads(placement.threads))
    given = source.checkpoint is not None or source.unet is not None
    if (source.engine is None) != given:
        which = "both" if given else "neither"
        raise ConfigError(
            f"one of a bundle and a checkpoint is needed ({which} given); pass {argument('engine')} or "
            f"{argument('checkpoint')}"
        )
    if source.engine is None:
        choice = choose_for_checkpoint(placement) if placement.backend == "auto" else choose_by_name(placement)
        if choice.name == "torch":
            return _open_checkpoint(source, placement, choice)
        return _build_checkpoint(source, placement, choice, on_component)
    if source.lora:
        raise ConfigError(
            f"a LoRA cannot be fused into a bundle at run time; make one: {commands.refit_with_lora()}", field="lora"
        )
    return _open_bundle(source.engine, placement, on_component)


def _open_bundle(path: str | Path, placement: Placement, on_component: Callable[[str], None]) -> OpenedBackend:
    bundle = open_bundle(path, remembered=not placement.verify)
    auto = placement.backend == "auto"
    choice = choose_for_bundle(bundle, placement) if auto else choose_by_name(placement, bundle.precision)
    sources = {"bundle": str(path), **bundle.manifest["sources"]}
    if choice.name == "torch":
        return OpenedBackend(_run_in_torch(bundle, placement, choice), sources, choice.why)
    asked = (choice.name, placement.dtype, bundle.precision)
    # OpenVINO computes in bf16 from weights in fp32: no bundle is built for it.
    if placement.dtype not in (None, bundle.precision) and asked != ("openvino", "bf16", "fp32"):
        raise ConfigError(_other_dtype(placement.dtype, bundle.precision))
    return OpenedBackend(_run_bundle(bundle, choice.name, placement, on_component), sources, choice.why)


def _other_dtype(dtype: str | None, precision: str) -> str:
    remedy = f"build one: pie-engine build --precision {dtype}, or pass {use('backend', 'torch')}"
    if dtype == "bf16":
        in_openvino = f", or {use('backend', 'openvino')} {use('device', 'cpu')}" if precision == "fp32" else ""
        remedy = f"pass {use('backend', 'torch')}{in_openvino}"
    return f"dtype {dtype} is not this bundle's ({precision}); {remedy}"


def _run_in_torch(bundle: Bundle, placement: Placement, choice: Choice) -> Backend:
    """A bundle's models in PyTorch, with the weights of its graphs."""
    check_restorable(bundle)
    device = torch_device(placement, choice)  # before gigabytes are read

    def reload() -> Checkpoint:
        again = open_bundle(bundle.path, remembered=bundle.remembered)
        if again.manifest["manifest_sha256"] != bundle.manifest["manifest_sha256"]:
            raise BundleError(f"bundle {bundle.path} was written anew while its model ran; load it again")
        return restore_checkpoint(again)

    # In half precision too, a component that the build kept in fp32 because it overflows.
    kept = [name for name in COMPONENTS if bundle.manifest["components"][name]["precision"] != bundle.precision]
    return _start_torch(restore_checkpoint(bundle), bundle.model, reload, device, placement, choice, kept)


def _run_bundle(bundle: Bundle, backend: str, placement: Placement, on_component: Callable[[str], None]) -> Backend:
    """A bundle's graphs in OpenVINO or ONNX Runtime, or its engines in TensorRT."""
    if backend in FLAVOURS:
        if placement.device == "cpu":
            raise ConfigError(
                f"backend {backend} runs on an NVIDIA GPU, not on cpu; pass {use('backend', 'onnxruntime')}",
                field="backend", value=backend,
            )  # fmt: skip
        check_engines(bundle, backend, device_index(placement.device))
        device = check_gpu(placement.device or "cuda:0", bundle.precision)
        with _explaining_memory(device, bundle.precision):
            return TensorRTBackend(bundle, backend, device=device)
    boxes = functools.partial(regional_graph, bundle, on_component=on_component)
    # Where rounds may compute boxes, graphs for that may take the place of these: both at once are twice the weights.
    later = () if placement.runtime.regional == "off" else NETWORKS
    if backend == "openvino":
        precision = check_openvino(placement)
        with _explaining_memory("cpu", precision):
            return OpenVINOBackend(
                bundle, precision=precision, threads=placement.threads, regional_graph=boxes, later=later
            )
    device = onnx_device(placement.device)
    with _explaining_memory(device, bundle.precision):
        return OnnxBackend(bundle, device=device, threads=placement.threads, regional_graph=boxes, later=later)


def _build_checkpoint(
    source: Source, placement: Placement, choice: Choice, on_component: Callable[[str], None]
) -> OpenedBackend:
    """A checkpoint through a bundle in the cache: exported, and compiled if a compiled backend was asked for."""
    dtype = placement.dtype
    if dtype == "bf16" and choice.name != "openvino":
        raise ConfigError(
            f"backend {choice.name} has no bf16; pass {use('dtype', 'fp32')} or fp16, "
            f"or {use('backend', 'torch')} or openvino",
            field="dtype",
            value=dtype,
            limit="fp32, fp16",
        )
    if choice.name == "openvino":
        check_openvino(placement)  # before a checkpoint of gigabytes is read
        config = BuildConfig(precision="fp16" if dtype == "fp16" else "fp32")
    elif choice.name in FLAVOURS:
        library.import_library(choice.name)  # before a checkpoint of gigabytes is read
        library.require_gpu(choice.name)
        config = BuildConfig(precision=dtype or "fp16", engines=EngineConfig(choice.name))
    else:
        placement = replace(placement, device=onnx_device(placement.device))
        config = BuildConfig(precision=dtype or "fp32")
    recalled = Recalled.of(source.checkpoint, source.unet, source.lora, config)
    found = None if placement.verify else recalled.find()
    if found is not None:
        bundle, sources = found
        on_component("checkpoint: unchanged, its bundle from the cache")
    else:
        loaded = checkpoints.load_checkpoint(source.checkpoint, unet=source.unet, lora=source.lora)
        bundle, sources = cached_bundle(loaded, config, on_component=on_component), loaded.sources
        recalled.keep(bundle, sources)
        del loaded  # the weights are read from the bundle
    return OpenedBackend(_run_bundle(bundle, choice.name, placement, on_component), sources, choice.why)


def _open_checkpoint(source: Source, placement: Placement, choice: Choice) -> OpenedBackend:
    def load() -> Checkpoint:
        return checkpoints.load_checkpoint(source.checkpoint, unet=source.unet, lora=source.lora)

    device = torch_device(placement, choice)  # before a checkpoint of gigabytes is read
    loaded = load()
    backend = _start_torch(loaded, model_info(loaded), load, device, placement, choice)
    return OpenedBackend(backend, loaded.sources, choice.why)


def _start_torch(
    checkpoint: Checkpoint,
    model: ModelInfo,
    reload: Callable[[], Checkpoint],
    device: str,
    placement: Placement,
    choice: Choice,
    in_fp32: Collection[str] = (),
) -> Backend:
    precision, runtime = str(choice.dtype), placement.runtime
    with _explaining_memory(device, precision):
        return torch_backend.TorchBackend(
            checkpoint, model, device=device, precision=precision, runtime=runtime, reload=reload, in_fp32=in_fp32
        )


@contextlib.contextmanager
def _explaining_memory(device: str, dtype: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # allocators share no other base
        message = explain_weights(error, torch.device(device), dtype)
        if message is None:
            raise
        raise BackendError(message) from error
