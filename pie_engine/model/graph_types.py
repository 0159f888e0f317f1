"""In what precision a graph's weights are, read from its file: importing onnx for it would take longer than the run."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

# Field numbers of onnx.proto, and its number for half precision.
_MODEL_GRAPH, _GRAPH_INITIALIZER, _TENSOR_DATA_TYPE = 7, 5, 2
_FLOAT16 = 10
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def graph_precision(path: Path) -> str:
    """fp16 if any weight of the graph is, else fp32.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not an ONNX graph.
    """
    with path.open("rb") as file:
        if not path.stat().st_size:
            raise ValueError("it is empty")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            graphs = [place for number, place in _fields(data, 0, len(data)) if number == _MODEL_GRAPH]
            if not graphs:
                raise ValueError("it holds no graph")
            tensors = [place for start, end in map(_range, graphs) for number, place in _fields(data, start, end)
                       if number == _GRAPH_INITIALIZER]  # fmt: skip
            for start, end in map(_range, tensors):
                if any(field == (_TENSOR_DATA_TYPE, _FLOAT16) for field in _fields(data, start, end)):
                    return "fp16"
    return "fp32"


def _range(place: int | tuple[int, int]) -> tuple[int, int]:
    if isinstance(place, int):
        raise ValueError("a number where a message is expected")
    return place


def _fields(data: mmap.mmap, start: int, end: int) -> Iterator[tuple[int, int | tuple[int, int]]]:
    """The fields of a protobuf message: its number, and its value or where its bytes lie."""
    while start < end:
        key, start = _varint(data, start, end)
        number, kind = key >> 3, key & 7
        if kind == _VARINT:
            value, start = _varint(data, start, end)
            yield number, value
            continue
        if kind == _BYTES:
            length, start = _varint(data, start, end)
        elif kind in (_FIXED32, _FIXED64):
            length = 4 if kind == _FIXED32 else 8
        else:
            raise ValueError(f"field {number} is of an unknown kind")
        if start + length > end:
            raise ValueError("it ends too early")
        if kind == _BYTES:
            yield number, (start, start + length)
        start += length


def _varint(data: mmap.mmap, start: int, end: int) -> tuple[int, int]:
    value = 0
    for index in range(10):
        if start + index >= end:
            raise ValueError("it ends too early")
        byte = data[start + index]
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value, start + index + 1
    raise ValueError("a number is too long")
