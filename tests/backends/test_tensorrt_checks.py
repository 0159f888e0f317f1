"""The checks around a plan: sanitised graphs, plan against graph, and refits that pass weights over."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

import fake_tensorrt
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from fake_tensorrt import add_engines
from onnx import numpy_helper

import pie_engine.bundling.assemble as assemble
from pie_engine.backends.tensorrt import worker
from pie_engine.backends.tensorrt.builder import sanitised
from pie_engine.backends.tensorrt.engine import BoundEngine, Engine
from pie_engine.backends.tensorrt.library import at_least
from pie_engine.backends.tensorrt.selftest import refitted_error, write_probe
from pie_engine.bundling.target import Target
from pie_engine.checkpoint import Checkpoint
from pie_engine.config import BuildConfig, EngineConfig
from pie_engine.export.graph import TOLERANCE, relative_error
from pie_engine.export.load import load_graph
from pie_engine.model.bundle import Bundle

CPU = torch.device("cpu")
needs_polygraphy = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("polygraphy", "onnx_graphsurgeon")),
    reason="polygraphy or onnx_graphsurgeon is not installed",
)


def outputs(path: Path) -> np.ndarray:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {"ids": np.arange(2 * 77).reshape(2, 77) % 100})[0]


@needs_polygraphy
def test_sanitised_graphs_compute_the_same(bundle: Bundle, tmp_path: Path) -> None:
    graph = bundle.graph("text_encoder")
    clean = sanitised(graph, tmp_path, "text_encoder")
    assert clean == tmp_path / "sanitised.onnx"
    before, after = (onnx.load(path).graph for path in (graph, clean))
    assert len(after.node) < len(before.node)
    # Engines are refitted by these names.
    assert {tensor.name for tensor in after.initializer} >= {t.name for t in before.initializer if len(t.dims) > 1}
    assert np.array_equal(outputs(clean), outputs(graph))


@needs_polygraphy
def test_weights_beside_a_graph_stay_beside_it(bundle: Bundle, tmp_path: Path) -> None:
    source, scratch = tmp_path / "source", tmp_path / "scratch"
    source.mkdir(), scratch.mkdir()
    model = onnx.load(bundle.graph("text_encoder"))
    onnx.save(model, source / "model.onnx", save_as_external_data=True, location="model.onnx.data")
    clean = sanitised(source / "model.onnx", scratch, "text_encoder")
    assert (scratch / "model.onnx.data").samefile(source / "model.onnx.data")
    kept = [t.name for t in onnx.load(clean, load_external_data=False).graph.initializer if t.external_data]
    assert len(kept) > 10
    assert np.array_equal(outputs(clean), outputs(bundle.graph("text_encoder")))


@needs_polygraphy
def test_a_graph_with_nothing_to_fold_is_compiled_as_it_is(bundle: Bundle, tmp_path: Path) -> None:
    clean = sanitised(bundle.graph("text_encoder"), tmp_path, "text_encoder")
    (tmp_path / "again").mkdir()
    assert sanitised(clean, tmp_path / "again", "text_encoder") == clean
    assert not list((tmp_path / "again").iterdir())


@needs_polygraphy
@pytest.mark.parametrize("factor", [1.0, 1.01, float("nan")])
def test_plan_and_graph_are_compared(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, factor: float
) -> None:
    fake_tensorrt.install(monkeypatch, "tensorrt")
    monkeypatch.setattr(torch, "device", lambda name: CPU)
    built = add_engines(bundle, tmp_path / "a.pie", "tensorrt")
    entry = next(entry for entry in built.engines() if entry["component"] == "text_encoder")
    real, shapes = BoundEngine.__call__, []

    def planted(self: BoundEngine) -> None:
        real(self)
        (output,) = self.outputs.values()
        output *= factor
        shapes.append(tuple(output.shape[:2]))

    monkeypatch.setattr(BoundEngine, "__call__", planted)
    request = {
        "flavour": "tensorrt", "plan": str(built.path / entry["file"]), "onnx": str(built.graph("text_encoder")),
        "profile": {"ids": ((1, 77), (3, 77), (5, 77))}, "weights": "fixed", "component": "text_encoder",
    }  # fmt: skip
    error = worker.compare(request, lambda message: None)["relative_error"]
    assert error == (float("inf") if factor != factor else pytest.approx(factor - 1, rel=1e-3, abs=0))
    assert set(shapes) == {(3, 77)}  # the usual shape of the profile


def test_a_probe_differs_in_biases_and_norms_alone(bundle: Bundle, tmp_path: Path) -> None:
    graph = bundle.graph("text_encoder")
    probe = write_probe(graph, tmp_path)
    before, after = (
        {tensor.name: numpy_helper.to_array(tensor) for tensor in load_graph(path).graph.initializer}
        for path in (graph, probe)
    )
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed and all(before[name].size == max(before[name].shape) for name in changed)
    assert {name for name in before if name.endswith("bias")} <= changed
    # What an engine that kept its old biases would be off by.
    assert relative_error(outputs(graph), outputs(probe)) > 10 * TOLERANCE["fp16"]


@needs_polygraphy
@pytest.mark.parametrize("forgetful", [False, True])
def test_a_refit_that_passes_biases_over_is_seen(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forgetful: bool
) -> None:
    module = fake_tensorrt.install(monkeypatch, "tensorrt")
    built = add_engines(bundle, tmp_path / "a.pie", "tensorrt", weights="refittable")
    entry = next(entry for entry in built.engines() if entry["component"] == "text_encoder")

    class Forgetful(fake_tensorrt.Refitter):
        """Takes matrices, and keeps the vectors that the engine was compiled with."""

        def refit_cuda_engine(self) -> bool:
            own = {t.name: t for t in onnx.load(self._engine._plan["onnx"]).graph.initializer}
            model = onnx.load(self._onnx)
            for tensor in model.graph.initializer:
                if len(tensor.dims) == 1:
                    tensor.CopyFrom(own[tensor.name])
            self._onnx = str(tmp_path / "mixed.onnx")
            onnx.save(model, self._onnx)
            return super().refit_cuda_engine()

    if forgetful:
        monkeypatch.setattr(module, "Refitter", Forgetful)
    engine = Engine("tensorrt", (built.path / entry["file"]).read_bytes(), "text_encoder", CPU)
    error = refitted_error(engine, built.graph("text_encoder"), {"ids": (2, 77)})
    assert (error > 10 * TOLERANCE["fp16"]) if forgetful else (error == 0.0)


def test_a_tensorrt_without_attention_layers_gets_graphs_without_them(
    ddim_checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [at_least(text, (10, 14)) for text in ("10.9.0.34", "10.14.1.48.post1", "11.4.0")] == [False, True, True]
    asked: list[int] = []

    class Enough(Exception):
        pass

    def exported(checkpoint: Checkpoint, name: str, config: BuildConfig, on_component: Any) -> Path:
        asked.append(config.opset)
        raise Enough

    monkeypatch.setattr(assemble, "cached_component", exported)
    target = Target(
        "tensorrt", "10.9.0", "a GPU", ("8.6",), "none", None, (64,), (1,), "fixed", None, None, whole_attention=False
    )
    config = BuildConfig(engines=EngineConfig("tensorrt"))
    for known in (False, True):
        with pytest.raises(Enough):
            assemble._add_component(
                ddim_checkpoint, "unet", config, replace(target, whole_attention=known), {}, tmp_path, lambda line: None
            )
    assert asked == [20, 23]
