"""How the command line spells what messages call by its name in Python. Nobody else knows an option's spelling."""

from __future__ import annotations

_OPTIONS = {
    "batches": "batch",
    "capabilities": "compute-capability",
    "flavour": "backend",
    "latents": "save-latents",
    "resolutions": "resolution",
}


def as_option(name: str, value: str | None) -> str:
    """A setting as `pie-engine` takes it: a `pie_engine.errors.Spelling`."""
    option = _OPTIONS.get(name, name.replace("_", "-"))
    if value is None:
        return option
    if value in ("", "True"):
        return f"--{option}"
    if value == "False":
        return f"--no-{option}"
    return f"--{option} {value}"
