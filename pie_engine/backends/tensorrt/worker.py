"""Compiles one plan in a process of its own: `python -m pie_engine.backends.tensorrt.worker`.

A compiler that runs out of memory or trips over a driver takes its process with it; this one can be spared, and its
memory is free again when it ends. Reads one JSON object from stdin and writes one to what was its stdout; what the
library prints goes to stderr.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

from pie_engine.backends.host_memory import proc_bytes
from pie_engine.backends.tensorrt.library import import_library, make_logger

# A kernel that computes a whole attention, as TensorRT-RTX names it within a plan: once per attention and profile.
_FUSED_KERNEL = re.compile(rb"\b_gemm_mha_v2\b")


def build(request: dict[str, Any]) -> dict[str, Any]:
    """Parse an ONNX graph, compile it, write the plan; see `builder.compile_plan`.

    Args:
        request: "onnx", "plan" (paths), "profiles", and the fields of a `Target`.

    Returns:
        Facts of the plan, or "error".
    """
    library = import_library(request["flavour"])
    errors: list[str] = []
    logger = make_logger(library, errors)
    start = time.monotonic()
    builder = library.Builder(logger)
    network = builder.create_network(1 << int(library.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = library.OnnxParser(network, logger)
    if not parser.parse_from_file(request["onnx"]):
        return {"error": "; ".join(parser.get_error(i).desc() for i in range(parser.num_errors)) or "not parsed"}
    plan = builder.build_serialized_network(network, _configure(library, builder, network, request))
    if plan is None:
        return {"error": errors[0] if errors else "no reason given"}
    Path(request["plan"]).write_bytes(plan)
    return {
        "bytes": plan.nbytes,
        "seconds": round(time.monotonic() - start, 2),
        # What getrusage tells starts at the size of the process that started this one.
        "host_memory_bytes": proc_bytes("/proc/self/status", "VmHWM"),
        "fused_attention_kernels": len(_FUSED_KERNEL.findall(memoryview(plan))),
    }


def _configure(library: Any, builder: Any, network: Any, request: dict[str, Any]) -> Any:
    config = builder.create_builder_config()
    flag = library.BuilderFlag
    config.clear_flag(flag.TF32)  # fp32 means fp32
    config.profiling_verbosity = library.ProfilingVerbosity.DETAILED  # plans name their kernels
    if hasattr(flag, "REQUIRE_USER_ALLOCATION"):
        # tensorrt-rtx: without it a run may allocate memory, and then it cannot be captured.
        config.set_flag(flag.REQUIRE_USER_ALLOCATION)
    if request["optimisation_level"] is not None:
        config.builder_optimization_level = request["optimisation_level"]
    if request["workspace"] is not None:
        config.set_memory_pool_limit(library.MemoryPoolType.WORKSPACE, int(request["workspace"] * 2**30))
    if request["weights"] == "refittable":
        config.set_flag(flag.REFIT)
    if request["gpu"] is None:  # tensorrt-rtx, for GPUs that are not at hand
        config.num_compute_capabilities = len(request["capabilities"])
        for index, capability in enumerate(request["capabilities"]):
            member = getattr(library.ComputeCapability, "SM" + capability.replace(".", ""))
            config.set_compute_capability(member, index)
    inputs = [network.get_input(i) for i in range(network.num_inputs)]
    for shapes in request["profiles"]:
        profile = builder.create_optimization_profile()
        for name in sorted(tensor.name for tensor in inputs if -1 in tensor.shape):
            profile.set_shape(name, *(tuple(shape) for shape in shapes[name]))
        config.add_optimization_profile(profile)
    return config


def main() -> None:
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # the compiler prints to stdout, too
    with channel:
        json.dump(build(json.load(sys.stdin)), channel)


if __name__ == "__main__":
    main()
