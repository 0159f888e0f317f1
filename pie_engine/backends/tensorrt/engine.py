"""A plan on the GPU: verified, deserialised, given its weights, and bound to torch buffers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pie_engine.backends.tensorrt.library import import_library, make_logger, require_gpu
from pie_engine.errors import BackendError, BundleError

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def read_plan(path: Path, sha256: str) -> bytes:
    """A plan's bytes. They are code: those that are loaded are those that were hashed.

    Raises:
        BundleError: they are not what the manifest says.
    """
    data = path.read_bytes()
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise BundleError(f"{path} does not match its manifest (SHA-256 {found[:12]}...); rebuild the bundle")
    return data


class Engine:
    """One component, deserialised. Contexts that are bound to it share its weights.

    Args:
        data: the plan, verified.
        name: for messages.

    Raises:
        BackendError: no GPU, or the library refuses the plan.
    """

    def __init__(self, flavour: str, data: bytes, name: str, device: torch.device):
        import torch

        require_gpu(flavour, device.index or 0)
        self.name, self._library, self._device = name, import_library(flavour), device
        self._lines: list[tuple[str, str]] = []
        self._logger = make_logger(self._library, self._lines)
        with torch.cuda.device(device):
            self._runtime = self._library.Runtime(self._logger)
            self._engine = self._runtime.deserialize_cuda_engine(data)
        if self._engine is None:
            raise BackendError(f"{flavour} cannot load {name} ({self._reason()}); rebuild the bundle")

    def refit(self, onnx: Path) -> None:
        """Exchange the full set of weights for those of an ONNX graph: the one compiled, with other values.

        Raises:
            BackendError: the graph does not fit, or a weight is left without a value.
        """
        import torch

        with torch.cuda.device(self._device):
            refitter = self._library.Refitter(self._engine, self._logger)
            parser = self._library.OnnxParserRefitter(refitter, self._logger)
            remedy = "build the bundle anew"
            if not parser.refit_from_file(str(onnx)):
                said = [parser.get_error(i).desc() for i in range(parser.num_errors)] or [self._reason()]
                raise BackendError(f"{self.name} does not take the weights of {onnx} ({'; '.join(said)}); {remedy}")
            missing = [name or "one without a name" for name in refitter.get_missing_weights()]
            if missing:
                raise BackendError(f"{self.name} is left without {len(missing)} weights ({missing[0]}, ...); {remedy}")
            if not refitter.refit_cuda_engine():
                raise BackendError(f"{self.name} cannot be refitted ({self._reason()}); {remedy}")

    def bind(self, shapes: Mapping[str, tuple[int, ...]]) -> BoundEngine:
        """A context for these input shapes, with buffers of its own.

        Raises:
            BackendError: no profile has these shapes, or memory ran out.
        """
        return BoundEngine(self, shapes)

    def profile_for(self, shapes: Mapping[str, tuple[int, ...]]) -> int | None:
        """The profile that takes these input shapes, or None."""
        engine = self._engine
        dynamic = []  # profiles say nothing of the others
        for name, shape in shapes.items():
            compiled = tuple(engine.get_tensor_shape(name))
            if -1 in compiled:
                dynamic.append(name)
            elif compiled != tuple(shape):
                return None
        for index in range(engine.num_optimization_profiles):
            ranges = {name: engine.get_tensor_profile_shape(name, index) for name in dynamic}
            if all(_within(shapes[name], low, high) for name, (low, _, high) in ranges.items()):
                return index
        return None

    def _reason(self) -> str:
        errors = [text for level, text in self._lines if level == "error"]
        self._lines.clear()
        return " ".join(errors[0].split())[:200] if errors else "no reason given"


class BoundEngine:
    """An execution context with its addresses bound once: each call reads and writes the same tensors, on whatever
    stream is current, so that it can be captured there.

    Attributes:
        inputs, outputs: name -> tensor, zero at first.
        device: where they lie.
    """

    def __init__(self, owner: Engine, shapes: Mapping[str, tuple[int, ...]]):
        import torch

        self._owner, engine, library = owner, owner._engine, owner._library
        self.device = device = owner._device
        given = {name: tuple(engine.get_tensor_shape(name)) for name in _names(engine)} | dict(shapes)
        inputs = [name for name in given if engine.get_tensor_mode(name) == library.TensorIOMode.INPUT]
        profile = owner.profile_for({name: given[name] for name in inputs})
        if profile is None:
            raise BackendError(f"{owner.name} was not compiled for {dict(shapes)}; build it for that shape")
        with torch.cuda.device(device):
            self._context = _make_context(engine, library)
            if self._context is None:
                raise BackendError(f"{owner.name} cannot be set up ({owner._reason()}); lower --resolution or batch")
            context, stream = self._context, torch.cuda.current_stream(device)
            done = context.set_optimization_profile_async(profile, stream.cuda_stream)
            if not done or not all(context.set_input_shape(name, given[name]) for name in inputs):
                raise BackendError(f"{owner.name} does not take {dict(shapes)} ({owner._reason()}); rebuild the bundle")
            # Scratch memory comes from torch's allocator, as all else: it counts once, and is free again when unused.
            size = max(
                context.update_device_memory_size_for_shapes(), engine.get_device_memory_size_for_profile_v2(profile), 1
            )
            self._scratch = torch.empty(size, dtype=torch.uint8, device=device)
            context.set_device_memory(self._scratch.data_ptr(), size)
            tensors: dict[str, Tensor] = {}
            for name in given:
                shape = tuple(context.get_tensor_shape(name))
                tensors[name] = torch.zeros(shape, dtype=_dtype(engine.get_tensor_dtype(name), library), device=device)
                context.set_tensor_address(name, tensors[name].data_ptr())
            self.inputs = {name: tensors[name] for name in inputs}
            self.outputs = {name: tensor for name, tensor in tensors.items() if name not in self.inputs}
            self()  # what happens at a first run alone, such as loading kernels, must not happen in a capture
            stream.synchronize()

    def __call__(self) -> None:
        import torch

        stream = torch.cuda.current_stream(self.device).cuda_stream
        if not self._context.execute_async_v3(stream):
            raise BackendError(f"{self._owner.name} failed on the GPU ({self._owner._reason()})")


def _make_context(engine: Any, library: Any) -> Any:
    """An execution context without memory, whose kernels are final from the first run on, as a captured graph needs."""
    managed = library.ExecutionContextAllocationStrategy.USER_MANAGED
    strategies = getattr(library, "DynamicShapesKernelSpecializationStrategy", None)
    if strategies is None:
        return engine.create_execution_context(managed)
    # TensorRT-RTX compiles kernels on the GPU; by default it runs general ones until special ones are ready, and a
    # graph captured before that would replay the general ones for ever.
    config = engine.create_runtime_config()
    config.dynamic_shapes_kernel_specialization_strategy = strategies.EAGER
    config.set_execution_context_allocation_strategy(managed)
    return engine.create_execution_context(config)


def _names(engine: Any) -> list[str]:
    return [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]


def _within(shape: tuple[int, ...], low: Iterable[int], high: Iterable[int]) -> bool:
    return all(a <= size <= b for size, a, b in zip(shape, low, high, strict=True))


def _dtype(found: Any, library: Any) -> torch.dtype:
    import torch

    kinds = library.DataType
    return {kinds.FLOAT: torch.float32, kinds.HALF: torch.float16, kinds.INT64: torch.int64}[found]
