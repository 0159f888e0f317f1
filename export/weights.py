"""Weights into and out of an exported graph: exchanged, given back to a module, taken out.

A graph depends on the architecture alone: two checkpoints of one differ in nothing but the numbers of their weights
(`pie_engine.export.parameters`). So one export, stripped of its weights, serves every checkpoint of its architecture.
xz makes it a file of some ten kilobytes.
"""

from __future__ import annotations

import contextlib
import lzma
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pie_engine.errors import BuildError
from pie_engine.export.load import external_place
from pie_engine.export.parameters import REMEDY, Source, read_sources

if TYPE_CHECKING:
    from onnx import ModelProto, TensorProto
    from torch import nn

STRIPPED = "graph.onnx.xz"
# More than a graph takes without its weights: what becomes larger is none.
_MOST_BYTES = 1 << 28


def replace_weights(path: Path, module: nn.Module, folder: Path, *, precision: str) -> Path:
    """Write `folder`/model.onnx, and model.onnx.data where `path` has or had one: a graph with other weights.

    All else stays as it is, to the byte. Holds the graph as `path` stores it and one parameter at a time.

    Args:
        path: a graph written by `export_component` in this precision, or by `strip_weights`.
        module: a component's module with the new weights, fp32; it is not changed.
        folder: another folder than that of `path`.
        precision: "fp32" or "fp16".

    Returns:
        The path of the new graph.

    Raises:
        BuildError: as `read_sources`; or the graph has another precision.
    """
    import onnx

    proto = _open(path)
    sources = read_sources(proto, module)
    half = any(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in proto.graph.initializer)
    if half != (precision == "fp16"):  # half precision, too, keeps some in single
        raise BuildError(f"{path} is in {'fp16' if half else 'fp32'}, not {precision}; {REMEDY}")
    parameters = dict(module.named_parameters())
    target = folder / "model.onnx"
    with contextlib.ExitStack() as stack:
        data: Any = None
        for tensor in proto.graph.initializer:
            source = sources.get(tensor.name)
            external = tensor.data_location == onnx.TensorProto.EXTERNAL
            if source is None and not external:
                continue
            if source is None:
                content = _numbers(tensor, path.parent).tobytes()
            else:
                content = _stored(parameters[source.parameter], source, tensor, precision).tobytes()
            if external:
                tensor.ClearField("raw_data")
                file, offset, _ = external_place(tensor, folder)
                data = data or stack.enter_context(file.open("wb"))
                data.seek(offset)
                data.write(content)
            else:
                tensor.raw_data = content
    target.write_bytes(proto.SerializeToString())
    return target


def take_weights(path: Path, module: nn.Module) -> None:
    """Give a module the weights that a graph holds, in the precision that the graph has them in: the way back.

    Args:
        path: a graph written by `export_component`.
        module: the component's module, as `component` gives it; its parameters may be on the meta device.

    Raises:
        BuildError: as `read_sources`, or weights are cut off. The module is then unchanged.
    """
    import torch

    proto = _open(path)
    shapes = {name: parameter.shape for name, parameter in module.named_parameters()}
    tensors = {tensor.name: tensor for tensor in proto.graph.initializer}
    arrays = {}
    for name, source in read_sources(proto, module).items():
        array = _numbers(tensors[name], path.parent)
        arrays[source.parameter] = (array.T if source.transposed else array).reshape(shapes[source.parameter])
    for name, array in arrays.items():
        owner, _, leaf = name.rpartition(".")
        # Copied even when nothing is turned: a mapped file that is overwritten while we run would change the model.
        parameter = torch.nn.Parameter(torch.from_numpy(array.copy(order="C")), requires_grad=False)
        setattr(module.get_submodule(owner), leaf, parameter)


def strip_weights(path: Path, module: nn.Module, *, preset: int = 1) -> bytes:
    """The content of a `STRIPPED` file: a graph without its weights, for `replace_weights`.

    Args:
        path: a graph as it was exported from `module`.
        preset: how long xz tries, 0 to 9.

    Raises:
        BuildError: as `read_sources`.
    """
    import onnx

    proto = _open(path)
    sources = read_sources(proto, module)
    for tensor in proto.graph.initializer:
        if tensor.name in sources:
            tensor.ClearField("raw_data")
        elif tensor.data_location == onnx.TensorProto.EXTERNAL:  # its place stays as well: there it goes back to
            tensor.raw_data = _numbers(tensor, path.parent).tobytes()
    return lzma.compress(proto.SerializeToString(deterministic=True), preset=preset)


def _open(path: Path) -> ModelProto:
    """A graph as its file has it: weights that lie beside it stay there."""
    import onnx

    try:
        if path.suffix != ".xz":
            return onnx.load(path, load_external_data=False)
        reader = lzma.LZMADecompressor(lzma.FORMAT_XZ)
        content = reader.decompress(path.read_bytes(), _MOST_BYTES)
        if not reader.eof:
            raise ValueError("cut off, or too large")
        return onnx.load_model_from_string(content)
    except Exception as error:  # protobuf's exceptions share no other base
        raise BuildError(f"{path} is not an ONNX graph ({str(error).partition(chr(10))[0]}); {REMEDY}") from None


def _numbers(tensor: TensorProto, folder: Path) -> np.ndarray[Any, Any]:
    """An initialiser: mapped, not read, where it lies beside its graph and was not taken into a stripped one."""
    import onnx

    try:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
        if tensor.data_location == onnx.TensorProto.EXTERNAL and not tensor.HasField("raw_data"):
            file, offset, _ = external_place(tensor, folder)
            return np.memmap(file, dtype, "r", offset, tuple(tensor.dims))
        return np.frombuffer(tensor.raw_data, dtype).reshape(tuple(tensor.dims))
    except (OSError, ValueError, KeyError, OverflowError):
        raise BuildError(f"{tensor.name} {list(tensor.dims)} does not hold its numbers; {REMEDY}") from None


def _stored(parameter: nn.Parameter, source: Source, tensor: TensorProto, precision: str) -> np.ndarray[Any, Any]:
    import onnx

    array = parameter.detach().cpu().numpy()
    if precision == "fp16":  # also what the graph holds in single: the exporter was given half
        with np.errstate(over="ignore"):  # the check tells what overflows
            array = array.astype(np.float16)
    return (array.T if source.transposed else array).astype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type))
