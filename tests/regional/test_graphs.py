"""Exported graphs that compute whole pictures and boxes, in ONNX Runtime and OpenVINO, through `bind_boxed`."""

from __future__ import annotations

import copy
import functools
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from pie_engine.backends import openvino_session
from pie_engine.backends.onnx_backend import OnnxBackend
from pie_engine.backends.openvino_backend import OpenVINOBackend
from pie_engine.bundling import build_bundle, regional_graph
from pie_engine.bundling.refit import UNetWeights, refit_bundle
from pie_engine.checkpoint import Checkpoint
from pie_engine.cli.main import main
from pie_engine.config import BuildConfig
from pie_engine.errors import BackendError, BundleError
from pie_engine.export.graph import TOLERANCE, relative_error
from pie_engine.export.load import load_graph
from pie_engine.export.share import share_weights
from pie_engine.machine.inspection import inspect_bundle
from pie_engine.model.bundle import REGIONAL, Bundle, open_bundle
from pie_engine.regional.windows import Box

SIZE = (16, 24)
PARTS = {"unet": 1, "vae_decoder": 8}  # and how many of its pixels one latent becomes
needs_openvino = pytest.mark.skipif(not openvino_session.installed(), reason="openvino is not installed")
backends = pytest.mark.parametrize(
    "kind", [OnnxBackend, pytest.param(OpenVINOBackend, marks=needs_openvino)], ids=["onnxruntime", "openvino"]
)
parts = pytest.mark.parametrize("part", PARTS)


@pytest.fixture(scope="module")
def opened(bundle: Bundle) -> Callable[[Any], Any]:
    """One backend of each kind, with graphs that the session exports once."""
    graphs = functools.partial(regional_graph, bundle)
    return functools.cache(lambda kind: kind(bundle, threads=1, regional_graph=graphs))


@pytest.fixture(scope="module")
def half(ddim_checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return build_bundle(ddim_checkpoint, tmp_path_factory.mktemp("half") / "half.pie", BuildConfig(precision="fp16"))


@pytest.fixture(scope="module")
def with_boxes(ddim_checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("boxes") / "boxes.pie"
    return build_bundle(ddim_checkpoint, folder, BuildConfig(regional=True))


def fill(part: str, boxed: Any, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    boxed.sample.copy_(torch.randn(boxed.sample.shape, generator=generator))
    if part == "unet":
        boxed.timestep.fill_(481.0)
        boxed.context.copy_(torch.randn(boxed.context.shape, generator=generator))


def dense(backend: Any, part: str, boxed: Any) -> torch.Tensor:
    """What the component's own graph gives of a boxed network's inputs."""
    if part == "vae_decoder":
        return backend.decode_latent(boxed.sample).clone()
    call = backend.bind_unet(*boxed.sample.shape[:1], *boxed.sample.shape[2:])
    for own, others in ((call.sample, boxed.sample), (call.timestep, boxed.timestep), (call.context, boxed.context)):
        own.copy_(others)
    call()
    return call.output.clone()


def crop(x: torch.Tensor, boxes: list[Box], scale: int = 1) -> torch.Tensor:
    at = [[scale * n for n in box] for box in boxes]
    return torch.stack([y[:, t : t + h, s : s + w] for y, (t, s, h, w) in zip(x, at, strict=True)])


def places_of(seed: int, box: tuple[int, int], count: int) -> list[Box]:
    generator = random.Random(seed)
    return [Box(*(generator.randint(0, side - length) for side, length in zip(SIZE, box, strict=True)), *box)
            for _ in range(count)]  # fmt: skip


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return relative_error(found.numpy(), expected.numpy())


def check(backend: Any, part: str, tolerance: float) -> None:
    """Whole pictures against the dense graph, and boxes against them: two sizes, each at two pairs of places."""
    bound = {box: backend.bind_boxed(part, 2, *SIZE, box) for box in ((7, 12), (10, 9))}
    for seed, (box, boxed) in enumerate(bound.items()):
        fill(part, boxed, seed)
        expected = dense(backend, part, boxed)
        for places in (places_of(seed, box, 2), places_of(seed + 10, box, 2)):
            boxed.place(places)
            boxed.surroundings.fill_(float("nan"))  # all of it is written
            boxed.whole()
            assert error(boxed.output, expected) < tolerance
            assert boxed.surroundings.isfinite().all()
            boxed.box.copy_(crop(boxed.sample, places))
            boxed.inside()
            assert error(boxed.box_output, crop(expected, places, PARTS[part])) < tolerance


@backends
@parts
def test_a_whole_picture_and_boxes_within_it(opened: Callable[[Any], Any], kind: Any, part: str) -> None:
    check(opened(kind), part, TOLERANCE["fp32"])


@parts
def test_half_precision_and_out_of_it(half: Bundle, part: str) -> None:
    backend = OnnxBackend(half, threads=1, regional_graph=functools.partial(regional_graph, half))
    boxed = backend.bind_boxed(part, 1, *SIZE, (8, 8))
    assert boxed.surroundings.dtype == torch.float16
    assert (boxed.sample.dtype == torch.float16) == (part == "unet")
    check(backend, part, TOLERANCE["fp16"])
    assert backend.raise_precision(part) == "fp32"
    assert backend.bind_boxed(part, 1, *SIZE, (8, 8)).surroundings.dtype == torch.float32
    check(backend, part, TOLERANCE["fp32"])


@needs_openvino
def test_a_half_precision_bundle_runs_in_single_precision_in_openvino(half: Bundle) -> None:
    backend = OpenVINOBackend(half, threads=1, regional_graph=functools.partial(regional_graph, half))
    assert backend.bind_boxed("vae_decoder", 1, *SIZE, (8, 8)).surroundings.dtype == torch.float32
    check(backend, "vae_decoder", TOLERANCE["fp32"])


@backends
@parts
def test_a_box_of_everything(opened: Callable[[Any], Any], kind: Any, part: str) -> None:
    backend = opened(kind)
    boxed = backend.bind_boxed(part, 1, *SIZE, SIZE)
    fill(part, boxed, 3)
    boxed.place([Box(0, 0, *SIZE)])
    boxed.whole()
    boxed.box.copy_(boxed.sample)
    boxed.inside()
    assert error(boxed.box_output, boxed.output) < TOLERANCE["fp32"]


@backends
@parts
def test_a_recording_is_read_after_another_picture(opened: Callable[[Any], Any], kind: Any, part: str) -> None:
    """Surroundings are kept outside and put back; without them the box is another."""
    backend, box = opened(kind), (8, 8)
    boxed, places = backend.bind_boxed(part, 2, *SIZE, box), places_of(5, box, 2)
    boxed.place(places)
    fill(part, boxed, 5)
    boxed.whole()
    kept, expected, inside = boxed.surroundings.clone(), boxed.output.clone(), crop(boxed.sample, places)
    boxed.sample.add_(1.0)
    boxed.whole()
    boxed.box.copy_(inside)
    boxed.inside()
    assert error(boxed.box_output, crop(expected, places, PARTS[part])) > 100 * TOLERANCE["fp32"]
    boxed.surroundings.copy_(kept)
    boxed.inside()
    assert error(boxed.box_output, crop(expected, places, PARTS[part])) < TOLERANCE["fp32"]


@backends
def test_one_graph_of_a_network_is_held(opened: Callable[[Any], Any], kind: Any) -> None:
    backend = opened(kind)
    boxed = backend.bind_boxed("unet", 1, *SIZE, (8, 8))
    fill("unet", boxed, 7)
    boxed.place([Box(4, 4, 8, 8)])
    boxed.whole()
    before = boxed.output.clone()
    assert "unet" not in backend._graphs and "vae_encoder" in {*backend._graphs, *backend._opening}
    first = dense(backend, "unet", boxed)
    assert "unet" + REGIONAL not in backend._graphs
    again = backend.bind_boxed("unet", 1, *SIZE, (8, 8))
    assert "unet" not in backend._graphs
    for own, other in ((again.sample, boxed.sample), (again.timestep, boxed.timestep), (again.context, boxed.context)):
        own.copy_(other)
    again.place([Box(4, 4, 8, 8)])
    again.whole()
    assert torch.equal(again.output, before)
    assert torch.equal(dense(backend, "unet", boxed), first)  # bit for bit, whatever was opened in between


def test_a_bundle_without_configurations_is_refused(bundle: Bundle) -> None:
    """As bundles of earlier versions are."""
    old = replace(
        bundle, model=replace(bundle.model, architecture={}), manifest={**bundle.manifest, "architecture": {}}
    )
    backend = OnnxBackend(old, threads=1, regional_graph=functools.partial(regional_graph, old))
    assert backend.regional_obstacle.startswith("the bundle holds no configuration of its unet; rebuild it: pie-engine")
    with pytest.raises(BackendError, match=r"no configuration of its unet.*run every round on the whole picture"):
        backend.bind_boxed("unet", 1, *SIZE, (8, 8))
    with pytest.raises(BundleError, match="no configuration of its vae"):
        regional_graph(old, "vae_decoder")


def test_what_the_walk_does_not_know_is_refused(bundle: Bundle) -> None:
    config = {**bundle.model.architecture["unet"], "resnet_time_scale_shift": "scale_shift"}
    model = replace(bundle.model, architecture={**bundle.model.architecture, "unet": config})
    backend = OnnxBackend(replace(bundle, model=model), threads=1, regional_graph=lambda part: Path())
    assert backend.regional_obstacle == (
        "the bundle's unet is not known in boxes: resnet_time_scale_shift is 'scale_shift'"
    )
    assert "no graphs" in OnnxBackend(bundle, threads=1).regional_obstacle


def test_a_graph_that_was_changed_is_not_opened_again(bundle: Bundle, tmp_path: Path) -> None:
    shutil.copytree(bundle.path, tmp_path / "b.pie")
    own = open_bundle(tmp_path / "b.pie")
    backend = OnnxBackend(own, threads=1, regional_graph=functools.partial(regional_graph, bundle))
    backend.bind_boxed("vae_decoder", 1, *SIZE, (8, 8))
    graph = own.graph("vae_decoder")
    graph.write_bytes(graph.read_bytes() + b"\0")
    with pytest.raises(BundleError, match="was changed while its model ran"):
        backend.decode_latent(torch.zeros(1, 4, *SIZE))


def test_a_bundle_is_built_with_its_graphs_for_boxes(
    with_boxes: Bundle, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for part in PARTS:
        entry = with_boxes.manifest["regional"][part]
        assert entry["precision"] == "fp32" and 0 < entry["relative_error"] <= entry["tolerance"]
        path = regional_graph(with_boxes, part, cache=tmp_path)
        assert path == with_boxes.path / f"{part}{REGIONAL}" / "model.onnx"
    assert not list(tmp_path.iterdir())  # nothing was exported
    contents = inspect_bundle(with_boxes.path)
    assert sorted(contents["regional"]) == sorted(PARTS)
    for part, graph in contents["regional"].items():
        assert graph["relative_error"] < graph["tolerance"] and graph["attentions"] > 0
        assert graph["weights_hash"] == contents["components"][part]["weights_hash"]
    assert main(["inspect", str(with_boxes.path)]) == 0
    assert "  vae_decoder, boxes   fp32" in capsys.readouterr().out


def test_a_refit_exchanges_the_weights_of_graphs_for_boxes(
    with_boxes: Bundle, ddim_checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without an export, and held to PyTorch; the decoder's, whose weights stayed, is the file that it was."""
    unet, lines = copy.deepcopy(ddim_checkpoint.unet), []
    with torch.no_grad():
        unet.conv_in.bias.add_(0.1)
    weights = UNetWeights.for_bundle(with_boxes, unet, "0" * 64, "other")
    monkeypatch.setattr("torch.onnx.export", None)
    refitted = refit_bundle(with_boxes, weights, tmp_path / "b.pie", on_component=lines.append)
    assert [line.split(", relative")[0] for line in lines] == ["unet: refitted, fp32", "unet for boxes: refitted, fp32"]
    assert refitted.manifest["regional"]["unet"]["refitted"] is True
    same = {name: refitted.graph(name + REGIONAL).samefile(with_boxes.graph(name + REGIONAL)) for name in PARTS}
    assert same == {"unet": False, "vae_decoder": True}
    open_bundle(tmp_path / "b.pie")
    check(OnnxBackend(refitted, threads=1, regional_graph=functools.partial(regional_graph, refitted)), "unet", 6.4e-5)


def test_weights_beside_a_graph_are_shared(bundle: Bundle, tmp_path: Path) -> None:
    """As those of a full-size U-Net lie: in a file of their own, which the disk then holds once."""
    paths = {}
    for name, path in (("dense", bundle.graph("unet")), ("boxes", regional_graph(bundle, "unet"))):
        paths[name] = tmp_path / name / "model.onnx"
        paths[name].parent.mkdir()
        onnx.save(
            onnx.load(path), paths[name], save_as_external_data=True, location="model.onnx.data", size_threshold=64
        )
    before = paths["boxes"].parent / "model.onnx.data"
    alone = before.stat().st_size + paths["boxes"].stat().st_size
    shared = share_weights(paths["boxes"], paths["dense"])
    assert shared == paths["dense"].parent / "model.onnx.data" and not before.exists()
    before.hardlink_to(shared)
    assert paths["boxes"].stat().st_size < alone / 2
    original, now = (
        {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in load_graph(path).graph.initializer}
        for path in (regional_graph(bundle, "unet"), paths["boxes"])
    )
    assert original.keys() == now.keys()
    assert all(np.array_equal(original[name], now[name]) for name in original)
    onnxruntime.InferenceSession(paths["boxes"], providers=["CPUExecutionProvider"])
    assert share_weights(bundle.graph("unet"), paths["dense"]) is None  # its weights lie within it
