"""What runs a plan, without a GPU: profiles, addresses, shapes, types and weights, on fake_tensorrt."""

from __future__ import annotations

import gc
import hashlib
import json
import shutil
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import fake_tensorrt
import numpy as np
import onnx
import pytest
import torch
from fake_tensorrt import Strategy, add_engines
from golden import GOLDEN
from graph_emulator import EmulatedTimeline
from onnx import TensorProto, helper, numpy_helper

from pie_engine import Item, PieEngine, RunConfig
from pie_engine.backends.gpu import Machine
from pie_engine.backends.onnx_backend import OnnxBackend
from pie_engine.backends.tensorrt import library
from pie_engine.backends.tensorrt.backend import TensorRTBackend
from pie_engine.backends.tensorrt.engine import BoundEngine, Engine
from pie_engine.bundling import engines
from pie_engine.bundling.refit_engines import EngineRefit
from pie_engine.config import COMPONENTS
from pie_engine.errors import BackendError, BuildError, BundleError, ConfigError
from pie_engine.export.graph import TOLERANCE, relative_error
from pie_engine.model.bundle import MANIFEST, Bundle, open_bundle, write_manifest

SIDE = 128
RUN = RunConfig(steps=2, num_inference_steps=6, resolution=SIDE)
ITEM = Item(GOLDEN / "image.png", "the heart lung", GOLDEN / "mask.png")
CPU = torch.device("cpu")
Opens = Callable[..., TensorRTBackend]


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


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_tensorrt.install(monkeypatch, "tensorrt")


@pytest.fixture
def opens(small: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Opens:
    """Opens the bundle with engines of a flavour, or one that has them."""

    def run(flavour: str = "tensorrt", bundle: Bundle | None = None, **settings: Any) -> TensorRTBackend:
        fake_tensorrt.install(monkeypatch, flavour)
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.pie"
        return TensorRTBackend(bundle or add_engines(small, path, flavour, **settings), flavour, device="cpu")

    return run


@pytest.mark.parametrize(
    ("flavour", "settings"),
    [
        ("tensorrt", {}),
        ("tensorrt-rtx", {}),
        ("tensorrt", {"inversion": "ddim", "composite": False}),
        ("tensorrt-rtx", {"guidance_scale": 1.0}),
    ],
    ids=["guided", "guided, rtx", "inverted", "unguided, rtx"],
)
def test_a_progression_is_onnx_runtime_s(opens: Opens, expected: PieEngine, flavour: str, settings: Any) -> None:
    config = replace(RUN, **settings)
    result, wanted = PieEngine(opens(flavour)).run(ITEM, config), expected.run(ITEM, config)
    # The same graphs in the same runtime: nothing between them may differ.
    np.testing.assert_array_equal(result.latents, wanted.latents)
    np.testing.assert_array_equal(result.frames, wanted.frames)
    assert result.frames.std() > 1 and len(result.frames) == 3
    described = result.provenance["backend"]
    assert (described["name"], described["precisions"]) == (flavour, dict.fromkeys(COMPONENTS, "fp32"))


def test_items_run_in_the_batches_that_were_compiled(opens: Opens, expected: PieEngine) -> None:
    prompts = ["the heart", "lung", "the heart lung", "left lung", "right lung"]
    items = [replace(ITEM, prompt=p, item_id=str(i), mask=None if i > 2 else ITEM.mask) for i, p in enumerate(prompts)]
    wanted = [expected.run(item, RUN).latents for item in items]
    # A rest is filled up where no smaller size was compiled, and gives each item its own result.
    for compiled, count, batches in (((1, 2), 5, [2, 2, 1, 2, 2]), ((2,), 3, [2, 2, 2])):
        results = PieEngine(opens(batches=compiled)).run(items[:count], RUN)
        assert [result.provenance["backend"]["batch"] for result in results] == batches
        for result, latents in zip(results, wanted, strict=False):
            assert relative_error(result.latents, latents) < TOLERANCE["fp32"]


def test_rounds_can_be_captured(opens: Opens, expected: PieEngine) -> None:
    """Nothing between two replays may be decided or bound by the host: addresses stay."""
    backend, config = opens(), replace(RUN, steps=4)
    assert backend.stream is None and backend.capture_obstacle == ""
    engine = PieEngine(backend)
    timeline = EmulatedTimeline(graph=lambda function: function)  # kernels of another library: not torch's to record
    engine.simulator.timeline = timeline
    result = engine.run(ITEM, config)
    np.testing.assert_array_equal(result.latents, expected.run(ITEM, config).latents)
    assert result.provenance["runtime"]["cuda_graph"] and timeline.captures == 3


def test_each_shape_takes_its_own_profile(opens: Opens, small: Bundle) -> None:
    backend, latent, info = opens(), SIDE // 8, small.model
    calls = {batch: backend.bind_unet(batch, latent, latent) for batch in (1, 2, 4)}
    for batch, call in calls.items():
        assert call.sample.shape == call.output.shape == (batch, 4, latent, latent)
        assert call.context.shape == (batch, info.max_tokens, info.text_width)
        assert call.timestep.shape == (1,) and call.timestep.dtype == torch.float32
        context = call._graph._context
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


def test_each_shape_keeps_its_results_where_they_are(opens: Opens, small: Bundle) -> None:
    backend, reference = opens(), OnnxBackend(small, threads=1)
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
    backend.decode_latent(latents[0, :1])
    assert backend.decode_latent(latents[0]).data_ptr() == first.data_ptr()
    assert [key[0] for key in backend._kept] == ["vae_decoder"] * 2  # no round holds the text encoder's
    backend.release()
    assert not backend._kept and not backend._bound


def test_a_resolution_without_an_engine(opens: Opens) -> None:
    engine = PieEngine(opens())
    with pytest.raises(ConfigError, match=r"resolution 256 has no engine .*128 pixels, batch 1, 2.*resolution=128"):
        engine.run(ITEM, replace(RUN, resolution=256))
    assert engine.backend.raise_precision("unet") is None


def test_rtx_kernels_are_final_before_the_first_run(opens: Opens) -> None:
    configs = [opens(flavour).bind_unet(2, 16, 16)._graph._context._config for flavour in fake_tensorrt.VERSIONS]
    assert configs[0] is None
    assert configs[1].dynamic_shapes_kernel_specialization_strategy is Strategy.EAGER


@pytest.fixture
def tuned(small: Bundle, tmp_path: Path) -> Callable[[str], Bundle]:
    """Makes a bundle with another decoder, whose plan still holds the weights that it was compiled with."""

    def run(weights: str) -> Bundle:
        made = add_engines(small, tmp_path / "tuned.pie", "tensorrt", weights=weights)
        plan, graph = made.path / "engines/tensorrt/vae_decoder.plan", made.graph("vae_decoder")
        plan.write_text(json.dumps(json.loads(plan.read_text()) | {"onnx": str(small.graph("vae_decoder"))}))
        model = onnx.load(graph)
        bias = next(tensor for tensor in model.graph.initializer if tensor.name.endswith("conv_out.bias"))
        bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + 0.25, bias.name))
        graph.unlink()  # a hard link
        onnx.save(model, graph)
        hashes = made.manifest["hashes"] | {"vae": hashlib.sha256(graph.read_bytes()).hexdigest()}
        write_manifest(made.path, made.manifest | {"hashes": hashes})
        return open_bundle(made.path)

    return run


@pytest.fixture
def refitted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the engines that get other weights."""
    names: list[str] = []
    refit = Engine.refit
    monkeypatch.setattr(Engine, "refit", lambda self, path: (names.append(self.name), refit(self, path)))
    return names


def test_weights_are_exchanged_when_the_bundle_has_others(
    opens: Opens, expected: PieEngine, tuned: Any, refitted: list[str]
) -> None:
    opens(weights="refittable")
    assert refitted == []
    changed = tuned("refittable")
    result = PieEngine(opens(bundle=changed)).run(ITEM, RUN)
    assert refitted == ["vae_encoder", "vae_decoder"]  # both halves belong to one VAE
    np.testing.assert_array_equal(result.frames, PieEngine(OnnxBackend(changed, threads=1)).run(ITEM, RUN).frames)
    assert not np.array_equal(result.frames, expected.run(ITEM, RUN).frames)


def test_fixed_plans_refuse_other_weights(opens: Opens, tuned: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Engine, "__init__", lambda *_: pytest.fail("a plan was deserialised"))
    line = "vae_encoder was compiled with another checkpoint's weights; rebuild it: pie-engine build"
    with pytest.raises(BundleError, match=line):
        opens(bundle=tuned("fixed"))


@pytest.mark.parametrize(("weights", "name"), [("fixed", "unet"), ("refittable", "text_encoder")])
@pytest.mark.parametrize("factor", [1.0, 1.01, float("nan")])
def test_a_new_plan_is_compared_with_its_graph(
    small: Bundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    refitted: list[str],
    factor: float,
    weights: str,
    name: str,
) -> None:
    monkeypatch.setattr(torch, "device", lambda name: CPU)
    monkeypatch.setattr(engines, "compile_plan", fake_tensorrt.write_plan)
    real, seen = BoundEngine.__call__, set()

    def planted(self: BoundEngine) -> None:
        real(self)
        (output,) = self.outputs.values()
        output *= factor
        seen.add(tuple(output.shape[:2]))

    monkeypatch.setattr(BoundEngine, "__call__", planted)
    target = fake_tensorrt.target_of("tensorrt", weights=weights)
    asked = (name, small.path / name, target, vars(small.model), tmp_path, lambda line: None)
    if factor == 1:
        record = engines.cached_engine(*asked).record
        assert record["relative_error"] == 0 and record["attention"]["fused"] is None
    else:
        remedy = "precision='fp32'" if weights == "fixed" else "weights='fixed', or precision='fp32'"
        error = "1.0e-02" if factor == 1.01 else "inf"
        with pytest.raises(BuildError, match=rf"11.4.0.106 differs from its graph by {error} .*; pass {remedy}"):
            engines.cached_engine(*asked)
        assert [path.suffix for path in (tmp_path / "engines").glob(f"{name}*")] == []
    assert seen == {(2, 4) if name == "unet" else (2, 77)}  # the usual shape of the first profile
    assert refitted == ([] if weights == "fixed" else [name])


@pytest.mark.parametrize(
    ("forgets", "line"),
    [("", "engine is kept"), ("own weights", "cannot take these weights"), ("some", "cannot take these weights")],
)
def test_a_refitted_engine_is_tried_at_once(
    tuned: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forgets: str, line: str
) -> None:
    monkeypatch.setattr(torch, "device", lambda name: CPU)
    monkeypatch.setattr(EngineRefit, "_compile", lambda self, entry: {"compiled": True})
    if forgets == "own weights":
        monkeypatch.setattr(Engine, "refit", lambda self, path: None)
    elif forgets:
        monkeypatch.setattr(fake_tensorrt.Refitter, "get_missing_weights", lambda self: ["a bias"])
    changed, said = tuned("refittable"), []
    entry = next(entry for entry in changed.engines() if entry["component"] == "vae_decoder")
    shutil.copytree(changed.path / "vae_decoder", tmp_path / "new" / "vae_decoder")
    manifest = {"components": {"vae_decoder": {"refitted": True}}}
    refit = EngineRefit(changed, tmp_path / "new", manifest, ["vae_decoder"], {}, tmp_path, said.append)
    assert refit.place(entry) == ({"compiled": True} if forgets else entry)
    assert line in said[-1]
    assert (tmp_path / "new" / entry["file"]).exists() == (not forgets)


@pytest.fixture
def doubling(tmp_path: Path) -> dict[str, Any]:
    """A plan of one half-precision graph: 2 x, and an int64 input that does nothing."""
    value = helper.make_tensor_value_info
    two = helper.make_tensor("two", TensorProto.FLOAT16, [1], np.array([2], np.float16).tobytes(), raw=True)
    nodes = [helper.make_node("Mul", ["x", "two"], ["y"]), helper.make_node("Identity", ["n"], ["m"])]
    inputs, outputs = (
        [value(real, TensorProto.FLOAT16, ["b", 3]), value(whole, TensorProto.INT64, [2])]
        for real, whole in ("xn", "ym")
    )
    graph = helper.make_graph(nodes, "doubling", inputs, outputs, [two])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, tmp_path / "model.onnx")
    profiles = [{"x": [(1, 3), (2, 3), (4, 3)]}, {"x": [(8, 3)] * 3}]
    return {"onnx": str(tmp_path / "model.onnx"), "weights": "refittable", "profiles": profiles}


def load(plan: dict[str, Any]) -> Engine:
    return Engine("tensorrt", json.dumps(plan).encode(), "it", CPU)


def test_types_and_profiles_come_from_the_plan(doubling: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    for rows, profile in ((1, 0), (4, 0), (8, 1)):
        bound = BoundEngine(load(doubling), {"x": (rows, 3)})
        real, whole = (torch.float16, (rows, 3)), (torch.int64, (2,))
        found = {
            name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in {**bound.inputs, **bound.outputs}.items()
        }
        assert found == {"x": real, "n": whole, "y": real, "m": whole}
        assert bound._context._profile == profile
    with pytest.raises(BackendError, match=r"it was not compiled for \{'x': \(5, 3\), .*; build it for that shape"):
        BoundEngine(load(doubling), {"x": (5, 3)})
    monkeypatch.setattr(fake_tensorrt.ICudaEngine, "get_tensor_dtype", lambda self, name: "FP8")
    with pytest.raises(KeyError):  # not guessed
        BoundEngine(load(doubling), {"x": (1, 3)})


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"cut": True}, r"tensorrt cannot load it \(deserialisation failed: .*\); rebuild the bundle"),
        ({"memory": "no 9 GB left"}, r"it cannot be set up \(no 9 GB left\); lower resolution or batch"),
        ({"broken": True}, r"it failed on the GPU \(an illegal access\)"),
        ({"refit": "absent.onnx"}, r"it does not take the weights of .* \(not the same graph\); build"),
        ({"missing": ["a", "b"]}, r"it is left without 2 weights \(a, ...\); build the bundle anew"),
        ({"weights": "fixed"}, r"it cannot be refitted \(the engine is not refittable\); build the bundle anew"),
    ],
)
def test_what_the_library_refuses_is_told(doubling: dict[str, Any], changes: dict[str, Any], line: str) -> None:
    data = json.dumps(doubling | changes).encode()
    with pytest.raises(BackendError, match=line):
        engine = Engine("tensorrt", data[:-1] if "cut" in changes else data, "it", CPU)
        BoundEngine(engine, {"x": (1, 3)})
        engine.refit(Path(changes.get("refit", doubling["onnx"])))


def test_a_machine_without_a_gpu(doubling: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "probe", lambda: Machine((), "", "no NVIDIA driver"))
    with pytest.raises(BackendError, match=r"'tensorrt' runs on an NVIDIA GPU .*\(no NVIDIA driver\); pass backend"):
        load(doubling)
    monkeypatch.setattr(library, "probe", lambda: Machine((fake_tensorrt.GPU,), "13.0", ""))
    with pytest.raises(BackendError, match=r"device 'cuda:3' is not one of 1 GPUs; pass device='cuda:0'"):
        Engine("tensorrt", b"", "it", torch.device("cuda", 3))


def test_a_bound_engine_keeps_what_it_runs_on(opens: Opens) -> None:
    """A context whose engine, runtime or logger was freed is undefined behaviour."""
    backend = opens()
    call, owner = backend.bind_unet(1, 16, 16), backend._graphs["unet"]
    parts = [weakref.ref(part) for part in (owner, owner.plan, owner._runtime, owner._logger)]
    del backend, owner
    gc.collect()
    assert all(part() is not None for part in parts)
    call()
