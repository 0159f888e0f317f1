"""The members of TensorRT's Python classes that the package uses, and which of them each library lacks.

A library of mocks that has these members and no others (`paper`) shows that no more are asked for. NVIDIA's bindings
show that they exist: these import without a GPU and without TensorRT's libraries if something else defines the symbols
that they link against. Older versions were read so, from unpacked wheels:

    pip download --no-deps tensorrt-cu12-bindings==10.16.1.11
    python -m zipfile -e tensorrt_cu12_bindings-*.whl 10.16
    PYTHONPATH=. python tests/support/tensorrt_api.py 10.16
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import NonCallableMagicMock

_USED = {
    "Builder": "build_serialized_network create_builder_config create_network create_optimization_profile",
    "BuilderFlag": "REFIT REQUIRE_USER_ALLOCATION TF32",
    "ComputeCapability": "SM75 SM80 SM86 SM89 SM120 SM121",
    "DataType": "FLOAT HALF INT64",
    "DynamicShapesKernelSpecializationStrategy": "EAGER",
    "ExecutionContextAllocationStrategy": "USER_MANAGED",
    "IBuilderConfig": "add_optimization_profile builder_optimization_level clear_flag num_compute_capabilities "
    "profiling_verbosity set_compute_capability set_flag set_memory_pool_limit",
    "ICudaEngine": "create_execution_context create_runtime_config get_device_memory_size_for_profile_v2 "
    "get_tensor_dtype get_tensor_mode get_tensor_name get_tensor_profile_shape get_tensor_shape num_io_tensors "
    "num_optimization_profiles",
    "IExecutionContext": "execute_async_v3 get_tensor_shape set_device_memory set_input_shape "
    "set_optimization_profile_async set_tensor_address update_device_memory_size_for_shapes",
    "IHostMemory": "nbytes",
    "ILogger": "log",
    "INetworkDefinition": "get_input num_inputs",
    "IOptimizationProfile": "set_shape",
    "IRuntimeConfig": "dynamic_shapes_kernel_specialization_strategy set_execution_context_allocation_strategy",
    "ITensor": "name shape",
    "MemoryPoolType": "WORKSPACE",
    "NetworkDefinitionCreationFlag": "STRONGLY_TYPED",
    "OnnxParser": "get_error num_errors parse_from_file",
    "OnnxParserRefitter": "get_error num_errors refit_from_file",
    "ParserError": "desc",
    "ProfilingVerbosity": "DETAILED",
    "Refitter": "get_missing_weights refit_cuda_engine",
    "Runtime": "deserialize_cuda_engine",
    "Severity": "ERROR INTERNAL_ERROR name",
    "TensorIOMode": "INPUT",
}
MEMBERS = {f"{owner}.{name}" for owner, names in _USED.items() for name in names.split()}
# Of tensorrt-rtx alone.
RTX_ONLY = {member for member in MEMBERS if member.startswith(("ComputeCapability.", "DynamicShapes"))} | {
    "BuilderFlag.REQUIRE_USER_ALLOCATION",
    "IBuilderConfig.num_compute_capabilities",
    "IBuilderConfig.set_compute_capability",
    "IRuntimeConfig.dynamic_shapes_kernel_specialization_strategy",
}
# Versions of TensorRT that have all others, the oldest that is accepted first.
HELD = ("10.16.1.11", "11.4.0.106")


def paper(lacks: set[str]) -> tuple[SimpleNamespace, dict[str, Any]]:
    """A module to build with that has `MEMBERS` without some of them, and the one object of each of its classes."""
    known: dict[str, list[str]] = {}
    for owner, _, name in (member.partition(".") for member in sorted(MEMBERS - lacks)):
        known.setdefault(owner, []).append(name)
    one = {owner: NonCallableMagicMock(spec_set=names) for owner, names in known.items()}
    builder, network = one["Builder"], one["INetworkDefinition"]
    builder.create_network.return_value = network
    builder.create_builder_config.return_value = one["IBuilderConfig"]
    builder.create_optimization_profile.return_value = one["IOptimizationProfile"]
    one["OnnxParser"].get_error.return_value = one["ParserError"]
    one["ParserError"].desc.return_value = "no such operator"
    made = {"Builder": lambda logger: builder, "OnnxParser": lambda network, logger: one["OnnxParser"]}
    return SimpleNamespace(**{**one, **made, "ILogger": type("ILogger", (), {})}), one


# A library is asked for nothing at import but to define these.
_SYMBOLS = (
    *("createInferBuilder_INTERNAL", "createInferRefitter_INTERNAL", "createInferRuntime_INTERNAL"),
    *("createNvOnnxParserRefitter_INTERNAL", "createNvOnnxParser_INTERNAL", "getBuilderPluginRegistry"),
    *("getPluginRegistry", "getNvOnnxParserVersion", "initLibNvInferPlugins"),
)
_DUMP = """
import importlib, json, sys
module = importlib.import_module(sys.argv[1])
absent = []
for member in json.loads(sys.argv[2]):
    owner, _, name = member.partition(".")
    place = module.ILogger if owner == "Severity" else module
    if not hasattr(getattr(place, owner, None), name):
        absent.append(member)
print(json.dumps([module.__version__, absent]))
"""


def compiler() -> str | None:
    """A C compiler, or None."""
    return shutil.which(os.environ.get("CC", "cc")) or shutil.which("gcc") or shutil.which("clang")


def lacking(module: str, *, stubbed: int | None = None, wheel: Path | None = None) -> tuple[str, set[str]]:
    """A module's version, and what it lacks of `MEMBERS`; read in a new process.

    Args:
        stubbed: the major version of bindings that have to do without their libraries.
        wheel: folder of an unpacked wheel, which goes before what is installed.
    """
    environment = dict(os.environ)
    if wheel is not None:
        environment["PYTHONPATH"] = str(wheel.resolve())
    with tempfile.TemporaryDirectory() as folder:
        if stubbed is not None:
            environment["LD_LIBRARY_PATH"] = folder
            source = Path(folder) / "stub.c"
            source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in _SYMBOLS))
            for name in ("libnvinfer", "libnvinfer_plugin", "libnvonnxparser"):
                library = f"{folder}/{name}.so.{stubbed}"
                subprocess.run([compiler() or "cc", "-shared", "-fPIC", str(source), "-o", library], check=True)
        command = [sys.executable, "-c", _DUMP, module, json.dumps(sorted(MEMBERS))]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    if done.returncode:
        raise RuntimeError(f"{module} does not import: {done.stderr[-2000:]}")
    version, absent = json.loads(done.stdout.splitlines()[-1])
    return version, set(absent)


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        major = int(next(Path(argument).glob("*.dist-info")).name.partition("-")[2].partition(".")[0])
        version, absent = lacking("tensorrt_bindings", stubbed=major, wheel=Path(argument))
        sys.stdout.write(f"{version}: {sorted(absent - RTX_ONLY)}, beside what is of tensorrt-rtx alone\n")
