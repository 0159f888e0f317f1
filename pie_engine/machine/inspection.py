"""What a bundle holds, whether its engines load here, and how to rebuild those that do not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pie_engine import commands
from pie_engine.backends.gpu import probe
from pie_engine.backends.tensorrt import library
from pie_engine.backends.tensorrt.fingerprint import buckets, describe_target, obstacle
from pie_engine.bundling import check_restorable
from pie_engine.config import COMPONENTS, FLAVOURS, Placement
from pie_engine.errors import BackendError, BundleError, Notice, use
from pie_engine.machine.selection import choose_for_bundle
from pie_engine.model.bundle import REGIONAL, WEIGHTS, Bundle, open_bundle


def inspect_bundle(path: str | Path) -> dict[str, Any]:
    """Verify a bundle and describe it. No plan is loaded.

    Returns:
        What JSON can hold: facts of the manifest, "components", "regional" (the same of the graphs that compute boxes),
        "engines" (one entry per flavour, with "loads_here", "reason", "remedy" and "rebuild"), "torch" (whether PyTorch
        can run it: "runs" and "reason"), "auto" (what "auto" takes here; None with the reason where nothing does), and
        "defects".

    Raises:
        BundleError: there is no such bundle, or it does not match its manifest.
    """
    bundle = open_bundle(path, remembered=False)
    manifest = bundle.manifest
    engines = [_describe_flavour(bundle, flavour) for flavour in FLAVOURS if bundle.engines(flavour)]
    return {
        "bundle": str(bundle.path),
        "format": manifest["format"],
        "pie_engine": manifest.get("pie_engine"),
        "precision": bundle.precision,
        "opset": manifest.get("opset"),
        "bytes": sum(file["bytes"] for file in manifest["files"].values()),
        "build_command": manifest.get("build_command"),
        "sources": manifest["sources"],
        "hashes": manifest["hashes"],
        "components": {name: _describe_graph(bundle, name, name, manifest["components"][name]) for name in COMPONENTS},
        "regional": {
            name: _describe_graph(bundle, name, name + REGIONAL, record)
            for name, record in manifest.get("regional", {}).items()
        },
        "engines": engines,
        "torch": _describe_torch(bundle),
        "auto": _auto(bundle),
        "defects": [line for flavour in engines for line in _defects(flavour)],
    }


def _describe_torch(bundle: Bundle) -> dict[str, Any]:
    try:
        check_restorable(bundle)
    except BundleError as error:
        return {"runs": False, "reason": Notice(error.message)}
    return {"runs": True, "reason": None}


def _auto(bundle: Bundle) -> dict[str, Any]:
    try:
        choice = choose_for_bundle(bundle, Placement())
    except BackendError as error:
        return {"backend": None, "why": Notice(error.message)}
    return {"backend": choice.name, "why": choice.why}


def _describe_graph(bundle: Bundle, component: str, folder: str, record: dict[str, Any]) -> dict[str, Any]:
    """One graph of a component: its own, or the one for boxes, in a `folder` of the bundle."""
    nodes, attentions = _count_nodes(bundle.graph(folder))
    return {
        "precision": record.get("precision"),
        "bytes": sum(file["bytes"] for key, file in bundle.manifest["files"].items() if key.startswith(f"{folder}/")),
        "relative_error": record.get("relative_error"),
        "tolerance": record.get("tolerance"),
        "nodes": nodes,
        "attentions": attentions,
        "weights_hash": bundle.weights_hash(component),
    }


def _count_nodes(path: Path) -> tuple[int, int]:
    """Nodes and attentions of a graph. An attention is one node, or taken apart and then has one softmax."""
    import onnx

    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's exceptions share no other base
        raise BundleError(f"{path} is not an ONNX graph ({error}); rebuild the bundle") from None
    kinds = [node.op_type for graph in (model.graph, *model.functions) for node in graph.node]
    return len(kinds), kinds.count("Attention") or kinds.count("Softmax")


def _describe_flavour(bundle: Bundle, flavour: str) -> dict[str, Any]:
    entries = {entry["component"]: entry for entry in bundle.engines(flavour)}
    first = entries.get("unet") or next(iter(entries.values()))
    reason = _reason(entries)
    plans = [_describe_plan(bundle, entry) for entry in entries.values()]
    return {
        "flavour": flavour,
        **{key: first.get(key) for key in _FACTS},
        "target": describe_target(first),
        "buckets": buckets(list(entries.values())),
        "bytes": sum(plan["bytes"] for plan in plans),
        "seconds": round(sum(plan["seconds"] or 0.0 for plan in plans), 2),
        "loads_here": reason is None,
        "reason": reason,
        "remedy": None if reason is None else _remedy(bundle, flavour, first),
        "rebuild": None if reason is None else _rebuild(bundle, flavour),
        "plans": plans,
    }


_FACTS = (
    "version", "gpu", "capabilities", "driver_floor", "resolutions", "batches", "weights", "optimisation_level",
)  # fmt: skip


def _reason(entries: dict[str, dict[str, Any]]) -> str | None:
    """Why the engines of one flavour do not load on the first GPU, or None if they do."""
    missing = [name for name in COMPONENTS if name not in entries]
    if missing:
        return f"there is no engine of {', '.join(missing)}"
    reason = next(filter(None, map(obstacle, entries.values())), None)
    if reason is None:
        import torch

        if not torch.cuda.is_available():  # engines run on torch's buffers
            return f"torch {torch.__version__} cannot use the GPU (pie-engine doctor says why)"
    return reason


def _remedy(bundle: Bundle, flavour: str, entry: dict[str, Any]) -> str:
    """What helps, if it is not to compile anew."""
    if library.installed_version(flavour) is None:
        return library.install_command(flavour)
    machine, floor = probe(), entry.get("driver_floor")
    other = "onnxruntime" if bundle.unknown_models else "torch"
    if not machine.gpus:
        return Notice(
            f"open it on a machine with a GPU ({describe_target(entry)}); here, {use('backend', 'onnxruntime')} runs "
            "the graphs"
        )
    if not machine.serves(floor):
        return Notice(f"update NVIDIA's driver, or pass {use('backend', other)}")
    return Notice(f"rebuild it on this machine, or pass {use('backend', other)}")


def _rebuild(bundle: Bundle, flavour: str) -> str:
    """The command that compiles for this machine; the bundle's own targets where it shows no GPU."""
    gpus = probe().gpus
    if not gpus:
        return bundle.build_command(backend=flavour)
    if flavour == "tensorrt-rtx" and gpus[0].capability in library.RTX_CAPABILITIES:
        return bundle.build_command(backend=flavour, compute_capability=gpus[0].capability)
    # An empty list takes back the capabilities that the bundle was built for: tensorrt accepts none.
    named = commands.has_option(bundle.build_command(), "compute_capability")
    return bundle.build_command(backend="tensorrt", **({"compute_capability": ""} if named else {}))


def _describe_plan(bundle: Bundle, entry: dict[str, Any]) -> dict[str, Any]:
    component = entry["component"]
    return {
        "component": component,
        "file": entry["file"],
        "precision": entry["precision"],
        "profiles": entry["profiles"],
        "bytes": bundle.manifest["files"][entry["file"]]["bytes"],
        "seconds": entry.get("seconds"),
        "weights": entry["weights"],
        "weights_hash": entry["weights_hash"],
        "own_weights": entry["weights_hash"] == bundle.weights_hash(component),
        "attention": entry["attention"],
    }


def _defects(flavour: dict[str, Any]) -> list[str]:
    """What makes engines slow, or unusable on any machine."""
    defects: list[str] = []
    for plan in flavour["plans"]:
        attention, name = plan["attention"], f"{plan['component']} ({flavour['flavour']})"
        fused, total = attention.get("fused"), attention.get("graph") or 0
        if plan["component"] == "unet" and fused is not None and fused < total:
            remedy = "report this checkpoint's head sizes"
            if plan["precision"] == "fp32":
                remedy = f"build with {use('precision', 'fp16')}"
            defects.append(
                Notice(f"{name}: {total - fused} of {total} attentions are not fused, which is slow; {remedy}")
            )
        if plan["weights"] == "fixed" and not plan["own_weights"]:
            defects.append(f"{name}: its weights are fixed and not those of {WEIGHTS[plan['component']]}; rebuild it")
    return defects
