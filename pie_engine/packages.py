"""Which version of a package is installed, told without importing it."""

from __future__ import annotations

import re
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path


def installed(package: str) -> str | None:
    """The version of a package, or None; of torch with its build ("2.13.0+cu130"), which decides what runs, how fast.

    The package of the CUDA build on PyPI does not say so in its version: only the module itself does.
    """
    try:
        found = distribution(package)
    except PackageNotFoundError:
        return None
    return (package == "torch" and _build(found)) or found.version


def _build(torch: Distribution) -> str | None:
    try:
        text = Path(str(torch.locate_file("torch/version.py"))).read_text(encoding="utf-8")
    except OSError:  # installed from its sources, which lie elsewhere
        return None
    version = re.search(r"^__version__\b.*= '([^']+)'", text, re.MULTILINE)
    return version[1] if version else None
