"""Whether an engine computes what its graph computes, also once other weights were put into it."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pie_engine.export.graph import EXTERNAL_BYTES, relative_error
from pie_engine.export.load import load_graph

if TYPE_CHECKING:
    from pie_engine.backends.tensorrt.engine import BoundEngine, Engine

Shapes = dict[str, tuple[int, ...]]
# Added to every bias and norm of the probe: far more than the tolerance if a refit passes one over, and small enough
# for half precision.
_SHIFT = 0.1


def refitted_error(engine: Engine, onnx: Path, shapes: Shapes) -> float:
    """The larger ||engine - graph|| / ||graph|| of two refits: with the graph's weights, and with its biases shifted.

    Biases of a trained model are small, and TensorRT is known to have dropped some from engines that can be refitted:
    a probe, whose biases and norms carry random shifts, shows it. Leaves the engine with the graph's weights.

    Args:
        engine: one whose weights can be exchanged; it need not hold any yet.
        onnx: the graph whose weights it is given.
        shapes: of one of its profiles.

    Raises:
        BackendError: the engine does not take the weights.
    """
    import torch

    bound, errors = None, []
    with tempfile.TemporaryDirectory(prefix="pie-engine-") as folder:
        for graph in (write_probe(onnx, Path(folder)), onnx):
            engine.refit(graph)
            bound = bound or engine.bind(shapes)  # an engine without weights may have no context
            errors.append(compare_runs(graph, bound, shapes))
            if bound.device.type == "cuda":
                torch.cuda.synchronize(bound.device)  # nothing may run while it is refitted
    return max(errors)


def compare_runs(onnx: Path, bound: BoundEngine, shapes: Shapes) -> float:
    """||engine - graph|| / ||graph|| on the same random inputs, both fed by polygraphy; the graph in ONNX Runtime."""
    import torch
    from polygraphy.backend.base import BaseRunner
    from polygraphy.backend.onnxrt import OnnxrtRunner, SessionFromOnnx
    from polygraphy.comparator import Comparator, DataLoader

    session = SessionFromOnnx(str(onnx), providers=["cpu"])
    with OnnxrtRunner(session) as runner:
        inputs = runner.get_input_metadata(use_numpy_dtypes=False)
    for name, shape in shapes.items():
        inputs[name].shape = shape

    class Bound(BaseRunner):
        def get_input_metadata_impl(self) -> Any:
            return inputs

        def infer_impl(self, feed_dict: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            for name, value in feed_dict.items():
                bound.inputs[name].copy_(torch.from_numpy(value))
            start = time.monotonic()
            bound()
            self.inference_time = time.monotonic() - start
            return {name: tensor.cpu().numpy() for name, tensor in bound.outputs.items()}

    # Token ids that every vocabulary has; a timestep within the schedule; the rest about as large as latents are.
    loader = DataLoader(seed=0, input_metadata=inputs, val_range={"": (-2, 2), "ids": (0, 99), "timestep": (1, 999)})
    results = Comparator.run([OnnxrtRunner(session), Bound("engine")], data_loader=loader)
    reference, output = (next(iter(result[0].values())) for _, result in results.items())
    return relative_error(output, reference)


def write_probe(onnx_path: Path, folder: Path) -> Path:
    """Write `folder`/model.onnx: the same graph with a random shift in every bias and norm. Returns its path."""
    import onnx
    from onnx import numpy_helper

    model = load_graph(onnx_path)
    generator = np.random.default_rng(1)
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        # Vectors that are named after a parameter: other constants depend on no weight, and no refit touches them.
        if values.dtype in (np.float16, np.float32) and values.ndim == 1 and "." in tensor.name:
            shifted = values + (_SHIFT * generator.standard_normal(values.shape)).astype(values.dtype)
            tensor.CopyFrom(numpy_helper.from_array(shifted, tensor.name))
    path = folder / "model.onnx"
    large = sum(len(tensor.raw_data) for tensor in model.graph.initializer) > EXTERNAL_BYTES
    onnx.save(model, path, save_as_external_data=large, location="model.onnx.data")
    return path
