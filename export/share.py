"""Two graphs of the same weights: one file of them on the disk, under two names."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from pie_engine.export.load import external_place

if TYPE_CHECKING:
    from onnx import ModelProto, TensorProto

# Of the weights that the other graph does not hold alike, what may lie in the graph itself: a file of it holds 2 GB.
_EMBEDDED_BYTES = 1 << 28


def share_weights(path: Path, other: Path) -> Path | None:
    """Let the graph of `path` read from the weights that lie beside `other` what both hold alike, told by content.

    What is left moves into the graph, and its own file of weights is deleted. The caller gives the other one a second
    name beside the graph.

    Returns:
        The file that is to be linked; None, and nothing is done, where either graph has no such file or too little is
        alike.
    """
    import onnx

    model, known = (onnx.load(each, load_external_data=False) for each in (path, other))
    places = {digest: tensor for tensor, digest in _digests(known, other.parent)}
    own = list(_digests(model, path.parent))
    left = [(tensor, external_place(tensor, path.parent)) for tensor, digest in own if digest not in places]
    if not own or not places or sum(length for _, (_, _, length) in left) > _EMBEDDED_BYTES:
        return None
    files = {external_place(tensor, path.parent)[0] for tensor, _ in own}
    shared = {external_place(tensor, other.parent)[0] for tensor in places.values()}
    if len(shared) > 1:
        return None
    for tensor, (file, offset, length) in left:
        with file.open("rb") as stream:
            stream.seek(offset)
            tensor.raw_data = stream.read(length)
        tensor.data_location = onnx.TensorProto.DEFAULT
        del tensor.external_data[:]
    for tensor, digest in own:
        if digest in places:
            del tensor.external_data[:]
            tensor.external_data.extend(places[digest].external_data)
    path.write_bytes(model.SerializeToString())
    for file in files:
        file.unlink()
    return shared.pop()


def _digests(model: ModelProto, folder: Path) -> Iterator[tuple[TensorProto, str]]:
    """The tensors that lie beside a graph, and what each is told by: its type and content."""
    import onnx

    for tensor in model.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            file, offset, length = external_place(tensor, folder)
            with file.open("rb") as stream:
                stream.seek(offset)
                digest = hashlib.sha256(stream.read(length)).hexdigest()
            yield tensor, f"{tensor.data_type} {digest}"
