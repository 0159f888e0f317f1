"""One exported component -> one TensorRT plan: which shapes, for which GPUs, cached by content."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pie_engine.backends.tensorrt import engine as runtime
from pie_engine.backends.tensorrt import worker
from pie_engine.backends.tensorrt.builder import Profile, compile_plan
from pie_engine.bundling.components import OnComponent
from pie_engine.bundling.graphs import intact
from pie_engine.bundling.target import Target
from pie_engine.errors import BuildError, Notice, use
from pie_engine.export.graph import TOLERANCE
from pie_engine.files import link_or_copy, locked, new_folder
from pie_engine.model.bundle import describe_files

log = logging.getLogger(__name__)
_RECORD = "engine.json"
_PLAN = "engine.plan"


def profiles(component: str, target: Target, facts: dict[str, Any]) -> list[Profile]:
    """The shapes that a component is compiled for.

    The U-Net runs guided on twice the batch, and unguided (and for inversion) on the batch itself: two profiles each.
    The text encoder runs once per progression, so one profile with a range serves it.
    """
    scale, channels = facts["vae_scale"], facts["latent_channels"]
    if component == "text_encoder":
        most = 2 * max(target.batches) + 1  # each its own prompt and negative prompt, and the empty one
        return [{"ids": ((1, facts["max_tokens"]), (2, facts["max_tokens"]), (most, facts["max_tokens"]))}]
    found: list[Profile] = []
    for side in target.resolutions:
        for batch in unet_batches(target.batches) if component == "unet" else target.batches:
            latent = (batch, channels, side // scale, side // scale)
            if component == "unet":
                shapes = {"sample": latent, "context": (batch, facts["max_tokens"], facts["text_width"])}
            else:
                shapes = {"latent": latent} if component == "vae_decoder" else {"pixels": (batch, 3, side, side)}
            # tensorrt-rtx 1.7 compiles no U-Net for 7.5 at a static batch of one, but a range that begins there.
            ranged = batch == 1 and component == "unet" and "7.5" in target.capabilities
            found.append({name: (shape, shape, (2, *shape[1:]) if ranged else shape) for name, shape in shapes.items()})
    return found


def unet_batches(batches: tuple[int, ...]) -> list[int]:
    """U-Net batches of item batches: guided first, since they are what runs most."""
    return list(dict.fromkeys([2 * batch for batch in batches] + list(batches)))


@dataclass(frozen=True)
class Engine:
    """A compiled plan in the cache: its folder and what is known about it."""

    component: str
    folder: Path
    record: dict[str, Any]
    target: Target

    def place(self, bundle: Path, weights_hash: str, precision: str) -> dict[str, Any]:
        """Put the plan into a bundle's folder. Returns its entry in the manifest."""
        file = f"engines/{self.target.flavour}/{self.component}.plan"
        (bundle / file).parent.mkdir(parents=True, exist_ok=True)
        link_or_copy(self.folder / _PLAN, bundle / file)
        return {
            "component": self.component,
            "file": file,
            **self.target.to_dict(),
            "precision": precision,
            "weights_hash": weights_hash,  # of those in the file: a refittable plan may carry another checkpoint's
            **self.record,
        }


def cached_engine(
    component: str, exported: Path, target: Target, facts: dict[str, Any], cache: Path, on_component: OnComponent
) -> Engine:
    """The plan of an exported component, compiled at its first use.

    Raises:
        BuildError: it cannot be compiled as asked.
    """
    shapes = profiles(component, target, facts)
    graphs = {name: entry["sha256"] for name, entry in describe_files(exported).items() if "model.onnx" in name}
    key = [component, graphs, target.to_dict(), shapes, _compiler_sources()]
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]
    folder = cache / "engines" / f"{component}-{digest}"
    with locked(folder):
        if not intact(folder, _RECORD):
            shutil.rmtree(folder, ignore_errors=True)
            with new_folder(folder, replaceable=_RECORD) as partial:
                record = _compile(component, exported, target, shapes, partial, on_component)
                files = describe_files(partial)
                (partial / _RECORD).write_text(json.dumps({"engine": record, "files": files}, indent=2))
        record = json.loads((folder / _RECORD).read_text())["engine"]
    attention = record["attention"]
    fused = "" if attention["fused"] is None else f", {attention['fused']} of {attention['graph']} attentions fused"
    on_component(
        f"{component}: plan, {record['bytes'] / 1e6:.1f} MB, {len(shapes)} shapes{fused}, {record['seconds']:.1f} s"
    )
    if component == "unet" and attention["fused"] is not None and attention["fused"] < attention["graph"]:
        helps = f"build with {use('precision', 'fp16')}"
        remedy = helps if record["precision"] == "fp32" else "report this checkpoint's head sizes"
        log.warning(
            Notice(f"defect: %d of %d attentions of the U-Net are not fused, which is slow; {remedy}"),
            attention["graph"] - attention["fused"], attention["graph"],
        )  # fmt: skip
    return Engine(component, folder, record, target)


@functools.cache
def _compiler_sources() -> str:
    """A plan compiled by other code may be another plan."""
    return hashlib.sha256(Path(worker.__file__).read_bytes()).hexdigest()


def _compile(
    component: str, exported: Path, target: Target, shapes: list[Profile], folder: Path, on_component: OnComponent
) -> dict[str, Any]:
    onnx, plan = exported / "model.onnx", folder / _PLAN
    on_component(f"{component}: compiling with {target.flavour} {target.version}")
    outcome = compile_plan(onnx, plan, shapes, target, component)
    nodes, precision = _describe_graph(onnx)
    # Plans of tensorrt-rtx name their kernels, once per attention and profile; those of tensorrt do not.
    # The VAE's may be fused at one batch and not at another: it counts if it is at all of them.
    kernels = outcome.pop("fused_attention_kernels")
    fused = kernels // len(shapes) if target.flavour == "tensorrt-rtx" else None
    record = {
        "profiles": shapes,
        "precision": precision,
        "attention": {"graph": nodes, "fused": fused},
        "relative_error": None,
        **outcome,
    }
    if target.gpu is not None:
        entry = {"component": component, "flavour": target.flavour, "weights": target.weights, "profiles": shapes}
        record["relative_error"] = error = plan_error(plan.read_bytes(), entry, onnx)
        if error > TOLERANCE[precision]:
            raise BuildError(
                f"{component} compiled by {target.flavour} {target.version} differs from its graph by {error:.1e} (at "
                f"most {TOLERANCE[precision]:.1e}); pass "
                + ("" if target.weights == "fixed" else f"{use('weights', 'fixed')}, or ")
                + use("precision", "fp32"),
                field="precision",
                value=precision,
                limit=f"relative error {TOLERANCE[precision]:.1e}",
            )
    return record


def plan_error(data: bytes, entry: dict[str, Any], onnx: Path) -> float:
    """||plan - graph|| / ||graph|| on this machine's GPU, in the usual shapes of the first profile.

    Weights that can be exchanged are taken from the graph before.

    Args:
        data: the plan, verified.
        entry: "component", "flavour", "weights" and "profiles" of it.

    Raises:
        BackendError: it cannot be run here, or does not take the weights.
    """
    engine = runtime.Engine(entry["flavour"], data, entry["component"], torch.device("cuda:0"))
    if entry["weights"] == "refittable":
        engine.refit(onnx)
    return engine.deviation(onnx, {name: tuple(shape[1]) for name, shape in entry["profiles"][0].items()})


def _describe_graph(path: Path) -> tuple[int, str]:
    """Attentions of a graph, whole or taken apart (each then has one softmax), and the precision of its weights."""
    import onnx

    model = onnx.load(path, load_external_data=False)
    nodes = [node.op_type for graph in (model.graph, *model.functions) for node in graph.node]
    half = any(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in model.graph.initializer)
    return nodes.count("Attention") or nodes.count("Softmax"), "fp16" if half else "fp32"
