"""What to build, what to run, what to write: frozen dataclasses, validated once, written into every output."""

from pie_engine.config.build import (
    COMPONENTS,
    ENGINE_WEIGHTS,
    FLAVOURS,
    PRECISIONS,
    BuildConfig,
    EngineConfig,
)
from pie_engine.config.method import METHOD_OPTIONS, METHODS, MethodConfig
from pie_engine.config.output import MOST_BETWEEN, OutputConfig, check_interpolation
from pie_engine.config.placement import BACKENDS, Placement
from pie_engine.config.rounds import RoundKind, RoundRange, RoundSchedule, RoundSettings
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
    "BACKENDS",
    "COMPONENTS",
    "DTYPES",
    "ENGINE_WEIGHTS",
    "FITS",
    "FLAVOURS",
    "INVERSIONS",
    "METHODS",
    "METHOD_OPTIONS",
    "MOST_BETWEEN",
    "NOISES",
    "PRECISIONS",
    "SEMANTICS",
    "STEP_KERNELS",
    "BuildConfig",
    "EngineConfig",
    "MethodConfig",
    "OutputConfig",
    "Placement",
    "RoundKind",
    "RoundRange",
    "RoundSchedule",
    "RoundSettings",
    "RunConfig",
    "RuntimeConfig",
    "check_interpolation",
    "check_resolution",
]
