"""A checkpoint of a known architecture needs no export; a graph that does not fit is told and never used."""

from __future__ import annotations

import copy
import logging
import lzma
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
import ship_graphs
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

from pie_engine.benchmarks import random_checkpoint
from pie_engine.bundling import build_bundle, graphs
from pie_engine.bundling.components import component_plan
from pie_engine.bundling.graphs import SHIPPED, make_graph
from pie_engine.bundling.regional import regional_plan
from pie_engine.checkpoint import Checkpoint
from pie_engine.config import BuildConfig
from pie_engine.errors import ConfigError
from pie_engine.export.graph import TOLERANCE
from pie_engine.export.weights import STRIPPED
from pie_engine.model.bundle import Bundle


@pytest.fixture
def no_export(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("exported")

    monkeypatch.setattr("torch.onnx.export", refuse)


@pytest.fixture(scope="module")
def known(ddim_checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that knows the golden text encoder, the smallest of the four."""
    cache = tmp_path_factory.mktemp("cache")
    folder = tmp_path_factory.mktemp("first")
    assert make_graph(component_plan(ddim_checkpoint, "text_encoder", "fp32", 20), folder, cache)[1] == "exported"
    return cache


@pytest.fixture
def other(ddim_checkpoint: Checkpoint) -> Checkpoint:
    """Another text encoder of the same architecture."""
    text_encoder = copy.deepcopy(ddim_checkpoint.text_encoder)
    generator = torch.Generator().manual_seed(3)
    for parameter in text_encoder.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) / 4)
    return replace(ddim_checkpoint, text_encoder=text_encoder)


def stripped_in(cache: Path) -> Path:
    (found,) = cache.glob(f"graphs/text_encoder-*/{STRIPPED}")
    return found


def test_other_weights_of_a_known_architecture(known: Path, other: Checkpoint, no_export: None, tmp_path: Path) -> None:
    error, how = make_graph(component_plan(other, "text_encoder", "fp32", 20), tmp_path, known)
    assert how == "filled" and error <= TOLERANCE["fp32"]


def test_it_is_what_an_export_gives(known: Path, other: Checkpoint, tmp_path: Path) -> None:
    plan = component_plan(other, "text_encoder", "fp32", 20)
    for folder in ("filled", "exported"):
        (tmp_path / folder).mkdir()
    make_graph(plan, tmp_path / "filled", known)
    plan.export(tmp_path / "exported")
    assert (tmp_path / "filled/model.onnx").read_bytes() == (tmp_path / "exported/model.onnx").read_bytes()


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_what_makes_another_graph(ddim_checkpoint: Checkpoint, precision: str) -> None:
    """Of what a configuration says, what changes the numbers of a graph; not what it was trained on."""
    plan = component_plan(ddim_checkpoint, "unet", precision, 20)
    for change, same in (({"sample_size": 96}, True), ({"act_fn": "gelu"}, False), ({"norm_eps": 1e-6}, False)):
        unet = copy.deepcopy(ddim_checkpoint.unet)
        unet.register_to_config(**change)
        changed = component_plan(replace(ddim_checkpoint, unet=unet), "unet", precision, 20)
        assert (changed.key == plan.key) == same
    assert component_plan(ddim_checkpoint, "unet", precision, 23).key != plan.key


def test_settings_at_their_default_do_not_count(ddim_checkpoint: Checkpoint) -> None:
    """A library's new setting, which old checkpoints do not name, leaves known architectures known."""
    unet = ddim_checkpoint.unet
    named = graphs.architecture_of(unet)
    assert "sample_size" not in named and "block_out_channels" in named
    assert "dropout" in unet.config and "dropout" not in named


def wrong(content: bytes) -> bytes:
    """A graph that computes something else: its activation is another."""
    model = onnx.load_model_from_string(lzma.decompress(content))
    node = next(node for node in model.graph.node if node.op_type == "Sigmoid")
    node.op_type = "Tanh"
    return lzma.compress(model.SerializeToString())


@pytest.mark.parametrize("how", ["edited", "cut off", "another architecture's"])
def test_a_graph_that_does_not_fit_is_told_and_exported_anew(
    known: Path, other: Checkpoint, how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """As the package's own, which no hash guards."""
    plan = component_plan(other, "text_encoder", "fp32", 20)
    content = stripped_in(known).read_bytes()
    if how == "edited":
        content = wrong(content)
    elif how == "cut off":
        content = content[:-50]
    else:
        content = (SHIPPED / "demo-text_encoder-fp32-opset20.onnx.xz").read_bytes()
    (tmp_path / "shipped").mkdir()
    (tmp_path / "shipped" / "text.onnx.xz").write_bytes(content)
    monkeypatch.setattr(graphs, "SHIPPED", tmp_path / "shipped")
    monkeypatch.setattr(graphs, "shipped", lambda: {plan.key: "text.onnx.xz"})
    (tmp_path / "out").mkdir()
    with caplog.at_level(logging.WARNING):
        error, how_made = make_graph(plan, tmp_path / "out", tmp_path / "cache")
    assert how_made == "exported" and error <= TOLERANCE["fp32"]
    assert "the known graph of text_encoder does not fit this checkpoint, which is exported: " in caplog.text


def test_an_edited_entry_of_the_cache_is_not_used(ddim_checkpoint: Checkpoint, known: Path, tmp_path: Path) -> None:
    plan = component_plan(ddim_checkpoint, "text_encoder", "fp32", 20)
    (tmp_path / "first").mkdir()
    (tmp_path / "second").mkdir()
    before = stripped_in(known).read_bytes()
    stripped_in(known).write_bytes(wrong(before))
    assert make_graph(plan, tmp_path / "first", known)[1] == "exported"
    assert stripped_in(known).read_bytes() == before  # mended
    assert make_graph(plan, tmp_path / "second", known)[1] == "filled"


class TestShipped:
    """What lies in the package, and what tests start with, is what an export gives, and is found."""

    @pytest.fixture(scope="class", params=ship_graphs.MODELS)
    def name(self, request: pytest.FixtureRequest) -> str:
        return request.param

    @pytest.fixture(scope="class")
    def index(self, name: str) -> dict[str, Any]:
        return ship_graphs.read_index(ship_graphs.FOLDERS[name])

    def test_it_was_exported_by_this_code(self, index: dict[str, Any]) -> None:
        assert index["sources"] == ship_graphs.sources_digest(), "run tests/support/ship_graphs.py"

    def test_every_graph_is_found(self, index: dict[str, Any], name: str) -> None:
        make = ship_graphs.MODELS[name]
        checkpoint = ship_graphs.stable_diffusion("meta") if name == "sd-v1" else make()
        plans = {plan.key: ship_graphs.file_of(plan, name) for plan in ship_graphs.plans(checkpoint, name)}
        assert plans == {key: file for key, file in index["graphs"].items() if file.startswith(f"{name}-")}

    def test_no_other_files(self, index: dict[str, Any], name: str) -> None:
        found = {path.name for path in ship_graphs.FOLDERS[name].iterdir()}
        assert found == {"index.json", *index["graphs"].values()}

    def test_one_of_each_is_what_is_exported(self, name: str) -> None:
        """A cheap one: the others are those of the same code, and the script's own `--check` looks at all."""
        if name == "sd-v1":
            rest = ship_graphs.stable_diffusion("meta")
            vae = random_checkpoint.make_vae().eval().requires_grad_(False)
            plan = component_plan(replace(rest, vae=vae), "vae_encoder", "fp32", 20)
        elif name == "demo":
            plan = component_plan(ship_graphs.demo(), "text_encoder", "fp16", 23)
        else:
            plan = regional_plan(ship_graphs.golden(), "vae_decoder", "fp32", 20)
        content = (ship_graphs.FOLDERS[name] / ship_graphs.file_of(plan, name)).read_bytes()
        assert ship_graphs.same(content, ship_graphs.fresh(plan))


def test_stable_diffusion_as_it_is_published_is_known() -> None:
    """Its files name more than what we make it from, and it was trained at 512 or 256."""
    blocks = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",), ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3
    unet = {
        "_class_name": "UNet2DConditionModel", "_diffusers_version": "0.2.2", "act_fn": "silu", "attention_head_dim": 8,
        "block_out_channels": [320, 640, 1280, 1280], "center_input_sample": False, "cross_attention_dim": 768,
        "down_block_types": list(blocks[0]), "up_block_types": list(blocks[1]), "downsample_padding": 1,
        "flip_sin_to_cos": True, "freq_shift": 0, "in_channels": 4, "layers_per_block": 2, "mid_block_scale_factor": 1,
        "norm_eps": 1e-05, "norm_num_groups": 32, "out_channels": 4, "sample_size": 32,
    }  # fmt: skip
    vae = {
        "_class_name": "AutoencoderKL", "act_fn": "silu", "block_out_channels": [128, 256, 512, 512],
        "down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4, "in_channels": 3,
        "latent_channels": 4, "layers_per_block": 2, "norm_num_groups": 32, "out_channels": 3, "sample_size": 256,
    }  # fmt: skip
    full = ship_graphs.stable_diffusion("meta")
    with torch.device("meta"):
        published = replace(full, unet=UNet2DConditionModel.from_config(unet), vae=AutoencoderKL.from_config(vae))
    for plan in ship_graphs.plans(published, "sd-v1"):
        assert plan.key in graphs.shipped(), plan.name


def test_the_demo_is_built_without_an_export(no_export: None, tmp_path: Path) -> None:
    lines: list[str] = []
    config = BuildConfig(cache_dir=tmp_path / "cache", regional=True)
    build_bundle(ship_graphs.demo(), tmp_path / "demo.pie", config, on_component=lines.append)
    assert sum(" filled, fp32" in line for line in lines) == 6
    assert not list((tmp_path / "cache").glob("graphs/*"))


def test_without_a_check_nothing_is_run(
    ddim_checkpoint: Checkpoint, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Told in the manifest, and never mistaken for what was checked."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("checked")

    for check in ("graph.check_parity", "regional.check_regional"):
        monkeypatch.setattr(f"pie_engine.export.{check}", refuse)
    lines: list[str] = []
    config = BuildConfig(check=False, regional=True)
    built = build_bundle(ddim_checkpoint, tmp_path / "b.pie", config, on_component=lines.append)
    made = [line for line in lines if " filled, fp32" in line]
    assert len(made) == 6 and all(", not checked, " in line for line in made)
    entries = [*built.manifest["components"].values(), *built.manifest["regional"].values()]
    assert [entry["relative_error"] for entry in entries] == [None] * 6
    assert built.graph("unet").read_bytes() == bundle.graph("unet").read_bytes()
    with pytest.raises(AssertionError, match="checked"):
        build_bundle(ddim_checkpoint, tmp_path / "c.pie", BuildConfig(cache_dir=tmp_path / "cache"))


def test_half_precision_needs_its_check() -> None:
    with pytest.raises(ConfigError, match="in fp16 the check decides which parts stay in fp32"):
        BuildConfig(precision="fp16", check=False)
