"""What engines are compiled for: a configuration with everything settled on the machine that compiles."""

from __future__ import annotations

import importlib.util
from dataclasses import asdict, dataclass
from typing import Any

from pie_engine.backends.gpu import probe
from pie_engine.backends.tensorrt import library
from pie_engine.config import EngineConfig, check_resolution
from pie_engine.errors import BackendError, ConfigError, argument, use


@dataclass(frozen=True)
class Target:
    """What plans are compiled for: an `EngineConfig` with everything settled on this machine.

    Attributes:
        flavour, version: the compiler's.
        gpu: name of the GPU that plans are compiled on and for, or None where none took part.
        capabilities: compute capabilities that the plans run on.
        driver_floor: oldest CUDA version that a driver must serve, or None if not known.
    """

    flavour: str
    version: str
    gpu: str | None
    capabilities: tuple[str, ...]
    driver_floor: str | None
    resolutions: tuple[int, ...]
    batches: tuple[int, ...]
    weights: str
    optimisation_level: int | None
    workspace: float | None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def check_machine(config: EngineConfig) -> None:
    """Refuse what this machine cannot compile, before a checkpoint of gigabytes is read. Raises as `resolve_target`."""
    resolve_target(config, {"default_resolution": 64, "resolution_multiple": 1})  # sizes are the checkpoint's matter


def resolve_target(config: EngineConfig, facts: dict[str, Any]) -> Target:
    """Settle what `config` leaves open, and refuse what this machine cannot compile.

    Raises:
        BackendError: the library is not installed, or no GPU is at hand where one is needed.
        ConfigError: a resolution or a compute capability that cannot be had.
    """
    module = library.import_library(config.flavour)
    if importlib.util.find_spec("onnxruntime") is None:
        raise BackendError(
            "onnxruntime is not installed, which building needs; pip install 'pie-engine[cpu]', or [gpu]"
        )
    resolutions = config.resolutions or (facts["default_resolution"],)
    for resolution in resolutions:
        check_resolution(resolution, facts["resolution_multiple"])
    gpus = probe().gpus
    if not gpus and config.flavour == "tensorrt":
        raise BackendError(
            f"tensorrt compiles on the GPU that runs the engine and this machine shows none ({probe().reason}); "
            f"build there, or pass {use('flavour', 'tensorrt-rtx')} and {use('capabilities', ('8.6',))}",
            field="flavour",
            value=config.flavour,
        )
    if not gpus and not config.capabilities:
        known = ",".join(library.RTX_CAPABILITIES)
        raise ConfigError(
            f"this machine shows no GPU to compile for; pass {argument('capabilities')} with some of {known}",
            field="capabilities",
            value=(),
            limit=known,
        )
    capabilities = config.capabilities or (gpus[0].capability,)
    if config.flavour == "tensorrt-rtx":
        for capability in capabilities:
            if not hasattr(module.ComputeCapability, "SM" + capability.replace(".", "")):
                known = ", ".join(library.RTX_CAPABILITIES)
                raise ConfigError(
                    f"tensorrt-rtx {module.__version__} compiles for compute capability {known}, not {capability}; "
                    f"pass one of them, or {use('flavour', 'tensorrt')} on that GPU",
                    field="capabilities",
                    value=capability,
                    limit=known,
                )
    at_hand = bool(gpus) and capabilities == (gpus[0].capability,)
    weights = config.weights or ("refittable" if at_hand else "fixed")
    if weights != "fixed" and not at_hand:
        raise ConfigError(
            f"weights {weights!r} are compiled on the GPU that runs the engine, and this machine shows no GPU of "
            f"compute capability {', '.join(capabilities)}; build there, or pass {use('weights', 'fixed')}",
            field="weights",
            value=weights,
        )
    return Target(
        flavour=config.flavour,
        version=module.__version__,
        gpu=gpus[0].name if at_hand else None,
        capabilities=tuple(sorted(set(capabilities), key=lambda text: [int(part) for part in text.split(".")])),
        driver_floor=library.driver_floor(config.flavour),
        resolutions=resolutions,
        batches=config.batches,
        weights=weights,
        optimisation_level=config.optimisation_level,
        workspace=config.workspace,
    )
