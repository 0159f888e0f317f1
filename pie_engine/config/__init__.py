"""What to build, what to run, what to write: frozen dataclasses, validated once, written into every output."""

from pie_engine.config.build import (
    COMPONENTS,
    ENGINE_WEIGHTS,
    FLAVOURS,
    HARDWARE_COMPATIBILITIES,
    PRECISIONS,
    BuildConfig,
    EngineConfig,
)
from pie_engine.config.output import OutputConfig
from pie_engine.config.run import (
    DTYPES,
    FITS,
    INVERSIONS,
    NOISES,
    SEMANTICS,
    STEP_KERNELS,
    RunConfig,
    RuntimeConfig,
    check_resolution,
)

__all__ = [
    "COMPONENTS",
    "DTYPES",
    "ENGINE_WEIGHTS",
    "FITS",
    "FLAVOURS",
    "HARDWARE_COMPATIBILITIES",
    "INVERSIONS",
    "NOISES",
    "PRECISIONS",
    "SEMANTICS",
    "STEP_KERNELS",
    "BuildConfig",
    "EngineConfig",
    "OutputConfig",
    "RunConfig",
    "RuntimeConfig",
    "check_resolution",
]
