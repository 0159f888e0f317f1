"""What to build and what to run: frozen dataclasses, validated once, written into every output.

Symbols follow the paper (arXiv 2309.11745): N = `steps`, T = `num_inference_steps`, gamma = `strength`,
beta1 and beta2 = blend outside and inside the region of interest (ROI).
"""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pie_engine.errors import ConfigError

SEMANTICS = ("engine", "official")
INVERSIONS = ("noise", "ddim")
FITS = ("crop", "pad", "stretch")
NOISES = ("shared", "fresh")
PRECISIONS = ("fp32", "fp16")
DTYPES = ("fp32", "fp16", "bf16")
STEP_KERNELS = ("auto", "eager", "triton", "cpp")
FLAVOURS = ("tensorrt", "tensorrt-rtx")
ENGINE_WEIGHTS = ("fixed", "refittable", "stripped")
HARDWARE_COMPATIBILITIES = ("none", "ampere-plus", "same-compute-capability")
COMPONENTS = ("text_encoder", "vae_encoder", "unet", "vae_decoder")


def _one_of(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f"{name} {value!r} is unknown (one of {', '.join(allowed)})")


def _number(name: str, value: object, low: float, high: float, remedy: str, *, open_low: bool = False) -> None:
    # bool is an int in Python; a flag passed as a number is a caller's mistake, not a 1.
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ConfigError(f"{name} {value!r} is not a finite number; {remedy}")
    if value > high or value < low or (open_low and value == low):
        left = "(" if open_low else "["
        limits = f"{low:g}, {high:g}" if isinstance(high, float) else f"{low}, {high}"
        raise ConfigError(f"{name} {value} is outside {left}{limits}]; {remedy}")


def _integer(name: str, value: object, low: int, high: int, remedy: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigError(f"{name} {value!r} is not a whole number; {remedy}")
    _number(name, value, low, high, remedy)


@dataclass(frozen=True)
class RunConfig:
    """How one progression is simulated. The same for every item of a batch.

    `None` means "what the semantics prescribe": see `__post_init__`, which fills those in.

    Raises:
        ConfigError: a value is out of range, or contradicts the semantics.
    """

    steps: int = 10
    strength: float = 0.5
    num_inference_steps: int = 50
    guidance_scale: float = 7.5
    negative_prompt: str = ""
    beta1: float = 0.01
    beta2: float = 0.75
    scheduler: str | None = None
    inversion: str = "noise"
    noise: str | None = None
    composite: bool | None = None
    semantics: str = "engine"
    seed: int = 0
    resolution: int | None = None
    fit: str = "crop"

    def __post_init__(self) -> None:
        _one_of("semantics", self.semantics, SEMANTICS)
        official = self.semantics == "official"
        if self.noise is None:
            object.__setattr__(self, "noise", "fresh" if official else "shared")
        if self.composite is None:
            object.__setattr__(self, "composite", not official)
        _integer("steps", self.steps, 1, 10_000, "pass --steps 10")
        _integer("num-inference-steps", self.num_inference_steps, 1, 1000, "pass --num-inference-steps 50")
        _number("strength", self.strength, 0.0, 1.0, "pass --strength 0.5", open_low=True)
        _number("guidance-scale", self.guidance_scale, 0.0, 100.0, "pass --guidance-scale 7.5")
        _number("beta1", self.beta1, 0.0, 1.0, "pass --beta1 0.01")
        _number("beta2", self.beta2, 0.0, 1.0, "pass --beta2 0.75")
        _integer("seed", self.seed, 0, 2**63 - 1, "pass --seed 0")
        if self.resolution is not None:
            _integer("resolution", self.resolution, 8, 8192, "pass --resolution 512")
        if not isinstance(self.negative_prompt, str):
            raise ConfigError(f"negative-prompt {self.negative_prompt!r} is not text; pass a string")
        if self.scheduler is not None and (not isinstance(self.scheduler, str) or not self.scheduler):
            raise ConfigError(f"scheduler {self.scheduler!r} is no name; pass --scheduler ddim, or leave it out")
        _one_of("inversion", self.inversion, INVERSIONS)
        _one_of("noise", self.noise, NOISES)
        _one_of("fit", self.fit, FITS)
        if self.denoising_steps < 1:
            least = math.ceil(100 / self.num_inference_steps) / 100  # rounded up: the remedy has to work when copied
            raise ConfigError(
                f"strength {self.strength:g} of {self.num_inference_steps} steps runs no denoising step "
                f"(at least {least:g} needed); pass --strength {least:g} or more --num-inference-steps"
            )
        if official:
            for name, value, prescribed in (
                ("inversion", self.inversion, "noise"),
                ("noise", self.noise, "fresh"),
                ("composite", self.composite, False),
                ("fit", self.fit, "crop"),
            ):
                if value != prescribed:
                    raise ConfigError(
                        f"{name} {value!r} is not what the published code computes ({prescribed!r}); "
                        "pass --semantics engine"
                    )

    @property
    def denoising_steps(self) -> int:
        """k = int(T * gamma): the denoising steps of one round, as the published code counts them."""
        return int(self.num_inference_steps * self.strength)

    @property
    def guided(self) -> bool:
        """Whether classifier-free guidance runs: the empty prompt is evaluated too when g > 1."""
        return self.guidance_scale > 1.0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class RuntimeConfig:
    """How a progression is computed. Each switch turns one optimisation off; results agree up to rounding.

    Attributes:
        fused_step: implementation of what runs between two U-Net evaluations: "triton" (GPU), "cpp" (C++ on a
            processor, CUDA C++ on a GPU), "eager" (PyTorch, one operation after the other), or "auto": the first of
            these that works here.
        cuda_graph: capture a round once and replay it (GPU only).
        overlap: decode a frame on a second stream while the next round runs (GPU only).
        compile: compile the U-Net with torch.compile (torch backend only). Off by default: compiling a full-size U-Net
            takes longer than a progression.

    Raises:
        ConfigError: an unknown implementation.
    """

    fused_step: str = "auto"
    cuda_graph: bool = True
    overlap: bool = True
    compile: bool = False

    def __post_init__(self) -> None:
        _one_of("fused-step", self.fused_step, STEP_KERNELS)


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
        _one_of("precision", self.precision, PRECISIONS)
        _integer("opset", self.opset, 18, 23, "pass --opset 20")


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
        hardware_compatibility: "none" for engines of this GPU alone, "ampere-plus" for 8.0 and above,
            "same-compute-capability" (tensorrt); wider ones run slower.
        weights: "fixed" into the engine; "refittable", which lets another fine-tuned checkpoint in without compiling;
            "stripped", the same with the weights left out of the file; None means refittable where a GPU is at hand to
            compile that for, else fixed.
        optimisation_level: 0 (quick to build) to 5 (quick to run); None leaves it to the library.
        workspace: scratch memory on the GPU in GiB at most; None means all of it.

    Raises:
        ConfigError: a value is unknown or out of range, or two contradict each other.
    """

    flavour: str
    resolutions: tuple[int, ...] = ()
    batches: tuple[int, ...] = (1,)
    capabilities: tuple[str, ...] = ()
    hardware_compatibility: str = "none"
    weights: str | None = None
    optimisation_level: int | None = None
    workspace: float | None = None

    def __post_init__(self) -> None:
        _one_of("backend", self.flavour, FLAVOURS)
        for resolution in self.resolutions:
            _integer("resolution", resolution, 8, 8192, "pass --resolution 512")
        if not self.batches:
            raise ConfigError("no batch size is given; pass --batch 1")
        for batch in self.batches:
            _integer("batch", batch, 1, 256, "pass --batch 1")
        object.__setattr__(self, "resolutions", tuple(sorted(set(self.resolutions))))
        object.__setattr__(self, "batches", tuple(sorted(set(self.batches))))
        for capability in self.capabilities:
            if not isinstance(capability, str) or not re.fullmatch(r"\d{1,2}\.\d", capability):
                raise ConfigError(
                    f"compute-capability {capability!r} is not a number such as 8.6; pass --compute-capability 8.6,8.9"
                )
        _one_of("hardware-compatibility", self.hardware_compatibility, HARDWARE_COMPATIBILITIES)
        if self.weights is not None:
            _one_of("weights", self.weights, ENGINE_WEIGHTS)
        if self.optimisation_level is not None:
            _integer("optimisation-level", self.optimisation_level, 0, 5, "pass --optimisation-level 3")
        if self.workspace is not None:
            _number("workspace", self.workspace, 0.0, 1024.0, "pass --workspace 8 (GiB)", open_low=True)
        if self.flavour == "tensorrt" and self.capabilities:
            raise ConfigError(
                "tensorrt compiles for the GPU at hand, not for --compute-capability; leave it out, pass "
                "--hardware-compatibility ampere-plus, or --backend tensorrt-rtx"
            )
        if self.flavour == "tensorrt-rtx" and self.hardware_compatibility != "none":
            raise ConfigError(
                "hardware-compatibility belongs to tensorrt; pass --compute-capability 8.6,8.9 with tensorrt-rtx"
            )
        if self.weights not in (None, "fixed") and len(self.capabilities) > 1:
            raise ConfigError(
                f"weights {self.weights!r} are compiled for one compute capability ({len(self.capabilities)} given); "
                "pass --weights fixed, or one --compute-capability"
            )


def check_resolution(resolution: int, multiple: int) -> None:
    """Refuse sizes that the exported U-Net cannot take: its skip connections would not line up.

    Raises:
        ConfigError: `resolution` is not a multiple of `multiple` = 8 * 2**(levels - 1) pixels.
    """
    if resolution < multiple or resolution % multiple:
        nearest = max(multiple, round(resolution / multiple) * multiple)
        raise ConfigError(
            f"resolution {resolution} does not fit this U-Net (multiple of {multiple} expected); "
            f"pass --resolution {nearest}"
        )
