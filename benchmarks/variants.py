"""The variants that are compared, by name: what an eager user runs, and the engine on each backend."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pie_engine.benchmarks.harness.remote import BenchmarkError, Spec
from pie_engine.benchmarks.subjects import KEEP_FREED_MEMORY

PUBLISHED = "eager fp32, as published"
# What an eager user gets without changing the mathematics, and with half precision and a compiler.
EAGER: dict[str, dict[str, Any]] = {
    PUBLISHED: {"semantics": "official"},
    "eager fp32, as published, freed memory kept": {"semantics": "official", "keep": True},
    "eager fp32, engine semantics": {},
    "eager bf16, tuned": {"dtype": "bf16", "keep": True},
    "eager bf16, tuned and compiled": {"dtype": "bf16", "keep": True, "compile": True},
    "eager fp16, tuned": {"dtype": "fp16"},
    "eager fp16, tuned and compiled": {"dtype": "fp16", "compile": True},
}
ENGINE: dict[str, dict[str, Any]] = {
    "engine, torch fp32": {"backend": "torch", "dtype": "fp32"},
    "engine, torch bf16": {"backend": "torch", "dtype": "bf16"},
    "engine, torch fp16": {"backend": "torch", "dtype": "fp16"},
    "engine, torch fp16, compiled": {"backend": "torch", "dtype": "fp16", "compile": True},
    "engine, onnxruntime fp32": {"backend": "onnxruntime", "dtype": "fp32"},
    "engine, onnxruntime fp16": {"backend": "onnxruntime", "dtype": "fp16"},
    "engine, openvino fp32": {"backend": "openvino", "dtype": "fp32"},
    "engine, openvino bf16": {"backend": "openvino", "dtype": "bf16"},
    "engine, tensorrt fp16": {"backend": "tensorrt", "dtype": "fp16"},
    "engine, tensorrt-rtx fp16": {"backend": "tensorrt-rtx", "dtype": "fp16"},
}
ON_CPU = (
    PUBLISHED, "eager fp32, as published, freed memory kept", "eager fp32, engine semantics", "eager bf16, tuned",
    "engine, torch fp32", "engine, torch bf16", "engine, onnxruntime fp32", "engine, openvino fp32",
    "engine, openvino bf16",
)  # fmt: skip
ON_GPU = (
    PUBLISHED, "eager fp16, tuned", "eager fp16, tuned and compiled", "engine, torch fp16",
    "engine, torch fp16, compiled", "engine, onnxruntime fp16", "engine, tensorrt fp16", "engine, tensorrt-rtx fp16",
)  # fmt: skip
_MODULES = {
    "onnxruntime": "onnxruntime",
    "openvino": "openvino",
    "tensorrt": "tensorrt",
    "tensorrt-rtx": "tensorrt_rtx",
}


@dataclass(frozen=True)
class Setting:
    """What all variants of a comparison share.

    Attributes:
        checkpoint: folder.
        resolution: side in pixels.
        rounds: N.
        strength, num_inference_steps: together k = int(T gamma) guided U-Net evaluations per round.
        threads: of every library; None leaves it to each.
    """

    checkpoint: str
    resolution: int
    rounds: int = 10
    strength: float = 0.5
    num_inference_steps: int = 50
    batch: int = 1
    device: str = "cpu"
    threads: int | None = None

    def config(self, **changes: Any) -> dict[str, Any]:
        """Of `RunConfig`: frames are not composited, so that they can be compared as the model draws them."""
        return {
            "steps": self.rounds,
            "strength": self.strength,
            "num_inference_steps": self.num_inference_steps,
            "resolution": self.resolution,
            "composite": False,
            **changes,
        }

    @property
    def evaluations(self) -> int:
        """U-Net evaluations of one progression."""
        return self.rounds * int(self.num_inference_steps * self.strength)

    def columns(self) -> dict[str, Any]:
        """The columns that key a result's configuration, but the model's name."""
        return {
            "resolution": self.resolution,
            "rounds": self.rounds,
            "evaluations": self.evaluations,
            "batch": self.batch,
        }


def eager_spec(
    setting: Setting, *, keep: bool = False, compile: bool = False, dtype: str = "fp32", **config: Any
) -> Spec:
    """An eager baseline; `keep` has glibc keep freed memory."""
    arguments = {
        "checkpoint": setting.checkpoint,
        "config": setting.config(**config),
        "dtype": dtype,
        "device": setting.device,
        "compile": compile,
    }
    environment = KEEP_FREED_MEMORY if keep else {}
    return Spec("pie_engine.benchmarks.subjects:Eager", arguments, setting.threads, environment)


def engine_spec(setting: Setting, *, backend: str, dtype: str, **runtime: Any) -> Spec:
    """The engine on a backend, with switches of `RuntimeConfig`."""
    arguments = {
        "source": engine_source(setting, backend, dtype),
        "config": setting.config(),
        "runtime": runtime,
        "batch": setting.batch,
    }
    return Spec("pie_engine.benchmarks.subjects:Engine", arguments, setting.threads)


def engine_source(setting: Setting, backend: str, dtype: str) -> dict[str, Any]:
    """Arguments of `PieEngine.load`."""
    return {
        "checkpoint": setting.checkpoint,
        "backend": backend,
        "dtype": dtype,
        "device": setting.device,
        "threads": setting.threads,
    }


def specs(setting: Setting, names: Iterable[str]) -> dict[str, Spec]:
    """The named variants.

    Raises:
        BenchmarkError: a name that is not one.
    """
    made = {}
    for name in names:
        if name in EAGER:
            made[name] = eager_spec(setting, **EAGER[name])
        elif name in ENGINE:
            made[name] = engine_spec(setting, **ENGINE[name])
        else:
            raise BenchmarkError(f"variant {name!r} is unknown; pass one of {'; '.join([*EAGER, *ENGINE])}")
    return made


def usable(names: Iterable[str]) -> list[str]:
    """Those whose backend is installed here and whose arithmetic this processor has."""
    return [name for name in names if name not in ENGINE or installed(ENGINE[name]["backend"])]


def installed(backend: str) -> bool:
    """Whether the library that a backend runs on is."""
    import importlib.util

    return backend not in _MODULES or importlib.util.find_spec(_MODULES[backend]) is not None
