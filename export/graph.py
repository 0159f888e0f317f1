"""One PyTorch component -> one ONNX file with dynamic batch and size, and the check that both compute the same."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pie_engine.errors import BackendError
from pie_engine.export.parameters import Distinct, write_sources

if TYPE_CHECKING:
    import torch
    from torch import Tensor

# Weights above this go beside the graph: a protobuf file cannot hold 2 GB.
EXTERNAL_BYTES = 1 << 30
# Relative error allowed against fp32 PyTorch: ||onnx - torch|| / ||torch||. fp32: unit roundoff 6e-8, times the square
# root of a dot product's length (up to 11,520 terms), times the square root of some hundred layers. fp16: activations
# are stored with unit roundoff 4.9e-4 and accumulated in fp32: times the square root of about 1,000 roundings.
TOLERANCE = {"fp32": 6.4e-5, "fp16": 1.6e-2}


@dataclass(frozen=True, eq=False)
class Component:
    """What to export: a module over plain tensors, an example of its inputs, and which sizes may vary.

    Attributes:
        name: "unet", "vae_encoder", "vae_decoder" or "text_encoder".
        module: takes the inputs in order, returns one tensor.
        inputs: name -> example tensor, fp32 or int64.
        dynamic: input name -> {axis: name of the size}.
        output: name of the output.
    """

    name: str
    module: torch.nn.Module
    inputs: dict[str, Tensor]
    dynamic: dict[str, dict[int, str]]
    output: str


def cast_inputs(component: Component, precision: str) -> dict[str, Tensor]:
    """The example inputs in the dtypes that the exported graph takes.

    Only the U-Net's sample and context follow the precision: they live in the loop's buffers. Timesteps are fp32
    because Euler's are fractional, and pixels and latents at the VAE's boundary are fp32.
    """
    if precision == "fp32" or component.name != "unet":
        return component.inputs
    return {name: tensor if name == "timestep" else tensor.half() for name, tensor in component.inputs.items()}


def export_component(component: Component, folder: Path, *, precision: str, opset: int) -> Path:
    """Write `folder`/model.onnx (and model.onnx.data where the weights are large).

    The component's own module stays as it is: fp16 works on a copy.

    Returns:
        The path of the graph.
    """
    module = component.module
    if precision == "fp16":
        module = copy.deepcopy(module).half()
    inputs = cast_inputs(component, precision)
    return write_graph(
        module,
        tuple(inputs.values()),
        folder,
        inputs=list(inputs),
        outputs=[component.output],
        dynamic=tuple(component.dynamic.get(name, {}) for name in inputs),
        opset=opset,
    )


def write_graph(
    module: torch.nn.Module,
    arguments: tuple[Any, ...],
    folder: Path,
    *,
    inputs: list[str],
    outputs: list[str],
    dynamic: tuple[Any, ...],
    opset: int,
    translations: dict[Any, Any] | None = None,
) -> Path:
    """Write `folder`/model.onnx (and model.onnx.data where the weights are large): a module as it runs on `arguments`.

    Args:
        inputs, outputs: names of the tensors in `arguments` and of those that the module returns, in order.
        dynamic: of each of the arguments, which sizes may vary, as `torch.onnx.export` takes it.
        translations: what becomes of operators that are not PyTorch's.

    Returns:
        The path of the graph.
    """
    import torch

    path = folder / "model.onnx"
    weights = sum(p.numel() * p.element_size() for p in module.parameters())
    with torch.no_grad(), _quiet():
        program = torch.onnx.export(
            module,
            arguments,
            dynamo=True,
            opset_version=opset,
            input_names=inputs,
            output_names=outputs,
            dynamic_shapes=dynamic,
            custom_translation_table=translations,
            optimize=False,
            verbose=False,
        )
        assert program is not None
        # Optimised as the exporter would, but never by what a weight happens to be.
        distinct = Distinct(program.model, {name for name, _ in module.named_parameters()})
        program.optimize()
        write_sources(program.model, distinct.put_back(program.model))
        strip_stack_traces(program.model)
        program.save(path, external_data=weights > EXTERNAL_BYTES)
    return path


def graph_opset(path: Path) -> int:
    """The ONNX opset of a graph."""
    import onnx

    imported = onnx.load(path, load_external_data=False).opset_import
    return next(entry.version for entry in imported if entry.domain in ("", "ai.onnx"))


def relative_error(output: np.ndarray, reference: np.ndarray) -> float:
    """||output - reference|| / ||reference|| in float64; infinite where the output is not finite."""
    output, reference = output.astype(np.float64), reference.astype(np.float64)
    if not np.isfinite(output).all():
        return float("inf")
    return float(np.linalg.norm(output - reference) / max(float(np.linalg.norm(reference)), 1e-30))


def check_parity(component: Component, path: Path, reference: np.ndarray, *, precision: str) -> float:
    """Run the exported graph on the example inputs in ONNX Runtime and compare with fp32 PyTorch.

    Returns:
        The relative error; above `TOLERANCE` it is the caller's decision what to do.

    Raises:
        BackendError: ONNX Runtime is not installed.
    """
    feeds = {name: tensor.numpy() for name, tensor in cast_inputs(component, precision).items()}
    return relative_error(parity_session(path).run(None, feeds)[0], reference)


def parity_session(path: Path) -> Any:
    """An exported graph in ONNX Runtime on the processor, to be compared with PyTorch.

    Raises:
        BackendError: ONNX Runtime is not installed.
    """
    try:
        import onnxruntime
    except ImportError:
        raise BackendError("onnxruntime is not installed; pip install 'pie-engine[cpu]'") from None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # One evaluation does not pay for bringing all weights into blocks.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def strip_stack_traces(model: Any) -> None:
    """Keep each node's module path, which profiles show, and drop its stack trace, which names this machine's paths."""
    for graph in (model.graph, *(function.graph for function in model.functions.values())):
        for node in graph:
            scopes = node.metadata_props.get("pkg.torch.onnx.name_scopes")
            node.metadata_props.clear()
            if scopes is not None:
                node.metadata_props["pkg.torch.onnx.name_scopes"] = scopes


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    # The exporter prints progress to stdout, which belongs to --json, and warns about its own internals.
    loggers = [logging.getLogger(name) for name in ("onnxscript", "onnx_ir", "torch.onnx", "torch.export")]
    levels = [logger.level for logger in loggers]
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
