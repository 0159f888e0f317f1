"""An exported half-precision graph in single precision: for a component whose values overflow in half."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from pie_engine.export.graph import EXTERNAL_BYTES
from pie_engine.export.load import load_graph

if TYPE_CHECKING:
    from onnx import GraphProto, NodeProto, TensorProto


def to_single_precision(path: Path, folder: Path) -> Path:
    """Write `folder`/model.onnx: the graph of `path` with every float16 as float32.

    Weights keep the values that they were rounded to; activations no longer overflow or round to half.

    Returns:
        The path of the new graph.
    """
    import onnx

    model = load_graph(path)
    _convert_graph(model.graph)
    for function in model.functions:
        _convert_nodes(function.node)
    target = folder / "model.onnx"
    large = sum(len(tensor.raw_data) for tensor in model.graph.initializer) > EXTERNAL_BYTES
    onnx.save(model, target, save_as_external_data=large, location="model.onnx.data")
    return target


def _convert_graph(graph: GraphProto) -> None:
    from onnx import TensorProto

    for tensor in graph.initializer:
        _convert_tensor(tensor)
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT16:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    _convert_nodes(graph.node)


def _convert_nodes(nodes: Iterable[NodeProto]) -> None:
    from onnx import TensorProto

    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                _convert_tensor(attribute.t)
            if attribute.HasField("g"):
                _convert_graph(attribute.g)
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT16:
                attribute.i = TensorProto.FLOAT


def _convert_tensor(tensor: TensorProto) -> None:
    import numpy as np
    from onnx import TensorProto, numpy_helper

    if tensor.data_type == TensorProto.FLOAT16:
        single = numpy_helper.to_array(tensor).astype(np.float32)
        tensor.CopyFrom(numpy_helper.from_array(single, tensor.name))
