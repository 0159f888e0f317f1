"""Components, engines and tokenizer -> one bundle."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pie_engine import commands
from pie_engine.backends.tensorrt.builder import needs_decomposing
from pie_engine.bundling.components import OnComponent, cache_folder, cache_key, cached_component
from pie_engine.bundling.engines import cached_engine
from pie_engine.bundling.graphs import RECORD, exporter_versions, plain_config
from pie_engine.bundling.regional import NETWORKS, Network, cached_regional
from pie_engine.bundling.target import Target, resolve_target
from pie_engine.config import COMPONENTS, BuildConfig, RunConfig
from pie_engine.errors import BuildError, BundleError, ConfigError
from pie_engine.export.regional import MODELS
from pie_engine.files import link_or_copy, locked, new_folder
from pie_engine.model.bundle import FORMAT, MANIFEST, REGIONAL, WEIGHTS, Bundle, Files, open_bundle, write_manifest
from pie_engine.model.info import ModelInfo
from pie_engine.rounds.schedule import build_schedule

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

    from pie_engine.checkpoint import Checkpoint

log = logging.getLogger(__name__)
# The newest opset whose graphs hold no attention as a whole.
_DECOMPOSED_OPSET = 20


def build_bundle(
    checkpoint: Checkpoint,
    output: str | Path,
    config: BuildConfig | None = None,
    *,
    build_command: str | None = None,
    on_component: OnComponent = lambda line: None,
) -> Bundle:
    """Export a checkpoint, compile its engines and write a bundle; `output` appears whole or not at all.

    Args:
        build_command: what the manifest tells users to run if the bundle has to be rebuilt.
        on_component: called with one line of progress per component.

    Raises:
        BuildError: an exported component does not compute what PyTorch computes, or cannot be compiled.
        BackendError: the library that compiles, or the GPU that it compiles on, is missing.
        OutputError: `output` cannot be written.
    """
    config = config or BuildConfig()
    output = Path(output)
    facts = model_facts(checkpoint)
    target = None if config.engines is None else resolve_target(config.engines, facts)  # refused before it exports
    with new_folder(output, replaceable=MANIFEST) as folder:
        known: Files = {}
        components, engines = {}, []
        for name in COMPONENTS:
            record, engine = _add_component(checkpoint, name, config, target, facts, folder, known, on_component)
            components[name] = record
            engines += [] if engine is None else [engine]
        regional = {}
        for name in NETWORKS if config.regional else ():
            regional[name] = _add_regional(checkpoint, name, config, components[name], folder, known, on_component)
        save_tokenizer(checkpoint.tokenizer, folder / "tokenizer")
        write_manifest(
            folder,
            {
                "precision": config.precision,
                "opset": config.opset,
                "model": facts,
                "architecture": architecture(checkpoint),
                "hashes": checkpoint.hashes,
                "sources": checkpoint.sources,
                "components": components,
                "regional": regional,
                "engines": engines,
                "versions": exporter_versions(),
                "build_command": build_command or commands.build(output),
            },
            known,
        )
    _keep_schedules(facts["scheduler_config"])
    return open_bundle(output, verify=False)  # every hash was computed a moment ago


def _keep_schedules(scheduler_config: dict[str, Any]) -> None:
    """Compute the tables of the default settings, which are kept: the first run of the bundle needs no diffusers."""
    config = RunConfig()
    with contextlib.suppress(ConfigError):  # a scheduler that cannot run is refused where it is asked to
        for corrector in (True, False):
            build_schedule(
                scheduler_config,
                name="ddim",
                num_inference_steps=config.num_inference_steps,
                denoising_steps=config.denoising_steps,
                corrector=corrector,
            )


def cached_bundle(
    checkpoint: Checkpoint, config: BuildConfig | None = None, *, on_component: OnComponent = lambda line: None
) -> Bundle:
    """The bundle of a checkpoint in the cache folder, built at its first use."""
    config = config or BuildConfig()
    target = None if config.engines is None else resolve_target(config.engines, model_facts(checkpoint))
    keys = [cache_key(checkpoint, name, config) for name in COMPONENTS]
    facts = [FORMAT, keys, checkpoint.hashes["tokenizer"], checkpoint.scheduler_config]
    facts += [] if target is None else [target.to_dict()]
    facts += ["regional"] if config.regional else []
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]
    path = cache_folder(config) / "bundles" / digest
    with locked(path):
        if path.is_dir():
            try:
                return open_bundle(path)
            except BundleError as error:
                log.warning("the cached bundle is rebuilt: %s", error)
                shutil.rmtree(path, ignore_errors=True)
        return build_bundle(checkpoint, path, config, on_component=on_component)


def _add_component(
    checkpoint: Checkpoint,
    name: str,
    config: BuildConfig,
    target: Target | None,
    facts: dict[str, Any],
    folder: Path,
    known: Files,
    on_component: OnComponent,
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Put one component, and its engine, into `folder`. Returns what the manifest says of both.

    Args:
        known: takes what is known of the component's files.
    """
    cached, engine = cached_component(checkpoint, name, config, on_component), None
    if target is not None:
        try:
            engine = cached_engine(name, cached, target, facts, cache_folder(config), on_component)
        except BuildError as error:
            if not needs_decomposing(error) or config.opset <= _DECOMPOSED_OPSET:
                raise
            on_component(f"{name}: no kernel for a whole attention of this size and precision; taken apart")
            cached = cached_component(checkpoint, name, replace(config, opset=_DECOMPOSED_OPSET), on_component)
            engine = cached_engine(name, cached, target, facts, cache_folder(config), on_component)
    record = _link(cached, folder / name, known)
    if engine is None:
        return record, None
    return record, engine.place(folder, checkpoint.hashes[WEIGHTS[name]], record["precision"])


def _add_regional(
    checkpoint: Checkpoint,
    name: str,
    config: BuildConfig,
    record: dict[str, Any],
    folder: Path,
    known: Files,
    on_component: OnComponent,
) -> dict[str, Any]:
    """Put the graph of one network for regional rounds into `folder`. Returns what the manifest says of it."""
    network = Network(
        name,
        architecture(checkpoint)[MODELS[name]],
        checkpoint.hashes[WEIGHTS[name]],
        record["precision"],
        config.opset,
        folder / name / "model.onnx",
        lambda: checkpoint,
    )
    cached = cached_regional(network, cache_folder(config), on_component, check=config.check)
    return _link(cached, folder / (name + REGIONAL), known)


def _link(cached: Path, folder: Path, known: Files) -> dict[str, Any]:
    """Link a folder of the cache, whose files have been hashed. Returns what the manifest says of its graph."""
    link_files(cached, folder)
    record = json.loads((cached / RECORD).read_text())
    known |= {f"{folder.name}/{file}": entry for file, entry in record["files"].items()}
    return record["component"]


def save_tokenizer(tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Write a tokenizer as it was loaded: not how it cut and filled up the texts that it has read since."""
    own = copy.deepcopy(tokenizer)
    own.backend_tokenizer.no_truncation()
    own.backend_tokenizer.no_padding()
    own.save_pretrained(folder)


def link_files(source: Path, folder: Path) -> None:
    """Give a folder's files, without a cache's record, a second name in `folder`, which is made."""
    folder.mkdir()
    for file in (path for path in sorted(source.iterdir()) if path.name != RECORD):
        link_or_copy(file, folder / file.name)


def model_facts(checkpoint: Checkpoint) -> dict[str, Any]:
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


def model_info(checkpoint: Checkpoint) -> ModelInfo:
    """A checkpoint's `ModelInfo`, as its bundle would give it."""
    return ModelInfo(
        **model_facts(checkpoint),
        hashes=checkpoint.hashes,
        tokenizer=checkpoint.tokenizer,
        architecture=architecture(checkpoint),
    )


def unet_architecture(unet: Any) -> dict[str, Any]:
    """The U-Net's config without a library's bookkeeping: what another checkpoint must share to be refitted."""
    return plain_config(dict(unet.config))


def architecture(checkpoint: Checkpoint) -> dict[str, Any]:
    """The models' configs without their libraries' bookkeeping: what PyTorch needs to run a bundle."""
    return {
        "unet": unet_architecture(checkpoint.unet),
        "vae": plain_config(dict(checkpoint.vae.config)),
        "text_encoder": plain_config(checkpoint.text_encoder.config.to_dict()),
    }
