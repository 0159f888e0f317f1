"""Engines built with the real compiler (tensorrt-rtx needs no GPU for it), and what the records say of them."""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import Attention

from pie_engine.backends.gpu import probe
from pie_engine.backends.tensorrt import builder, library
from pie_engine.backends.tensorrt.builder import Profile, Request, compile_plan, inspect_plan, needs_decomposing
from pie_engine.bundling import assemble, build_bundle, engines
from pie_engine.bundling.components import cached_component
from pie_engine.bundling.engines import cached_engine, profiles
from pie_engine.bundling.target import Target, resolve_target
from pie_engine.checkpoint import Checkpoint, load_checkpoint
from pie_engine.config import COMPONENTS, BuildConfig, EngineConfig
from pie_engine.demo.assets import CHECKPOINT
from pie_engine.errors import BackendError, BuildError, ConfigError
from pie_engine.export.promote import to_single_precision
from pie_engine.model.bundle import Bundle, open_bundle

pytestmark = [pytest.mark.trt]
CAPABILITIES = ("7.5", "8.6", "8.9", "12.0")
CONFIG = BuildConfig(engines=EngineConfig("tensorrt-rtx", batches=(1, 2), capabilities=CAPABILITIES))
FP32 = BuildConfig(precision="fp32", engines=EngineConfig("tensorrt-rtx", capabilities=("8.6",)))


@pytest.fixture(scope="module", autouse=True)
def rtx() -> Any:
    if probe().gpus:
        pytest.skip("written for a machine without a GPU, where nothing is inspected and weights are fixed")
    return pytest.importorskip("tensorrt_rtx")


@pytest.fixture(scope="module")
def demo() -> Checkpoint:
    return load_checkpoint(CHECKPOINT)


@pytest.fixture(scope="module")
def built(demo: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, list[str]]:
    """All engines of the demo checkpoint, and what the build said."""
    lines: list[str] = []
    return build_bundle(demo, tmp_path_factory.mktemp("rtx") / "rtx.pie", CONFIG, on_component=lines.append), lines


@pytest.fixture(scope="module")
def facts(demo: Checkpoint) -> dict[str, Any]:
    return assemble.model_facts(demo)


@pytest.fixture(scope="module")
def text_encoder(demo: Checkpoint, built: Any) -> Path:
    """The exported folder, from the cache."""
    return cached_component(demo, "text_encoder", CONFIG, lambda line: None)


def entry(bundle: Bundle, name: str) -> dict[str, Any]:
    (found,) = [entry for entry in bundle.engines("tensorrt-rtx") if entry["component"] == name]
    return found


def attentions(checkpoint: Checkpoint, name: str) -> int:
    """By the architecture: modules of diffusers, and a text encoder's layers."""
    if name == "text_encoder":
        return int(checkpoint.text_encoder.config.num_hidden_layers)
    vae = checkpoint.vae
    part = {"unet": checkpoint.unet, "vae_encoder": vae.encoder, "vae_decoder": vae.decoder}[name]
    return sum(isinstance(module, Attention) for module in part.modules())


def request(onnx: Path, plan: Path, facts: dict[str, Any], **changes: Any) -> Request:
    tokens = facts["max_tokens"]
    shapes: list[Profile] = [{"ids": ((1, tokens), (2, tokens), (3, tokens))}]
    return replace(Request("tensorrt-rtx", str(onnx), str(plan), shapes, ("8.6",)), **changes)


def test_every_component_has_a_plan_and_a_fingerprint(built: Any, facts: dict[str, Any], rtx: Any) -> None:
    bundle, _ = built
    assert [found["component"] for found in bundle.engines()] == list(COMPONENTS)
    for name in COMPONENTS:
        found = entry(bundle, name)
        plan = bundle.path / found["file"]
        # The weights are in it: half of them in bytes is what constant folding may leave at the very least.
        assert plan.stat().st_size == found["bytes"] > bundle.graph(name).stat().st_size / 2
        assert bundle.manifest["files"][found["file"]]["bytes"] == found["bytes"]
        assert (found["version"], found["gpu"]) == (rtx.__version__, None)
        assert (found["capabilities"], found["weights"]) == (list(CAPABILITIES), "fixed")
        assert found["precision"] == bundle.manifest["components"][name]["precision"] == "fp16"
        assert found["weights_hash"] == bundle.weights_hash(name)
        assert found["driver_floor"] == library.driver_floor("tensorrt-rtx")
        assert re.fullmatch(r"\d+\.0", found["driver_floor"])
        assert found["network_layers"] > found["network_attentions"]
        assert found["host_memory_bytes"] > found["bytes"] and found["seconds"] > 0
    open_bundle(bundle.path)


def test_profiles_are_those_that_the_loop_asks_for(built: Any, facts: dict[str, Any]) -> None:
    bundle, _ = built
    side, tokens = facts["default_resolution"], facts["max_tokens"]
    latent = side // facts["vae_scale"]
    recorded = {name: entry(bundle, name)["profiles"] for name in COMPONENTS}
    assert all(entry(bundle, name)["resolutions"] == [side] for name in COMPONENTS)
    assert all(entry(bundle, name)["batches"] == [1, 2] for name in COMPONENTS)
    assert recorded["text_encoder"] == [{"ids": [[1, tokens], [2, tokens], [5, tokens]]}]
    for batch, profile in zip((1, 2), recorded["vae_encoder"], strict=True):
        assert profile == {"pixels": [[batch, 3, side, side]] * 3}
    for batch, profile in zip((1, 2), recorded["vae_decoder"], strict=True):
        assert profile == {"latent": [[batch, 4, latent, latent]] * 3}
    # Guided and unguided, each batch once, and usual sizes are what runs.
    usual = [profile["sample"][1][0] for profile in recorded["unet"]]
    assert usual == [2, 4, 1]
    for profile in recorded["unet"]:
        assert [shape[0] for shape in profile["sample"]] == [shape[0] for shape in profile["context"]]
        assert {tuple(shape[1:]) for shape in profile["sample"]} == {(4, latent, latent)}
        assert {tuple(shape[1:]) for shape in profile["context"]} == {(tokens, facts["text_width"])}


@pytest.mark.parametrize("name", COMPONENTS)
def test_attention_stays_whole_from_pytorch_to_the_plan(built: Any, demo: Checkpoint, name: str, rtx: Any) -> None:
    bundle, _ = built
    expected, found = attentions(demo, name), entry(bundle, name)
    assert expected > 0
    logger = rtx.Logger(rtx.Logger.ERROR)
    network = rtx.Builder(logger).create_network(1 << int(rtx.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    assert rtx.OnnxParser(network, logger).parse_from_file(str(bundle.graph(name)))
    kinds = [network.get_layer(i).type for i in range(network.num_layers)]
    assert kinds.count(rtx.LayerType.ATTENTION_INPUT) == expected
    assert found["network_attentions"] == found["attention"]["graph"] == expected
    assert found["network_layers"] == network.num_layers
    # Within a plan, each use of a kernel for a whole attention: one per attention and profile.
    kernels = (bundle.path / found["file"]).read_bytes().count(b"name=_gemm_mha_v2 ")
    assert found["attention"]["fused"] == kernels // len(found["profiles"])
    if name.startswith("vae"):
        # Its one head is as wide as the layer, and at batch 1 it is taken apart: recorded, not hidden.
        assert found["attention"]["fused"] == 0 and kernels < len(found["profiles"])
    else:
        assert kernels == expected * len(found["profiles"])
    assert found["attention"]["seen_by"] == "kernel names in the plan"


def test_the_build_says_what_it_does(built: Any, demo: Checkpoint) -> None:
    _, lines = built
    version = library.installed_version("tensorrt-rtx")
    for name in COMPONENTS:
        own = [line for line in lines if line.startswith(f"{name}:")]
        assert own[-2:][0] == f"{name}: compiling with tensorrt-rtx {version}"
        number = attentions(demo, name)
        fused = 0 if name.startswith("vae") else number
        shapes = {"text_encoder": 1, "unet": 3}.get(name, 2)
        assert f"{shapes} shapes, {fused} of {number} attentions fused, " in own[-1]


def test_a_second_build_compiles_nothing(
    built: Any, demo: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "compile_plan", lambda *args: pytest.fail("compiled again"))
    lines: list[str] = []
    again = build_bundle(demo, tmp_path / "again.pie", CONFIG, on_component=lines.append)
    assert again.engines() == built[0].engines()
    assert not [line for line in lines if "compiling" in line]
    assert len([line for line in lines if "unchanged" in line]) == len(COMPONENTS)


def test_other_shapes_are_another_plan(
    text_encoder: Path, facts: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Request] = []

    def compiles(request: Request, *rest: Any) -> dict[str, Any]:
        asked.append(request)
        Path(request.plan).write_bytes(b"plan")
        facts = dict.fromkeys(("seconds", "host_memory_bytes", "network_layers", "network_attentions"), 1)
        return {"bytes": 4, "fused_attention_kernels": 2, "warnings": [], "log": []} | facts

    monkeypatch.setattr(engines, "compile_plan", compiles)
    base = resolve_target(EngineConfig("tensorrt-rtx", capabilities=("8.6",)), facts)
    targets = [base, replace(base, batches=(1, 3)), replace(base, capabilities=("8.9",)), replace(base, version="0")]
    targets += [replace(base, optimisation_level=0), replace(base, workspace=0.5), base]
    for target in targets:
        cached_engine("text_encoder", text_encoder, target, facts, tmp_path, lambda line: None)
    assert len(asked) == len(targets) - 1
    assert [found.capabilities for found in asked[:3]] == [("8.6",), ("8.6",), ("8.9",)]
    assert [found.optimisation_level for found in asked].count(0) == 1
    assert [found.workspace_bytes for found in asked].count(2**29) == 1


def test_a_damaged_plan_in_the_cache_is_compiled_again(
    text_encoder: Path, facts: dict[str, Any], tmp_path: Path
) -> None:
    target = resolve_target(EngineConfig("tensorrt-rtx", capabilities=("8.6",)), facts)
    lines: list[str] = []

    def build() -> engines.Engine:
        return cached_engine("text_encoder", text_encoder, target, facts, tmp_path, lines.append)

    plan = build().folder / "engine.plan"
    content = bytearray(plan.read_bytes())
    content[len(content) // 2] ^= 1
    plan.write_bytes(content)
    assert build().folder == plan.parent
    assert plan.read_bytes() != content
    assert len([line for line in lines if "compiling" in line]) == 2
    build()
    assert len([line for line in lines if "compiling" in line]) == 2
    assert not [path for path in plan.parents[1].iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("capability", library.RTX_CAPABILITIES)
def test_each_capability_alone(text_encoder: Path, facts: dict[str, Any], tmp_path: Path, capability: str) -> None:
    plan = tmp_path / "engine.plan"
    outcome = compile_plan(request(text_encoder / "model.onnx", plan, facts, capabilities=(capability,)), "it")
    assert outcome["bytes"] == plan.stat().st_size > 10_000
    assert outcome["fused_attention_kernels"] == outcome["network_attentions"] > 0
    assert [path.name for path in tmp_path.iterdir()] == ["engine.plan"]


def test_the_u_net_on_the_oldest_capability_runs_single_items(
    demo: Checkpoint, built: Any, facts: dict[str, Any], tmp_path: Path
) -> None:
    """tensorrt-rtx 1.7 compiles no static batch of one for 7.5; a range that holds it compiles."""
    target = resolve_target(EngineConfig("tensorrt-rtx", capabilities=("7.5",)), facts)
    (single,) = [profile for profile in profiles("unet", target, facts) if profile["sample"][1][0] == 1]
    assert single["sample"][0][0] == 1 < single["sample"][2][0]
    newer = replace(target, capabilities=("8.6",))
    assert all(low == high for p in profiles("unet", newer, facts) for low, _, high in p.values())
    exported = cached_component(demo, "unet", CONFIG, lambda line: None)
    plan = tmp_path / "engine.plan"
    outcome = compile_plan(Request("tensorrt-rtx", str(exported / "model.onnx"), str(plan), [single], ("7.5",)), "unet")
    assert outcome["fused_attention_kernels"] >= attentions(demo, "unet")


def test_single_precision_takes_the_text_encoder_s_attention_apart(
    demo: Checkpoint, facts: dict[str, Any], tmp_path: Path
) -> None:
    assert FP32.engines is not None
    target = resolve_target(FP32.engines, facts)
    lines: list[str] = []
    (tmp_path / "new.pie").mkdir()
    record, engine = assemble._add_component(
        demo, "text_encoder", FP32, target, facts, tmp_path / "new.pie", lines.append
    )
    assert "text_encoder: no kernel for a whole attention of this size and precision; taken apart" in lines
    assert record["precision"] == "fp32" and engine is not None
    # Each attention still counts: it has one softmax. No kernel computes a whole one.
    assert engine["attention"]["graph"] == attentions(demo, "text_encoder")
    assert engine["attention"]["fused"] == engine["network_attentions"] == 0
    assert (tmp_path / "new.pie" / engine["file"]).stat().st_size == engine["bytes"]
    # The graph beside the engine is the one that it was compiled from.
    import onnx

    graph = onnx.load(tmp_path / "new.pie" / "text_encoder" / "model.onnx")
    assert {opset.domain: opset.version for opset in graph.opset_import}[""] == 20


def test_a_u_net_that_is_not_fused_is_called_a_defect(
    demo: Checkpoint, built: Any, facts: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    exported = tmp_path / "unet"
    exported.mkdir()
    to_single_precision(cached_component(demo, "unet", CONFIG, lambda line: None) / "model.onnx", exported)
    assert FP32.engines is not None
    target = resolve_target(FP32.engines, facts)
    with caplog.at_level(logging.WARNING):
        engine = cached_engine("unet", exported, target, facts, tmp_path, lambda line: None)
    number = attentions(demo, "unet")
    assert engine.record["attention"]["graph"] == engine.record["network_attentions"] == number
    assert engine.record["attention"]["fused"] == 0
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.startswith(f"defect: {number} of {number} attentions of the U-Net are not fused")
    assert message.endswith("build with --precision fp16")


def test_a_broken_graph_is_refused(facts: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"not a graph")
    with pytest.raises(BuildError, match=r"^tensorrt-rtx cannot compile text_encoder: .+") as caught:
        compile_plan(request(tmp_path / "model.onnx", tmp_path / "engine.plan", facts), "text_encoder")
    assert "\n" not in str(caught.value)
    assert not needs_decomposing(caught.value)
    assert not (tmp_path / "engine.plan").exists()


def test_a_shape_that_does_not_fit_the_graph_is_refused(
    text_encoder: Path, facts: dict[str, Any], tmp_path: Path
) -> None:
    wrong = [{"ids": ((1, 5), (1, 5), (1, 5))}]
    with pytest.raises(BuildError, match=r"^tensorrt-rtx cannot compile it: "):
        compile_plan(request(text_encoder / "model.onnx", tmp_path / "engine.plan", facts, profiles=wrong), "it")
    assert list(tmp_path.iterdir()) == []


def test_exchangeable_weights_need_the_gpu(text_encoder: Path, facts: dict[str, Any], tmp_path: Path) -> None:
    config = EngineConfig("tensorrt-rtx", capabilities=("8.6",), weights="refittable")
    with pytest.raises(ConfigError, match=r"weights 'refittable' are compiled on the GPU .* pass --weights fixed"):
        resolve_target(config, facts)
    with pytest.raises(BuildError, match=r"exchanged are compiled on a GPU and for it alone .* pass --weights fixed"):
        compile_plan(request(text_encoder / "model.onnx", tmp_path / "p", facts, weights="refittable"), "it")


def test_what_a_machine_without_a_gpu_cannot_compile(facts: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"no GPU to compile for; pass --compute-capability with some of 7.5,8.0,"):
        resolve_target(EngineConfig("tensorrt-rtx"), facts)
    with pytest.raises(ConfigError, match=r"compiles for compute capability 7.5, .*, not 7.0; pass one of them"):
        resolve_target(EngineConfig("tensorrt-rtx", capabilities=("7.0",)), facts)
    with pytest.raises(ConfigError, match=r"resolution 100 does not fit this U-Net"):
        resolve_target(EngineConfig("tensorrt-rtx", capabilities=("8.6",), resolutions=(100,)), facts)
    target = resolve_target(EngineConfig("tensorrt-rtx", capabilities=("12.0", "8.6", "12.0")), facts)
    assert target.capabilities == ("8.6", "12.0")


def pretend(monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Run a Python script instead of the worker."""
    monkeypatch.setattr(
        builder.subprocess, "Popen", lambda command, **settings: _START([sys.executable, "-c", script], **settings)
    )


_START = subprocess.Popen


@pytest.fixture
def any_request(text_encoder: Path, facts: dict[str, Any], tmp_path: Path) -> Request:
    return request(text_encoder / "model.onnx", tmp_path / "engine.plan", facts)


def test_a_worker_that_is_killed(any_request: Request, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    with pytest.raises(BuildError, match=r"the build of unet was killed, as happens when memory runs out; .*--batch"):
        compile_plan(any_request, "unet")


def test_a_worker_that_is_killed_within_a_line(any_request: Request, monkeypatch: pytest.MonkeyPatch) -> None:
    script = 'import os, signal; os.write(1, b\'{"phase": "Build\'); os.kill(os.getpid(), signal.SIGKILL)'
    pretend(monkeypatch, script)
    with pytest.raises(BuildError, match="the build of unet was killed"):
        compile_plan(any_request, "unet")


def test_a_worker_that_dies_tells_its_last_line(any_request: Request, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(
        monkeypatch, "import sys; print('first', file=sys.stderr); print('CUDA died', file=sys.stderr); sys.exit(7)"
    )
    with pytest.raises(BuildError, match=r"the build of unet ended with exit status 7 \(CUDA died\)"):
        compile_plan(any_request, "unet")
    pretend(monkeypatch, "import sys; sys.exit(0)")
    with pytest.raises(BuildError, match=r"ended with exit status 0 \(no message\)"):
        compile_plan(any_request, "unet")


def test_progress_and_outcome_are_told_apart(any_request: Request, monkeypatch: pytest.MonkeyPatch) -> None:
    messages = [{"phase": "Tactics", "step": 0, "steps": 4}, {"phase": "Tactics", "step": 3, "steps": 4}]
    lines = "".join(json.dumps(message) + "\n" for message in (*messages, {"outcome": {"bytes": 1}}))
    pretend(monkeypatch, f"import sys; sys.stdin.read(); sys.stdout.write({lines!r})")
    told: list[str] = []
    assert compile_plan(any_request, "unet", told.append) == {"bytes": 1}
    assert told == ["Tactics 1/4", "Tactics 4/4"]


@pytest.mark.parametrize("error", ["[cudaMalloc] OutOfMemory (no more)", "std::bad_alloc", "CUDA: out of memory"])
def test_memory_of_the_compiler_is_explained(any_request: Request, monkeypatch: pytest.MonkeyPatch, error: str) -> None:
    pretend(monkeypatch, f"print({json.dumps({'outcome': {'error': error}})!r})")
    with pytest.raises(BuildError, match="close other programs, or build fewer --batch and --resolution at once"):
        compile_plan(any_request, "unet")


def test_too_little_memory_is_refused_beforehand(any_request: Request, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, "raise SystemExit('not to be run')")
    monkeypatch.setattr(builder, "available_memory", lambda: 100_000_000)
    with pytest.raises(BuildError, match=r"needs about 0\.4 GB of memory and 0\.1 GB are free; close other programs"):
        compile_plan(any_request, "unet")
    monkeypatch.setattr(builder, "available_memory", lambda: None)  # a system that does not say
    with pytest.raises(BuildError, match="not to be run"):
        compile_plan(any_request, "unet")


def test_memory_that_is_free() -> None:
    free = builder.available_memory()
    assert free is not None
    assert 2**20 < free < 2**50


def test_a_library_that_is_not_there(any_request: Request, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, "raise SystemExit('not to be run')")
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(BackendError, match=r"'tensorrt-rtx' .*pip install 'pie-engine\[tensorrt-rtx\]'"):
        compile_plan(any_request, "unet")


@pytest.mark.parametrize(
    ("flavour", "version", "accepted"),
    [
        ("tensorrt", "10.8.0.43", False),
        ("tensorrt", "10.16.1.11", True),
        ("tensorrt", "11.4.0.106", True),
        ("tensorrt-rtx", "1.3.0.1", False),
        ("tensorrt-rtx", "1.7.1.116", True),
    ],
)
def test_versions(monkeypatch: pytest.MonkeyPatch, flavour: str, version: str, accepted: bool) -> None:
    module = type(sys)(flavour)
    module.__version__ = version  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, flavour.replace("-", "_"), module)
    if accepted:
        assert library.import_library(flavour) is module
    else:
        with pytest.raises(BackendError, match=f"{version} is too old"):
            library.import_library(flavour)


def test_libraries_that_do_not_load(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(name: str) -> Any:
        raise ImportError("libnvinfer.so.11: cannot open shared object file\nmore")

    monkeypatch.setattr(library.importlib, "import_module", fails)
    with pytest.raises(BackendError, match=r"does not load \(libnvinfer.so.11: cannot open shared object file\);"):
        library.import_library("tensorrt")


def test_inspecting_needs_a_gpu(built: Any) -> None:
    bundle, _ = built
    plan = bundle.path / entry(bundle, "unet")["file"]
    with pytest.raises(BuildError, match="unet cannot be inspected: the engine inspector needs a GPU"):
        inspect_plan("tensorrt-rtx", plan, "unet")


def test_the_worker_writes_nothing_but_json(any_request: Request) -> None:
    """What the compiler prints goes to stderr."""
    from dataclasses import asdict

    command = [sys.executable, "-m", "pie_engine.backends.tensorrt.worker"]
    asked = json.dumps({"action": "build", **asdict(any_request)})
    done = subprocess.run(command, input=asked, capture_output=True, text=True, timeout=120)
    messages = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0
    assert [set(message) for message in messages[-1:]] == [{"outcome"}]
    assert isinstance(messages[-1]["outcome"]["warnings"], list)


def test_the_checkpoint_is_left_as_it_was(demo: Checkpoint, built: Any) -> None:
    assert {p.dtype for p in demo.unet.parameters()} == {torch.float32}


def test_targets_name_what_plans_depend_on(facts: dict[str, Any]) -> None:
    target = resolve_target(EngineConfig("tensorrt-rtx", capabilities=("8.6",)), facts)
    assert set(target.to_dict()) == set(Target.__dataclass_fields__)
    asked = engines.make_request(Path("m.onnx"), Path("p"), target, [], Path("cache"))
    assert (asked.capabilities, asked.timing_cache, asked.workspace_bytes) == (("8.6",), None, None)
