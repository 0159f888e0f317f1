"""Whether an engine computes what its graph computes once other weights were put into it."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from pie_engine.export.graph import EXTERNAL_BYTES, relative_error
from pie_engine.export.load import load_graph
from pie_engine.export.refit import SETTINGS

# Added to every bias and norm of the probe: far more than the tolerance if a refit passes one over, and small enough
# for half precision.
_SHIFT = 0.1


def refitted_error(plan: Path, onnx: Path, entry: dict[str, Any], device: str = "cuda:0") -> float:
    """The larger ||engine - graph|| / ||graph|| of two refits: with the graph's weights, and with its biases shifted.

    Biases of a trained model are small, and compilers have been known to pass them over: the second refit, of a probe
    whose biases and norms carry random shifts, would show it. The engine runs on the GPU, graphs in ONNX Runtime.

    Args:
        plan: a plan whose weights can be exchanged.
        onnx: the graph whose weights it is given.
        entry: the plan's entry in the manifest; its first profile gives the shapes.
    """
    import torch

    from pie_engine.backends.tensorrt.engine import Engine, read_plan

    data = read_plan(plan, hashlib.sha256(plan.read_bytes()).hexdigest())
    engine = Engine(entry["flavour"], data, entry["component"], torch.device(device))
    shapes = {name: tuple(shape[1]) for name, shape in entry["profiles"][0].items()}
    bound = engine.bind(shapes)
    errors = []
    with tempfile.TemporaryDirectory(prefix="pie-engine-") as folder:
        for graph in (write_probe(onnx, Path(folder)), onnx):
            feeds, reference = _reference(graph, shapes)
            engine.refit(graph)
            for name, value in feeds.items():
                bound.inputs[name].copy_(torch.from_numpy(value))
            bound()
            errors.append(relative_error(next(iter(bound.outputs.values())).cpu().numpy(), reference))
    return max(errors)


def write_probe(onnx_path: Path, folder: Path) -> Path:
    """Write `folder`/model.onnx: the same graph with a random shift in every bias and norm. Returns its path."""
    import onnx
    from onnx import numpy_helper

    model = load_graph(onnx_path)
    generator = np.random.default_rng(1)
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        # Vectors, also those that were given axes of length 1; a constant of few numbers is a setting.
        if values.dtype in (np.float16, np.float32) and max(values.shape, default=1) == values.size > SETTINGS:
            shifted = values + (_SHIFT * generator.standard_normal(values.shape)).astype(values.dtype)
            tensor.CopyFrom(numpy_helper.from_array(shifted, tensor.name))
    path = folder / "model.onnx"
    large = sum(len(tensor.raw_data) for tensor in model.graph.initializer) > EXTERNAL_BYTES
    onnx.save(model, path, save_as_external_data=large, location="model.onnx.data")
    return path


def _reference(onnx: Path, shapes: dict[str, tuple[int, ...]]) -> tuple[dict[str, np.ndarray], np.ndarray]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])
    feeds = random_inputs({node.name: (node.type, shapes.get(node.name, (1,))) for node in session.get_inputs()})
    return feeds, session.run(None, feeds)[0]


def random_inputs(inputs: dict[str, tuple[str, tuple[int, ...]]]) -> dict[str, np.ndarray]:
    """Inputs of a component by name, from ONNX Runtime's type and a shape: normal numbers, token ids, one timestep."""
    generator = np.random.default_rng(0)
    values: dict[str, np.ndarray] = {}
    for name, (kind, shape) in inputs.items():
        if kind == "tensor(int64)":
            values[name] = generator.integers(0, 100, shape)
        elif name == "timestep":
            values[name] = np.array([481.0], np.float32)
        else:
            values[name] = generator.standard_normal(shape).astype(np.float16 if "16" in kind else np.float32)
    return values
