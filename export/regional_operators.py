"""What a box and its surroundings need of each layer, as operators that the exporter takes for one each.

Written in PyTorch's own, a graph has four times the operators, and its export takes four times as long. Here PyTorch is
told their shapes alone; what they compute is written in ONNX, and held to `pie_engine.regional.surroundings` by the
parity that every export is checked for.

    surround(x, across, along, at_across, at_along, wide) -> x within its ring; what to keep of it, twice, [B, C, n]
    pick(x, at) -> x [B, C, H, W] at flat indices [B, r, c]: [B, C, r, c]
    norm(x, weight, bias, mean, deviation, outside, inside, groups, eps) -> x normalised by its own statistics merged
        with those of the outside, [B, G] both, which is a share `outside` [1] of the picture; and what to keep of x:
        mean and deviation of the pixels that are not `inside` [B, n]
    join(taken, x, at) -> tokens taken and x, [B, T, C]; what to keep of x
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_LIBRARY = "pie_engine_regional"
_SCHEMAS = {
    "surround": "(Tensor x, Tensor across, Tensor along, Tensor at_across, Tensor at_along, int wide)"
    " -> (Tensor, Tensor, Tensor)",
    "pick": "(Tensor x, Tensor at) -> Tensor",
    "norm": "(Tensor x, Tensor weight, Tensor bias, Tensor mean, Tensor deviation, Tensor outside, Tensor inside,"
    " int groups, float eps) -> (Tensor, Tensor, Tensor)",
    "join": "(Tensor taken, Tensor x, Tensor at) -> (Tensor, Tensor)",
}


@functools.cache
def _library() -> torch.library.Library:
    library = torch.library.Library(_LIBRARY, "DEF")
    for name, schema in _SCHEMAS.items():
        library.define(name + schema)
        torch.library.register_fake(f"{_LIBRARY}::{name}", globals()[f"_{name}_shape"], lib=library)
    return library


def operators() -> Any:
    """The operators, by name."""
    _library()
    return getattr(torch.ops, _LIBRARY)


def translations() -> dict[Any, Callable[..., Any]]:
    """What the exporter writes for each operator."""
    return {getattr(operators(), name).default: globals()[f"_{name}_graph"] for name in _SCHEMAS}


# --- shapes -----------------------------------------------------------------------------------------------------------


def _surround_shape(
    x: Tensor, across: Tensor, along: Tensor, at_across: Tensor, at_along: Tensor, wide: int
) -> tuple[Tensor, Tensor, Tensor]:
    batch, channels, height, width = x.shape
    kept = (x.new_empty(batch, channels, at.shape[1]) for at in (at_across, at_along))
    return (x.new_empty(batch, channels, height + 2 * wide, width + 2 * wide), *kept)  # type: ignore[return-value]


def _pick_shape(x: Tensor, at: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], x.shape[1], at.shape[1], at.shape[2])


def _norm_shape(
    x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, deviation: Tensor, outside: Tensor, inside: Tensor,
    groups: int, eps: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    own = (x.new_empty(x.shape[0], groups) for _ in range(2))
    return (torch.empty_like(x), *own)  # type: ignore[return-value]


def _join_shape(taken: Tensor, x: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
    batch, count, channels = x.shape
    return x.new_empty(batch, taken.shape[1] + count, channels), x.new_empty(batch, at.shape[1], channels)


# --- in ONNX ----------------------------------------------------------------------------------------------------------


def _ints(*values: int) -> Any:
    from onnxscript import opset18 as op

    return op.Constant(value_ints=list(values))


def _gather(flat: Any, at: Any, channels: int) -> Any:
    """Of `flat` [B, C, N] what lies at [B, n]: [B, C, n]."""
    from onnxscript import opset18 as op

    return op.GatherElements(flat, op.Expand(op.Unsqueeze(at, _ints(1)), _ints(1, channels, 1)), axis=2)


def _surround_graph(x: Any, across: Any, along: Any, at_across: Any, at_along: Any, wide: int) -> Any:
    from onnxscript import opset18 as op

    left, right = op.Split(along, num_outputs=2, axis=3)
    top, bottom = op.Split(across, num_outputs=2, axis=2)
    padded = op.Concat(top, op.Concat(left, x, right, axis=3), bottom, axis=2)
    flat = op.Reshape(padded, _ints(0, 0, -1))
    return padded, _gather(flat, at_across, x.shape[1]), _gather(flat, at_along, x.shape[1])


def _pick_graph(x: Any, at: Any) -> Any:
    from onnxscript import opset18 as op

    flat = _gather(op.Reshape(x, _ints(0, 0, -1)), op.Reshape(at, _ints(0, -1)), x.shape[1])
    return op.Reshape(flat, op.Concat(_ints(0, 0), op.Shape(at, start=1), axis=0))


def _norm_graph(
    x: Any, weight: Any, bias: Any, mean: Any, deviation: Any, outside: Any, inside: Any, groups: int, eps: float
) -> Any:
    from onnx import TensorProto
    from onnxscript import opset18 as op

    # Statistics in single precision: a variance of half-precision numbers may overflow.
    half, each = x.dtype == TensorProto.FLOAT16, x.shape[1] // groups
    x_, weight, bias, mean, deviation = (
        op.Cast(part, to=TensorProto.FLOAT) if half else part for part in (x, weight, bias, mean, deviation)
    )
    grouped = op.Reshape(x_, _ints(0, groups, -1))
    here = op.ReduceMean(grouped, _ints(2))
    centred = op.Sub(grouped, here)
    squares = op.Mul(centred, centred)
    variance = op.ReduceMean(squares, _ints(2))
    zero, one = op.Constant(value_float=0.0), op.Constant(value_float=1.0)
    # What to keep, as `pie_engine.regional.surroundings.outside_statistics` has it.
    box = _gather(op.Reshape(centred, _ints(0, x.shape[1], -1)), inside, x.shape[1])
    sums = (
        op.ReduceSum(op.Reshape(op.ReduceSum(part, _ints(2)), _ints(0, groups, each)), _ints(2))
        for part in (box, op.Mul(box, box))
    )
    total = op.Cast(op.Shape(grouped, start=2, end=3), to=TensorProto.FLOAT)
    taken = op.Cast(op.Shape(inside, start=1, end=2), to=TensorProto.FLOAT)
    left = op.Max(op.Sub(total, op.Mul(taken, op.Constant(value_float=float(each)))), one)
    first, second = (op.Div(part, left) for part in sums)
    second = op.Sub(op.Div(op.Mul(variance, total), left), second)
    kept = [op.Sub(here, first), op.Sqrt(op.Max(op.Sub(second, op.Mul(first, first)), zero))]
    kept = [op.Reshape(part, _ints(0, groups)) for part in kept]
    if half:
        kept = [op.Cast(part, to=TensorProto.FLOAT16) for part in kept]
    # And `merged`.
    apart = op.Sub(op.Reshape(mean, _ints(0, groups, 1)), here)
    deviation = op.Reshape(deviation, _ints(0, groups, 1))
    within = op.Sub(one, outside)
    spread = op.Add(op.Mul(op.Mul(apart, apart), within), op.Mul(deviation, deviation))
    variance = op.Add(op.Mul(variance, within), op.Mul(spread, outside))
    here = op.Add(here, op.Mul(apart, outside))
    scale = op.Div(op.Reshape(weight, _ints(1, groups, -1)), op.Sqrt(op.Add(variance, op.Constant(value_float=eps))))
    shift = op.Sub(op.Reshape(bias, _ints(1, groups, -1)), op.Mul(here, scale))
    scale, shift = (op.Reshape(part, _ints(0, -1, 1, 1)) for part in (scale, shift))
    if half:
        scale, shift = (op.Cast(part, to=TensorProto.FLOAT16) for part in (scale, shift))
    return op.Add(op.Mul(x, scale), shift), *kept


def _join_graph(taken: Any, x: Any, at: Any) -> Any:
    from onnxscript import opset18 as op

    index = op.Expand(op.Unsqueeze(at, _ints(2)), _ints(1, 1, x.shape[2]))
    return op.Concat(taken, x, axis=1), op.GatherElements(x, index, axis=1)
