"""A graph with the weights that lie beside it.

Bundles share weights with the cache by hard link, and onnx and onnx_ir take a hard link for an attack: a file from
outside, planted among a model's. A bundle is verified against its manifest, so here the only question is whether the
name stays within the folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pie_engine.errors import BuildError

if TYPE_CHECKING:
    from onnx import ModelProto, TensorProto


def load_graph(path: Path) -> ModelProto:
    """The graph of `path` with all weights in memory.

    Raises:
        BuildError: weights lie outside the graph's folder.
    """
    import onnx

    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            file, offset, length = external_place(tensor, path.parent)
            with file.open("rb") as stream:
                stream.seek(offset)
                tensor.raw_data = stream.read(length)
            tensor.data_location = onnx.TensorProto.DEFAULT
            del tensor.external_data[:]
    return model


def external_place(tensor: TensorProto, folder: Path) -> tuple[Path, int, int]:
    """File, offset and length in bytes of a tensor that is not in its graph.

    Raises:
        BuildError: the file is not in `folder`.
    """
    from onnx.external_data_helper import ExternalDataInfo

    info = ExternalDataInfo(tensor)
    if Path(info.location).name != info.location:
        raise BuildError(f"{tensor.name} lies in {info.location}, outside its graph's folder; build the bundle again")
    return folder / info.location, int(info.offset or 0), int(info.length or 0)
