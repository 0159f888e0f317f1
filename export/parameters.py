"""Which initialiser of an exported graph holds which parameter: found while it is exported, kept in its metadata.

The exporter merges parameters of equal values (zero biases, norms of one) and drops zero biases: right for these
weights, but then no other weights fit into the graph. So such parameters are random numbers while it optimises. By
then no two parameters are alike, and each is found again by its content: under its name, or transposed (linear
layers), given axes of length 1 (norms taken apart) or widened, under a name of the optimiser's.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pie_engine.errors import BuildError

if TYPE_CHECKING:
    import onnx_ir as ir
    from onnx import ModelProto
    from torch import nn

_KEY = "pie_engine.parameters"
REMEDY = "build this checkpoint with `pie-engine build`"


@dataclass(frozen=True)
class Source:
    """Where an initialiser's numbers come from: a parameter, transposed or not, in the initialiser's shape.

    Attributes:
        parameter: name in the module.
        transposed: a matrix (out, in) is stored as (in, out).
    """

    parameter: str
    transposed: bool = False


class Distinct:
    """An export's parameters, no two alike until they are put back.

    Args:
        model: as the exporter traced it; parameters that coincide are changed.
        parameters: their names.
    """

    def __init__(self, model: ir.Model, parameters: set[str]):
        import onnx_ir as ir

        values = model.graph.initializers
        used = [name for name in sorted(parameters & values.keys()) if values[name].uses()]
        self._numbers = {name: _content(values[name]) for name in used}
        self._originals = {name: values[name].const_value for name in _coinciding(self._numbers)}
        generator = np.random.default_rng(0)
        for name in self._originals:
            random = generator.standard_normal(self._numbers[name].shape).astype(self._numbers[name].dtype)
            values[name].const_value = ir.tensor(random, name=name)
            self._numbers[name] = random

    def put_back(self, model: ir.Model) -> dict[str, Source]:
        """Give the optimised graph its weights. Returns which initialiser holds which parameter.

        Raises:
            BuildError: the optimiser computed something from a parameter that coincided, so that it is not there.
        """
        import onnx_ir as ir

        places = list(self._places(model))
        sources = {name: source for name, _, source in places}
        lost = self._originals.keys() - {source.parameter for source in sources.values()}
        if lost:
            raise BuildError(f"{min(lost)} was folded into another constant of the graph; report this checkpoint")
        for name, value, source in places:
            original = self._originals.get(source.parameter)
            if original is not None:
                found, weight = _content(value), original.numpy()
                # A norm's, in half precision, is kept in single where the graph computes its statistics.
                weight = (weight.T if source.transposed else weight).reshape(found.shape).astype(found.dtype)
                value.const_value = ir.tensor(weight, name=name)
        return sources

    def _places(self, model: ir.Model) -> Iterator[tuple[str, ir.Value, Source]]:
        heads: dict[tuple[int, float], list[str]] = {}
        for name, numbers in self._numbers.items():
            heads.setdefault((numbers.size, float(numbers.flat[0])), []).append(name)
        for name, value in model.graph.initializers.items():
            array = _content(value)
            if not array.size or array.dtype.kind != "f":
                continue
            for parameter in heads.get((array.size, float(array.flat[0])), ()):
                numbers = self._numbers[parameter]
                if name == parameter or np.array_equal(numbers.ravel(), array.ravel()):
                    yield name, value, Source(parameter)
                    break
                if numbers.ndim == 2 and np.array_equal(numbers.T.ravel(), array.ravel()):
                    yield name, value, Source(parameter, transposed=True)
                    break


def write_sources(model: ir.Model, sources: Mapping[str, Source]) -> None:
    """Let a graph say which initialiser holds which parameter."""
    named = {name: [source.parameter, source.transposed] for name, source in sources.items()}
    model.metadata_props[_KEY] = json.dumps(named, sort_keys=True)


def read_sources(proto: ModelProto, module: nn.Module) -> dict[str, Source]:
    """Which initialiser holds which parameter, for every parameter of the module.

    Settings that have no shape (epsilons, numbers of heads, activation functions) are not compared: the caller compares
    the configurations, or runs `check_parity` on the result.

    Args:
        proto: a graph written by `pie_engine.export.graph.write_graph`.
        module: of the same architecture.

    Raises:
        BuildError: the graph does not say, a parameter has no place in it, it has one for another, or a shape differs.
    """
    try:
        (known,) = [entry.value for entry in proto.metadata_props if entry.key == _KEY]
        sources = {name: Source(str(of), bool(turned)) for name, (of, turned) in json.loads(known).items()}
    except (ValueError, TypeError, AttributeError, RecursionError):
        raise BuildError(f"the graph does not say which weights it holds; {REMEDY}") from None
    shapes = {name: list(parameter.shape) for name, parameter in module.named_parameters()}
    tensors = {tensor.name: list(tensor.dims) for tensor in proto.graph.initializer}
    for name, source in sources.items():
        if source.parameter not in shapes:
            raise BuildError(f"the graph has a place for {source.parameter}, which the checkpoint lacks; {REMEDY}")
        if name not in tensors:
            raise BuildError(f"the graph has no {name}, which was {source.parameter}; {REMEDY}")
        wanted, found = shapes[source.parameter], tensors[name]
        if not _alike(wanted[::-1] if source.transposed else wanted, found):
            raise BuildError(f"{source.parameter} has shape {wanted}, in the graph {found}; {REMEDY}")
    missing = shapes.keys() - {source.parameter for source in sources.values()}
    if missing:
        raise BuildError(f"{min(missing)} has no place in the graph; {REMEDY}")
    return sources


def _alike(parameter: list[int], stored: list[int]) -> bool:
    """Norms taken apart hold their factors by group, or with axes of length 1; all else keeps its axes."""
    if len(parameter) == 1:
        return math.prod(stored) == parameter[0]
    return [size for size in stored if size != 1] == [size for size in parameter if size != 1]


def _content(value: ir.Value) -> np.ndarray[Any, Any]:
    assert value.const_value is not None  # every initialiser of an export has one
    return value.const_value.numpy()


def _coinciding(numbers: Mapping[str, np.ndarray[Any, Any]]) -> list[str]:
    """Parameters whose first values are all equal, or equal to those of another parameter.

    The first ones decide quickly, and taking a parameter too many does no harm.
    """
    heads: dict[tuple[int, bytes], list[str]] = {}
    found = []
    for name, array in numbers.items():
        head = array.flat[:64]
        if (head == head[:1]).all():
            found.append(name)
        heads.setdefault((array.size, head.tobytes()), []).append(name)
    found += [name for names in heads.values() if len(names) > 1 for name in names]
    return sorted(set(found))  # sorted, so that the same weights always give the same graph
