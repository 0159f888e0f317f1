"""Builds, checks or inspects one plan in a process of its own: `python -m pie_engine.backends.tensorrt.worker`.

A compiler that runs out of memory or trips over a driver takes its process with it; this one can be spared, and its
memory is free again when it ends. Reads one JSON object from stdin; writes JSON lines to what was its stdout: progress,
then the outcome. What the library prints goes to stderr.
"""

from __future__ import annotations

import json
import os
import re
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pie_engine.backends.gpu import probe
from pie_engine.backends.tensorrt.library import import_library, make_logger

# A kernel that computes a whole attention, as TensorRT-RTX names it within a plan: once per attention and profile.
_FUSED_KERNEL = re.compile(rb"\b_gemm_mha_v2\b")
# The same among the layers that the inspector lists, by the kernel's own name: a matrix product that is left of an
# attention taken apart carries its node's name, and weights of attentions carry theirs.
_FUSED_LAYER = re.compile(r"_f?mha_|flash_?att", re.IGNORECASE)
# What a compiler says of its result, among much else.
_LOGGED = re.compile(r"^(Detected|Total|Max Scratch|Engine generation)")
_EVERY_SECONDS = 1.0

Report = Callable[[dict[str, Any]], None]


def build(request: dict[str, Any], report: Report) -> dict[str, Any]:
    """Parse an ONNX graph, compile it, write the plan. See `builder.Request` for the fields."""
    library = import_library(request["flavour"])
    lines: list[tuple[str, str]] = []
    logger = make_logger(library, lines)
    start = time.monotonic()
    builder = library.Builder(logger)
    network = builder.create_network(1 << int(library.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = library.OnnxParser(network, logger)
    if not parser.parse_from_file(request["onnx"]):
        return {"error": "; ".join(parser.get_error(i).desc() for i in range(parser.num_errors)) or "not parsed"}
    config = _configure(library, builder, network, request)
    monitor = _monitor(library, report)  # has to live as long as the build
    config.progress_monitor = monitor
    cache = _load_timing_cache(config, request)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        return {"error": _reason(lines)}
    _write(Path(request["plan"]), plan)
    if cache is not None:
        _write(Path(request["timing_cache"]), config.get_timing_cache().serialize())
    return {
        "bytes": plan.nbytes,
        "seconds": round(time.monotonic() - start, 2),
        "host_memory_bytes": _peak_memory(),
        "network_layers": network.num_layers,
        "network_attentions": _count(network, "ATTENTION_INPUT"),
        "log": [" ".join(text.split()) for level, text in lines if level == "info" and _LOGGED.match(text)],
        "fused_attention_kernels": len(_FUSED_KERNEL.findall(memoryview(plan))),
        "warnings": [text for level, text in lines if level == "warning"],
    }


def inspect(request: dict[str, Any], report: Report) -> dict[str, Any]:
    """Load a plan on this machine's GPU and list its layers."""
    if not probe().gpus:
        return {"error": "the engine inspector needs a GPU"}
    library = import_library(request["flavour"])
    lines: list[tuple[str, str]] = []
    logger = make_logger(library, lines)
    runtime = library.Runtime(logger)
    engine = runtime.deserialize_cuda_engine(Path(request["plan"]).read_bytes())
    if engine is None:
        return {"error": _reason(lines)}
    inspector = engine.create_engine_inspector()
    # Without memory of its own: nothing runs, and plans of tensorrt-rtx are built to be given theirs.
    context = engine.create_execution_context(library.ExecutionContextAllocationStrategy.USER_MANAGED)
    if context is not None:
        inspector.execution_context = context
    listed = json.loads(inspector.get_engine_information(library.LayerInformationFormat.JSON))["Layers"]
    names = [_kernel(layer) for layer in listed]
    fused = [name for name in names if _FUSED_LAYER.search(name)]
    kinds = Counter(str(layer.get("LayerType", "unknown")) for layer in listed if isinstance(layer, dict))
    return {
        "layers": engine.num_layers,
        "fused_attention_layers": len(fused),
        "fused_attention_names": fused[:4],
        "kinds": dict(kinds.most_common()),
        "device_memory_bytes": [
            engine.get_device_memory_size_for_profile_v2(i) for i in range(engine.num_optimization_profiles)
        ],
        "refittable": bool(engine.refittable),
    }


def compare(request: dict[str, Any], report: Report) -> dict[str, Any]:
    """Hold a plan on this machine's GPU to its graph in ONNX Runtime, in the shapes of its first profile.

    A plan whose weights can be exchanged is given them first, and then those of a probe (see `selftest`).
    """
    import torch

    from pie_engine.backends.tensorrt.engine import Engine
    from pie_engine.backends.tensorrt.selftest import compare_runs, refitted_error

    plan, onnx, device = Path(request["plan"]), Path(request["onnx"]), torch.device("cuda:0")
    shapes = {name: tuple(shape[1]) for name, shape in request["profile"].items()}
    engine = Engine(request["flavour"], plan.read_bytes(), request["component"], device)
    if request["weights"] == "fixed":
        return {"relative_error": compare_runs(onnx, engine.bind(shapes), shapes)}
    return {"relative_error": refitted_error(engine, onnx, shapes)}


def sanitise(request: dict[str, Any], report: Report) -> dict[str, Any]:
    """Fold what is constant and drop what is unused (polygraphy), if there is any; names of weights stay.

    The exporter has done most of it, and whatever polygraphy rewrites loses its nodes' metadata: a graph that it does
    not shorten is left as it is.
    """
    import onnx
    from polygraphy.backend.onnx import fold_constants

    # Weights beside the graph stay there: nothing is folded into those, and a full-size U-Net takes 0.3 s, not 50.
    model = onnx.load(request["onnx"], load_external_data=False)
    before = len(model.graph.node)
    folded = fold_constants(model, do_shape_inference=False)
    after = len(folded.graph.node)
    if after < before:
        onnx.save(folded, request["sanitised"])
    return {"before": before, "after": after}


def _configure(library: Any, builder: Any, network: Any, request: dict[str, Any]) -> Any:
    config = builder.create_builder_config()
    flag = library.BuilderFlag
    config.clear_flag(flag.TF32)  # fp32 means fp32
    config.profiling_verbosity = library.ProfilingVerbosity.DETAILED  # names that the inspector can tell apart
    if hasattr(flag, "REQUIRE_USER_ALLOCATION"):
        # tensorrt-rtx: without it a run may allocate memory, and then it cannot be captured.
        config.set_flag(flag.REQUIRE_USER_ALLOCATION)
    if request["optimisation_level"] is not None:
        config.builder_optimization_level = request["optimisation_level"]
    if request["workspace_bytes"] is not None:
        config.set_memory_pool_limit(library.MemoryPoolType.WORKSPACE, request["workspace_bytes"])
    if request["weights"] != "fixed":
        config.set_flag(flag.REFIT)
    if request["weights"] == "stripped":
        config.set_flag(flag.STRIP_PLAN)
    if request["capabilities"]:
        config.num_compute_capabilities = len(request["capabilities"])
        for index, capability in enumerate(request["capabilities"]):
            member = getattr(library.ComputeCapability, "SM" + capability.replace(".", ""))
            config.set_compute_capability(member, index)
    if request["hardware_compatibility"] != "none":
        name = request["hardware_compatibility"].upper().replace("-", "_")
        config.hardware_compatibility_level = getattr(library.HardwareCompatibilityLevel, name)
    dynamic = {network.get_input(i).name for i in range(network.num_inputs) if -1 in network.get_input(i).shape}
    for shapes in request["profiles"]:
        profile = builder.create_optimization_profile()
        for name in sorted(dynamic):
            profile.set_shape(name, *(tuple(shape) for shape in shapes[name]))
        config.add_optimization_profile(profile)
    return config


def _load_timing_cache(config: Any, request: dict[str, Any]) -> Any:
    if request["timing_cache"] is None:
        return None
    path = Path(request["timing_cache"])
    for content in (path.read_bytes() if path.is_file() else b"", b""):  # a damaged one is begun anew
        cache = config.create_timing_cache(content)
        # Never with a mismatch ignored: timings of another GPU choose kernels that are slow on this one.
        if cache is not None and config.set_timing_cache(cache, ignore_mismatch=False):
            return cache
    return None


def _monitor(library: Any, report: Report) -> Any:
    class Monitor(library.IProgressMonitor):
        def __init__(self) -> None:
            library.IProgressMonitor.__init__(self)
            self._steps: dict[str, int] = {}
            self._last = time.monotonic()

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._steps[phase_name] = num_steps

        def step_complete(self, phase_name: str, step: int) -> bool:
            now = time.monotonic()
            if self._steps.get(phase_name, 0) > 1 and now - self._last >= _EVERY_SECONDS:
                self._last = now
                report({"phase": phase_name, "step": step, "steps": self._steps.get(phase_name, 0)})
            return True  # goes on

        def phase_finish(self, phase_name: str) -> None:
            self._steps.pop(phase_name, None)

    return Monitor()


def _kernel(layer: Any) -> str:
    """The name of what runs for a layer, as far as the inspector tells it."""
    return layer if isinstance(layer, str) else str(layer.get("TacticName") or layer.get("Name", ""))


def _count(network: Any, kind: str) -> int:
    return sum(network.get_layer(i).type.name == kind for i in range(network.num_layers))


def _reason(lines: list[tuple[str, str]]) -> str:
    errors = [text for level, text in lines if level == "error"]
    return errors[0] if errors else "no reason given"


def _peak_memory() -> int:
    """Bytes. The kernel's own count: what getrusage tells starts at the size of the process that started this one."""
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _write(path: Path, data: Any) -> None:
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:  # another build may write the same cache
        file.write(data)
    Path(file.name).replace(path)


def main() -> int:
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # the compiler prints to stdout, too

    def report(message: dict[str, Any]) -> None:
        channel.write(json.dumps(message) + "\n")
        channel.flush()

    request = json.load(sys.stdin)
    actions = {"build": build, "inspect": inspect, "compare": compare, "sanitise": sanitise}
    report({"outcome": actions[request["action"]](request, report)})
    return 0


if __name__ == "__main__":
    sys.exit(main())
