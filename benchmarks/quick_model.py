"""What `pie-engine bench` runs: a bundle or a checkpoint, and the backends that take it here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pie_engine.benchmarks.harness import BenchmarkError
from pie_engine.bundling.restore import check_restorable
from pie_engine.config import BACKENDS as _WITH_AUTO
from pie_engine.config import FLAVOURS, BuildConfig, EngineConfig, check_resolution
from pie_engine.errors import BackendError, BundleError

if TYPE_CHECKING:
    from pie_engine.benchmarks.harness.machine import Limits
    from pie_engine.benchmarks.quick import Quick
    from pie_engine.checkpoint import Checkpoint
    from pie_engine.model.bundle import Bundle

BACKENDS = tuple(name for name in _WITH_AUTO if name != "auto")


@dataclass(frozen=True)
class Model:
    """What is measured.

    Attributes:
        name: of the checkpoint or bundle.
        dtype: what was asked of the backends.
        resolution: side in pixels.
        checkpoint: "checkpoint", "unet" and "lora" for an eager baseline; None for a bundle.
        sources: arguments of `PieEngine.load` by variant; LoRA as text.
        flops: of one sample by component; empty for a bundle.
        notes: what was left out, and why.
    """

    name: str
    dtype: str
    resolution: int
    checkpoint: dict[str, Any] | None
    sources: dict[str, dict[str, Any]]
    flops: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def arithmetic(self, config: Quick, official: bool, seconds: float, limits: Limits) -> dict[str, float | None]:
        """Work of one item, its rate in `seconds`, and the share of what the machine reached; None for a bundle."""
        from pie_engine.benchmarks.harness.arithmetic import progression_flops
        from pie_engine.config import RunConfig

        if not self.flops:
            return dict.fromkeys(("tflop", "gflop_per_s", "peak_gflop_per_s", "share"))
        steps = RunConfig(steps=config.rounds, strength=config.strength).denoising_steps
        work = progression_flops(self.flops, rounds=config.rounds, steps=steps, guided=True, official=official)
        rate = work / seconds
        return {
            "tflop": work / 1e12,
            "gflop_per_s": rate / 1e9,
            "peak_gflop_per_s": limits.flops / 1e9,
            "share": rate / limits.flops,
        }


def engine_dtype(facts: Mapping[str, Any]) -> str:
    """What a backend's U-Net computes in, which need not be what was asked for."""
    return str(facts["precisions"]["unet"])


def open_model(config: Quick, on_line: Callable[[str], None]) -> Model:
    """Read the model, choose the backends, export what they need.

    Args:
        config: with its device and threads.

    Raises:
        BenchmarkError: a backend that was asked for does not run this here. ConfigError: the resolution does not fit.
    """
    return (_open_checkpoint if config.engine is None else _open_bundle)(config, on_line)


def _open_bundle(config: Quick, on_line: Callable[[str], None]) -> Model:
    from pie_engine.model.bundle import open_bundle

    bundle = open_bundle(config.engine or "")
    dtype = config.dtype or bundle.precision
    if dtype != bundle.precision and not (dtype == "bf16" and bundle.precision == "fp32"):
        raise BenchmarkError(f"dtype {dtype} is not this bundle's ({bundle.precision}); leave it out")
    resolution = config.resolution or bundle.model.default_resolution
    check_resolution(resolution, bundle.model.resolution_multiple)
    chosen = choose(config, dtype, bundle)
    shared = {"engine": str(config.engine), "device": config.device, "threads": config.threads}
    sources = {
        f"engine, {name} {dtype}": {
            **shared, "backend": name, "dtype": dtype if name == "torch" or dtype == "bf16" else None,
        }
        for name in chosen
    }  # fmt: skip
    notes = []
    if config.compare is None:
        notes.append(
            "eager PyTorch runs checkpoints, so backends are compared with one another; pass --checkpoint for it"
        )
    return Model(str(config.engine), dtype, resolution, None, sources, notes=notes)


def _open_checkpoint(config: Quick, on_line: Callable[[str], None]) -> Model:
    from pie_engine.benchmarks.harness.arithmetic import count_flops
    from pie_engine.benchmarks.subjects import model_folder
    from pie_engine.checkpoint import LoraSpec, load_checkpoint

    dtype = config.dtype or ("fp32" if config.device == "cpu" else "fp16")
    loras = [LoraSpec.parse(text) for text in config.lora]
    chosen = choose(config, dtype, None)  # before a checkpoint of gigabytes is read
    demo = config.checkpoint is None and config.unet is None
    base = str(model_folder("demo")) if demo else None if config.checkpoint is None else str(config.checkpoint)
    loaded = load_checkpoint(base, unet=config.unet, lora=loras)
    resolution = config.resolution or loaded.default_resolution
    check_resolution(resolution, loaded.resolution_multiple)
    given = {
        "checkpoint": base,
        "unet": None if config.unet is None else str(config.unet),
        "lora": list(config.lora),
    }
    shared = {"device": config.device, "threads": config.threads}
    sources = {}
    for name in chosen:
        sources[f"engine, {name} {dtype}"] = {
            "backend": name,
            **shared,
            **(
                {**given, "dtype": dtype}
                if name == "torch"
                else _exported(loaded, config, name, dtype, resolution, on_line)
            ),
        }
    model = "demo" if demo else str(config.checkpoint or config.unet)
    return Model(model, dtype, resolution, given, sources, count_flops(loaded, resolution))


def _exported(
    loaded: Checkpoint, config: Quick, backend: str, dtype: str, resolution: int, on_line: Callable[[str], None]
) -> dict[str, Any]:
    """The checkpoint's bundle in the cache, made here and not in a process whose time and memory are measured."""
    from pie_engine.bundling import cached_bundle

    if backend in FLAVOURS:
        engines = EngineConfig(backend, resolutions=(resolution,), batches=(config.batch,))
        build = BuildConfig(precision=dtype, engines=engines)
    else:
        build = BuildConfig(precision="fp32" if dtype == "bf16" else dtype)
    bundle = cached_bundle(loaded, build, on_component=on_line)
    return {"engine": str(bundle.path), "dtype": dtype if dtype == "bf16" else None}


def choose(config: Quick, dtype: str, bundle: Bundle | None) -> list[str]:
    """The backends that were asked for, or all that run here and compile nothing.

    Raises:
        BenchmarkError: one that was asked for cannot run this here, or none can.
    """
    from pie_engine.machine.doctor import diagnose

    problems = {status["name"]: status["problems"] for status in diagnose()["backends"]}
    obstacles = {name: _obstacle(name, config, dtype, bundle, problems) for name in config.backends or BACKENDS}
    if config.backends is not None:
        for obstacle in filter(None, obstacles.values()):
            raise BenchmarkError(obstacle)
        return list(obstacles)
    chosen = [name for name, obstacle in obstacles.items() if obstacle is None]
    if bundle is not None and config.device == "cpu":
        chosen = [name for name in chosen if name != "torch"] or chosen  # slower there than what runs the graphs
    if bundle is None:
        chosen = [name for name in chosen if name not in FLAVOURS]  # nothing is compiled unasked
        if dtype == "fp16":  # OpenVINO would compute in fp32 from rounded weights
            chosen = [name for name in chosen if name != "openvino"]
    if not chosen:
        raise BenchmarkError(
            f"no backend runs this in {dtype} on {config.device}; pie-engine doctor says what they lack"
        )
    return chosen


def _obstacle(
    name: str, config: Quick, dtype: str, bundle: Bundle | None, problems: Mapping[str, list[dict[str, str]]]
) -> str | None:
    """Why a backend cannot run this here, in one line."""
    on_gpu = config.device != "cpu"
    if name == "torch" and bundle is not None:
        try:
            check_restorable(bundle)
        except BundleError as error:
            return str(error)
    if name in FLAVOURS and not on_gpu:
        return f"backend {name} runs on an NVIDIA GPU, not on cpu; leave it out"
    if name == "openvino" and on_gpu:
        return f"backend openvino runs on a processor, not on {config.device}; pass --device cpu"
    for problem in problems[name if name in FLAVOURS else f"{name} on {'GPU' if on_gpu else 'CPU'}"]:
        return f"backend {name} does not run here ({problem['what']}): {problem['remedy']}"
    if name in FLAVOURS and bundle is not None and not bundle.engines(name):
        return f"the bundle holds no {name} engines; build one: pie-engine build --backend {name}"
    if dtype == "bf16" and name in ("onnxruntime", *FLAVOURS):
        return f"backend {name} has no bf16; leave it out, or pass --dtype fp32"
    if dtype == "bf16" and name == "openvino":
        from pie_engine.backends.openvino_session import check_bf16

        try:
            check_bf16()
        except BackendError as error:
            return str(error)
    return None
