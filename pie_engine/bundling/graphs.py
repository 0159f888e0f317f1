"""Graphs without weights, by architecture: a checkpoint of a known one takes its graph from here, without an export.

Those of common architectures lie in the package (`export/graphs`); every other is exported once and then kept in the
cache, under the versions of the packages that shaped it.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import logging
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pie_engine.checkpoint.hashing import TEXT_KEYS
from pie_engine.errors import BuildError
from pie_engine.export import graph
from pie_engine.export.graph import TOLERANCE
from pie_engine.export.weights import STRIPPED, replace_weights, strip_weights
from pie_engine.files import locked, new_folder, sha256_file
from pie_engine.model.bundle import describe_files
from pie_engine.packages import installed

if TYPE_CHECKING:
    from torch import nn

log = logging.getLogger(__name__)

RECORD = "component.json"
SHIPPED = Path(graph.__file__).parent / "graphs"
# Packages that decide what an exported graph looks like: part of every cache key.
_EXPORTERS = ("torch", "diffusers", "transformers", "onnx", "onnx_ir", "onnxscript", "onnxruntime")
# What a config says that no graph depends on: the pictures it was trained on, and numbers that the loop works with.
_NOT_IN_THE_GRAPH = {
    "sample_size", "scaling_factor", "shift_factor", "latents_mean", "latents_std", "force_upcast",
}  # fmt: skip
# What says who wrote it and in what dtype its file was.
_BOOKKEEPING = {"transformers_version", "dtype", "torch_dtype"}


@dataclass(frozen=True, eq=False)
class Plan:
    """How the graph of one network comes to be.

    Attributes:
        name: of the folder that the graph lies in: "unet", "vae_decoder_regional" ...
        architecture: what the graph depends on besides precision and opset (`architecture_of`).
        module: what is exported, fp32, with the weights.
        precision, opset: of the graph.
        export: writes `model.onnx` into a folder.
        check: the relative error of a graph against PyTorch.
        check_weights: the same of a graph that is known but for its weights, by a smaller evaluation; None: as `check`.
        sources: of the code beside `pie_engine.export` that decides what is exported.
    """

    name: str
    architecture: Mapping[str, Any]
    module: nn.Module
    precision: str
    opset: int
    export: Callable[[Path], Path]
    check: Callable[[Path], float]
    sources: str = ""
    check_weights: Callable[[Path], float] | None = None

    def unchecked(self) -> Plan:
        """The same, and whatever comes out is taken as it is."""
        return replace(self, check=lambda path: 0.0, check_weights=None)

    def check_filled(self, path: Path) -> float:
        """The relative error of a known graph that was given the module's weights."""
        return (self.check_weights or self.check)(path)

    @property
    def key(self) -> str:
        """What tells the graph from others: the same in every version of the packages."""
        facts = [self.name, self.architecture, self.precision, self.opset]
        return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:32]


def exporter_versions() -> dict[str, str]:
    """Versions of the packages that shape the exported graphs."""
    return {package: installed(package) or "absent" for package in _EXPORTERS}


def exporter_sources() -> str:
    """A graph exported by other code is another graph."""
    return sources_digest(Path(graph.__file__).parent)


@functools.cache
def sources_digest(folder: Path) -> str:
    """Of the modules in a folder: what they made may be made otherwise by others."""
    return hashlib.sha256(b"".join(path.read_bytes() for path in sorted(folder.glob("*.py")))).hexdigest()


def architecture_of(model: Any) -> dict[str, Any]:
    """What a graph of a model depends on: its configuration, where that is not the default.

    Without the defaults, so that a library's new setting does not make every known architecture another one.

    Args:
        model: diffusers' U-Net or VAE, or transformers' text encoder.
    """
    if not isinstance(model.config, Mapping):
        return {key: getattr(model.config, key) for key in TEXT_KEYS}
    parameters = inspect.signature(type(model)).parameters
    defaults = plain_config({name: each.default for name, each in parameters.items()})
    config = {name: value for name, value in plain_config(model.config).items() if name not in _NOT_IN_THE_GRAPH}
    return {name: value for name, value in config.items() if name not in defaults or value != defaults[name]}


def plain_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A model's config as JSON can hold it, without its library's bookkeeping."""
    # names that begin with an underscore hold paths and classes
    kept = {key: value for key, value in config.items() if not key.startswith("_") and key not in _BOOKKEEPING}
    return json.loads(json.dumps(kept, default=str))


def make_graph(plan: Plan, folder: Path, cache: Path) -> tuple[float, str]:
    """Write a graph into `folder`: filled where the architecture is known, else exported, and kept for the next.

    Returns:
        The relative error against PyTorch (above `TOLERANCE` it is the caller's decision what to do), and how it was
        made: "filled" or "exported".
    """
    if plan.key in shipped():
        error = _fill(plan, SHIPPED / shipped()[plan.key], folder)
        if error is not None:
            return error, "filled"
    known = place(cache, plan.name, plan.key, plan.sources)
    with locked(known):  # another process may be exporting the same architecture
        if intact(known):
            error = _fill(plan, known / STRIPPED, folder)
            if error is not None:
                return error, "filled"
        path = plan.export(folder)
        error = plan.check(path)
        if error <= TOLERANCE[plan.precision]:
            _keep(plan, path, known)
    return error, "exported"


def _fill(plan: Plan, stripped: Path, folder: Path) -> float | None:
    """The error of a filled graph; None, and nothing is left, if the graph is not this architecture's."""
    try:
        error = plan.check_filled(replace_weights(stripped, plan.module, folder, precision=plan.precision))
        # Half precision overflows in some models, exported or filled.
        if error <= TOLERANCE[plan.precision] or (plan.precision == "fp16" and error == float("inf")):
            return error
        reason = f"relative error {error:.1e} against PyTorch"
    except BuildError as mismatch:
        reason = str(mismatch)
    log.warning("the known graph of %s does not fit this checkpoint, which is exported: %s", plan.name, reason)
    empty(folder)
    return None


def place(cache: Path, name: str, key: str, sources: str = "") -> Path:
    """The folder in which a cache keeps the stripped graph of a plan."""
    facts = [exporter_versions(), exporter_sources(), sources]
    versions = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
    return cache / "graphs" / f"{name}-{key}-{versions}"


def _keep(plan: Plan, path: Path, known: Path) -> None:
    try:
        write_stripped(known, strip_weights(path, plan.module))
    except BuildError as reason:  # weights whose places are not known: exported for each checkpoint
        log.info("the graph of %s is not kept for other weights: %s", plan.name, reason)


def write_stripped(known: Path, content: bytes) -> None:
    """Let a cache know an architecture: `content` is what `strip_weights` gave, `known` a `place`, locked."""
    shutil.rmtree(known, ignore_errors=True)
    with new_folder(known, replaceable=RECORD) as partial:
        (partial / STRIPPED).write_bytes(content)
        (partial / RECORD).write_text(json.dumps({"files": describe_files(partial)}, indent=2))


def intact(folder: Path, record: str = RECORD) -> bool:
    """Whether a folder of the cache holds what its record says."""
    # Bundles share these files by hard link, so whoever damaged a bundle damaged the cache.
    try:
        files = json.loads((folder / record).read_text())["files"]
        return all(sha256_file(folder / name) == entry["sha256"] for name, entry in files.items())
    except (OSError, ValueError, KeyError, TypeError):
        return False


def empty(folder: Path) -> None:
    """Delete the files of a folder."""
    for file in folder.iterdir():
        file.unlink()


@functools.cache
def shipped() -> dict[str, str]:
    """The graphs that lie in the package: key of their plan -> file."""
    try:
        return json.loads((SHIPPED / "index.json").read_text())["graphs"]
    except OSError:  # an installation without them exports
        return {}
