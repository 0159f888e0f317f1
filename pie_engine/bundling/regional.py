"""Graphs for regional rounds: exported with a bundle, or from one at first need; held to PyTorch, cached by content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pie_engine.bundling.components import OnComponent, cached_graph, parity
from pie_engine.bundling.graphs import (
    Plan,
    architecture_of,
    exporter_sources,
    exporter_versions,
    make_graph,
    sources_digest,
)
from pie_engine.errors import BuildError, BundleError, use
from pie_engine.export import regional
from pie_engine.export.components import component
from pie_engine.export.graph import TOLERANCE
from pie_engine.export.regional import DENSE, MODELS, OPSET, Ports, RegionalGraph
from pie_engine.export.share import share_weights
from pie_engine.files import cache_root, link_or_copy
from pie_engine.model.bundle import FORMAT, REGIONAL
from pie_engine.regional import layout

if TYPE_CHECKING:
    from pie_engine.checkpoint import Checkpoint
    from pie_engine.model.bundle import Bundle

NETWORKS = tuple(DENSE)


@dataclass(frozen=True)
class Network:
    """What a graph for regional rounds is exported from.

    Attributes:
        component: "unet" or "vae_decoder".
        config: of the U-Net, or of the whole VAE.
        weights_hash: of the weights, as a manifest names them.
        precision: of the graph.
        opset: of the bundle; attention is always taken apart.
        dense: the component's own graph, of the same weights and precision.
        load: gives the checkpoint, with this network's weights in fp32.
    """

    component: str
    config: dict[str, Any]
    weights_hash: str
    precision: str
    opset: int
    dense: Path
    load: Callable[[], Checkpoint]


def regional_graph(
    bundle: Bundle, name: str, *, cache: Path | None = None, on_component: OnComponent = lambda line: None
) -> Path:
    """The graph of "unet" or "vae_decoder" that computes boxes: the bundle's, or one in the cache, made at first need.

    Args:
        bundle: verified.

    Raises:
        BundleError: the bundle's own was changed, or it does not hold what an export needs.
        BuildError: the exported graph does not compute what PyTorch computes.
    """
    if name in bundle.manifest.get("regional", {}):
        bundle.check_unchanged(name + REGIONAL)
        return bundle.graph(name + REGIONAL)
    from pie_engine.bundling.restore import restore_checkpoint

    if MODELS[name] not in bundle.manifest.get("architecture", {}):
        raise BundleError(
            f"bundle {bundle.path} holds no configuration of its {MODELS[name]}, which regional rounds need; rebuild "
            f"it: {bundle.build_command()}"
        )

    def load() -> Checkpoint:
        bundle.check_unchanged(name)
        checkpoint = restore_checkpoint(bundle, (name,))
        (checkpoint.unet if name == "unet" else checkpoint.vae).float()
        return checkpoint

    network = Network(
        name,
        bundle.manifest["architecture"][MODELS[name]],
        bundle.weights_hash(name),
        bundle.manifest["components"][name]["precision"],
        bundle.manifest.get("opset") or OPSET,
        bundle.graph(name),
        load,
    )
    return cached_regional(network, cache or cache_root(), on_component) / "model.onnx"


def cached_regional(network: Network, cache: Path, on_component: OnComponent, *, check: bool = True) -> Path:
    """The folder of a network's graph in the cache, made at its first use.

    Raises:
        BuildError: it does not compute what PyTorch computes, or the network is none that is known in boxes.
    """
    name, opset = network.component, min(network.opset, OPSET)
    found = layout.obstacle(network.config)
    if found:
        raise BuildError(f"{name} is not known in boxes ({found}); build it without regional graphs")
    facts = [FORMAT, name + REGIONAL, network.weights_hash, network.precision, opset]
    facts += [exporter_versions(), exporter_sources(), regional_sources(), *([] if check else ["unchecked"])]
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]
    folder = cache / "components" / f"{name}{REGIONAL}-{digest}"

    def make(partial: Path) -> tuple[dict[str, Any], str]:
        on_component(f"{name} for boxes: making its graph (of an unknown full-size U-Net that takes some minutes)")
        return _export(network, opset, cache, partial, check=check)

    return cached_graph(folder, f"{name} for boxes", make, on_component)


def _export(network: Network, opset: int, cache: Path, folder: Path, *, check: bool) -> tuple[dict[str, Any], str]:
    """Write a network's graph into `folder`. Returns what the manifest says of it, and how it was made."""
    name, precision = network.component, network.precision
    plan = regional_plan(network.load(), name, precision, opset)
    error, how = make_graph(plan if check else plan.unchecked(), folder, cache)
    if error > TOLERANCE[precision]:
        raise BuildError(
            f"{name} for boxes exported in {precision} differs from PyTorch by {error:.1e} (at most "
            f"{TOLERANCE[precision]:.1e}); "
            + ("report this checkpoint" if precision == "fp32" else f"build with {use('precision', 'fp32')}")
        )
    link_weights(folder / "model.onnx", network.dense)
    return parity(precision, error if check else None), how


def link_weights(path: Path, dense: Path) -> None:
    """Let a graph for boxes use the file of weights that lies beside the dense one, where there is one."""
    shared = share_weights(path, dense)
    if shared is not None:
        link_or_copy(shared, path.parent / shared.name)


def regional_plan(checkpoint: Checkpoint, name: str, precision: str, opset: int) -> Plan:
    """How the graph for boxes of "unet" or "vae_decoder" is made. Checked by a recording and a replay."""
    model = getattr(checkpoint, MODELS[name])
    ports, net = Ports.of(name, model.config), model if name == "unet" else component(checkpoint, name).module
    return Plan(
        name + REGIONAL,
        architecture_of(model) | {"ports": [ports.inputs, ports.outputs]},
        RegionalGraph(ports, net),
        precision,
        opset,
        lambda folder: regional.export_regional(ports, net, folder, precision=precision, opset=opset),
        lambda path: regional.check_regional(ports, net, path, precision=precision),
        regional_sources(),
    )


def regional_sources() -> str:
    """What `pie_engine.regional` records and where decides what a graph takes."""
    return sources_digest(Path(layout.__file__).parent)
