"""What runs a plan, without a GPU: profiles, addresses, shapes, types and weights, on fake_tensorrt."""

from __future__ import annotations

import gc
import hashlib
import json
import shutil
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import fake_tensorrt
import numpy as np
import onnx
import pytest
import torch
from fake_tensorrt import CLASSES, DataType, Strategy, add_engines
from golden import GOLDEN
from graph_emulator import EmulatedTimeline
from onnx import TensorProto, helper

from pie_engine import Item, PieEngine, RunConfig
from pie_engine.backends.onnx_backend import OnnxBackend
from pie_engine.backends.tensorrt.backend import TensorRTBackend
from pie_engine.backends.tensorrt.engine import Engine
from pie_engine.config import COMPONENTS, FLAVOURS
from pie_engine.errors import BackendError, BundleError, ConfigError
from pie_engine.export.graph import TOLERANCE, relative_error
from pie_engine.model.bundle import MANIFEST, Bundle, open_bundle, write_manifest

SIDE = 128
RUN = RunConfig(steps=2, num_inference_steps=6, resolution=SIDE)
ITEM = Item(GOLDEN / "image.png", "the heart lung", GOLDEN / "mask.png")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def small(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The golden bundle, with the side that these tests run at for its own."""
    path = tmp_path_factory.mktemp("small") / "small.pie"
    shutil.copytree(bundle.path, path)
    manifest = json.loads((path / MANIFEST).read_text())
    manifest["model"]["default_resolution"] = SIDE
    write_manifest(path, manifest)
    return open_bundle(path)


@pytest.fixture(scope="module")
def expected(small: Bundle) -> PieEngine:
    return PieEngine(OnnxBackend(small, threads=1))


def run(bundle: Bundle, flavour: str = "tensorrt") -> PieEngine:
    return PieEngine(TensorRTBackend(bundle, flavour, device="cpu"))


def test_the_fake_has_nothing_that_tensorrt_lacks() -> None:
    from tensorrt_api import DATA, ONE_FLAVOUR

    api: dict[str, list[str]] = json.loads(DATA.read_text())[fake_tensorrt.VERSIONS["tensorrt"]]
    for cls in CLASSES:
        if cls.__name__ in ("TensorIOMode", "DataType"):
            continue
        for member in (name for name in dir(cls) if not name.startswith("_") and name != "Severity"):
            known = member in api[cls.__name__] or f"{cls.__name__}.{member}" in ONE_FLAVOUR
            assert known, f"{cls.__name__}.{member}"
    assert {kind.name for kind in DataType} == set(api["DataType"])


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize(
    "settings",
    [{}, {"inversion": "ddim", "composite": False}, {"guidance_scale": 1.0}, {"semantics": "official"}],
    ids=["guided", "inverted", "unguided", "official"],
)
def test_a_progression_is_onnx_runtime_s(
    small: Bundle, expected: PieEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flavour: str, settings: Any
) -> None:
    fake_tensorrt.install(monkeypatch, flavour)
    engine = run(add_engines(small, tmp_path / "trt.pie", flavour), flavour)
    config = replace(RUN, **settings) if "semantics" not in settings else RunConfig(
        steps=2, num_inference_steps=6, resolution=SIDE, semantics="official"
    )  # fmt: skip
    result, wanted = engine.run(ITEM, config), expected.run(ITEM, config)
    # The same graphs in the same runtime: nothing between them may differ.
    np.testing.assert_array_equal(result.latents, wanted.latents)
    np.testing.assert_array_equal(result.frames, wanted.frames)
    assert result.frames.std() > 1 and len(result.frames) == 3
    described = result.provenance["backend"]
    assert described["name"] == flavour
    assert described["precisions"] == dict.fromkeys(COMPONENTS, "fp32")


def test_items_run_in_the_batches_that_were_compiled(
    small: Bundle, expected: PieEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_tensorrt.install(monkeypatch, "tensorrt")
    engine = run(add_engines(small, tmp_path / "trt.pie", "tensorrt"))
    prompts = ["the heart", "lung", "the heart lung", "left lung", "right lung"]
    items = [replace(ITEM, prompt=p, item_id=str(i), mask=None if i > 2 else ITEM.mask) for i, p in enumerate(prompts)]
    results = engine.run_batch(items, RUN)
    assert [result.provenance["backend"]["batch"] for result in results] == [2, 2, 1, 2, 2]
    for item, result in zip(items, results, strict=True):
        wanted = expected.run(item, RUN)
        assert relative_error(result.latents, wanted.latents) < TOLERANCE["fp32"]
    # A rest is filled up where no smaller size was compiled, and gives each item its own result.
    double = run(add_engines(small, tmp_path / "two.pie", "tensorrt", batches=(2,)))
    assert double.backend.batch_sizes(SIDE) == (2,)
    results = double.run_batch(items[:3], RUN)
    assert [result.provenance["backend"]["batch"] for result in results] == [2, 2, 2]
    for item, result in zip(items, results, strict=False):
        assert relative_error(result.latents, expected.run(item, RUN).latents) < TOLERANCE["fp32"]


def test_rounds_can_be_captured(
    small: Bundle, expected: PieEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing between two replays may be decided or bound by the host: addresses stay."""
    fake_tensorrt.install(monkeypatch, "tensorrt")
    backend = TensorRTBackend(add_engines(small, tmp_path / "trt.pie", "tensorrt"), "tensorrt", device="cpu")
    assert backend.stream is None and backend.capture_obstacle == ""
    engine = PieEngine(backend)
    timeline = EmulatedTimeline(graph=lambda function: function)  # kernels of another library: not torch's to record
    engine._timeline = timeline
    config = replace(RUN, steps=4)
    result = engine.run(ITEM, config)
    np.testing.assert_array_equal(result.latents, expected.run(ITEM, config).latents)
    assert result.provenance["runtime"]["cuda_graph"] and timeline.captures == 2


def test_each_shape_takes_its_own_profile(small: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_tensorrt.install(monkeypatch, "tensorrt")
    backend = TensorRTBackend(add_engines(small, tmp_path / "trt.pie", "tensorrt"), "tensorrt", device="cpu")
    latent, info = SIDE // 8, small.model
    calls = {batch: backend.bind_unet(batch, latent, latent) for batch in (1, 2, 4)}
    for batch, call in calls.items():
        assert call.sample.shape == call.output.shape == (batch, 4, latent, latent)
        assert call.context.shape == (batch, info.max_tokens, info.text_width)
        assert call.timestep.shape == (1,) and call.timestep.dtype == torch.float32
        context = call._bound._context
        assert context._profile == {2: 0, 4: 1, 1: 2}[batch]  # guided ones first
        assert context._addresses == {
            "sample": call.sample.data_ptr(), "timestep": call.timestep.data_ptr(),
            "context": call.context.data_ptr(), "prediction": call.output.data_ptr(),
        }  # fmt: skip
        assert not any(tensor.any() for tensor in (call.sample, call.timestep, call.context))
    # Buffers of its own each: what one computes is not another's.
    assert len({call.output.data_ptr() for call in calls.values()}) == 3
    with pytest.raises(BackendError, match=r"unet was not compiled for .*\(3, 4, 16, 16\).*; build it for that shape"):
        backend.bind_unet(3, latent, latent)
    with pytest.raises(BackendError, match="was not compiled for"):
        backend.bind_unet(2, latent, 2 * latent)


def test_each_shape_keeps_its_results_where_they_are(
    small: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_tensorrt.install(monkeypatch, "tensorrt")
    backend = TensorRTBackend(add_engines(small, tmp_path / "trt.pie", "tensorrt"), "tensorrt", device="cpu")
    reference = OnnxBackend(small, threads=1)
    ids = small.model.tokenize(["a", "the heart", "lung", "left", "right"])
    for count in (1, 5, 2):  # a range: one profile
        assert torch.equal(backend.encode_text(ids[:count]), reference.encode_text(ids[:count]))
    with pytest.raises(BackendError, match="text_encoder was not compiled for"):
        backend.encode_text(ids.repeat(2, 1))
    latents = torch.randn(2, 2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    first = backend.decode_latent(latents[0])
    kept = first.clone()
    second = backend.decode_latent(latents[1])
    assert first.data_ptr() == second.data_ptr() and not torch.equal(kept, second)
    assert torch.equal(second, reference.decode_latent(latents[1]))
    # A captured round goes on using the addresses of its shape, whatever ran since.
    bound = backend._bound["vae_decoder"][tuple(latents[0].shape)]
    backend.decode_latent(latents[0, :1])
    assert backend.decode_latent(latents[0]).data_ptr() == first.data_ptr()
    assert backend._bound["vae_decoder"][tuple(latents[0].shape)] is bound
    assert len(backend._bound["text_encoder"]) == 1  # no round holds those
    backend.release()
    assert not any(backend._bound.values())


def test_a_resolution_without_an_engine(small: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_tensorrt.install(monkeypatch, "tensorrt")
    engine = run(add_engines(small, tmp_path / "trt.pie", "tensorrt"))
    with pytest.raises(ConfigError, match=r"resolution 256 has no engine .*128 pixels, batch 1, 2.*--resolution 128"):
        engine.run(ITEM, replace(RUN, resolution=256))
    assert engine.backend.raise_precision("unet") is None


def test_rtx_kernels_are_final_before_the_first_run(
    small: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for flavour in FLAVOURS:
        fake_tensorrt.install(monkeypatch, flavour)
        backend = TensorRTBackend(add_engines(small, tmp_path / flavour, flavour), flavour, device="cpu")
        config = backend.bind_unet(2, 16, 16)._bound._context._config
        if flavour == "tensorrt":
            assert config is None
        else:
            assert config.dynamic_shapes_kernel_specialization_strategy is Strategy.EAGER


def negated(source: Bundle) -> Bundle:
    """In place: other weights, as a fine-tuned checkpoint's, for which no plan was compiled."""
    manifest = json.loads((source.path / MANIFEST).read_text())
    path = source.graph("vae_decoder")
    model = onnx.load(path)
    bias = next(tensor for tensor in model.graph.initializer if tensor.name.endswith("conv_out.bias"))
    bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) + 0.25, bias.name))
    path.unlink()  # a hard link
    onnx.save(model, path)
    manifest["hashes"]["vae"] = hashlib.sha256(path.read_bytes()).hexdigest()
    write_manifest(source.path, manifest)
    return open_bundle(source.path)


def test_weights_are_exchanged_when_the_bundle_has_others(
    small: Bundle, expected: PieEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_tensorrt.install(monkeypatch, "tensorrt")
    refitted: list[str] = []
    refit = Engine.refit

    def noted(self: Engine, path: Path) -> None:
        refitted.append(self.name)
        refit(self, path)

    monkeypatch.setattr(Engine, "refit", noted)
    plain = add_engines(small, tmp_path / "plain.pie", "tensorrt", weights="refittable")
    run(plain)
    assert refitted == []
    changed = negated(add_engines(small, tmp_path / "other.pie", "tensorrt", weights="refittable"))
    # The plan holds the first checkpoint's weights until it is refitted.
    plan = changed.path / "engines/tensorrt/vae_decoder.plan"
    plan.write_text(json.dumps(json.loads(plan.read_text()) | {"onnx": str(small.graph("vae_decoder"))}))
    write_manifest(changed.path, changed.manifest)
    changed = open_bundle(changed.path)
    result = run(changed).run(ITEM, RUN)
    assert refitted == ["vae_encoder", "vae_decoder"]  # both halves belong to one VAE
    np.testing.assert_array_equal(result.frames, PieEngine(OnnxBackend(changed, threads=1)).run(ITEM, RUN).frames)
    assert not np.array_equal(result.frames, expected.run(ITEM, RUN).frames)


def test_stripped_plans_get_their_weights_when_they_are_loaded(
    small: Bundle, expected: PieEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_tensorrt.install(monkeypatch, "tensorrt")
    stripped = add_engines(small, tmp_path / "trt.pie", "tensorrt", weights="stripped")
    np.testing.assert_array_equal(run(stripped).run(ITEM, RUN).latents, expected.run(ITEM, RUN).latents)
    monkeypatch.setattr(Engine, "refit", lambda self, path: None)
    with pytest.raises(BackendError, match=r"unet failed on the GPU \(the weights were stripped\)"):
        run(stripped).run(ITEM, RUN)


def test_fixed_plans_refuse_other_weights(small: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_tensorrt.install(monkeypatch, "tensorrt")
    changed = negated(add_engines(small, tmp_path / "trt.pie", "tensorrt"))
    monkeypatch.setattr(Engine, "__init__", lambda *_: pytest.fail("a plan was deserialised"))
    line = "vae_encoder was compiled with another checkpoint's weights; rebuild it: pie-engine build"
    with pytest.raises(BundleError, match=line):
        run(changed)


@pytest.fixture
def doubling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A plan of one half-precision graph: 2 x, and an int64 input that does nothing."""
    fake_tensorrt.install(monkeypatch, "tensorrt")
    value = helper.make_tensor_value_info
    two = helper.make_tensor("two", TensorProto.FLOAT16, [1], np.array([2], np.float16).tobytes(), raw=True)
    nodes = [helper.make_node("Mul", ["x", "two"], ["y"]), helper.make_node("Identity", ["n"], ["m"])]
    inputs = [value("x", TensorProto.FLOAT16, ["b", 3]), value("n", TensorProto.INT64, [2])]
    outputs = [value("y", TensorProto.FLOAT16, ["b", 3]), value("m", TensorProto.INT64, [2])]
    graph = helper.make_graph(nodes, "doubling", inputs, outputs, [two])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, tmp_path / "model.onnx")
    return {
        "onnx": str(tmp_path / "model.onnx"), "weights": "refittable", "outputs": {},
        "profiles": [{"x": [(1, 3), (2, 3), (4, 3)]}, {"x": [(8, 3)] * 3}],
    }  # fmt: skip


def load(plan: dict[str, Any]) -> Engine:
    return Engine("tensorrt", json.dumps(plan).encode(), "it", CPU)


def test_types_come_from_the_plan(doubling: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    shape = fake_tensorrt.IExecutionContext.get_tensor_shape
    monkeypatch.setattr(
        fake_tensorrt.IExecutionContext,
        "get_tensor_shape",
        lambda self, name: shape(self, {"y": "x", "m": "n"}[name] if name in "ym" else name),
    )
    for rows, profile in ((1, 0), (4, 0), (8, 1)):
        bound = load(doubling).bind({"x": (rows, 3)})
        assert {n: (t.dtype, tuple(t.shape)) for n, t in {**bound.inputs, **bound.outputs}.items()} == {
            "x": (torch.float16, (rows, 3)), "n": (torch.int64, (2,)),
            "y": (torch.float16, (rows, 3)), "m": (torch.int64, (2,)),
        }  # fmt: skip
        assert bound._context._profile == profile
    with pytest.raises(BackendError, match=r"it was not compiled for \{'x': \(5, 3\)\}"):
        load(doubling).bind({"x": (5, 3)})


def test_a_plan_that_the_library_refuses(doubling: dict[str, Any]) -> None:
    with pytest.raises(BackendError, match=r"tensorrt cannot load it \(deserialisation failed: .*\); rebuild"):
        Engine("tensorrt", b"\0" * 10, "it", CPU)


def test_a_context_that_does_not_fit_into_memory(doubling: dict[str, Any]) -> None:
    with pytest.raises(BackendError, match=r"it cannot be set up \(no 9 GB left\); lower --resolution or batch"):
        load(doubling | {"memory": "no 9 GB left"}).bind({"x": (1, 3)})


def test_weights_that_do_not_fit(doubling: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"it does not take the weights of .* \(not the same graph\); build"):
        load(doubling).refit(tmp_path / "absent.onnx")
    with pytest.raises(BackendError, match=r"it is left without 2 weights \(a, ...\); build the bundle anew"):
        load(doubling | {"missing": ["a", "b"]}).refit(Path(doubling["onnx"]))


def test_an_unknown_type_of_tensor_is_not_guessed(doubling: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fake_tensorrt.ICudaEngine, "get_tensor_dtype", lambda self, name: "FP8")
    with pytest.raises(KeyError):
        load(doubling).bind({"x": (1, 3)})


def test_a_machine_without_a_gpu(doubling: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from pie_engine.backends.gpu import Machine
    from pie_engine.backends.tensorrt import library

    monkeypatch.setattr(library, "probe", lambda: Machine((), "", "no NVIDIA driver"))
    with pytest.raises(BackendError, match=r"'tensorrt' runs on an NVIDIA GPU .*\(no NVIDIA driver\); pass --backend"):
        load(doubling)
    monkeypatch.setattr(library, "probe", lambda: Machine((fake_tensorrt.GPU,), "13.0", ""))
    with pytest.raises(BackendError, match=r"device 'cuda:3' is not one of 1 GPUs; pass --device cuda:0"):
        Engine("tensorrt", b"", "it", torch.device("cuda", 3))


def test_a_bound_engine_keeps_what_it_runs_on(small: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A context whose engine, runtime or logger was freed is undefined behaviour."""
    fake_tensorrt.install(monkeypatch, "tensorrt")
    backend = TensorRTBackend(add_engines(small, tmp_path / "trt.pie", "tensorrt"), "tensorrt", device="cpu")
    call, owner = backend.bind_unet(1, 16, 16), backend._engines["unet"]
    parts = [weakref.ref(part) for part in (owner, owner._engine, owner._runtime, owner._logger)]
    del backend, owner
    gc.collect()
    assert all(part() is not None for part in parts)
    call()
