"""One component: checkpoint -> ONNX, held to PyTorch, cached by the content of its weights."""

from __future__ import annotations

import gc
import hashlib
import json
import logging
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pie_engine.bundling.graphs import (
    RECORD,
    Plan,
    architecture_of,
    empty,
    exporter_sources,
    exporter_versions,
    intact,
    make_graph,
)
from pie_engine.config import BuildConfig
from pie_engine.errors import BuildError, use
from pie_engine.export import graph
from pie_engine.export.components import component
from pie_engine.export.graph import TOLERANCE, Component
from pie_engine.files import cache_root, locked, new_folder
from pie_engine.model.bundle import FORMAT, WEIGHTS, describe_files

if TYPE_CHECKING:
    from pie_engine.checkpoint import Checkpoint

log = logging.getLogger(__name__)

OnComponent = Callable[[str], None]


def cache_folder(config: BuildConfig) -> Path:
    return config.cache_dir or cache_root()


def cache_key(checkpoint: Checkpoint, name: str, config: BuildConfig) -> str:
    facts = [FORMAT, name, checkpoint.hashes[WEIGHTS[name]], config.precision, config.opset]
    facts += [exporter_versions(), exporter_sources(), *([] if config.check else ["unchecked"])]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def cached_component(checkpoint: Checkpoint, name: str, config: BuildConfig, on_component: OnComponent) -> Path:
    folder = cache_folder(config) / "components" / f"{name}-{cache_key(checkpoint, name, config)}"
    return cached_graph(folder, name, lambda partial: _export(checkpoint, name, config, partial), on_component)


def cached_graph(
    folder: Path, label: str, make: Callable[[Path], tuple[dict[str, Any], str]], on_component: OnComponent
) -> Path:
    """The cache's `folder` with a graph, made at its first use.

    Args:
        make: writes the graph into a folder. Returns what the manifest says of it, and how it was made.
    """
    with locked(folder):  # another process may be making the same graph
        if intact(folder):
            on_component(f"{label}: unchanged, from the cache")
            return folder
        start = time.monotonic()
        shutil.rmtree(folder, ignore_errors=True)
        with new_folder(folder, replaceable=RECORD) as partial:
            record, how = make(partial)
            record["seconds"] = round(time.monotonic() - start, 2)
            (partial / RECORD).write_text(json.dumps({"component": record, "files": describe_files(partial)}, indent=2))
    gc.collect()  # an exported full-size graph is gigabytes, held in reference cycles
    size = sum(entry.stat().st_size for entry in folder.iterdir()) / 1e6
    on_component(f"{label}: {how}, {record['precision']}, {size:.1f} MB, {told(record)}, {record['seconds']:.1f} s")
    return folder


def _export(checkpoint: Checkpoint, name: str, config: BuildConfig, folder: Path) -> tuple[dict[str, Any], str]:
    """Write a component's graph into `folder`. Returns what the manifest says of it, and how it was made."""
    if next(checkpoint.unet.parameters()).dtype != torch.float32:
        raise BuildError("the checkpoint was moved to another dtype by a backend; load it again to build from it")
    # The VAE is known to overflow in fp16; a half that does is kept in fp32, and the manifest says so.
    fallback = ["fp32"] if config.precision != "fp32" and name != "unet" else []
    for precision in [config.precision, *fallback]:
        plan = component_plan(checkpoint, name, precision, config.opset)
        error, how = make_graph(plan if config.check else plan.unchecked(), folder, cache_folder(config))
        if error <= TOLERANCE[precision]:
            return parity(precision, error if config.check else None), how
        empty(folder)
        log.warning("%s in %s: relative error %.1e (at most %.1e)", name, precision, error, TOLERANCE[precision])
    raise BuildError(
        f"{name} exported in {precision} differs from PyTorch by {error:.1e} (at most {TOLERANCE[precision]:.1e}); "
        + ("report this checkpoint" if precision == "fp32" else f"pass {use('precision', 'fp32')}"),
        field="precision",
        value=precision,
        limit=f"relative error {TOLERANCE[precision]:.1e}",
    )


def parity(precision: str, error: float | None) -> dict[str, Any]:
    """What a manifest says of how a graph compares with PyTorch; None: it was not compared."""
    return {"precision": precision, "relative_error": error, "tolerance": TOLERANCE[precision]}


def told(record: Mapping[str, Any]) -> str:
    """The same as a line of progress says it."""
    error = record["relative_error"]
    return "not checked" if error is None else f"relative error {error:.1e} against PyTorch"


def component_plan(checkpoint: Checkpoint, name: str, precision: str, opset: int) -> Plan:
    """How a component's graph is made. Checked by one small evaluation, of one that is known by a smaller one."""
    part = component(checkpoint, name)

    def check(path: Path, part: Component = part) -> float:
        with torch.no_grad():
            reference = part.module(*part.inputs.values()).numpy()
        return graph.check_parity(part, path, reference, precision=precision)

    def check_weights(path: Path) -> float:
        return check(path, component(checkpoint, name, small=True))

    shapes = {key: list(each.shape) for key, each in part.inputs.items()}
    return Plan(
        name,
        architecture_of(getattr(checkpoint, WEIGHTS[name])) | {"inputs": shapes},
        part.module,
        precision,
        opset,
        lambda folder: graph.export_component(part, folder, precision=precision, opset=opset),
        check,
        # How far half precision is off, and whether it overflows, depends on how much is computed.
        check_weights=check_weights if precision == "fp32" else None,
    )
