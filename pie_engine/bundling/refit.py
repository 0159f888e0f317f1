"""New weights in a bundle's graphs and engines: no export, and no compiling where the engines can be refitted."""

from __future__ import annotations

import gc
import json
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pie_engine import commands
from pie_engine.bundling.assemble import architecture, link_files, model_facts, save_tokenizer, unet_architecture
from pie_engine.bundling.components import OnComponent, component_plan, parity, told
from pie_engine.bundling.graphs import Plan, empty, exporter_versions
from pie_engine.bundling.refit_engines import EngineRefit
from pie_engine.bundling.regional import link_weights, regional_plan
from pie_engine.config import COMPONENTS
from pie_engine.errors import BuildError, ConfigError, use
from pie_engine.export import graph
from pie_engine.export import weights as graph_weights
from pie_engine.export.graph import TOLERANCE
from pie_engine.files import cache_root, new_folder
from pie_engine.model.bundle import MANIFEST, REGIONAL, WEIGHTS, Bundle, open_bundle, write_manifest

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

    from pie_engine.checkpoint import Checkpoint

log = logging.getLogger(__name__)
# What an architecture's config says that changes no number.
_IGNORED = {"sample_size"}


@dataclass(frozen=True)
class UNetWeights:
    """A U-Net without the rest of its checkpoint, shaped like one for `pie_engine.export.components`.

    Attributes:
        unet: the model, fp32.
        hashes, sources: of the U-Net alone, as in `Checkpoint`.
    """

    unet: UNet2DConditionModel
    hashes: dict[str, str]
    sources: dict[str, str]
    latent_channels: int
    vae_scale: int
    resolution_multiple: int
    max_tokens: int
    tokenizer: None = None

    @classmethod
    def for_bundle(cls, bundle: Bundle, unet: UNet2DConditionModel, digest: str, source: str) -> UNetWeights:
        info = bundle.model
        return cls(
            unet, {"unet": digest}, {"unet": source}, info.latent_channels, info.vae_scale, info.resolution_multiple,
            info.max_tokens,
        )  # fmt: skip


def refit_bundle(
    bundle: Bundle,
    weights: Checkpoint | UNetWeights,
    output: str | Path,
    *,
    build_command: str | None = None,
    cache_dir: Path | None = None,
    on_component: OnComponent = lambda line: None,
) -> Bundle:
    """Write a bundle with the graphs and engines of `bundle` and other weights; it appears whole or not at all.

    Every refitted graph is run against PyTorch, and exported anew if it differs. Engines whose weights can be
    exchanged stay as they are and get theirs when they are loaded; where a GPU is at hand they are tried at once, and
    compiled anew if they fail. Engines with fixed weights are compiled.

    Args:
        bundle: verified.
        weights: a checkpoint, or a U-Net alone, of the bundle's architecture.

    Raises:
        ConfigError: another architecture, or the same weights.
        BuildError, BackendError: an engine has to be compiled and cannot be, here.
        OutputError: `output` cannot be written.
    """
    _check_architecture(bundle, weights)
    known = bundle.manifest["hashes"]
    hashes = known | weights.hashes  # a U-Net alone leaves the rest as it is
    changed = [name for name in COMPONENTS if hashes[WEIGHTS[name]] != known[WEIGHTS[name]]]
    if not changed:
        raise ConfigError(f"bundle {bundle.path} holds these weights already; run it as it is")
    manifest = json.loads(json.dumps(bundle.manifest))
    facts = manifest["model"] if isinstance(weights, UNetWeights) else model_facts(weights)
    with new_folder(Path(output), replaceable=MANIFEST) as folder:
        regional = [name + REGIONAL for name in manifest.get("regional", {})]
        for name in (*COMPONENTS, *regional):  # graphs for boxes share the weights of the others
            component, of_boxes = name.removesuffix(REGIONAL), name.endswith(REGIONAL)
            if component not in changed:
                link_files(bundle.path / name, folder / name)
                continue
            entries = manifest["regional" if of_boxes else "components"]
            # The graph's own opset: one whose attentions had to be taken apart has a lower one than its bundle.
            kind = entries[component]["precision"], graph.graph_opset(bundle.graph(name))
            # A U-Net alone has all that its graphs' export reads.
            plan = (regional_plan if of_boxes else component_plan)(cast("Checkpoint", weights), component, *kind)
            entries[component] = _refit_graph(plan, bundle.graph(name), folder / name, on_component)
            if of_boxes:
                link_weights(folder / name / "model.onnx", folder / component / "model.onnx")
        manifest["model"] = facts
        if not isinstance(weights, UNetWeights):
            manifest["architecture"] = architecture(weights)
        job = EngineRefit(bundle, folder, manifest, changed, hashes, cache_dir or cache_root(), on_component)
        engines = [job.place(entry) for entry in bundle.engines()]
        if weights.tokenizer is None:
            link_files(bundle.path / "tokenizer", folder / "tokenizer")
        else:
            save_tokenizer(weights.tokenizer, folder / "tokenizer")
        for fact in ("format", "pie_engine", "files", "manifest_sha256"):
            del manifest[fact]  # written anew
        manifest.update(
            hashes=hashes,
            sources=manifest["sources"] | weights.sources,
            engines=engines,
            versions=exporter_versions(),
            refitted_from=known,
            build_command=build_command or commands.build(output),
        )
        write_manifest(folder, manifest)
    return open_bundle(output, verify=False)  # every hash was computed a moment ago


def _refit_graph(plan: Plan, path: Path, folder: Path, on_component: OnComponent) -> dict[str, Any]:
    """Replace a graph's weights, or export it anew if that fails. Returns what the manifest says of it."""
    start, precision, label = time.monotonic(), plan.precision, plan.name.replace(REGIONAL, " for boxes")
    how, error = "refitted", float("inf")
    folder.mkdir()
    try:
        error = plan.check_filled(graph_weights.replace_weights(path, plan.module, folder, precision=precision))
    except BuildError as reason:
        log.warning("%s cannot be refitted and is exported anew: %s", label, reason)
    if error > TOLERANCE[precision]:
        how = "exported anew"
        empty(folder)
        error = plan.check(plan.export(folder))
        if error > TOLERANCE[precision]:
            raise BuildError(
                f"{label} in {precision} differs from PyTorch by {error:.1e} (at most {TOLERANCE[precision]:.1e}); "
                f"build it with {use('precision', 'fp32')}",
                field="precision",
                value=precision,
                limit=f"relative error {TOLERANCE[precision]:.1e}",
            )
    gc.collect()
    seconds, record = round(time.monotonic() - start, 2), parity(precision, error)
    on_component(f"{label}: {how}, {precision}, {told(record)}, {seconds:.1f} s")
    return {**record, "seconds": seconds, "refitted": how == "refitted"}


def _check_architecture(bundle: Bundle, weights: Checkpoint | UNetWeights) -> None:
    known = bundle.manifest.get("architecture", {}).get("unet")
    if known is None:
        raise ConfigError(f"bundle {bundle.path} was written before refitting was possible; build it again")
    found = unet_architecture(weights.unet)
    for key in sorted((known.keys() | found.keys()) - _IGNORED):
        if known.get(key) != found.get(key):
            raise ConfigError(
                f"U-Net {weights.sources['unet']} has {key}={found.get(key)} and the bundle's has {known.get(key)}; "
                "build it: pie-engine build"
            )
    if isinstance(weights, UNetWeights):
        return
    facts = model_facts(weights)
    for key in ("latent_channels", "text_width", "max_tokens", "vae_scale"):
        if facts[key] != bundle.manifest["model"][key]:
            raise ConfigError(
                f"the checkpoint has {key} {facts[key]} and the bundle {bundle.manifest['model'][key]}; "
                "build it: pie-engine build"
            )
