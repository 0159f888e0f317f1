"""From a bundle or a checkpoint to a backend that runs it, with every contradiction refused before weights are read."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pie_engine import commands
from pie_engine.config import COMPONENTS, DTYPES, FLAVOURS, BuildConfig, EngineConfig
from pie_engine.config.checks import one_of
from pie_engine.errors import BackendError, BundleError, ConfigError, argument, mention, use
from pie_engine.machine.selection import (
    BACKENDS,
    Choice,
    choose_for_bundle,
    choose_for_checkpoint,
    device_index,
    take,
    wants_gpu,
)

if TYPE_CHECKING:
    from pie_engine.backends import Backend
    from pie_engine.checkpoint import Checkpoint, LoraSpec
    from pie_engine.config import RuntimeConfig
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
class Opened:
    """A backend, what provenance says of its model's origin, and why this backend was taken."""

    backend: Backend
    provenance: dict[str, Any]
    why: str


def open_backend(
    source: Source,
    *,
    backend: str,
    device: str | None,
    dtype: str | None,
    threads: int | None,
    runtime: RuntimeConfig,
    on_component: Callable[[str], None],
) -> Opened:
    """See `PieEngine.load`, which documents the arguments."""
    one_of("backend", backend, BACKENDS)
    if dtype is not None:
        one_of("dtype", dtype, DTYPES)
    if device is not None and not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        raise ConfigError(
            f"device {device!r} is unknown (cpu, cuda or cuda:N); pass {use('device', 'cpu')}",
            field="device", value=device, limit="cpu, cuda or cuda:N",
        )  # fmt: skip
    if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
        raise ConfigError(
            f"threads {threads!r} is not a whole number of at least 1; pass {use('threads', 1)}",
            field="threads", value=threads, limit="at least 1",
        )  # fmt: skip
    given = source.checkpoint is not None or source.unet is not None
    if (source.engine is None) != given:
        found = "both" if given else "neither"
        raise ConfigError(
            f"one of a bundle and a checkpoint is needed ({found} given); pass {argument('engine')} or "
            f"{argument('checkpoint')}"
        )
    if runtime.compile and backend not in ("auto", "torch"):
        raise ConfigError(
            f"{mention('compile')} is for PyTorch modules; pass {use('backend', 'torch')}, or leave it out"
        )
    if source.engine is None:
        choice = (
            choose_for_checkpoint(device, dtype, runtime.compile) if backend == "auto" else take(backend, device, dtype)
        )
        if choice.name == "torch":
            return _open_checkpoint(source, device, threads, runtime, choice)
        return _build_checkpoint(source, device, dtype, threads, choice, on_component)
    if source.lora:
        raise ConfigError(
            f"a LoRA cannot be fused into a bundle as it runs; make one: {commands.refit_with_lora()}", field="lora"
        )
    return _open_bundle(source.engine, device, dtype, threads, runtime, backend)


def _open_bundle(
    path: str | Path, device: str | None, dtype: str | None, threads: int | None, runtime: RuntimeConfig, backend: str
) -> Opened:
    from pie_engine.model.bundle import open_bundle

    bundle = open_bundle(path)
    own = bundle.precision
    if backend == "auto":
        choice = choose_for_bundle(bundle, device, dtype, runtime.compile)
    else:
        choice = take(backend, device, dtype, own)
    sources = {"bundle": str(path), **bundle.manifest["sources"]}
    if choice.name == "torch":
        return Opened(_run_in_torch(bundle, device, threads, runtime, choice), sources, choice.why)
    # OpenVINO computes in bf16 from weights in fp32: no bundle is built for it.
    if dtype not in (None, own) and (choice.name, dtype, own) != ("openvino", "bf16", "fp32"):
        raise ConfigError(_other_dtype(dtype, own))
    return Opened(_run_bundle(bundle, choice.name, device, dtype, threads), sources, choice.why)


def _other_dtype(dtype: str | None, own: str) -> str:
    remedy = f"build one: pie-engine build --precision {dtype}, or pass {use('backend', 'torch')}"
    if dtype == "bf16":
        in_openvino = f", or {use('backend', 'openvino')} {use('device', 'cpu')}" if own == "fp32" else ""
        remedy = f"pass {use('backend', 'torch')}{in_openvino}"
    return f"dtype {dtype} is not this bundle's ({own}); {remedy}"


def _run_in_torch(
    bundle: Bundle, device: str | None, threads: int | None, runtime: RuntimeConfig, choice: Choice
) -> Backend:
    """A bundle's models in PyTorch, with the weights of its graphs."""
    from pie_engine.bundling import check_restorable, restore_checkpoint
    from pie_engine.model.bundle import open_bundle

    check_restorable(bundle)
    device = _torch_device(device, choice, threads)  # before gigabytes are read

    def reload() -> Checkpoint:
        again = open_bundle(bundle.path)
        if again.manifest["manifest_sha256"] != bundle.manifest["manifest_sha256"]:
            raise BundleError(f"bundle {bundle.path} was written anew while its model ran; load it again")
        return restore_checkpoint(again)

    # In half precision too, a component that the build kept in fp32 because it overflows.
    kept = [name for name in COMPONENTS if bundle.manifest["components"][name]["precision"] != bundle.precision]
    return _start_torch(restore_checkpoint(bundle), bundle.model, reload, device, runtime, choice, kept)


def _run_bundle(bundle: Bundle, backend: str, device: str | None, dtype: str | None, threads: int | None) -> Backend:
    """A bundle's graphs in OpenVINO or ONNX Runtime, or its engines in TensorRT."""
    if backend in FLAVOURS:
        from pie_engine.backends.tensorrt.backend import TensorRTBackend, check_engines

        if device == "cpu":
            raise ConfigError(
                f"backend {backend} runs on an NVIDIA GPU, not on cpu; pass {use('backend', 'onnxruntime')}",
                field="backend", value=backend,
            )  # fmt: skip
        check_engines(bundle, backend, device_index(device))
        device = _check_gpu(device or "cuda:0", bundle.precision)
        with _explaining_memory(device, bundle.precision):
            return TensorRTBackend(bundle, backend, device=device)
    if backend == "openvino":
        from pie_engine.backends.openvino_backend import OpenVINOBackend

        precision = _check_openvino(device, dtype)
        with _explaining_memory("cpu", precision):
            return OpenVINOBackend(bundle, precision=precision, threads=threads)
    from pie_engine.backends.onnx_backend import OnnxBackend

    device = _onnx_device(device)
    with _explaining_memory(device, bundle.precision):
        return OnnxBackend(bundle, device=device, threads=threads)


def _build_checkpoint(
    source: Source,
    device: str | None,
    dtype: str | None,
    threads: int | None,
    choice: Choice,
    on_component: Callable[[str], None],
) -> Opened:
    """A checkpoint through a bundle in the cache: exported, and compiled if a compiled backend was asked for."""
    from pie_engine.bundling import cached_bundle
    from pie_engine.checkpoint import load_checkpoint

    compiled = choice.name in FLAVOURS
    if dtype == "bf16" and choice.name != "openvino":
        raise ConfigError(
            f"backend {choice.name} has no bf16; pass {use('dtype', 'fp32')} or fp16, "
            f"or {use('backend', 'torch')} or openvino",
            field="dtype",
            value=dtype,
            limit="fp32, fp16",
        )
    if choice.name == "openvino":
        _check_openvino(device, dtype)  # before a checkpoint of gigabytes is read
        config = BuildConfig(precision="fp16" if dtype == "fp16" else "fp32")
    elif compiled:
        from pie_engine.backends.tensorrt.library import import_library, require_gpu

        import_library(choice.name)  # before a checkpoint of gigabytes is read
        require_gpu(choice.name)
        config = BuildConfig(precision=dtype or "fp16", engines=EngineConfig(choice.name))
    else:
        device = _onnx_device(device)
        config = BuildConfig(precision=dtype or "fp32")
    loaded = load_checkpoint(source.checkpoint, unet=source.unet, lora=source.lora)
    bundle = cached_bundle(loaded, config, on_component=on_component)
    sources = loaded.sources
    del loaded  # the weights are read from the bundle
    return Opened(_run_bundle(bundle, choice.name, device, dtype, threads), sources, choice.why)


def _open_checkpoint(
    source: Source, device: str | None, threads: int | None, runtime: RuntimeConfig, choice: Choice
) -> Opened:
    from pie_engine.bundling import model_info
    from pie_engine.checkpoint import load_checkpoint

    def load() -> Checkpoint:
        return load_checkpoint(source.checkpoint, unet=source.unet, lora=source.lora)

    device = _torch_device(device, choice, threads)  # before a checkpoint of gigabytes is read
    loaded = load()
    backend = _start_torch(loaded, model_info(loaded), load, device, runtime, choice)
    return Opened(backend, loaded.sources, choice.why)


def _torch_device(device: str | None, choice: Choice, threads: int | None) -> str:
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    if not wants_gpu(device):
        return "cpu"
    return _check_gpu(device or "cuda", str(choice.dtype))


def _start_torch(
    checkpoint: Checkpoint,
    model: ModelInfo,
    reload: Callable[[], Checkpoint],
    device: str,
    runtime: RuntimeConfig,
    choice: Choice,
    in_fp32: Collection[str] = (),
) -> Backend:
    from pie_engine.backends.torch_backend import TorchBackend

    precision = str(choice.dtype)
    with _explaining_memory(device, precision):
        return TorchBackend(
            checkpoint, model, device=device, precision=precision, runtime=runtime, reload=reload, in_fp32=in_fp32
        )


def _check_openvino(device: str | None, dtype: str | None) -> str:
    """The precision that OpenVINO computes in, once it is known to run here."""
    from pie_engine.backends.openvino_session import check_bf16, import_openvino

    if device is not None and device != "cpu":
        raise ConfigError(
            f"backend openvino runs on a processor, not on {device}; pass {use('device', 'cpu')}",
            field="device", value=device, limit="cpu",
        )  # fmt: skip
    import_openvino()
    if dtype == "bf16":
        check_bf16()
        return "bf16"
    return "fp32"


def _onnx_device(device: str | None) -> str:
    """The device for ONNX Runtime: a GPU if asked for, or if both PyTorch and ONNX Runtime can use one."""
    import torch

    from pie_engine.backends.onnx_session import check_cuda_provider, import_onnxruntime

    providers = import_onnxruntime().get_available_providers()
    if device is None:
        usable = torch.cuda.is_available() and "CUDAExecutionProvider" in providers
        device = "cuda" if usable else "cpu"
    if device.startswith("cuda"):
        device = _check_gpu(device, "fp32")
        check_cuda_provider()
    return device


def _check_gpu(device: str, dtype: str) -> str:
    """The device with its number, "cuda:0": engines other than PyTorch know no current device."""
    import torch

    if not torch.cuda.is_available():
        raise ConfigError(
            f"device {device!r} needs an NVIDIA GPU and this machine shows none; pass {use('device', 'cpu')}",
            field="device", value=device, limit="cpu",
        )  # fmt: skip
    index = int(device.partition(":")[2] or torch.cuda.current_device())
    if index >= torch.cuda.device_count():
        raise ConfigError(
            f"device {device!r} is not one of {torch.cuda.device_count()} GPUs; pass {use('device', 'cuda:0')}",
            field="device", value=device, limit=f"cuda:0 to cuda:{torch.cuda.device_count() - 1}",
        )  # fmt: skip
    capability = torch.cuda.get_device_capability(index)
    name = f"{torch.cuda.get_device_name(index)} (compute capability {capability[0]}.{capability[1]})"
    if not _runs_on(torch.cuda.get_arch_list(), capability):
        built = ", ".join(torch.cuda.get_arch_list())
        raise ConfigError(
            f"{name} is not one that torch {torch.__version__} was built for ({built}); "
            f"install another build of torch, or pass {use('device', 'cpu')}",
            field="device",
            value=device,
        )
    if dtype == "bf16" and capability < (8, 0):
        raise ConfigError(f"{name} has no bf16 (8.0 needed); pass {use('dtype', 'fp16')}", field="dtype", value=dtype)
    return f"cuda:{index}"


def _runs_on(built: list[str], capability: tuple[int, int]) -> bool:
    """Whether a torch built for these targets runs on a GPU: sm_86 on 8.6 and up to 8.9, compute_80 on all above."""
    for target in built:
        kind, _, number = target.partition("_")
        major, minor = divmod(int(number.rstrip("af")), 10)
        if (major, minor) <= capability and (kind == "compute" or major == capability[0]):
            return True
    return False


@contextlib.contextmanager
def _explaining_memory(device: str, dtype: str) -> Iterator[None]:
    import torch

    from pie_engine.rounds.memory import explain_weights

    try:
        yield
    except Exception as error:  # allocators share no other base
        message = explain_weights(error, torch.device(device), dtype)
        if message is None:
            raise
        raise BackendError(message) from error
