"""What to simulate, and how it is computed.

Symbols follow the paper (arXiv 2309.11745): N = `steps`, T = `num_inference_steps`, gamma = `strength`,
beta1 and beta2 = blend outside and inside the region of interest (ROI).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from pie_engine.config.checks import MAX_RESOLUTION, integer, number, one_of
from pie_engine.config.rounds import RoundSchedule, RoundSettings
from pie_engine.errors import ConfigError

SEMANTICS = ("engine", "official")
INVERSIONS = ("noise", "ddim")
FITS = ("crop", "pad", "stretch")
NOISES = ("shared", "fresh")
DTYPES = ("fp32", "fp16", "bf16")
STEP_KERNELS = ("auto", "eager", "triton", "cpp")
# Pixels at output resolution over which a frame fades in, inward from the edge of the region of interest.
FEATHER = 8


@dataclass(frozen=True)
class RunConfig:
    """How one progression is simulated. The same for every item of a batch.

    `None` means "what the semantics prescribe": see `__post_init__`, which fills those in. Where a `schedule` names a
    round, its prompt, strength and guidance hold there instead of the item's and of those given here.

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
    feather: int | None = None
    schedule: RoundSchedule | None = None

    def __post_init__(self) -> None:
        one_of("semantics", self.semantics, SEMANTICS)
        official = self.semantics == "official"
        if self.noise is None:
            object.__setattr__(self, "noise", "fresh" if official else "shared")
        if self.composite is None:
            object.__setattr__(self, "composite", not official)
        if self.feather is None:
            object.__setattr__(self, "feather", 0 if official else FEATHER)
        integer("steps", self.steps, 1, 10_000, "pass --steps 10")
        integer("num-inference-steps", self.num_inference_steps, 1, 1000, "pass --num-inference-steps 50")
        number("strength", self.strength, 0.0, 1.0, "pass --strength 0.5", open_low=True)
        number("guidance-scale", self.guidance_scale, 0.0, 100.0, "pass --guidance-scale 7.5")
        number("beta1", self.beta1, 0.0, 1.0, "pass --beta1 0.01")
        number("beta2", self.beta2, 0.0, 1.0, "pass --beta2 0.75")
        integer("feather", self.feather, 0, 256, "pass --feather 8")
        integer("seed", self.seed, 0, 2**63 - 1, "pass --seed 0")
        if self.resolution is not None:
            integer("resolution", self.resolution, 8, MAX_RESOLUTION, "pass --resolution 512")
        if not isinstance(self.negative_prompt, str):
            raise ConfigError(f"negative-prompt {self.negative_prompt!r} is not text; pass a string")
        if self.scheduler is not None and (not isinstance(self.scheduler, str) or not self.scheduler):
            raise ConfigError(f"scheduler {self.scheduler!r} is no name; pass --scheduler ddim, or leave it out")
        one_of("inversion", self.inversion, INVERSIONS)
        one_of("noise", self.noise, NOISES)
        if self.inversion == "ddim" and self.noise == "fresh" and not official:
            raise ConfigError("noise 'fresh' means nothing where a round inverts (inversion \"ddim\"); leave it out")
        one_of("fit", self.fit, FITS)
        if self.schedule is not None and not isinstance(self.schedule, RoundSchedule):
            raise ConfigError(f"schedule of type {type(self.schedule).__name__} is none; pass RoundSchedule.read(FILE)")
        for index, own in enumerate(self.rounds, start=1):
            if own.kind.denoising_steps < 1:
                self._refuse_strength(index, own)
        if official:
            if self.schedule is not None:
                raise ConfigError("a schedule is not what the published code computes; pass --semantics engine")
            for name, value, prescribed in (
                ("inversion", self.inversion, "noise"),
                ("noise", self.noise, "fresh"),
                ("composite", self.composite, False),
                ("fit", self.fit, "crop"),
                ("feather", self.feather, 0),
            ):
                if value != prescribed:
                    raise ConfigError(
                        f"{name} {value!r} is not what the published code computes ({prescribed!r}); "
                        "pass --semantics engine"
                    )

    @property
    def rounds(self) -> tuple[RoundSettings, ...]:
        """What each of the N rounds runs with. Raises ConfigError: the schedule names more rounds."""
        own = (self.steps, self.num_inference_steps, self.strength, self.guidance_scale)
        if self.schedule is not None:
            return self.schedule.rounds(*own)
        return (RoundSettings.of(None, self.strength, self.guidance_scale, self.num_inference_steps),) * self.steps

    @property
    def denoising_steps(self) -> int:
        """k = int(T * gamma): the denoising steps of one round, as the published code counts them."""
        return int(self.num_inference_steps * self.strength)

    @property
    def guided(self) -> bool:
        """Whether classifier-free guidance runs: the empty prompt is evaluated too when g > 1."""
        return self.guidance_scale > 1.0

    def _refuse_strength(self, index: int, own: RoundSettings) -> None:
        least = math.ceil(100 / self.num_inference_steps) / 100  # rounded up: the remedy has to work when copied
        scheduled = own.strength != self.strength
        raise ConfigError(
            f"strength {own.strength:g}{f' in round {index} of the schedule' if scheduled else ''} of "
            f"{self.num_inference_steps} steps runs no denoising step (at least {least:g} needed); "
            f"{'write' if scheduled else 'pass --strength'} {least:g} or more --num-inference-steps"
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON; without `schedule` where there is none."""
        settings = asdict(self)
        del settings["schedule"]
        return settings if self.schedule is None else settings | {"schedule": self.schedule.to_list()}


@dataclass(frozen=True)
class RuntimeConfig:
    """How a progression is computed. Each switch turns one optimisation off; results agree up to rounding.

    Attributes:
        fused_step: implementation of what runs between two U-Net evaluations: "triton" (GPU), "cpp" (C++, processor),
            "eager" (PyTorch, one operation after the other), or "auto": the first of these that works here.
        fused_blocks: U-Net and VAE in half precision with norms, additions and activations fused in Triton (torch
            backend on a GPU).
        autotune: let cuDNN try its algorithms for every convolution, and keep the fastest (torch backend on a GPU).
        cuda_graph: capture a step once and replay it (GPU only).
        overlap: decode a frame on a second stream while the next round runs (GPU only).
        compile: compile the U-Net with torch.compile (torch backend only). Off by default: compiling a full-size U-Net
            takes longer than a progression.

    Raises:
        ConfigError: an unknown implementation.
    """

    fused_step: str = "auto"
    fused_blocks: bool = True
    autotune: bool = True
    cuda_graph: bool = True
    overlap: bool = True
    compile: bool = False

    def __post_init__(self) -> None:
        one_of("fused-step", self.fused_step, STEP_KERNELS)


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
