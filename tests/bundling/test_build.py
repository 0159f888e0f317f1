"""Checkpoint -> bundle: what is written, what is reused, and what happens when something goes wrong."""

from __future__ import annotations

import copy
import json
import shutil
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from golden import GOLDEN

from pie_engine import Item, PieEngine, RunConfig
from pie_engine.backends.onnx_backend import OnnxBackend
from pie_engine.bundling import build_bundle, cached_bundle
from pie_engine.bundling.components import cached_component
from pie_engine.checkpoint import Checkpoint
from pie_engine.config import COMPONENTS, BuildConfig
from pie_engine.errors import BuildError
from pie_engine.export import graph
from pie_engine.export.graph import Component
from pie_engine.model.bundle import MANIFEST, Bundle, open_bundle

RUN = RunConfig(steps=2, num_inference_steps=8, resolution=128)
ITEM = Item(GOLDEN / "image.png", "the heart lung", GOLDEN / "mask.png")


@pytest.fixture(scope="module")
def half(ddim_checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return build_bundle(ddim_checkpoint, tmp_path_factory.mktemp("half") / "half.pie", BuildConfig(precision="fp16"))


@pytest.fixture
def known(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the weights are the session's, so is what would be exported; a real export takes up to a minute."""

    def export(part: Component, folder: Path, **settings: Any) -> Path:
        return Path(shutil.copy(bundle.graph(part.name), folder))

    monkeypatch.setattr(graph, "export_component", export)


def test_manifest_says_what_was_built(bundle: Bundle, ddim_checkpoint: Checkpoint) -> None:
    manifest = json.loads((bundle.path / MANIFEST).read_text())
    assert manifest["precision"] == "fp32"
    assert manifest["hashes"] == ddim_checkpoint.hashes
    assert manifest["model"]["scaling_factor"] == pytest.approx(0.5822)
    assert manifest["model"]["resolution_multiple"] == 16
    assert manifest["model"]["scheduler_config"]["_class_name"] == "DDIMScheduler"
    assert manifest["versions"]["torch"].startswith("2.")
    for name in COMPONENTS:
        part = manifest["components"][name]
        assert part["precision"] == "fp32"
        assert 0 < part["relative_error"] <= part["tolerance"] == graph.TOLERANCE["fp32"]
        assert f"{name}/model.onnx" in manifest["files"]
    on_disk = {str(path.relative_to(bundle.path)) for path in bundle.path.rglob("*") if path.is_file()}
    assert on_disk == {*manifest["files"], MANIFEST}
    assert not list(bundle.path.parent.glob(".*"))  # nothing half-written beside it


def test_graphs_are_valid_and_keep_module_names_but_no_paths(bundle: Bundle) -> None:
    here = str(Path(torch.__file__).parents[2]).encode()
    for name in COMPONENTS:
        onnx.checker.check_model(bundle.graph(name))
        assert here not in bundle.graph(name).read_bytes()
    unet = onnx.load(bundle.graph("unet"))
    scopes = [p.value for node in unet.graph.node for p in node.metadata_props if p.key.endswith("name_scopes")]
    assert any("down_blocks" in scope for scope in scopes)
    sizes = {i.name: [d.dim_param or d.dim_value for d in i.type.tensor_type.shape.dim] for i in unet.graph.input}
    assert sizes == {"sample": ["batch", 4, "height", "width"], "timestep": [1], "context": ["batch", 77, 16]}


def test_a_new_unet_rebuilds_only_the_unet(ddim_checkpoint: Checkpoint, known: None, tmp_path: Path) -> None:
    changed = replace(ddim_checkpoint, hashes=ddim_checkpoint.hashes | {"unet": "0" * 64})
    lines: list[str] = []
    built = build_bundle(changed, tmp_path / "new.pie", on_component=lines.append)
    fresh = [line.split(":")[0] for line in lines if "unchanged" not in line]
    assert fresh == ["unet"]
    assert len(lines) == len(COMPONENTS)
    assert built.model.hashes["unet"] == "0" * 64


def test_a_damaged_cache_is_not_used(ddim_checkpoint: Checkpoint, known: None, tmp_path: Path) -> None:
    config = BuildConfig(cache_dir=tmp_path / "cache")  # so that the session's bundle stays whole
    first = build_bundle(ddim_checkpoint, tmp_path / "first.pie", config)
    # Hard links: whoever damages the bundle damages the cache.
    target = first.graph("text_encoder")
    content = bytearray(target.read_bytes())
    content[len(content) // 2] ^= 1
    target.write_bytes(content)
    lines: list[str] = []
    second = build_bundle(ddim_checkpoint, tmp_path / "second.pie", config, on_component=lines.append)
    assert [line.split(":")[0] for line in lines if "unchanged" not in line] == ["text_encoder"]
    open_bundle(second.path)


def test_cached_bundle_is_built_once(ddim_checkpoint: Checkpoint, tmp_path: Path) -> None:
    lines: list[str] = []
    # Another scheduler is another bundle of the same components, which no other test builds.
    own = replace(ddim_checkpoint, scheduler_config=ddim_checkpoint.scheduler_config | {"steps_offset": 0})
    first = cached_bundle(own, on_component=lines.append)
    again = cached_bundle(own, on_component=lines.append)
    assert first.path == again.path
    assert len(lines) == len(COMPONENTS)


def test_builds_at_the_same_time_share_the_work(ddim_checkpoint: Checkpoint, bundle: Bundle, tmp_path: Path) -> None:
    """One exports, the other waits and takes what it finds."""
    changed = replace(ddim_checkpoint, hashes=ddim_checkpoint.hashes | {"text_encoder": "3" * 64})
    lines: list[str] = []
    errors: list[BaseException] = []

    def build(number: int) -> None:
        try:
            cached_component(changed, "text_encoder", BuildConfig(), lines.append)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=build, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert sorted("unchanged" in line for line in lines) == [False, True]


def test_failure_leaves_nothing_and_keeps_the_earlier_bundle(
    ddim_checkpoint: Checkpoint, known: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, cache = tmp_path / "bundle.pie", tmp_path / "cache"
    config = BuildConfig(cache_dir=cache)
    build_bundle(ddim_checkpoint, output, config)
    before = (output / MANIFEST).read_text()
    other = replace(ddim_checkpoint, hashes=ddim_checkpoint.hashes | {"text_encoder": "1" * 64})
    monkeypatch.setattr(graph, "check_parity", lambda *args, **kwargs: 0.5)
    with pytest.raises(BuildError, match=r"text_encoder exported in fp32 differs from PyTorch by 5.0e-01"):
        build_bundle(other, output, config)
    assert (output / MANIFEST).read_text() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle.pie", "cache"]
    assert not [path for path in (cache / "components").iterdir() if path.name.startswith(".")]


def test_parity_check_sees_a_wrong_weight(bundle: Bundle, ddim_checkpoint: Checkpoint, tmp_path: Path) -> None:
    """The check must be able to fail: one bias moved by a hundredth of its tensor's size."""
    from pie_engine.export.components import component

    part = component(ddim_checkpoint, "unet")
    with torch.no_grad():
        reference = part.module(*part.inputs.values()).numpy()
    model = onnx.load(bundle.graph("unet"))
    bias = next(t for t in model.graph.initializer if t.name.endswith("conv_in.bias"))
    values = onnx.numpy_helper.to_array(bias).copy()
    values[0] += 0.01 * np.abs(values).max()
    bias.CopyFrom(onnx.numpy_helper.from_array(values, bias.name))
    onnx.save(model, tmp_path / "model.onnx")
    error = graph.check_parity(part, bundle.graph("unet"), reference, precision="fp32")
    wrong = graph.check_parity(part, tmp_path / "model.onnx", reference, precision="fp32")
    assert error <= graph.TOLERANCE["fp32"] < wrong


def test_large_weights_go_beside_the_graph(
    ddim_checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pie_engine.export.components import component

    monkeypatch.setattr(graph, "EXTERNAL_BYTES", 1000)
    part = component(ddim_checkpoint, "text_encoder")
    path = graph.export_component(part, tmp_path, precision="fp32", opset=20)
    assert (tmp_path / "model.onnx.data").stat().st_size > 50_000
    with torch.no_grad():
        reference = part.module(*part.inputs.values()).numpy()
    assert graph.check_parity(part, path, reference, precision="fp32") <= graph.TOLERANCE["fp32"]


@pytest.mark.parametrize(("batch", "height", "width"), [(1, 16, 16), (3, 8, 24), (2, 2, 4)])
def test_batch_and_size_are_dynamic(
    bundle: Bundle, ddim_checkpoint: Checkpoint, batch: int, height: int, width: int
) -> None:
    call = OnnxBackend(bundle, threads=1).bind_unet(batch, height, width)
    generator = torch.Generator().manual_seed(0)
    for tensor in (call.sample, call.context):
        tensor.copy_(torch.randn(tensor.shape, generator=generator))
    call.timestep.fill_(123.5)
    call()
    with torch.no_grad():
        expected = ddim_checkpoint.unet(call.sample, 123.5, encoder_hidden_states=call.context).sample
    assert graph.relative_error(call.output.numpy(), expected.numpy()) <= graph.TOLERANCE["fp32"]


def test_half_precision_bundle_runs_close_to_single(half: Bundle, bundle: Bundle) -> None:
    assert half.precision == "fp16"
    kinds = {name: part["precision"] for name, part in half.manifest["components"].items()}
    assert kinds["unet"] == "fp16"
    weights = onnx.load(half.graph("unet")).graph.initializer
    assert all(t.data_type != onnx.TensorProto.FLOAT for t in weights if t.name.endswith("weight"))
    eager = PieEngine.load(checkpoint=GOLDEN / "checkpoint_ddim", backend="torch", device="cpu", dtype="fp16")
    expected = PieEngine(OnnxBackend(bundle, threads=1)).run(ITEM, RUN).latents[-1]
    error, eager_error = (
        np.linalg.norm(engine.run(ITEM, RUN).latents[-1] - expected) / np.linalg.norm(expected)
        for engine in (PieEngine(OnnxBackend(half, threads=1)), eager)
    )
    # No worse than twice eager PyTorch in the same dtype, which itself must differ from fp32.
    assert 0 < error < 2 * eager_error


def test_a_vae_that_overflows_in_half_precision_stays_in_single(ddim_checkpoint: Checkpoint, tmp_path: Path) -> None:
    overflowing = copy.deepcopy(ddim_checkpoint.vae)
    with torch.no_grad():
        # Two adjoining layers, scaled up and down again: the same function, beyond fp16's 65,504 in between.
        overflowing.post_quant_conv.weight *= 1e7
        overflowing.post_quant_conv.bias *= 1e7
        overflowing.decoder.conv_in.weight /= 1e7
    changed = replace(ddim_checkpoint, vae=overflowing, hashes=ddim_checkpoint.hashes | {"vae": "2" * 64})
    built = build_bundle(changed, tmp_path / "half.pie", BuildConfig(precision="fp16"))
    precisions = {name: entry["precision"] for name, entry in built.manifest["components"].items()}
    assert precisions == dict.fromkeys(COMPONENTS, "fp16") | {"vae_decoder": "fp32"}


@pytest.mark.trt
@pytest.mark.parametrize("component", COMPONENTS)
def test_tensorrt_parses_the_graphs(bundle: Bundle, component: str) -> None:
    """Parsing needs no GPU; building is the TensorRT backend's own test."""
    import importlib

    name = "tensorrt" if importlib.util.find_spec("tensorrt") else "tensorrt_rtx"
    trt = importlib.import_module(name)
    logger = trt.Logger(trt.Logger.ERROR)
    network = trt.Builder(logger).create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    parsed = parser.parse_from_file(str(bundle.graph(component)))
    assert parsed, [str(parser.get_error(i)) for i in range(parser.num_errors)]
    assert network.num_outputs == 1
