"""Which members of TensorRT's Python classes the package uses, and which ones each version has.

Uses are read from the sources: every attribute of a value that comes from the library. Values are followed through
assignments, own classes and own functions; `GIVES`, `PARAMETERS` and `RETURNS` say what an annotation cannot.

Versions are read from NVIDIA's bindings, which import without a GPU and without TensorRT's libraries if something else
defines the symbols that they link against. tests/data/tensorrt_api.json was written so, from unpacked wheels (no other
version of them may be installed beside):

    pip download --no-deps tensorrt-cu13-bindings==11.4.0.106   # and tensorrt-cu12-bindings==10.9.0.34, ==10.16.1.11
    python -m zipfile -e tensorrt_cu13_bindings-*.whl 11.4
    PYTHONPATH=. python tests/support/tensorrt_api.py 10.9 10.16 11.4
"""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).parents[2] / "pie_engine"
# Where the library is touched; a test sees to it that no other file touches it.
SOURCES = ("library", "worker", "engine", "builder")
FILES = (
    *(PACKAGE / "backends" / "tensorrt" / f"{name}.py" for name in SOURCES),
    *(PACKAGE / "bundling" / f"{name}.py" for name in ("engines", "target")),
)
DATA = Path(__file__).parents[1] / "data" / "tensorrt_api.json"

# What a member of a class gives: the class of its value or result, or None for a plain value.
GIVES: dict[str, str | None] = {
    "Builder.create_network": "INetworkDefinition",
    "Builder.create_builder_config": "IBuilderConfig",
    "Builder.create_optimization_profile": "IOptimizationProfile",
    "Builder.build_serialized_network": "IHostMemory",
    "DataType.FLOAT": "DataType",
    "DataType.HALF": "DataType",
    "DataType.INT64": "DataType",
    "BuilderFlag.TF32": "BuilderFlag",
    "BuilderFlag.REFIT": "BuilderFlag",
    "BuilderFlag.STRIP_PLAN": "BuilderFlag",
    "BuilderFlag.REQUIRE_USER_ALLOCATION": "BuilderFlag",
    "DynamicShapesKernelSpecializationStrategy.EAGER": "DynamicShapesKernelSpecializationStrategy",
    "EngineInspector.execution_context": "IExecutionContext",
    "EngineInspector.get_engine_information": None,
    "IBuilderConfig.add_optimization_profile": None,
    "IBuilderConfig.builder_optimization_level": None,
    "IBuilderConfig.clear_flag": None,
    "IBuilderConfig.create_timing_cache": "ITimingCache",
    "IBuilderConfig.get_timing_cache": "ITimingCache",
    "IBuilderConfig.hardware_compatibility_level": "HardwareCompatibilityLevel",
    "IBuilderConfig.num_compute_capabilities": None,
    "IBuilderConfig.profiling_verbosity": "ProfilingVerbosity",
    "IBuilderConfig.progress_monitor": "IProgressMonitor",
    "IBuilderConfig.set_compute_capability": None,
    "IBuilderConfig.set_flag": None,
    "IBuilderConfig.set_memory_pool_limit": None,
    "IBuilderConfig.set_timing_cache": None,
    "ICudaEngine.create_engine_inspector": "EngineInspector",
    "ICudaEngine.create_execution_context": "IExecutionContext",
    "ICudaEngine.create_runtime_config": "IRuntimeConfig",
    "ICudaEngine.get_device_memory_size_for_profile_v2": None,
    "ICudaEngine.get_tensor_dtype": "DataType",
    "ICudaEngine.get_tensor_mode": "TensorIOMode",
    "ICudaEngine.get_tensor_name": None,
    "ICudaEngine.get_tensor_profile_shape": None,
    "ICudaEngine.get_tensor_shape": None,
    "ICudaEngine.num_io_tensors": None,
    "ICudaEngine.num_layers": None,
    "ICudaEngine.num_optimization_profiles": None,
    "ICudaEngine.refittable": None,
    "IExecutionContext.execute_async_v3": None,
    "ExecutionContextAllocationStrategy.USER_MANAGED": "ExecutionContextAllocationStrategy",
    "IExecutionContext.get_tensor_shape": None,
    "IExecutionContext.set_device_memory": None,
    "IExecutionContext.set_input_shape": None,
    "IExecutionContext.set_optimization_profile_async": None,
    "IExecutionContext.set_tensor_address": None,
    "IExecutionContext.update_device_memory_size_for_shapes": None,
    "IHostMemory.nbytes": None,
    "ILayer.type": "LayerType",
    "ILogger.log": None,
    "INetworkDefinition.get_input": "ITensor",
    "INetworkDefinition.get_layer": "ILayer",
    "INetworkDefinition.num_inputs": None,
    "INetworkDefinition.num_layers": None,
    "IOptimizationProfile.set_shape": None,
    "IProgressMonitor.phase_finish": None,
    "IProgressMonitor.phase_start": None,
    "IProgressMonitor.step_complete": None,
    "IRuntimeConfig.dynamic_shapes_kernel_specialization_strategy": "DynamicShapesKernelSpecializationStrategy",
    "IRuntimeConfig.set_execution_context_allocation_strategy": None,
    "ITensor.name": None,
    "ITensor.shape": None,
    "ITimingCache.serialize": "IHostMemory",
    "LayerInformationFormat.JSON": "LayerInformationFormat",
    "LayerType.name": None,
    "MemoryPoolType.WORKSPACE": "MemoryPoolType",
    "NetworkDefinitionCreationFlag.STRONGLY_TYPED": "NetworkDefinitionCreationFlag",
    "OnnxParser.get_error": "ParserError",
    "OnnxParser.num_errors": None,
    "OnnxParser.parse_from_file": None,
    "OnnxParserRefitter.get_error": "ParserError",
    "OnnxParserRefitter.num_errors": None,
    "OnnxParserRefitter.refit_from_file": None,
    "ParserError.desc": None,
    "ProfilingVerbosity.DETAILED": "ProfilingVerbosity",
    "Refitter.get_missing_weights": None,
    "Refitter.refit_cuda_engine": None,
    "Runtime.deserialize_cuda_engine": "ICudaEngine",
    "Severity.name": None,
    "TensorIOMode.INPUT": "TensorIOMode",
}
# Members that are named at run time: `getattr(library.X, expression)`.
DYNAMIC = {
    "ComputeCapability": ("SM75", "SM80", "SM86", "SM89", "SM120", "SM121"),
    "HardwareCompatibilityLevel": ("AMPERE_PLUS", "SAME_COMPUTE_CAPABILITY"),
}
# Members that are told by their names, in strings.
NAMED = {
    "LayerType": ("ATTENTION_INPUT",),
    "Severity": ("INTERNAL_ERROR", "ERROR", "WARNING", "INFO"),
}
# What the sources annotate as `Any`: parameters, and results of own functions. "library" is the module itself.
PARAMETERS: dict[str, str | None] = {
    "library": "library",
    "builder": "Builder",
    "network": "INetworkDefinition",
    "config": "IBuilderConfig",
    "engine": "ICudaEngine",
    "found": "DataType",
    "severity": "Severity",
    "data": "IHostMemory",
    "layer": None,  # what the inspector lists: text, or JSON
}
RETURNS: dict[str, str | None] = {
    "import_library": "library",
    "import_module": "library",
    "make_logger": "ILogger",
    "_configure": "IBuilderConfig",
    "_load_timing_cache": "ITimingCache",
    "_make_context": "IExecutionContext",
    "_monitor": "IProgressMonitor",
}
# Where a class lies in the module if not at its top.
PLACES = {"Severity": "ILogger.Severity"}

# Present in one of the two libraries: module, and the condition under which the sources use it.
_BUILDING, _RUNNING = "request['capabilities']", "not strategies is None"
_LISTED = "config.flavour == 'tensorrt-rtx'"
ONE_FLAVOUR: dict[str, tuple[str, tuple[str, ...]]] = {
    "ComputeCapability": ("tensorrt_rtx", (_BUILDING, _LISTED)),
    **{f"ComputeCapability.{name}": ("tensorrt_rtx", (_BUILDING, _LISTED)) for name in DYNAMIC["ComputeCapability"]},
    "BuilderFlag.REQUIRE_USER_ALLOCATION": ("tensorrt_rtx", ("asked", "hasattr(flag, 'REQUIRE_USER_ALLOCATION')")),
    "IBuilderConfig.num_compute_capabilities": ("tensorrt_rtx", (_BUILDING,)),
    "IBuilderConfig.set_compute_capability": ("tensorrt_rtx", (_BUILDING,)),
    "DynamicShapesKernelSpecializationStrategy": ("tensorrt_rtx", ("asked",)),
    "DynamicShapesKernelSpecializationStrategy.EAGER": ("tensorrt_rtx", (_RUNNING,)),
    "IRuntimeConfig.dynamic_shapes_kernel_specialization_strategy": ("tensorrt_rtx", (_RUNNING,)),
}
# Absent from the oldest versions, and what then happens.
SINCE_10_10 = {
    "ICudaEngine.create_runtime_config": "used with DynamicShapesKernelSpecializationStrategy alone",
    "IRuntimeConfig.set_execution_context_allocation_strategy": "the same",
    "LayerType.ATTENTION_INPUT": "a name that is compared: no layer has it, and none is counted",
}


@dataclass(frozen=True)
class Use:
    """One use of the library.

    Attributes:
        member: "Class" for the class itself, or "Class.member".
        place: file and line.
        conditions: of the `if`s around it, and of those before it that end in `return` or `raise`, negated; "asked"
            where the use itself allows for the member to be missing.
    """

    member: str
    place: str
    conditions: tuple[str, ...]


class _Reader:
    """Follows the library's values through one module.

    A type is "library", the name of one of its classes, "own NAME" for a class of the module, or None for the rest.
    """

    def __init__(self, path: Path):
        self._path, self._tree = path, ast.parse(path.read_text())
        self._uses: dict[int, Use] = {}
        self._attributes: dict[tuple[str, str], str | None] = {}
        self._own = {node.name for node in ast.walk(self._tree) if isinstance(node, ast.ClassDef)}
        self.unknown: list[str] = []

    def read(self) -> list[Use]:
        for _ in range(2):  # the second time with the attributes that own classes turned out to have
            self._uses, self.unknown = {}, []
            self._block(self._tree.body, {}, (), None)
        for node in ast.walk(self._tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                for owner in (owner for owner, members in NAMED.items() if node.value in members):
                    self._use(f"{owner}.{node.value}", node, ())
        return list(self._uses.values())

    def _block(self, body: list[ast.stmt], names: dict[str, str | None], conditions: Any, own: str | None) -> None:
        for statement in body:
            if isinstance(statement, ast.FunctionDef):
                self._function(statement, dict(names), conditions, own)
            elif isinstance(statement, ast.ClassDef):
                bases = [self._type(base, names, conditions) for base in statement.bases]
                for base in filter(None, bases):
                    methods = [node for node in statement.body if isinstance(node, ast.FunctionDef)]
                    for method in (node for node in methods if not node.name.startswith("_")):
                        self._use(f"{base}.{method.name}", method, conditions)
                self._block(statement.body, names, conditions, statement.name)
            elif isinstance(statement, ast.If):
                self._type(statement.test, names, conditions)
                test = ast.unparse(statement.test)
                self._block(statement.body, names, (*conditions, test), own)
                self._block(statement.orelse, names, (*conditions, f"not {test}"), own)
                if isinstance(statement.body[-1], ast.Return | ast.Raise):
                    conditions = (*conditions, f"not {test}")
            elif isinstance(statement, ast.Assign):
                self._assign(statement.targets[0], statement.value, names, conditions)
            elif isinstance(statement, ast.AnnAssign) and statement.value is not None:
                self._assign(statement.target, statement.value, names, conditions)
            else:
                inner = [value for name, value in ast.iter_fields(statement) if name in _BLOCKS]
                if isinstance(statement, ast.For) and self._type(statement.iter, names, conditions) is not None:
                    self._fail("no rule for what a loop over one of the library's values gives", statement)
                for child in ast.iter_child_nodes(statement):
                    if isinstance(child, ast.expr | ast.withitem):
                        self._type(child, names, conditions)
                    elif isinstance(child, ast.ExceptHandler):
                        self._block(child.body, names, conditions, own)
                for block in inner:
                    self._block(block, names, conditions, own)

    def _function(self, node: ast.FunctionDef, names: dict[str, str | None], conditions: Any, own: str | None) -> None:
        for argument in (*node.args.args, *node.args.kwonlyargs):
            annotation = "" if argument.annotation is None else ast.unparse(argument.annotation)
            names[argument.arg] = f"own {annotation}" if annotation in self._own else None
            if argument.arg == "self":
                names["self"] = f"own {own}"
            elif annotation == "Any" and argument.arg not in PARAMETERS:
                self._fail(f"PARAMETERS lacks {argument.arg}", node)
            elif annotation == "Any":
                names[argument.arg] = PARAMETERS[argument.arg]
        if node.returns is not None and ast.unparse(node.returns) == "Any" and node.name not in RETURNS:
            self._fail(f"RETURNS lacks {node.name}", node)
        self._block(node.body, names, conditions, own)

    def _assign(self, target: ast.expr, value: ast.expr, names: dict[str, str | None], conditions: Any) -> None:
        if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
            for one, other in zip(target.elts, value.elts, strict=True):
                self._assign(one, other, names, conditions)
            return
        kind = self._type(value, names, conditions)
        if isinstance(target, ast.Name):
            names[target.id] = kind
        elif isinstance(target, ast.Attribute):
            owner = self._type(target.value, names, conditions)
            if owner is not None and owner.startswith("own "):
                self._attributes[owner, target.attr] = kind
            else:
                self._type(target, names, conditions)
        else:
            self._type(target, names, conditions)

    def _type(self, node: ast.AST, names: dict[str, str | None], conditions: Any) -> str | None:
        if isinstance(node, ast.Name):
            return names.get(node.id)
        if isinstance(node, ast.Attribute):
            return self._member(self._type(node.value, names, conditions), node.attr, node, conditions)
        if isinstance(node, ast.Call):
            return self._call(node, names, conditions)
        if isinstance(node, ast.NamedExpr):
            self._assign(node.target, node.value, names, conditions)
            return names[node.target.id]
        if isinstance(node, ast.withitem) and node.optional_vars is not None:
            self._assign(node.optional_vars, node.context_expr, names, conditions)
            return None
        if isinstance(node, ast.IfExp):
            test = ast.unparse(node.test)
            self._type(node.test, names, conditions)
            either = self._type(node.body, names, (*conditions, test))
            return either or self._type(node.orelse, names, (*conditions, f"not {test}"))
        if isinstance(node, ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp):
            own = dict(names)
            for generator in node.generators:
                own |= {child.id: None for child in ast.walk(generator.target) if isinstance(child, ast.Name)}
            names = own
        for child in ast.iter_child_nodes(node):
            self._type(child, names, conditions)
        return None

    def _call(self, node: ast.Call, names: dict[str, str | None], conditions: Any) -> str | None:
        for argument in (*node.args, *(keyword.value for keyword in node.keywords)):
            self._type(argument, names, conditions)
        name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
        if name in ("getattr", "hasattr"):
            owner, member = self._type(node.args[0], names, conditions), node.args[1]
            asked = (*conditions, "asked") if name == "hasattr" or len(node.args) > 2 else conditions
            if isinstance(member, ast.Constant) and isinstance(member.value, str):
                return self._member(owner, member.value, node, asked)
            if owner is not None:
                if owner not in DYNAMIC:
                    self._fail(f"DYNAMIC lacks {owner}", node)
                for number, member_name in enumerate(DYNAMIC.get(owner, ())):
                    self._use(f"{owner}.{member_name}", node, asked, number + 1)
            return owner
        kind = self._type(node.func, names, conditions)
        return RETURNS[name] if kind is None and name in RETURNS else kind

    def _member(self, owner: str | None, name: str, node: ast.AST, conditions: Any) -> str | None:
        if owner is None or (name.startswith("__") and name != "__version__"):
            return None
        if owner.startswith("own "):
            return self._attributes.get((owner, name))
        if owner == "library":
            self._use(name, node, conditions)
            return None if name == "__version__" else name
        self._use(f"{owner}.{name}", node, conditions)
        if f"{owner}.{name}" not in GIVES:
            self._fail(f"GIVES lacks {owner}.{name}", node)
        return GIVES.get(f"{owner}.{name}")

    def _use(self, member: str, node: Any, conditions: Any, number: int = 0) -> None:
        # The same node is met once for each way that leads to it; the last one knows most.
        place = f"{self._path.name}:{node.lineno}"
        self._uses[id(node) + number] = Use(member, place, tuple(conditions))

    def _fail(self, what: str, node: Any) -> None:
        self.unknown.append(f"{self._path.name}:{node.lineno}: {what}")


_BLOCKS = ("body", "orelse", "finalbody")


def read_uses(files: tuple[Path, ...] = FILES) -> tuple[list[Use], list[str]]:
    """Every use of the library, and what the tables of this module do not know."""
    uses, unknown = [], []
    for path in files:
        reader = _Reader(path)
        uses += reader.read()
        unknown += reader.unknown
    return uses, unknown


def used_classes() -> list[str]:
    """Every class whose members are used."""
    return sorted({use.member.partition(".")[0] for use in read_uses()[0]} - {"__version__"})


# A library is asked for nothing at import but to define these.
_SYMBOLS = (
    *("createInferBuilder_INTERNAL", "createInferRefitter_INTERNAL", "createInferRuntime_INTERNAL"),
    *("createNvOnnxParserRefitter_INTERNAL", "createNvOnnxParser_INTERNAL", "getBuilderPluginRegistry"),
    *("getPluginRegistry", "getNvOnnxParserVersion", "initLibNvInferPlugins"),
)
_DUMP = """
import importlib, json, sys
module, classes, places = importlib.import_module(sys.argv[1]), json.loads(sys.argv[2]), json.loads(sys.argv[3])
found = {}
for name in classes:
    value = module
    for part in places.get(name, name).split("."):
        value = getattr(value, part, None)
    if value is not None:
        found[name] = [member for member in dir(value) if not member.startswith("_")]
print(json.dumps([module.__version__, found]))
"""


def compiler() -> str | None:
    """A C compiler, or None."""
    return shutil.which(os.environ.get("CC", "cc")) or shutil.which("gcc") or shutil.which("clang")


def make_stubs(folder: Path, major: int) -> None:
    """Compile libraries that let the bindings of a major version import."""
    source = folder / "stub.c"
    source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in _SYMBOLS))
    command = [compiler() or "cc", "-shared", "-fPIC", str(source), "-o"]
    for name in ("libnvinfer", "libnvinfer_plugin", "libnvonnxparser"):
        subprocess.run([*command, str(folder / f"{name}.so.{major}")], check=True, capture_output=True)


def read_api(module: str, *, stubs: Path | None = None, wheel: Path | None = None) -> tuple[str, dict[str, list[str]]]:
    """A module's version, and the members of those of its classes that the package uses; read in a new process.

    Args:
        stubs: folder of `make_stubs`, for bindings without their libraries.
        wheel: folder of an unpacked wheel, which goes before what is installed.
    """
    environment = dict(os.environ)
    if stubs is not None:
        environment["LD_LIBRARY_PATH"] = str(stubs)
    if wheel is not None:
        environment["PYTHONPATH"] = str(wheel)
    command = [sys.executable, "-c", _DUMP, module, json.dumps(used_classes()), json.dumps(PLACES)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    if done.returncode:
        raise RuntimeError(f"{module} does not import: {done.stderr[-2000:]}")
    version, members = json.loads(done.stdout.splitlines()[-1])
    return version, members


def lacking(uses: list[Use], members: dict[str, list[str]]) -> Iterator[Use]:
    """The uses of what an API does not have."""
    for use in uses:
        owner, _, name = use.member.partition(".")
        if owner != "__version__" and (owner not in members or (name and name not in members[owner])):
            yield use


def main(folders: list[str]) -> None:
    """Write `DATA`: of each unpacked wheel, the used classes with the used ones among their members."""
    used = {use.member for use in read_uses()[0]}
    versions = {}
    for folder in folders:
        major = int(next(Path(folder).glob("*.dist-info")).name.partition("-")[2].partition(".")[0])
        with tempfile.TemporaryDirectory() as stubs:
            make_stubs(Path(stubs), major)
            version, members = read_api("tensorrt_bindings", stubs=Path(stubs), wheel=Path(folder).resolve())
        versions[version] = {
            owner: [name for name in names if f"{owner}.{name}" in used] for owner, names in members.items()
        }
    lines = [
        f"  {json.dumps(version)}: {{\n"
        + ",\n".join(f"    {json.dumps(owner)}: {json.dumps(names)}" for owner, names in sorted(members.items()))
        + "\n  }"
        for version, members in versions.items()
    ]
    DATA.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
