"""A plan on the GPU: verified, deserialised, given its weights, and bound to torch buffers."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pie_engine.backends.tensorrt.library import import_library, make_logger, require_gpu
from pie_engine.errors import BackendError, BundleError, argument

if TYPE_CHECKING:
    import torch

Shapes = Mapping[str, tuple[int, ...]]


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
        self.name, self.device = name, device
        self.library = import_library(flavour)
        self._errors: list[str] = []
        self._logger = make_logger(self.library, self._errors)
        with torch.cuda.device(device):
            self._runtime = self.library.Runtime(self._logger)
            self.plan = self._runtime.deserialize_cuda_engine(data)
        if self.plan is None:
            raise BackendError(f"{flavour} cannot load {name} ({self.reason()}); rebuild the bundle")

    def refit(self, onnx: Path) -> None:
        """Exchange the full set of weights for those of an ONNX graph: the one compiled, with other values.

        Raises:
            BackendError: the graph does not fit, or a weight is left without a value.
        """
        import torch

        with torch.cuda.device(self.device):
            refitter = self.library.Refitter(self.plan, self._logger)
            parser = self.library.OnnxParserRefitter(refitter, self._logger)
            remedy = "build the bundle anew"
            if not parser.refit_from_file(str(onnx)):
                said = [parser.get_error(i).desc() for i in range(parser.num_errors)] or [self.reason()]
                raise BackendError(f"{self.name} does not take the weights of {onnx} ({'; '.join(said)}); {remedy}")
            missing = [name or "one without a name" for name in refitter.get_missing_weights()]
            if missing:
                raise BackendError(f"{self.name} is left without {len(missing)} weights ({missing[0]}, ...); {remedy}")
            if not refitter.refit_cuda_engine():
                raise BackendError(f"{self.name} cannot be refitted ({self.reason()}); {remedy}")

    def deviation(self, onnx: Path, shapes: Shapes) -> float:
        """||engine - graph|| / ||graph|| on the same random inputs, the graph in ONNX Runtime on the processor."""
        import torch

        from pie_engine.export.graph import parity_session, relative_error

        bound, feed, generator = BoundEngine(self, shapes), {}, np.random.default_rng(0)
        for name, tensor in bound.inputs.items():
            # Token ids that every vocabulary has; a timestep within the schedule; the rest about as large as latents.
            low, high = {"ids": (0, 100), "timestep": (1, 1000)}.get(name, (-2, 2))
            tensor.copy_(torch.from_numpy(generator.uniform(low, high, tuple(tensor.shape))))
            feed[name] = tensor.cpu().numpy()
        bound()
        (output,) = bound.outputs.values()
        return relative_error(output.cpu().numpy(), parity_session(onnx).run(None, feed)[0])

    def reason(self) -> str:
        """The first error that the library named since this was asked last."""
        found = " ".join(self._errors[0].split())[:200] if self._errors else "no reason given"
        self._errors.clear()
        return found


class BoundEngine:
    """An execution context with its addresses bound once: each call reads and writes the same tensors, on whatever
    stream is current, so that it can be captured there.

    Args:
        shapes: of the inputs that vary; others are passed over.

    Attributes:
        inputs, outputs: name -> tensor, zero at first.

    Raises:
        BackendError: no profile has these shapes, or memory ran out.
    """

    def __init__(self, owner: Engine, shapes: Shapes):
        import torch

        self._owner, plan, library, device = owner, owner.plan, owner.library, owner.device
        names = [plan.get_tensor_name(i) for i in range(plan.num_io_tensors)]
        inputs = [name for name in names if plan.get_tensor_mode(name) == library.TensorIOMode.INPUT]
        given = {name: tuple(shapes.get(name) or plan.get_tensor_shape(name)) for name in inputs}
        profile = _profile_for(plan, given)
        if profile is None:
            raise BackendError(f"{owner.name} was not compiled for {given}; build it for that shape")
        with torch.cuda.device(device):
            self._context = context = _make_context(plan, library)
            if context is None:
                raise BackendError(
                    f"{owner.name} cannot be set up ({owner.reason()}); lower {argument('resolution')} or batch"
                )
            stream = torch.cuda.current_stream(device)
            done = context.set_optimization_profile_async(profile, stream.cuda_stream)
            if not done or not all(context.set_input_shape(name, shape) for name, shape in given.items()):
                raise BackendError(f"{owner.name} does not take {given} ({owner.reason()}); rebuild the bundle")
            # Scratch memory comes from torch's allocator, as all else: it counts once, and is free again when unused.
            size = max(
                context.update_device_memory_size_for_shapes(), plan.get_device_memory_size_for_profile_v2(profile), 1
            )
            self._scratch = torch.empty(size, dtype=torch.uint8, device=device)
            context.set_device_memory(self._scratch.data_ptr(), size)
            kinds = library.DataType
            types = {kinds.FLOAT: torch.float32, kinds.HALF: torch.float16, kinds.INT64: torch.int64}
            tensors = {
                name: torch.zeros(
                    tuple(context.get_tensor_shape(name)), dtype=types[plan.get_tensor_dtype(name)], device=device
                )
                for name in names
            }
            for name, tensor in tensors.items():
                context.set_tensor_address(name, tensor.data_ptr())
            self.inputs = {name: tensors[name] for name in inputs}
            self.outputs = {name: tensor for name, tensor in tensors.items() if name not in self.inputs}
            self()  # what happens at a first run alone, such as loading kernels, must not happen in a capture
            stream.synchronize()

    def __call__(self) -> None:
        import torch

        stream = torch.cuda.current_stream(self._owner.device).cuda_stream
        if not self._context.execute_async_v3(stream):
            raise BackendError(f"{self._owner.name} failed on the GPU ({self._owner.reason()})")


def _make_context(plan: Any, library: Any) -> Any:
    """An execution context without memory, whose kernels are final from the first run on, as a captured graph needs."""
    managed = library.ExecutionContextAllocationStrategy.USER_MANAGED
    strategies = getattr(library, "DynamicShapesKernelSpecializationStrategy", None)
    if strategies is None:
        return plan.create_execution_context(managed)
    # TensorRT-RTX compiles kernels on the GPU; by default it runs general ones until special ones are ready, and a
    # graph captured before that would replay the general ones for ever.
    config = plan.create_runtime_config()
    config.dynamic_shapes_kernel_specialization_strategy = strategies.EAGER
    config.set_execution_context_allocation_strategy(managed)
    return plan.create_execution_context(config)


def _profile_for(plan: Any, shapes: Shapes) -> int | None:
    """The profile that takes inputs of these shapes, or None."""
    dynamic = [name for name in shapes if -1 in plan.get_tensor_shape(name)]  # profiles say nothing of the others
    for index in range(plan.num_optimization_profiles):
        ranges = [zip(shapes[name], *plan.get_tensor_profile_shape(name, index), strict=True) for name in dynamic]
        if all(low <= size <= high for sizes in ranges for size, low, _, high in sizes):
            return index
    return None
