"""What to simulate, and how it is computed.

Symbols follow the paper (arXiv 2309.11745): N = `steps`, T = `num_inference_steps`, gamma = `strength`,
beta1 and beta2 = blend outside and inside the region of interest (ROI).
"""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pie_engine.config.checks import MAX_RESOLUTION
from pie_engine.config.rounds import RoundSchedule, RoundSettings
from pie_engine.config.settings import setting, settings
from pie_engine.errors import ConfigError, mention, use

SEMANTICS = ("engine", "official")
INVERSIONS = ("noise", "ddim")
FITS = ("crop", "pad", "stretch")
NOISES = ("shared", "fresh")
PACES = ("constant", "even")
DTYPES = ("fp32", "fp16", "bf16")
REGIONAL = ("auto", "on", "off")
STEP_KERNELS = ("auto", "eager", "triton", "cpp")
# Pixels at output resolution over which a frame fades in, inward from the edge of the region of interest.
FEATHER = 8


@settings
class RunConfig:
    """How one progression is simulated. The same for every item of a batch.

    `None` means "what the semantics prescribe": see `__post_init__`, which fills those in. Where a `schedule` names a
    round, its prompt, strength and guidance hold there instead of the item's and of those given here.

    Raises:
        ConfigError: a value is out of range, or contradicts the semantics.
    """

    steps: int = setting(
        "progression rounds, one frame each", default=10, low=1, high=10_000, symbol="N", label="Rounds (N)",
        vary="whole numbers", published=("step",), also=("rounds",), metavar="N",
    )  # fmt: skip
    strength: float = setting(
        "share of the schedule per round: it runs int(T gamma) denoising steps", default=0.5, low=0.0, high=1.0,
        open_low=True, symbol="gamma", label="Strength (gamma, share of the schedule per round)", vary="numbers",
        metavar="GAMMA",
    )  # fmt: skip
    num_inference_steps: int = setting(
        "denoising steps of a full schedule", default=50, low=1, high=1000, symbol="T", vary="whole numbers",
        metavar="T", label="Denoising steps of a full schedule (T)",
    )  # fmt: skip
    guidance_scale: float = setting(
        "classifier-free guidance; off at 1 and below", default=7.5, low=0.0, high=100.0, symbol="g",
        label="Guidance scale", vary="numbers", metavar="G",
    )  # fmt: skip
    negative_prompt: str = setting(
        "what guidance steers away from", default="", label="Negative prompt", metavar="TEXT", example='""',
    )  # fmt: skip
    beta1: float = setting(
        "blend outside the region", default=0.01, low=0.0, high=1.0, symbol="beta1", vary="numbers", metavar="B",
        label="beta1 (blend outside the region)",
    )  # fmt: skip
    beta2: float = setting(
        "blend inside the region", default=0.75, low=0.0, high=1.0, symbol="beta2", vary="numbers", metavar="B",
        label="beta2 (blend inside the region)",
    )  # fmt: skip
    pace: str = setting(
        "constant: blend with beta2 in every round, as in the paper; even: so that frame n lies n/N of the way to "
        "where the constant run ends; even:CLASSIFIER: so that a classifier's logit rises in equal parts (its JSON "
        "file)",
        default="constant", choices=PACES, longer=f"{PACES[1]}:CLASSIFIER", label="Pace", vary=" and ".join(PACES),
        on_a_line=False,
    )  # fmt: skip
    until: float | None = setting(
        "even pace by a classifier: the confidence that the last frame is to have", default=None, low=0.0, high=1.0,
        open_low=True, open="where the constant run ends", example=0.8, metavar="P", label="Confidence of the last "
        "frame",
    )  # fmt: skip
    displacement: float | None = setting(
        "even pace: how far the last frame lies from the input, as the norm of the region's latents", default=None,
        low=0.0, high=1e6, open_low=True, open="where the constant run ends, which a pilot measures", symbol="D",
        example=10, metavar="D", label="Displacement of the last frame",
    )  # fmt: skip
    tolerance: float | None = setting(
        "end where the next round is bound to change no pixel inside the region by so many grey levels, after three "
        "rounds or more; the frames that are left repeat the last one",
        default=None, low=0.0, high=255.0, open_low=True, open="all rounds run", example=1, metavar="GREY",
        unit="grey levels", label="Tolerance (grey levels)",
    )  # fmt: skip
    scheduler: str | None = setting(
        "ddim, pndm, euler, dpm++, unipc or any deterministic diffusers class", default=None, label="Scheduler",
        open="ddim; in official semantics the checkpoint's own", vary="names", on_a_line=False, example="ddim",
        metavar="NAME",
    )  # fmt: skip
    inversion: str = setting(
        "how a round enters the noise: by drawing it, or by DDIM inversion with the empty prompt", default="noise",
        choices=INVERSIONS, label="Inversion", vary=" and ".join(INVERSIONS), on_a_line=False,
    )  # fmt: skip
    noise: str | None = setting(
        "one noise for all rounds, or a fresh one for each", default=None, choices=NOISES, label="Noise",
        on_a_line=False, open="shared; in official semantics fresh", vary=" and ".join(NOISES),
    )  # fmt: skip
    composite: bool | None = setting(
        "take pixels outside the region from the input, bit for bit", default=None, example=True,
        open="on; in official semantics off", label="Outside the region: the input's own pixels",
    )  # fmt: skip
    semantics: str = setting(
        "the engine's own, or what the published code computes, draw for draw", default="engine", choices=SEMANTICS,
        label="Semantics",
    )  # fmt: skip
    seed: int = setting(
        "of the noise, together with each item's id", default=0, low=0, high=2**63 - 1, label="Seed",
        vary="whole numbers", on_a_line=False, metavar="N",
    )  # fmt: skip
    resolution: int | None = setting(
        "side of the square; a multiple of 8 * 2^(U-Net levels - 1), 64 for SD v1", default=None, low=8,
        high=MAX_RESOLUTION, unit="pixels", open="the model's", label="Resolution (pixels)", example=512,
        metavar="PIXELS",
    )  # fmt: skip
    fit: str = setting(
        "how the image becomes a square: its centre, padded with black, stretched", default="crop", choices=FITS,
        label="Fit to a square",
    )  # fmt: skip
    feather: int | None = setting(
        "pixels over which a frame fades in, inward from the region's edge", default=None, low=0, high=256,
        unit="pixels", open=f"{FEATHER}; in official semantics 0", example=FEATHER, metavar="PIXELS",
        label="Feather inward from the edge of the region (pixels)",
    )  # fmt: skip
    leakage: bool = setting(
        "measure what the rounds change outside the region before compositing, too, for which the input is decoded",
        default=False, label="Leakage before compositing measured",
    )  # fmt: skip
    schedule: RoundSchedule | None = setting(
        "prompt, strength and guidance of single rounds, a JSON file (docs/usage.md)", default=None, open="none",
        example="RoundSchedule.read(FILE)", metavar="FILE", parse=RoundSchedule.read,
    )  # fmt: skip

    def __post_init__(self) -> None:
        official = self.semantics == "official"
        if self.noise is None:
            object.__setattr__(self, "noise", "fresh" if official else "shared")
        if self.composite is None:
            object.__setattr__(self, "composite", not official)
        if self.feather is None:
            object.__setattr__(self, "feather", 0 if official else FEATHER)
        if self.scheduler == "":
            raise ConfigError(f"{mention('scheduler')} is empty; pass {use('scheduler', 'ddim')}, or leave it out")
        if self.inversion == "ddim" and self.noise == "fresh" and not official:
            raise ConfigError("noise 'fresh' is not used where a round inverts (inversion \"ddim\"); leave it out")
        if self.pace != "constant" and self.noise == "fresh" and self.inversion == "noise" and not official:
            raise ConfigError(
                f"{mention('pace')} {self.pace!r} needs rounds that converge, and with fresh noise they do not; "
                f"pass {use('noise', 'shared')}"
            )
        if self.displacement is not None and self.pace == "constant":
            raise ConfigError(f"{mention('displacement')} belongs to even pace; pass {use('pace', 'even')} with it")
        self._check_until()
        self._check_tolerance()
        for index, one in enumerate(self.rounds, start=1):
            if one.kind.denoising_steps < 1:
                self._refuse_strength(index, one)
        if official:
            if self.schedule is not None:
                raise ConfigError(
                    f"a schedule is not what the published code computes; pass {use('semantics', 'engine')}"
                )
            for name, value, prescribed in (
                ("inversion", self.inversion, "noise"),
                ("noise", self.noise, "fresh"),
                ("composite", self.composite, False),
                ("pace", self.pace, "constant"),
                ("fit", self.fit, "crop"),
                ("feather", self.feather, 0),
            ):
                if value != prescribed:
                    raise ConfigError(
                        f"{mention(name)} {value!r} is not what the published code computes ({prescribed!r}); "
                        f"pass {use('semantics', 'engine')}"
                    )

    @property
    def rounds(self) -> tuple[RoundSettings, ...]:
        """What each of the N rounds runs with. Raises ConfigError: the schedule names more rounds."""
        defaults = (self.steps, self.num_inference_steps, self.strength, self.guidance_scale)
        if self.schedule is not None:
            return self.schedule.rounds(*defaults)
        return (RoundSettings.of(None, self.strength, self.guidance_scale, self.num_inference_steps),) * self.steps

    @property
    def denoising_steps(self) -> int:
        """k = int(T * gamma): the denoising steps of one round, as the published code counts them."""
        return int(self.num_inference_steps * self.strength)

    @property
    def even(self) -> bool:
        """Whether blends are solved for; the one frame of one round is where the constant run ends."""
        return self.pace != "constant" and self.steps > 1

    @property
    def severity(self) -> Path | None:
        """The classifier whose logit is to rise evenly; None where displacement does."""
        file = self.pace.partition(":")[2]
        return Path(file) if file else None

    @property
    def guided(self) -> bool:
        """Whether classifier-free guidance runs: the empty prompt is evaluated too when g > 1."""
        return self.guidance_scale > 1.0

    def _check_until(self) -> None:
        if self.until is None:
            return
        if self.pace == "constant":
            raise ConfigError(
                f"{mention('until')} belongs to an even pace by a classifier; pass {use('pace', 'even:CLASSIFIER')}"
            )
        if self.until == 1 or self.steps == 1:
            raise ConfigError(
                f"{mention('until')} {self.until:g} in {self.steps} round{'s' * (self.steps > 1)} cannot be reached; "
                f"pass less than 1, such as {use('until', 0.8)}, and at least 2 rounds"
            )

    def _check_tolerance(self) -> None:
        """Only rounds that are alike and settle shrink geometrically, which is what bounds the next one."""
        if self.tolerance is None:
            return
        what = f"{mention('tolerance')} {self.tolerance:g} needs rounds that"
        for name, value, needed in (
            ("semantics", self.semantics, "engine"), ("pace", self.pace, "constant"), ("noise", self.noise, "shared"),
        ):  # fmt: skip
            if value != needed:
                raise ConfigError(f"{what} settle, which {name} {value!r} keeps them from; pass {use(name, needed)}")
        if self.schedule is not None:
            raise ConfigError(f"{what} are alike, and a schedule makes them differ; leave out {mention('schedule')}")

    def _refuse_strength(self, index: int, one: RoundSettings) -> None:
        least = math.ceil(100 / self.num_inference_steps) / 100  # rounded up: the remedy has to work when copied
        scheduled = one.strength != self.strength
        raise ConfigError(
            f"{mention('strength')} {one.strength:g}{f' in round {index} of the schedule' if scheduled else ''} of "
            f"{self.num_inference_steps} steps runs no denoising step (at least {least:g} needed); "
            f"{f'write {least:g}' if scheduled else 'pass ' + use('strength', f'{least:g}')} or more "
            f"{mention('num_inference_steps')}",
            field="strength",
            value=one.strength,
            limit=f"at least {least:g}",
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON; without `schedule` where there is none."""
        settings = asdict(self)
        del settings["schedule"]
        return settings if self.schedule is None else settings | {"schedule": self.schedule.to_list()}


@settings
class RuntimeConfig:
    """How a progression is computed. Each switch turns one optimisation off; results agree up to rounding, and those
    of regional rounds up to a grey level.

    Raises:
        ConfigError: an unknown implementation.
    """

    fused_step: str = setting(
        "what runs between two U-Net evaluations: triton (GPU), cpp (processor), eager (PyTorch); auto takes "
        "" "the first that works here",
        default="auto", choices=STEP_KERNELS,
    )  # fmt: skip
    fused_blocks: bool = setting(
        "norms, additions and activations of U-Net and VAE fused in Triton, in half precision on a GPU (torch)",
        default=True,
    )  # fmt: skip
    autotune: bool = setting(
        "let cuDNN try its algorithms for every convolution, and keep the fastest (torch, GPU)", default=True,
    )  # fmt: skip
    cuda_graph: bool = setting("capture a step once and replay it (GPU)", default=True)
    overlap: bool = setting("decode a frame on a second stream while the next round runs (GPU)", default=True)
    regional: str = setting(
        "after the first round compute a box around the region alone, between recordings of what surrounds it; auto "
        "does where that is accurate and pays (docs/performance.md)",
        default="off", choices=REGIONAL,
    )  # fmt: skip
    regional_memory: float | None = setting(
        "what an item's recording may take; one that needs more computes whole pictures", default=None, low=0.0,
        high=1e6, unit="GB", open="half of what is free", example=4, metavar="GB",
    )  # fmt: skip
    compile: bool = setting(
        "compile the U-Net with torch.compile, which takes longer than a progression at full size (torch)",
        default=False,
    )  # fmt: skip


def check_resolution(resolution: int, multiple: int) -> None:
    """Refuse sizes that the exported U-Net cannot take: its skip connections would not line up.

    Raises:
        ConfigError: `resolution` is not a multiple of `multiple` = 8 * 2**(levels - 1) pixels.
    """
    if resolution < multiple or resolution % multiple:
        nearest = max(multiple, round(resolution / multiple) * multiple)
        raise ConfigError(
            f"{mention('resolution')} {resolution} does not fit this U-Net (multiple of {multiple} expected); "
            f"pass {use('resolution', nearest)}",
            field="resolution",
            value=resolution,
            limit=f"a multiple of {multiple}",
        )
