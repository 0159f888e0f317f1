"""What every output says about how it came to be."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from pie_engine import __version__
from pie_engine.outputs.frames import STATEMENT

if TYPE_CHECKING:
    from pie_engine.config import RunConfig

_RECORDED = (
    "torch", "diffusers", "transformers", "onnxruntime", "openvino", "numpy", "pillow", "safetensors", "pydicom",
    "highdicom", "nibabel",
)  # fmt: skip


def describe_run(config: RunConfig) -> dict[str, Any]:
    """The part of a provenance that is the same for every item: statement, settings, versions, machine."""
    return {
        "statement": STATEMENT,
        "synthetic": True,
        "what": f"{config.steps} rounds of progression from one image towards the prompt",
        "settings": config.to_dict(),
        "versions": {"pie-engine": __version__, "python": platform.python_version(), **_versions()},
        "machine": {"system": platform.system(), "architecture": platform.machine()},
    }


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for package in _RECORDED:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found
