"""What a bundle is built for."""

from __future__ import annotations

import re
from pathlib import Path

from pie_engine.config.checks import MAX_RESOLUTION, integer
from pie_engine.config.settings import setting, settings
from pie_engine.errors import ConfigError, mention, use

COMPONENTS = ("text_encoder", "vae_encoder", "unet", "vae_decoder")
PRECISIONS = ("fp32", "fp16")
FLAVOURS = ("tensorrt", "tensorrt-rtx")
ENGINE_WEIGHTS = ("fixed", "refittable")


@settings
class EngineConfig:
    """Which TensorRT engines a build compiles: one per component, with one static profile per batch and resolution.

    (For compute capability 7.5 a U-Net's batch of 1 is a range from 1 to 2, which is what compiles there.)

    Raises:
        ConfigError: a value is unknown or out of range, or two contradict each other.
    """

    flavour: str = setting(
        "tensorrt (servers; compiled on the GPU that runs it) or tensorrt-rtx (workstations; compiled "
        "anywhere, " "for several GPUs at once)",
        choices=FLAVOURS,
    )  # fmt: skip
    resolutions: tuple[int, ...] = setting("sides in pixels", default=(), open="the model's", example="(512, 768)")
    batches: tuple[int, ...] = setting("items that run at once", default=(1,), example="(1, 4)")
    capabilities: tuple[str, ...] = setting(
        "compute capabilities to compile for (tensorrt-rtx)", default=(), open="the GPU at hand",
        example="('8.6', '8.9')",
    )  # fmt: skip
    weights: str | None = setting(
        "fixed into the engine, or refittable, which lets another fine-tuned checkpoint in without compiling",
        default=None, choices=ENGINE_WEIGHTS, open="refittable where the GPU is at hand, else fixed",
    )  # fmt: skip
    optimisation_level: int | None = setting(
        "longer builds, faster engines", default=None, low=0, high=5, open="the library's", example=3, metavar="0-5",
    )  # fmt: skip
    workspace: float | None = setting(
        "most scratch memory on the GPU", default=None, low=0.0, high=1024.0, open_low=True, unit="GiB", open="all",
        example=8, metavar="GIB",
    )  # fmt: skip

    def __post_init__(self) -> None:
        for resolution in self.resolutions:
            integer("resolution", resolution, 8, MAX_RESOLUTION, f"pass {use('resolutions', '(512,)')}")
        if not self.batches:
            raise ConfigError(f"no batch size is given; pass {use('batches', '(1,)')}")
        for batch in self.batches:
            integer("batch", batch, 1, 256, f"pass {use('batches', '(1,)')}")
        object.__setattr__(self, "resolutions", tuple(sorted(set(self.resolutions))))
        object.__setattr__(self, "batches", tuple(sorted(set(self.batches))))
        for capability in self.capabilities:
            if not re.fullmatch(r"\d{1,2}\.\d", capability):
                raise ConfigError(
                    f"{mention('capabilities')} {capability!r} is not a number such as 8.6; "
                    f"pass {use('capabilities', '8.6,8.9')}"
                )
        if self.flavour == "tensorrt" and self.capabilities:
            raise ConfigError(
                f"tensorrt compiles for the GPU at hand, not for {mention('capabilities')}; leave it out, or pass "
                f"{use('flavour', 'tensorrt-rtx')}"
            )
        if self.weights == "refittable" and len(self.capabilities) > 1:
            raise ConfigError(
                f"weights 'refittable' are compiled for one compute capability ({len(self.capabilities)} given); "
                f"pass {use('weights', 'fixed')}, or one of {mention('capabilities')}"
            )


@settings
class BuildConfig:
    """What a bundle is built for.

    Raises:
        ConfigError: an unknown precision, or an opset out of range.
    """

    precision: str = setting(
        "of weights and activations", default="", choices=("", *PRECISIONS), open="fp32; TensorRT: fp16",
        example="fp32",
    )  # fmt: skip
    opset: int = setting(
        "ONNX opset", default=0, low=0, high=23, open="20; TensorRT: 23, which keeps attention whole", example=20,
        metavar="N",
    )  # fmt: skip
    cache_dir: Path | None = setting(
        "where components are kept", default=None, open="$PIE_ENGINE_CACHE or ~/.cache/pie-engine", compare=False,
        metavar="DIR",
    )  # fmt: skip
    regional: bool = setting("graphs for regional rounds too, which otherwise the first such run makes", default=False)
    check: bool = setting("hold every graph to PyTorch by one small evaluation", default=True)
    engines: EngineConfig | None = setting("compiled engines beside the ONNX graphs", default=None, open="none")

    def __post_init__(self) -> None:
        if not self.precision:
            object.__setattr__(self, "precision", "fp32" if self.engines is None else "fp16")
        if self.opset == 0:
            object.__setattr__(self, "opset", 20 if self.engines is None else 23)
        integer("opset", self.opset, 18, 23, f"pass {use('opset', 20)}")
        if not self.check and self.precision == "fp16":
            raise ConfigError(
                f"in fp16 the check decides which parts stay in fp32; leave {use('check', False)} out, or pass "
                f"{use('precision', 'fp32')}"
            )
