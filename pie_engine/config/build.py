"""What a bundle is built for."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from pie_engine.config.checks import MAX_RESOLUTION, integer, number, one_of
from pie_engine.errors import ConfigError

COMPONENTS = ("text_encoder", "vae_encoder", "unet", "vae_decoder")
PRECISIONS = ("fp32", "fp16")
FLAVOURS = ("tensorrt", "tensorrt-rtx")
ENGINE_WEIGHTS = ("fixed", "refittable")


@dataclass(frozen=True)
class BuildConfig:
    """What a bundle is built for.

    Attributes:
        precision: of weights and activations; empty means fp32 for ONNX Runtime and fp16 for TensorRT.
        opset: ONNX opset; 0 means 20 for ONNX Runtime and 23, which keeps attention whole, for TensorRT.
        cache_dir: where components are kept; None means the user's cache folder.
        engines: compiled engines beside the ONNX graphs, or None for none.

    Raises:
        ConfigError: an unknown precision, or an opset out of range.
    """

    precision: str = ""
    opset: int = 0
    cache_dir: Path | None = field(default=None, compare=False)
    engines: EngineConfig | None = None

    def __post_init__(self) -> None:
        if not self.precision:
            object.__setattr__(self, "precision", "fp32" if self.engines is None else "fp16")
        if self.opset == 0:
            object.__setattr__(self, "opset", 20 if self.engines is None else 23)
        one_of("precision", self.precision, PRECISIONS)
        integer("opset", self.opset, 18, 23, "pass --opset 20")


@dataclass(frozen=True)
class EngineConfig:
    """Which TensorRT engines a build compiles: one per component, with one static profile per batch and resolution.

    (For compute capability 7.5 a U-Net's batch of 1 is a range from 1 to 2, which is what compiles there.)

    Attributes:
        flavour: "tensorrt" (servers; compiled on the GPU that runs it) or "tensorrt-rtx" (workstations; compiled
            anywhere, for several GPUs at once).
        resolutions: sides in pixels; empty means the model's own.
        batches: items that run at once.
        capabilities: compute capabilities such as "8.6" (tensorrt-rtx); empty means the GPU at hand.
        weights: "fixed" into the engine, or "refittable", which lets another fine-tuned checkpoint in without
            compiling; None means refittable where a GPU is at hand to compile that for, else fixed.
        optimisation_level: 0 (quick to build) to 5 (quick to run); None leaves it to the library.
        workspace: scratch memory on the GPU in GiB at most; None means all of it.

    Raises:
        ConfigError: a value is unknown or out of range, or two contradict each other.
    """

    flavour: str
    resolutions: tuple[int, ...] = ()
    batches: tuple[int, ...] = (1,)
    capabilities: tuple[str, ...] = ()
    weights: str | None = None
    optimisation_level: int | None = None
    workspace: float | None = None

    def __post_init__(self) -> None:
        one_of("backend", self.flavour, FLAVOURS)
        for resolution in self.resolutions:
            integer("resolution", resolution, 8, MAX_RESOLUTION, "pass --resolution 512")
        if not self.batches:
            raise ConfigError("no batch size is given; pass --batch 1")
        for batch in self.batches:
            integer("batch", batch, 1, 256, "pass --batch 1")
        object.__setattr__(self, "resolutions", tuple(sorted(set(self.resolutions))))
        object.__setattr__(self, "batches", tuple(sorted(set(self.batches))))
        for capability in self.capabilities:
            if not isinstance(capability, str) or not re.fullmatch(r"\d{1,2}\.\d", capability):
                raise ConfigError(
                    f"compute-capability {capability!r} is not a number such as 8.6; pass --compute-capability 8.6,8.9"
                )
        if self.weights is not None:
            one_of("weights", self.weights, ENGINE_WEIGHTS)
        if self.optimisation_level is not None:
            integer("optimisation-level", self.optimisation_level, 0, 5, "pass --optimisation-level 3")
        if self.workspace is not None:
            number("workspace", self.workspace, 0.0, 1024.0, "pass --workspace 8 (GiB)", open_low=True)
        if self.flavour == "tensorrt" and self.capabilities:
            raise ConfigError(
                "tensorrt compiles for the GPU at hand, not for --compute-capability; leave it out, or pass "
                "--backend tensorrt-rtx"
            )
        if self.weights == "refittable" and len(self.capabilities) > 1:
            raise ConfigError(
                f"weights 'refittable' are compiled for one compute capability ({len(self.capabilities)} given); "
                "pass --weights fixed, or one --compute-capability"
            )
