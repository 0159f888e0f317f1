"""Engines built with the real compiler (tensorrt-rtx needs no GPU for it), and what the records say of them."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import fake_tensorrt
import onnx
import pytest
import torch
from diffusers.models.attention_processor import Attention
from machines import pretend_installed

from pie_engine.backends import host_memory
from pie_engine.backends.gpu import probe
from pie_engine.backends.tensorrt import builder, library
from pie_engine.backends.tensorrt.builder import compile_plan, needs_decomposing
from pie_engine.bundling import assemble, build_bundle, engines
from pie_engine.bundling.components import cached_component
from pie_engine.bundling.engines import cached_engine, profiles
from pie_engine.bundling.target import Target, resolve_target
from pie_engine.checkpoint import Checkpoint, load_checkpoint
from pie_engine.config import COMPONENTS, BuildConfig, EngineConfig
from pie_engine.demo.assets import CHECKPOINT
from pie_engine.errors import BackendError, BuildError
from pie_engine.model.bundle import Bundle, open_bundle

pytestmark = [pytest.mark.trt]
CONFIG = BuildConfig(engines=EngineConfig("tensorrt-rtx", batches=(1, 2), capabilities=library.RTX_CAPABILITIES))
FP32 = BuildConfig(precision="fp32", engines=EngineConfig("tensorrt-rtx", capabilities=("8.6",)))
SAYS = "import json; print(json.dumps({{'error': '{}'}}))"
OUT_OF_MEMORY = ("[cudaMalloc] OutOfMemory (no more)", "std::bad_alloc", "CUDA: out of memory")


@pytest.fixture(scope="module", autouse=True)
def rtx() -> Any:
    if probe().gpus:
        pytest.skip("written for a machine without a GPU, where nothing is compared and weights are fixed")
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


@pytest.fixture(scope="module")
def target(facts: dict[str, Any]) -> Target:
    return resolve_target(EngineConfig("tensorrt-rtx", capabilities=("8.6",)), facts)


@pytest.fixture
def compiles(text_encoder: Path, facts: dict[str, Any], target: Target, tmp_path: Path) -> Any:
    """Compiles the text encoder, or another graph, for 8.6, or for a changed target."""

    def run(name: str = "unet", onnx: Path = text_encoder / "model.onnx", **changes: Any) -> dict[str, Any]:
        shapes = changes.pop("shapes", None) or profiles("text_encoder", target, facts)
        return compile_plan(onnx, tmp_path / "engine.plan", shapes, replace(target, **changes), name)

    return run


def test_every_component_has_a_plan_and_a_fingerprint(built: Any, rtx: Any) -> None:
    bundle, _ = built
    assert [found["component"] for found in bundle.engines()] == list(COMPONENTS)
    facts = {
        "version": rtx.__version__, "gpu": None, "capabilities": list(library.RTX_CAPABILITIES), "weights": "fixed",
        "precision": "fp16", "driver_floor": library.driver_floor("tensorrt-rtx"), "relative_error": None,
    }  # fmt: skip
    assert re.fullmatch(r"\d+\.0", facts["driver_floor"])
    for name in COMPONENTS:
        found = entry(bundle, name)
        assert found.items() >= {**facts, "weights_hash": bundle.weights_hash(name)}.items()
        # The weights are in it: half of them in bytes is what constant folding may leave at the very least.
        size = (bundle.path / found["file"]).stat().st_size
        assert size == found["bytes"] > bundle.graph(name).stat().st_size / 2
        assert found["host_memory_bytes"] > size and found["seconds"] > 0
    open_bundle(bundle.path)


def test_profiles_are_those_that_the_loop_asks_for(built: Any, facts: dict[str, Any], target: Target) -> None:
    found = {name: entry(built[0], name) for name in COMPONENTS}
    side, tokens, width = facts["default_resolution"], facts["max_tokens"], facts["text_width"]
    latent = side // facts["vae_scale"]
    assert all((entry["resolutions"], entry["batches"]) == ([side], [1, 2]) for entry in found.values())
    assert found["text_encoder"]["profiles"] == [{"ids": [[1, tokens], [2, tokens], [5, tokens]]}]
    assert found["vae_encoder"]["profiles"] == [{"pixels": [[batch, 3, side, side]] * 3} for batch in (1, 2)]
    assert found["vae_decoder"]["profiles"] == [{"latent": [[batch, 4, latent, latent]] * 3} for batch in (1, 2)]
    # Guided and unguided, each batch once. tensorrt-rtx 1.7 compiles no static batch of one for 7.5, but a range.
    assert found["unet"]["profiles"] == [
        {"sample": [[n, 4, latent, latent] for n in sizes], "context": [[n, tokens, width] for n in sizes]}
        for sizes in ((2, 2, 2), (4, 4, 4), (1, 1, 2))
    ]
    assert all(low == high for profile in profiles("unet", target, facts) for low, _, high in profile.values())


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
    assert found["attention"]["graph"] == expected
    # Within a plan, each use of a kernel for a whole attention: one per attention and profile.
    kernels = (bundle.path / found["file"]).read_bytes().count(b"name=_gemm_mha_v2 ")
    assert found["attention"]["fused"] == kernels // len(found["profiles"])
    if name.startswith("vae"):
        # Its one head is as wide as the layer, and at batch 1 it is taken apart: recorded, not hidden.
        assert found["attention"]["fused"] == 0 and kernels < len(found["profiles"])
    else:
        assert kernels == expected * len(found["profiles"])


def test_the_build_says_what_it_does(built: Any, demo: Checkpoint) -> None:
    _, lines = built
    for name in COMPONENTS:
        *_, first, last = [line for line in lines if line.startswith(f"{name}:")]
        assert first == f"{name}: compiling with tensorrt-rtx {library.installed_version('tensorrt-rtx')}"
        number = attentions(demo, name)
        fused = 0 if name.startswith("vae") else number
        shapes = {"text_encoder": 1, "unet": 3}.get(name, 2)
        assert f"{shapes} shapes, {fused} of {number} attentions fused, " in last


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
    text_encoder: Path, facts: dict[str, Any], target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Target] = []

    def compiles(onnx: Path, plan: Path, shapes: Any, target: Target, name: str) -> dict[str, Any]:
        asked.append(target)
        return fake_tensorrt.write_plan(onnx, plan, shapes, target)

    monkeypatch.setattr(engines, "compile_plan", compiles)
    targets = [target, replace(target, batches=(1, 3)), replace(target, capabilities=("8.9",))]
    targets += [replace(target, version="0"), replace(target, optimisation_level=0), replace(target, workspace=0.5)]
    for other in (*targets, target):
        cached_engine("text_encoder", text_encoder, other, facts, tmp_path, lambda line: None)
    assert asked == targets


def test_a_damaged_plan_in_the_cache_is_compiled_again(
    text_encoder: Path, facts: dict[str, Any], target: Target, tmp_path: Path
) -> None:
    lines: list[str] = []

    def build() -> Path:
        return cached_engine("text_encoder", text_encoder, target, facts, tmp_path, lines.append).folder / "engine.plan"

    plan = build()
    content = bytearray(plan.read_bytes())
    content[len(content) // 2] ^= 1
    plan.write_bytes(content)
    assert build() == build() == plan and plan.read_bytes() != content
    assert len([line for line in lines if "compiling" in line]) == 2
    assert not [path for path in plan.parents[1].iterdir() if path.name.startswith(".")]


def test_single_precision_takes_the_text_encoder_s_attention_apart(
    demo: Checkpoint, facts: dict[str, Any], target: Target, tmp_path: Path
) -> None:
    lines: list[str] = []
    record, engine = assemble._add_component(demo, "text_encoder", FP32, target, facts, tmp_path, {}, lines.append)
    assert "text_encoder: no kernel for a whole attention of this size and precision; taken apart" in lines
    assert record["precision"] == "fp32" and engine is not None
    # Each attention still counts: it has one softmax. No kernel computes a whole one.
    assert engine["attention"] == {"graph": attentions(demo, "text_encoder"), "fused": 0}
    assert (tmp_path / engine["file"]).stat().st_size == engine["bytes"]
    # The graph beside the engine is the one that it was compiled from.
    graph = onnx.load(tmp_path / "text_encoder" / "model.onnx")
    assert {opset.domain: opset.version for opset in graph.opset_import}[""] == 20


def test_graphs_that_do_not_compile(compiles: Any, tmp_path: Path) -> None:
    broken = tmp_path / "model.onnx"
    broken.write_bytes(b"not a graph")
    with pytest.raises(BuildError, match=r"^tensorrt-rtx cannot compile text_encoder: .+") as caught:
        compiles("text_encoder", broken)
    assert "\n" not in str(caught.value) and not needs_decomposing(caught.value)
    broken.unlink()
    with pytest.raises(BuildError, match=r"^tensorrt-rtx cannot compile it: "):
        compiles("it", shapes=[{"ids": ((1, 5),) * 3}])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("script", "line"),
    [
        ("import os; os.kill(os.getpid(), 9)", r"unet was killed, as happens when memory runs out; .* fewer batches"),
        ("import sys; sys.exit('first\\nCUDA died')", r"unet ended with exit status 1 \(CUDA died\); report it"),
        ("pass", r"ended with exit status 0 \(no message\)"),
        *((SAYS.format(text), "; close other programs, or build fewer batches") for text in OUT_OF_MEMORY),
    ],
)
def test_a_worker_that_fails(compiles: Any, monkeypatch: pytest.MonkeyPatch, script: str, line: str) -> None:
    run = subprocess.run
    monkeypatch.setattr(
        builder.subprocess, "run", lambda command, **settings: run([sys.executable, "-c", script], **settings)
    )
    with pytest.raises(BuildError, match=line):
        compiles()


def test_too_little_memory_is_refused_beforehand(compiles: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    free = builder.available_memory()
    assert free is not None and 2**20 < free < 2**50
    assert host_memory.proc_bytes("/proc/nowhere", "MemAvailable") is None
    monkeypatch.setattr(builder, "available_memory", lambda: 100_000_000)
    with pytest.raises(BuildError, match=r"needs about 0\.4 GB of memory and 0\.1 GB are free; close other programs"):
        compiles()
    monkeypatch.setattr(builder, "available_memory", lambda: None)  # a system that does not say
    assert compiles()["host_memory_bytes"] > 2**20


@pytest.mark.parametrize(
    ("flavour", "version", "accepted"),
    [("tensorrt", "10.15.0.43", False), ("tensorrt", "10.16.1.post1", True), ("tensorrt-rtx", "1.3.0.1", False)],
)
def test_versions(monkeypatch: pytest.MonkeyPatch, flavour: str, version: str, accepted: bool) -> None:
    pretend_installed(monkeypatch, flavour, version)
    if accepted:
        assert library.import_library(flavour).__version__ == version
    else:
        with pytest.raises(BackendError, match=f"{version} is too old .* or later needed.; pip install"):
            library.import_library(flavour)


def test_libraries_that_do_not_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library.importlib, "import_module", Mock(side_effect=ImportError("libnvinfer.so.11: no\nmore")))
    with pytest.raises(
        BackendError, match=r"'tensorrt' does not load \(libnvinfer.so.11: no\); pip install .*, or pass"
    ):
        library.import_library("tensorrt")


def test_the_checkpoint_is_left_as_it_was(demo: Checkpoint, built: Any) -> None:
    assert {p.dtype for p in demo.unet.parameters()} == {torch.float32}
