"""The engines of a bundle that gets other weights."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pie_engine.backends.tensorrt.engine import read_plan
from pie_engine.backends.tensorrt.fingerprint import obstacle
from pie_engine.bundling.components import OnComponent
from pie_engine.bundling.engines import cached_engine, plan_error
from pie_engine.bundling.target import resolve_target
from pie_engine.config import EngineConfig
from pie_engine.errors import BackendError, BuildError, Notice, PieError
from pie_engine.export.graph import TOLERANCE
from pie_engine.files import link_or_copy
from pie_engine.model.bundle import WEIGHTS, Bundle

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EngineRefit:
    """Puts engines into a refitted bundle: as they are, or compiled.

    Attributes:
        manifest: of the new bundle, with its components.
        changed: components with new weights.
        hashes: of all weights, as the new manifest will say.
    """

    bundle: Bundle
    folder: Path
    manifest: dict[str, Any]
    changed: list[str]
    hashes: dict[str, str]
    cache: Path
    on_component: OnComponent

    def place(self, entry: dict[str, Any]) -> dict[str, Any]:
        """Put an engine into the new bundle: as it is, or compiled for the new weights. Returns its manifest entry."""
        name = entry["component"]
        if name not in self.changed:
            return self._link(entry)
        # A component that was exported anew may be another graph.
        if entry["weights"] == "refittable" and self.manifest["components"][name]["refitted"]:
            kept = self._link(entry)
            if self._passes(entry):
                self.on_component(f"{name}: the engine is kept; it gets these weights when it is loaded")
                return kept
            (self.folder / entry["file"]).unlink()
            self.on_component(f"{name}: the engine cannot take these weights; it is compiled anew")
        return self._compile(entry)

    def _compile(self, entry: dict[str, Any]) -> dict[str, Any]:
        name, facts = entry["component"], self.manifest["model"]
        config = EngineConfig(
            entry["flavour"],
            resolutions=tuple(entry["resolutions"]),
            batches=tuple(entry["batches"]),
            capabilities=tuple(entry["capabilities"]) if entry["flavour"] == "tensorrt-rtx" else (),
            weights=entry["weights"],
            optimisation_level=entry["optimisation_level"],
            workspace=entry.get("workspace"),
        )
        try:
            target = resolve_target(config, facts)
        except PieError as error:
            raise BuildError(
                f"the {entry['flavour']} engine of {name} has to be compiled for these weights, which cannot be done "
                f"here: {error.message}"
            ) from error
        engine = cached_engine(name, self.folder / name, target, facts, self.cache, self.on_component)
        return engine.place(self.folder, self.hashes[WEIGHTS[name]], entry["precision"])

    def _passes(self, entry: dict[str, Any]) -> bool:
        """Whether an engine, refitted on this GPU, computes what its graph computes; true where it cannot be tried.

        The graph was held to PyTorch a moment ago.
        """
        name = entry["component"]
        reason = obstacle(entry)
        if reason is not None:
            log.warning("the refitted engine of %s is not tried here: %s", name, reason)
            return True
        data = read_plan(self.folder / entry["file"], self.bundle.manifest["files"][entry["file"]]["sha256"])
        try:
            error = plan_error(data, entry, self.folder / name / "model.onnx")
        except BackendError as problem:
            log.warning(Notice(problem.message))
            return False
        return error <= TOLERANCE[entry["precision"]]

    def _link(self, entry: dict[str, Any]) -> dict[str, Any]:
        target = self.folder / entry["file"]
        target.parent.mkdir(parents=True, exist_ok=True)
        link_or_copy(self.bundle.path / entry["file"], target)
        return entry
