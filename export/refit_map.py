"""Which initialiser of an exported graph holds which parameter: other weights in it, or its weights in the module.

Most initialisers are named after their parameter. The exporter renames those that it transposes (the weights of linear
layers) or gives axes of length 1 (group norms taken apart): these are told by the module that their node came from.
"""

from __future__ import annotations

import ast
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pie_engine.errors import BuildError
from pie_engine.export.load import external_place, map_weights

if TYPE_CHECKING:
    import onnx_ir as ir
    from torch import nn

# Constants up to this many numbers are settings (a scale, the factors of a resize); parameters are told by their place.
SETTINGS = 4
# How a node uses a parameter that is not named: the factor of a linear layer or a norm, or the summand of a norm.
_ROLES = {"MatMul": "weight", "Mul": "weight", "Add": "bias"}
_REMEDY = "build this checkpoint with `pie-engine build`"


@dataclass(frozen=True)
class Source:
    """Where an initialiser's numbers come from: a parameter, transposed or not, in the initialiser's shape.

    Attributes:
        parameter: name in the module.
        transposed: a matrix (out, in) is stored as (in, out).
    """

    parameter: str
    transposed: bool = False


def weight_map(model: ir.Model, module: nn.Module) -> dict[str, Source]:
    """Which initialiser holds which parameter, for every parameter of the module.

    Nothing is read from the weights in the graph. Settings that have no shape (epsilons, numbers of heads, activation
    functions) are not compared: the caller compares the configurations, or runs `check_parity` on the result.

    Args:
        model: a graph written by `export_component`.
        module: a component's module, as `component` gives it.

    Raises:
        BuildError: a parameter has no place in the graph, a shape differs, an initialiser serves two parameters, or
            a constant that is no parameter may have been computed from one.
    """
    parameters = dict(module.named_parameters())
    unnamed = {name: parameter for name, parameter in parameters.items() if name not in model.graph.initializers}
    sources: dict[str, Source] = {}
    for name, value in model.graph.initializers.items():
        if not _tensor(value).dtype.is_floating_point():
            continue
        if name in parameters:
            _check_shape(value, name, parameters[name])
            _check_owner(value, name)
            sources[name] = Source(name)
            continue
        source = _unnamed_source(value, module, unnamed)
        if source is not None:
            sources[name] = source
        elif not _is_constant(value, module):
            raise BuildError(
                f"the graph's constant {name} {_shape(value)} may depend on the weights that it was exported with; "
                + _REMEDY
            )
    _check_attributes(model)
    placed = [source.parameter for source in sources.values()]
    for parameter in parameters:
        if placed.count(parameter) != 1:
            raise BuildError(f"{parameter} has {placed.count(parameter)} places in the graph, not one; {_REMEDY}")
    return sources


def replace_weights(path: Path, module: nn.Module, folder: Path, *, precision: str) -> Path:
    """Write `folder`/model.onnx, and model.onnx.data where `path` has one: the graph of `path` with other weights.

    All else stays as it is, to the byte. Holds the graph as `path` stores it and one parameter at a time.

    Args:
        path: a graph written by `export_component` in this precision.
        module: a component's module with the new weights, fp32; it is not changed.
        folder: another folder than that of `path`.
        precision: "fp32" or "fp16".

    Returns:
        The path of the new graph.

    Raises:
        BuildError: as `weight_map`; or the graph has another precision.
    """
    import onnx
    import onnx_ir as ir

    proto, model = _open(path)
    sources = weight_map(model, module)
    parameters = dict(module.named_parameters())
    kind = {"fp32": ir.DataType.FLOAT, "fp16": ir.DataType.FLOAT16}[precision]
    for name in sources:
        if model.graph.initializers[name].dtype != kind:
            raise BuildError(f"{name} is {model.graph.initializers[name].dtype}, not {precision}; {_REMEDY}")
    target = folder / path.name
    with contextlib.ExitStack() as stack:
        data: Any = None
        for tensor in proto.graph.initializer:
            source = sources.get(tensor.name)
            external = tensor.data_location == onnx.TensorProto.EXTERNAL
            if source is None and not external:
                continue
            if source is None:
                content = _tensor(model.graph.initializers[tensor.name]).tobytes()
            else:
                content = _content(parameters[source.parameter], source, kind.numpy())
            if external:
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
        BuildError: as `weight_map`. The module is then unchanged.
    """
    import torch

    _, model = _open(path)
    shapes = {name: parameter.shape for name, parameter in module.named_parameters()}
    for name, source in weight_map(model, module).items():
        array = _tensor(model.graph.initializers[name]).numpy()
        array = (array.T if source.transposed else array).reshape(shapes[source.parameter])
        owner, _, leaf = source.parameter.rpartition(".")
        # Copied even when nothing is turned: a mapped file that is overwritten while we run would change the model.
        parameter = torch.nn.Parameter(torch.from_numpy(array.copy(order="C")), requires_grad=False)
        setattr(module.get_submodule(owner), leaf, parameter)


def _open(path: Path) -> tuple[Any, ir.Model]:
    """A graph as its file has it, and with its weights at hand: mapped, not read, where they lie beside it."""
    import onnx
    import onnx_ir as ir

    try:
        proto = onnx.load(path, load_external_data=False)
        model = ir.from_proto(proto)
    except Exception as error:  # protobuf's exceptions share no other base
        raise BuildError(f"{path} is not an ONNX graph ({str(error).partition(chr(10))[0]}); {_REMEDY}") from None
    map_weights(model, proto, path.parent)
    return proto, model


def _content(parameter: nn.Parameter, source: Source, dtype: np.dtype) -> bytes:
    array = parameter.detach().cpu().numpy()
    return (array.T if source.transposed else array).astype(dtype).tobytes()


def _scopes(node: ir.Node) -> list[str]:
    """The modules that a node came from, outermost first; empty where the exporter's optimiser made the node."""
    return ast.literal_eval(node.metadata_props.get("pkg.torch.onnx.name_scopes", "[]"))[:-1]


def _shape(value: ir.Value) -> list[int]:
    return list(_tensor(value).shape.numpy())


def _tensor(value: ir.Value) -> ir.TensorProtocol:
    assert value.const_value is not None  # every initialiser of a file has one
    return value.const_value


def _check_shape(value: ir.Value, name: str, parameter: nn.Parameter, *, transposed: bool = False) -> None:
    """The same sizes in the same order; axes of length 1 count only where nothing was renamed."""
    wanted, found = list(parameter.shape), _shape(value)
    if value.name != name:
        wanted, found = [[size for size in sizes if size != 1] for sizes in (wanted, found)]
    if found != (wanted[::-1] if transposed else wanted):
        raise BuildError(f"{name} has shape {list(parameter.shape)}, in the graph {_shape(value)}; {_REMEDY}")


def _check_owner(value: ir.Value, name: str) -> None:
    """Equal weights may have been merged: then nodes of other modules use what is named after this parameter."""
    owner = name.rpartition(".")[0]
    for node, _ in value.uses():
        scopes = _scopes(node)
        if scopes and owner not in scopes:
            raise BuildError(f"{name} also serves {scopes[-1]} in the graph; {_REMEDY}")


def _unnamed_source(value: ir.Value, module: nn.Module, unnamed: dict[str, nn.Parameter]) -> Source | None:
    """The parameter behind an initialiser with a name of the exporter's; None if it looks like none."""
    found = {source for node, index in value.uses() for source in _node_sources(node, index, module, unnamed)}
    size = int(np.prod(_shape(value)))
    if size <= SETTINGS:
        found = {source for source in found if unnamed[source.parameter].numel() == size}
    if not found:
        return None
    scopes = {"/".join(_scopes(node)[-1:]) for node, _ in value.uses()}
    if len(found) > 1 or len(scopes) > 1:
        names = scopes if len(scopes) > 1 else {source.parameter for source in found}
        raise BuildError(
            f"the graph's constant {value.name} serves more than one place: {', '.join(sorted(names))}; {_REMEDY}"
        )
    source = found.pop()
    _check_shape(value, source.parameter, unnamed[source.parameter], transposed=source.transposed)
    return source


def _node_sources(node: ir.Node, index: int, module: nn.Module, unnamed: dict[str, nn.Parameter]) -> Iterator[Source]:
    """The parameters that a node may take at this input, by its operator and the module that it came from."""
    import torch

    scopes = _scopes(node)
    path = scopes[-1] if scopes else ""
    owner = _submodule(module, path)
    linear = isinstance(owner, torch.nn.Linear)
    parameter = f"{path}.{_ROLES.get(node.op_type)}"
    # A linear layer multiplies from the right by its transposed weight; elsewhere a matrix product tells no direction.
    if parameter in unnamed and (linear and index == 1) == (node.op_type == "MatMul"):
        yield Source(parameter, transposed=linear and node.op_type == "MatMul")
    elif node.op_type == "Add" and owner is not None:
        # A small table of positions: looked up for all positions when the graph was exported.
        for name, child in owner.named_children():
            table = f"{path}.{name}.weight"
            if isinstance(child, torch.nn.Embedding) and table in unnamed and _all_positions(owner, child):
                yield Source(table)


def _all_positions(owner: nn.Module, table: nn.Embedding) -> bool:
    """Whether the owner's one index buffer asks for all rows in order."""
    buffers = [buffer for buffer in owner.buffers(recurse=False) if not buffer.is_floating_point()]
    return len(buffers) == 1 and buffers[0].flatten().tolist() == list(range(table.num_embeddings))


def _is_constant(value: ir.Value, module: nn.Module) -> bool:
    """Whether an initialiser that is no parameter is known to depend on none."""
    if np.prod(_shape(value)) <= SETTINGS:
        return True
    array = _tensor(value).numpy()
    for node, index in value.uses():
        # A group norm taken apart normalises with factor one and summand zero; the parameters follow.
        if node.op_type == "InstanceNormalization" and index in (1, 2) and bool((array == 2 - index).all()):
            continue
        frequencies = _frequencies(_submodule(module, (_scopes(node) or [""])[-1]))
        # exp of at most 9.2 in magnitude, itself rounded to fp32: relative error of some 9.2 * 6e-8.
        if frequencies is None or array.size != frequencies.size or not np.allclose(array, frequencies, rtol=1e-5):
            return False
    return bool(value.uses())


def _frequencies(module: nn.Module | None) -> np.ndarray | None:
    """The table of a sinusoidal timestep embedding, (channels / 2,): 1 down to nearly 1/10000."""
    channels, shift = getattr(module, "num_channels", None), getattr(module, "downscale_freq_shift", None)
    if channels is None or shift is None or next(iter(module.parameters()), None) is not None:  # type: ignore[union-attr]
        return None
    return np.exp(-np.log(10000) * np.arange(channels // 2) / (channels // 2 - shift))


def _submodule(module: nn.Module, path: str) -> nn.Module | None:
    try:
        return module.get_submodule(path)
    except AttributeError:
        return None


def _check_attributes(model: ir.Model) -> None:
    """Weights lie in initialisers; a tensor inside a node would keep the old ones."""
    for graph in (model.graph, *(function.graph for function in model.functions.values())):
        for node in graph.all_nodes():
            for attribute in node.attributes.values():
                tensor = attribute.value
                if getattr(tensor, "size", 0) > SETTINGS and tensor.dtype.is_floating_point():
                    raise BuildError(f"node {node.name} holds a constant of {tensor.size} numbers; {_REMEDY}")
