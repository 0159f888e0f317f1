"""One component: checkpoint -> ONNX, held to PyTorch, cached by the content of its weights."""

from __future__ import annotations

import functools
import gc
import hashlib
import json
import logging
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pie_engine.config import BuildConfig
from pie_engine.errors import BuildError, use
from pie_engine.export import graph
from pie_engine.export.components import component
from pie_engine.export.graph import TOLERANCE
from pie_engine.files import cache_root, locked, new_folder, sha256_file
from pie_engine.model.bundle import FORMAT, WEIGHTS, describe_files
from pie_engine.packages import installed

if TYPE_CHECKING:
    from pie_engine.checkpoint import Checkpoint

log = logging.getLogger(__name__)

OnComponent = Callable[[str], None]
RECORD = "component.json"
# Packages that decide what an exported graph looks like: part of every cache key.
_EXPORTERS = ("torch", "diffusers", "transformers", "onnx", "onnx_ir", "onnxscript", "onnxruntime")


def exporter_versions() -> dict[str, str]:
    """Versions of the packages that shape the exported graphs."""
    return {package: installed(package) or "absent" for package in _EXPORTERS}


def cache_folder(config: BuildConfig) -> Path:
    return config.cache_dir or cache_root()


def cache_key(checkpoint: Checkpoint, name: str, config: BuildConfig) -> str:
    facts = [FORMAT, name, checkpoint.hashes[WEIGHTS[name]], config.precision, config.opset]
    facts += [exporter_versions(), exporter_sources()]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


@functools.cache
def exporter_sources() -> str:
    """A graph exported by other code is another graph."""
    folder = Path(graph.__file__).parent
    return hashlib.sha256(b"".join(path.read_bytes() for path in sorted(folder.glob("*.py")))).hexdigest()


def cached_component(checkpoint: Checkpoint, name: str, config: BuildConfig, on_component: OnComponent) -> Path:
    folder = cache_folder(config) / "components" / f"{name}-{cache_key(checkpoint, name, config)}"
    with locked(folder):  # another process may be exporting the same component
        return _fill_cache(checkpoint, name, config, folder, on_component)


def _fill_cache(
    checkpoint: Checkpoint, name: str, config: BuildConfig, folder: Path, on_component: OnComponent
) -> Path:
    if intact(folder):
        on_component(f"{name}: unchanged, from the cache")
        return folder
    start = time.monotonic()
    shutil.rmtree(folder, ignore_errors=True)
    with new_folder(folder, replaceable=RECORD) as partial:
        record = _export(checkpoint, name, config, partial)
        record["seconds"] = round(time.monotonic() - start, 2)
        (partial / RECORD).write_text(json.dumps({"component": record, "files": describe_files(partial)}, indent=2))
    gc.collect()  # an exported full-size graph is gigabytes, held in reference cycles
    size = sum(entry.stat().st_size for entry in folder.iterdir()) / 1e6
    on_component(
        f"{name}: {record['precision']}, {size:.1f} MB, relative error {record['relative_error']:.1e} "
        f"against PyTorch, {record['seconds']:.1f} s"
    )
    return folder


def intact(folder: Path, record: str = RECORD) -> bool:
    # Bundles share these files by hard link, so whoever damaged a bundle damaged the cache.
    try:
        files = json.loads((folder / record).read_text())["files"]
        return all(sha256_file(folder / name) == entry["sha256"] for name, entry in files.items())
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _export(checkpoint: Checkpoint, name: str, config: BuildConfig, folder: Path) -> dict[str, Any]:
    if next(checkpoint.unet.parameters()).dtype != torch.float32:
        raise BuildError("the checkpoint was moved to another dtype by a backend; load it again to build from it")
    part = component(checkpoint, name)
    with torch.no_grad():
        reference = part.module(*part.inputs.values()).numpy()
    # The VAE is known to overflow in fp16; a half that does is kept in fp32, and the manifest says so.
    fallback = ["fp32"] if config.precision != "fp32" and name != "unet" else []
    for precision in [config.precision, *fallback]:
        path = graph.export_component(part, folder, precision=precision, opset=config.opset)
        error = graph.check_parity(part, path, reference, precision=precision)
        if error <= TOLERANCE[precision]:
            return {"precision": precision, "relative_error": error, "tolerance": TOLERANCE[precision]}
        for file in folder.iterdir():
            file.unlink()
        log.warning("%s in %s: relative error %.1e (at most %.1e)", name, precision, error, TOLERANCE[precision])
    raise BuildError(
        f"{name} exported in {precision} differs from PyTorch by {error:.1e} (at most {TOLERANCE[precision]:.1e}); "
        + ("report this checkpoint" if precision == "fp32" else f"pass {use('precision', 'fp32')}"),
        field="precision",
        value=precision,
        limit=f"relative error {TOLERANCE[precision]:.1e}",
    )
