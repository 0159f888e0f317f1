"""pie-engine: simulated disease progression with Progressive Image Editing (PIE, arXiv 2309.11745).

    from pie_engine import Item, PieEngine, RunConfig

    engine = PieEngine.load(checkpoint="path/to/checkpoint")
    result = engine.run(Item(image="patient.png", mask="roi.png", prompt="cardiomegaly"), RunConfig(steps=10))
    result.save("output")

Research use only: every output is synthetic.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

# ONNX Runtime reports to its maker unless this stands before its import, and so does the hub; a user's own value holds.
for _name in ("ORT_DISABLE_TELEMETRY", "HF_HUB_DISABLE_TELEMETRY"):
    os.environ.setdefault(_name, "1")

if TYPE_CHECKING:
    from pie_engine.checkpoint import LoraSpec
    from pie_engine.config import (
        BuildConfig,
        MethodConfig,
        OutputConfig,
        Placement,
        RoundRange,
        RoundSchedule,
        RunConfig,
        RuntimeConfig,
    )
    from pie_engine.engine import PieEngine
    from pie_engine.errors import PieError
    from pie_engine.imaging import Box, Ellipse, Polygon, Reading, Region
    from pie_engine.imaging.item import Item
    from pie_engine.outputs import Result
    from pie_engine.rounds.resuming import Interrupted

__version__ = "0.1.0"
__all__ = [
    "Box",
    "BuildConfig",
    "Ellipse",
    "Interrupted",
    "Item",
    "LoraSpec",
    "MethodConfig",
    "OutputConfig",
    "PieEngine",
    "PieError",
    "Placement",
    "Polygon",
    "Reading",
    "Region",
    "Result",
    "RoundRange",
    "RoundSchedule",
    "RunConfig",
    "RuntimeConfig",
    "__version__",
]

_HOME = {
    "BuildConfig": "config",
    "MethodConfig": "config",
    "OutputConfig": "config",
    "Placement": "config",
    "RoundSchedule": "config",
    "RoundRange": "config",
    "RunConfig": "config",
    "RuntimeConfig": "config",
    "Item": "imaging.item",
    "LoraSpec": "checkpoint",
    "Box": "imaging",
    "Ellipse": "imaging",
    "Polygon": "imaging",
    "Reading": "imaging",
    "Region": "imaging",
    "PieEngine": "engine",
    "Result": "outputs",
    "PieError": "errors",
    "Interrupted": "rounds.resuming",
}


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    # torch and diffusers take seconds to import; `pie-engine --help` needs neither.
    if name in _HOME:
        from importlib import import_module

        return getattr(import_module(f"pie_engine.{_HOME[name]}"), name)
    raise AttributeError(f"module 'pie_engine' has no attribute {name!r}")
