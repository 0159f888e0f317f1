"""Checkpoint -> ONNX -> bundle: each component cached by the content of its weights."""

from __future__ import annotations

import functools
import gc
import hashlib
import json
import logging
import shutil
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pie_engine.bundle import FORMAT, MANIFEST, Bundle, describe_files, open_bundle, write_manifest
from pie_engine.config import COMPONENTS, BuildConfig
from pie_engine.errors import BuildError, BundleError
from pie_engine.files import cache_root, link_or_copy, locked, new_folder, sha256_file

if TYPE_CHECKING:
    from pie_engine.checkpoint import Checkpoint

log = logging.getLogger(__name__)

OnComponent = Callable[[str], None]
_RECORD = "component.json"
_WEIGHTS = {"text_encoder": "text_encoder", "vae_encoder": "vae", "unet": "unet", "vae_decoder": "vae"}
# Packages that decide what an exported graph looks like: part of every cache key.
_EXPORTERS = ("torch", "diffusers", "transformers", "onnx", "onnx_ir", "onnxscript", "onnxruntime")


def build_bundle(
    checkpoint: Checkpoint,
    output: str | Path,
    config: BuildConfig | None = None,
    *,
    build_command: str | None = None,
    on_component: OnComponent = lambda line: None,
) -> Bundle:
    """Export a checkpoint and write a bundle; `output` appears whole or not at all.

    Args:
        build_command: what the manifest tells users to run if the bundle has to be rebuilt.
        on_component: called with one line of progress per component.

    Raises:
        BuildError: an exported component does not compute what PyTorch computes.
        OutputError: `output` cannot be written.
    """
    config = config or BuildConfig()
    output = Path(output)
    with new_folder(output, replaceable=MANIFEST) as folder:
        components = {}
        for name in COMPONENTS:
            cached = _cached_component(checkpoint, name, config, on_component)
            (folder / name).mkdir()
            for file in (path for path in sorted(cached.iterdir()) if path.name != _RECORD):
                link_or_copy(file, folder / name / file.name)
            components[name] = json.loads((cached / _RECORD).read_text())["component"]
            gc.collect()  # an exported full-size graph is gigabytes, held in reference cycles
        _save_tokenizer(checkpoint, folder / "tokenizer")
        write_manifest(
            folder,
            {
                "precision": config.precision,
                "opset": config.opset,
                "model": _model_facts(checkpoint),
                "hashes": checkpoint.hashes,
                "sources": checkpoint.sources,
                "components": components,
                "versions": exporter_versions(),
                "build_command": build_command or f"pie-engine build --checkpoint DIR --output {output}",
            },
        )
    return open_bundle(output, verify=False)  # every hash was computed a moment ago


def cached_bundle(
    checkpoint: Checkpoint, config: BuildConfig | None = None, *, on_component: OnComponent = lambda line: None
) -> Bundle:
    """The bundle of a checkpoint in the cache folder, built at its first use."""
    config = config or BuildConfig()
    keys = [_cache_key(checkpoint, name, config) for name in COMPONENTS]
    facts = json.dumps([FORMAT, keys, checkpoint.hashes["tokenizer"], checkpoint.scheduler_config], sort_keys=True)
    path = _cache(config) / "bundles" / hashlib.sha256(facts.encode()).hexdigest()[:32]
    with locked(path):
        if path.is_dir():
            try:
                return open_bundle(path)
            except BundleError as error:
                log.warning("the cached bundle is rebuilt: %s", error)
                shutil.rmtree(path, ignore_errors=True)
        return build_bundle(checkpoint, path, config, on_component=on_component)


def exporter_versions() -> dict[str, str]:
    """Versions of the packages that shape the exported graphs."""
    versions = {}
    for package in _EXPORTERS:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "absent"
    return versions


def _cache(config: BuildConfig) -> Path:
    return config.cache_dir or cache_root()


def _cache_key(checkpoint: Checkpoint, name: str, config: BuildConfig) -> str:
    facts = [FORMAT, name, checkpoint.hashes[_WEIGHTS[name]], config.precision, config.opset]
    facts += [exporter_versions(), _exporter_sources()]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


@functools.cache
def _exporter_sources() -> str:
    """A graph exported by other code is another graph."""
    import pie_engine.export as package

    folder = Path(package.__path__[0])
    return hashlib.sha256(b"".join(path.read_bytes() for path in sorted(folder.glob("*.py")))).hexdigest()


def _cached_component(checkpoint: Checkpoint, name: str, config: BuildConfig, on_component: OnComponent) -> Path:
    folder = _cache(config) / "components" / f"{name}-{_cache_key(checkpoint, name, config)}"
    with locked(folder):  # another process may be exporting the same component
        return _fill_cache(checkpoint, name, config, folder, on_component)


def _fill_cache(
    checkpoint: Checkpoint, name: str, config: BuildConfig, folder: Path, on_component: OnComponent
) -> Path:
    if _intact(folder):
        on_component(f"{name}: unchanged, from the cache")
        return folder
    start = time.monotonic()
    shutil.rmtree(folder, ignore_errors=True)
    with new_folder(folder, replaceable=_RECORD) as partial:
        record = _export(checkpoint, name, config, partial)
        record["seconds"] = round(time.monotonic() - start, 2)
        (partial / _RECORD).write_text(json.dumps({"component": record, "files": describe_files(partial)}, indent=2))
    size = sum(entry.stat().st_size for entry in folder.iterdir()) / 1e6
    on_component(
        f"{name}: {record['precision']}, {size:.1f} MB, relative error {record['relative_error']:.1e} "
        f"against PyTorch, {record['seconds']:.1f} s"
    )
    return folder


def _intact(folder: Path) -> bool:
    # Bundles share these files by hard link, so whoever damaged a bundle damaged the cache.
    try:
        files = json.loads((folder / _RECORD).read_text())["files"]
        return all(sha256_file(folder / name) == entry["sha256"] for name, entry in files.items())
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _export(checkpoint: Checkpoint, name: str, config: BuildConfig, folder: Path) -> dict[str, Any]:
    import torch

    from pie_engine.export.components import component
    from pie_engine.export.graph import TOLERANCE, check_parity, export_component

    if next(checkpoint.unet.parameters()).dtype != torch.float32:
        raise BuildError("the checkpoint was moved to another dtype by a backend; load it again to build from it")
    part = component(checkpoint, name)
    with torch.no_grad():
        reference = part.module(*part.inputs.values()).numpy()
    # The VAE is known to overflow in fp16; a half that does is kept in fp32, and the manifest says so.
    fallback = ["fp32"] if config.precision != "fp32" and name != "unet" else []
    for precision in [config.precision, *fallback]:
        path = export_component(part, folder, precision=precision, opset=config.opset)
        error = check_parity(part, path, reference, precision=precision)
        if error <= TOLERANCE[precision]:
            return {"precision": precision, "relative_error": error, "tolerance": TOLERANCE[precision]}
        for file in folder.iterdir():
            file.unlink()
        log.warning("%s in %s: relative error %.1e (at most %.1e)", name, precision, error, TOLERANCE[precision])
    raise BuildError(
        f"{name} exported in {precision} differs from PyTorch by {error:.1e} (at most {TOLERANCE[precision]:.1e}); "
        + ("report this checkpoint" if precision == "fp32" else "pass --precision fp32")
    )


def _model_facts(checkpoint: Checkpoint) -> dict[str, Any]:
    """The fields of `ModelInfo` that JSON can hold."""
    return {
        "scheduler_config": {k: v for k, v in checkpoint.scheduler_config.items() if k != "_use_default_values"},
        "scaling_factor": checkpoint.scaling_factor,
        "latent_channels": checkpoint.latent_channels,
        "text_width": int(checkpoint.unet.config.cross_attention_dim),
        "max_tokens": checkpoint.max_tokens,
        "vae_scale": checkpoint.vae_scale,
        "resolution_multiple": checkpoint.resolution_multiple,
        "default_resolution": checkpoint.default_resolution,
    }


def model_info(checkpoint: Checkpoint) -> Any:
    """A checkpoint's `ModelInfo`, as its bundle would give it."""
    from pie_engine.model import ModelInfo

    return ModelInfo(**_model_facts(checkpoint), hashes=checkpoint.hashes, tokenizer=checkpoint.tokenizer)


def _save_tokenizer(checkpoint: Checkpoint, folder: Path) -> None:
    checkpoint.tokenizer.save_pretrained(folder)
