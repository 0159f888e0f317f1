"""A TensorRT on the processor: plans name an ONNX graph and shapes, and contexts run it in ONNX Runtime on addresses.

As strict as the real one: what that refuses, or would compute wrongly, fails here. Its classes have no public member
that `tensorrt_api.MEMBERS` lacks; a test sees to that.
"""

from __future__ import annotations

import contextlib
import ctypes
import enum
import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from pie_engine.backends.gpu import Gpu, Machine
from pie_engine.backends.tensorrt import engine as engine_module
from pie_engine.backends.tensorrt import fingerprint, library
from pie_engine.backends.tensorrt.builder import Profile
from pie_engine.bundling.engines import profiles
from pie_engine.bundling.target import Target
from pie_engine.config import COMPONENTS
from pie_engine.model.bundle import MANIFEST, Bundle, open_bundle, write_manifest

VERSIONS = {"tensorrt": "11.4.0.106", "tensorrt-rtx": "1.7.1.116"}
GPU = Gpu(0, "NVIDIA Fake 4711", "8.6", 24 * 2**30)
STREAM = 4711
SCRATCH = 256
Shape = tuple[int, ...]


class Severity(enum.Enum):
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)


class ILogger:
    Severity = Severity

    def log(self, severity: Any, text: str) -> None:
        raise NotImplementedError


class TensorIOMode(enum.Enum):
    NONE, INPUT, OUTPUT = range(3)


class DataType(enum.Enum):
    FLOAT, HALF, INT64 = np.float32, np.float16, np.int64


class Strategy(enum.Enum):
    LAZY, EAGER, NONE = range(3)


class Allocation(enum.Enum):
    STATIC, USER_MANAGED = range(2)


class IRuntimeConfig:
    dynamic_shapes_kernel_specialization_strategy = Strategy.LAZY
    _allocation: Allocation | None = None

    def set_execution_context_allocation_strategy(self, strategy: Allocation) -> None:
        self._allocation = strategy


class Runtime:
    def __init__(self, logger: ILogger):
        self._logger = logger

    def deserialize_cuda_engine(self, data: bytes) -> ICudaEngine | None:
        try:
            return ICudaEngine(json.loads(data), self._logger)
        except ValueError as error:
            self._logger.log(Severity.INFO, "trying")
            self._logger.log(Severity.ERROR, f"deserialisation failed:\n {error}")
            return None


class ICudaEngine:
    num_io_tensors = num_optimization_profiles = 0

    def __init__(self, plan: dict[str, Any], logger: ILogger):
        self._plan, self._logger = plan, logger
        self._session = _open(plan["onnx"])
        self._nodes = {n.name: (n, TensorIOMode.INPUT) for n in self._session.get_inputs()}
        self._nodes |= {n.name: (n, TensorIOMode.OUTPUT) for n in self._session.get_outputs()}
        self.num_io_tensors = len(self._nodes)
        self.num_optimization_profiles = len(plan["profiles"])

    def get_tensor_name(self, index: int) -> str:
        return list(self._nodes)[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return self._nodes[name][1]

    def get_tensor_dtype(self, name: str) -> DataType:
        kinds = {"tensor(float)": DataType.FLOAT, "tensor(float16)": DataType.HALF, "tensor(int64)": DataType.INT64}
        return kinds[self._nodes[name][0].type]

    def get_tensor_shape(self, name: str) -> Shape:
        return tuple(size if isinstance(size, int) else -1 for size in self._nodes[name][0].shape)

    def get_tensor_profile_shape(self, name: str, index: int) -> list[Shape]:
        assert self.get_tensor_mode(name) is TensorIOMode.INPUT and index < self.num_optimization_profiles
        given = self._plan["profiles"][index].get(name, [self.get_tensor_shape(name)] * 3)
        return [tuple(shape) for shape in given]

    def create_runtime_config(self) -> IRuntimeConfig:
        return IRuntimeConfig()

    def get_device_memory_size_for_profile_v2(self, index: int) -> int:
        assert index < self.num_optimization_profiles
        return SCRATCH

    def create_execution_context(self, how: IRuntimeConfig | Allocation) -> IExecutionContext | None:
        config = how if isinstance(how, IRuntimeConfig) else None
        assert (how if config is None else config._allocation) is Allocation.USER_MANAGED
        if "memory" in self._plan:
            self._logger.log(Severity.ERROR, self._plan["memory"])
            return None
        return IExecutionContext(self, config)


class IExecutionContext:
    def __init__(self, owner: ICudaEngine, config: IRuntimeConfig | None):
        self._owner, self._config = owner, config
        self._profile: int | None = None
        self._shapes: dict[str, Shape] = {}
        self._addresses: dict[str, int] = {}
        self._streams: list[int] = []
        self._memory: tuple[int, int] | None = None

    def update_device_memory_size_for_shapes(self) -> int:
        assert self._shapes, "all input shapes come first"
        return SCRATCH // 2

    def set_device_memory(self, memory: int, size: int) -> None:
        assert memory % 64 == 0 and size >= SCRATCH
        self._memory = memory, size

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        assert stream == STREAM and 0 <= index < self._owner.num_optimization_profiles
        self._profile, self._shapes, self._addresses = index, {}, {}
        return True

    def set_input_shape(self, name: str, shape: Shape) -> bool:
        assert self._profile is not None, "no profile was chosen"
        low, _, high = self._owner.get_tensor_profile_shape(name, self._profile)
        assert all(a <= size <= b for size, a, b in zip(shape, low, high, strict=True)), f"{name} {shape} is not within"
        self._shapes[name] = tuple(shape)
        return True

    def get_tensor_shape(self, name: str) -> Shape:
        if name in self._shapes:
            return self._shapes[name]
        inputs = [n for n, (_, mode) in self._owner._nodes.items() if mode is TensorIOMode.INPUT]
        assert set(inputs) <= set(self._shapes), "an output's shape is known when all inputs' are"
        zeros = {n: np.zeros(self._shapes[n], self._owner.get_tensor_dtype(n).value) for n in inputs}
        self._shapes[name] = self._owner._session.run([name], zeros)[0].shape
        return self._shapes[name]

    def set_tensor_address(self, name: str, address: int) -> bool:
        assert address % 64 == 0, "TensorRT wants aligned addresses"
        self._addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        self._streams.append(stream)
        owner, names = self._owner, list(self._owner._nodes)
        assert set(self._addresses) == set(names), "every tensor needs an address"
        assert self._memory is not None, "a context without memory needs some"
        if owner._plan.get("broken"):
            owner._logger.log(Severity.ERROR, "an illegal access")
            return False
        arrays = {name: self._view(name) for name in names}
        given = {n: a for n, a in arrays.items() if owner.get_tensor_mode(n) is TensorIOMode.INPUT}
        for name, value in zip([n for n in arrays if n not in given], owner._session.run(None, given), strict=True):
            np.copyto(arrays[name], value, casting="no")
        return True

    def _view(self, name: str) -> np.ndarray:
        """The memory at an address, as TensorRT would take it: nothing but the plan says its type and size."""
        kind, shape = np.dtype(self._owner.get_tensor_dtype(name).value), self.get_tensor_shape(name)
        memory = (ctypes.c_char * (kind.itemsize * int(np.prod(shape)))).from_address(self._addresses[name])
        return np.frombuffer(memory, kind).reshape(shape)


class Refitter:
    def __init__(self, engine: ICudaEngine, logger: ILogger):
        self._engine, self._logger, self._onnx = engine, logger, ""

    def get_missing_weights(self) -> list[str]:
        return self._engine._plan.get("missing", [])

    def refit_cuda_engine(self) -> bool:
        if self._engine._plan["weights"] == "fixed":
            self._logger.log(Severity.ERROR, "the engine is not refittable")
            return False
        assert self._onnx
        self._engine._session = _open(self._onnx)
        return True


class ParserError:
    def desc(self) -> str:
        return "not the same graph"


class OnnxParserRefitter:
    num_errors = 0

    def __init__(self, refitter: Refitter, logger: ILogger):
        self._refitter = refitter

    def refit_from_file(self, path: str) -> bool:
        self._refitter._onnx = path
        self.num_errors = 0 if Path(path).is_file() else 1
        return self.num_errors == 0

    def get_error(self, index: int) -> ParserError:
        assert index < self.num_errors
        return ParserError()


CLASSES = (
    *(ILogger, TensorIOMode, DataType, Runtime, ICudaEngine, IExecutionContext, IRuntimeConfig),
    *(Refitter, OnnxParserRefitter, ParserError),
)


def _open(path: str) -> Any:
    """A session as the ONNX Runtime backend's, so that both compute the same to the last bit."""
    from pie_engine.backends.onnx_session import import_onnxruntime

    ort = import_onnxruntime()
    options = ort.SessionOptions()
    options.enable_mem_pattern = False
    options.intra_op_num_threads = 1
    if Path(path).parent.name == "unet":
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def install(monkeypatch: pytest.MonkeyPatch, flavour: str) -> Any:
    """Let `pie_engine` find this library, one GPU, and torch's streams on the processor. Returns the module."""
    module = SimpleNamespace(__version__=VERSIONS[flavour], **{cls.__name__: cls for cls in CLASSES})
    module.ExecutionContextAllocationStrategy = Allocation
    if flavour == "tensorrt-rtx":
        module.DynamicShapesKernelSpecializationStrategy = Strategy
    machine = Machine((GPU,), "13.0", "")
    monkeypatch.setattr(engine_module, "import_library", lambda name: module)
    monkeypatch.setattr(library, "installed_version", lambda name: VERSIONS[name])
    monkeypatch.setattr(library, "probe", lambda: machine)
    monkeypatch.setattr(fingerprint, "probe", lambda: machine)
    stream = SimpleNamespace(cuda_stream=STREAM, synchronize=lambda: None)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: stream)
    return module


def target_of(flavour: str, **changes: Any) -> Target:
    """What plans of this library are compiled for."""
    target = Target(
        flavour=flavour, version=VERSIONS[flavour], gpu=GPU.name, capabilities=(GPU.capability,), driver_floor="13.0",
        resolutions=(64,), batches=(1, 2), weights="fixed", optimisation_level=None, workspace=None,
    )  # fmt: skip
    return replace(target, **changes)


def write_plan(onnx: Path, plan: Path, shapes: list[Profile], target: Target, name: str = "") -> dict[str, Any]:
    """As `builder.compile_plan`."""
    plan.write_text(json.dumps({"onnx": str(onnx), "weights": target.weights, "profiles": shapes}))
    return {"bytes": plan.stat().st_size, "seconds": 1.0, "host_memory_bytes": 1, "fused_attention_kernels": 0}


def add_engines(
    source: Bundle, path: Path, flavour: str, *, batches: tuple[int, ...] = (1, 2), weights: str = "fixed"
) -> Bundle:
    """A copy of a bundle with plans of this library in it; the shapes are those that a real build would have."""
    shutil.copytree(source.path, path)
    manifest, info = json.loads((path / MANIFEST).read_text()), source.model
    target = target_of(flavour, resolutions=(info.default_resolution,), batches=batches, weights=weights)
    (path / "engines" / flavour).mkdir(parents=True)
    manifest["engines"] = []
    for name in COMPONENTS:
        shapes = profiles(name, target, vars(info))
        file = f"engines/{flavour}/{name}.plan"
        write_plan(path / name / "model.onnx", path / file, shapes, target)
        record = {"precision": "fp32", "weights_hash": source.weights_hash(name), "profiles": shapes, "attention": {}}
        manifest["engines"].append({"component": name, "file": file, **target.to_dict(), **record})
    write_manifest(path, {key: value for key, value in manifest.items() if key != "files"})
    return open_bundle(path)
