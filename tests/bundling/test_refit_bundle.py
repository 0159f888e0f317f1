"""Other weights in a bundle: the same bundle as a plain build gives, and what is refused."""

from __future__ import annotations

import copy
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden import GOLDEN

import pie_engine.bundling.refit_engines as refit_engines
from pie_engine import Item, PieEngine, RunConfig
from pie_engine.bundling.refit import UNetWeights, refit_bundle
from pie_engine.checkpoint import Checkpoint, load_unet_alone
from pie_engine.checkpoint.hashing import hash_text_encoder, hash_unet
from pie_engine.config import EngineConfig
from pie_engine.errors import BuildError, ConfigError
from pie_engine.export.graph import graph_opset
from pie_engine.model.bundle import MANIFEST, Bundle, describe_files, open_bundle, write_manifest


def changed(checkpoint: Checkpoint, *names: str) -> Checkpoint:
    """The same architecture with other weights in the U-Net, the text encoder, or both."""
    generator = torch.Generator().manual_seed(1)
    unet, text_encoder = copy.deepcopy(checkpoint.unet), copy.deepcopy(checkpoint.text_encoder)
    with torch.no_grad():
        for name, model in (("unet", unet), ("text_encoder", text_encoder)):
            for parameter in model.parameters() if name in names else ():
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    hashes = {"unet": hash_unet(unet), "text_encoder": hash_text_encoder(text_encoder)}
    return replace(checkpoint, unet=unet, text_encoder=text_encoder, hashes=checkpoint.hashes | hashes)


@pytest.fixture(scope="module")
def other(ddim_checkpoint: Checkpoint) -> Checkpoint:
    return changed(ddim_checkpoint, "unet")


@pytest.fixture(scope="module")
def other_text(ddim_checkpoint: Checkpoint) -> Checkpoint:
    """What takes seconds to export, where a test has to export."""
    return changed(ddim_checkpoint, "text_encoder")


@pytest.fixture(scope="module")
def saved(other: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The other U-Net as a fine-tuning script leaves it: a folder of its own, in no pipeline."""
    folder = tmp_path_factory.mktemp("tuned") / "unet"
    other.unet.save_pretrained(folder)
    return folder


def final_latent(engine: PieEngine) -> np.ndarray:
    item = Item(GOLDEN / "image.png", "heart", GOLDEN / "mask.png")
    return engine.run(item, RunConfig(steps=2, num_inference_steps=4, resolution=64)).latents[-1]


def test_a_refitted_bundle_computes_what_the_checkpoint_does(bundle: Bundle, saved: Path, tmp_path: Path) -> None:
    config = bundle.manifest["architecture"]["unet"]
    model, digest, source = load_unet_alone(saved, config=config)
    lines: list[str] = []
    weights = UNetWeights.for_bundle(bundle, model, digest, source)
    refitted = refit_bundle(bundle, weights, tmp_path / "b.pie", on_component=lines.append)
    assert [line.split(",")[0] for line in lines] == ["unet: refitted"]
    assert refitted.manifest["components"]["unet"]["refitted"]
    assert refitted.manifest["hashes"] == bundle.manifest["hashes"] | {"unet": digest}
    assert refitted.manifest["refitted_from"] == bundle.manifest["hashes"]
    assert refitted.manifest["sources"]["unet"] == str(saved)
    open_bundle(refitted.path)  # every hash
    assert {file: facts for file, facts in refitted.manifest["files"].items() if not file.startswith("unet/")} == {
        file: facts for file, facts in bundle.manifest["files"].items() if not file.startswith("unet/")
    }
    expected = final_latent(
        PieEngine.load(checkpoint=GOLDEN / "checkpoint_ddim", unet=saved, backend="torch", device="cpu")
    )
    assert np.abs(final_latent(PieEngine.load(refitted.path, device="cpu")) - expected).max() < 1e-4
    assert np.abs(final_latent(PieEngine.load(bundle.path, device="cpu")) - expected).max() > 1e-2  # the weights matter


def test_a_whole_checkpoint_refits_what_differs(bundle: Bundle, ddim_checkpoint: Checkpoint, tmp_path: Path) -> None:
    lines: list[str] = []
    weights = changed(ddim_checkpoint, "unet", "text_encoder")
    refitted = refit_bundle(bundle, weights, tmp_path / "b.pie", on_component=lines.append)
    assert [line.split(",")[0] for line in lines] == ["text_encoder: refitted", "unet: refitted"]
    ids = torch.randint(0, 100, (2, ddim_checkpoint.max_tokens))
    with torch.no_grad():
        expected = weights.text_encoder(ids)[0]
    found = PieEngine.load(refitted.path, device="cpu").backend.encode_text(ids)
    assert (found - expected).norm() <= 6.4e-5 * expected.norm()


def test_back_again(bundle: Bundle, other: Checkpoint, ddim_checkpoint: Checkpoint, tmp_path: Path) -> None:
    there = refit_bundle(bundle, other, tmp_path / "b.pie")
    back = refit_bundle(there, ddim_checkpoint, tmp_path / "a.pie")
    assert describe_files(back.path / "unet") == describe_files(bundle.path / "unet")


def test_a_graph_that_cannot_be_refitted_is_exported(
    bundle: Bundle,
    other_text: Checkpoint,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise BuildError("no place for a weight")

    monkeypatch.setattr("pie_engine.export.weights.replace_weights", refuse)
    lines: list[str] = []
    # As in a bundle of opset 23 where this component's attentions had to be taken apart.
    mixed = replace(bundle, manifest=bundle.manifest | {"opset": 23})
    rebuilt = refit_bundle(mixed, other_text, tmp_path / "b.pie", on_component=lines.append)
    assert graph_opset(rebuilt.graph("text_encoder")) == graph_opset(bundle.graph("text_encoder")) == 20
    assert lines[0].startswith("text_encoder: exported anew")
    assert "text_encoder cannot be refitted and is exported anew: no place for a weight" in caplog.text
    assert not rebuilt.manifest["components"]["text_encoder"]["refitted"]


def test_a_refit_that_went_wrong_is_noticed(
    bundle: Bundle, other_text: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A refit that passed the biases over, as compilers have done."""
    from pie_engine.export import weights

    real = weights.replace_weights

    def forgetful(path: Path, module: torch.nn.Module, folder: Path, *, precision: str) -> Path:
        module = copy.deepcopy(module)
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                if name.endswith("bias"):
                    parameter.zero_()
        return real(path, module, folder, precision=precision)

    monkeypatch.setattr(weights, "replace_weights", forgetful)
    lines: list[str] = []
    rebuilt = refit_bundle(bundle, other_text, tmp_path / "b.pie", on_component=lines.append)
    assert lines[0].startswith("text_encoder: exported anew")
    assert rebuilt.manifest["components"]["text_encoder"]["relative_error"] <= 6.4e-5


def test_refusals_leave_nothing(bundle: Bundle, ddim_checkpoint: Checkpoint, other: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds these weights already; run it as it is"):
        refit_bundle(bundle, ddim_checkpoint, tmp_path / "b.pie")
    wide = copy.deepcopy(other.unet)
    wide.register_to_config(act_fn="gelu")
    with pytest.raises(ConfigError, match=r"has act_fn=gelu and the bundle's has silu; build it: pie-engine build"):
        refit_bundle(bundle, replace(other, unet=wide), tmp_path / "b.pie")
    old = tmp_path / "old.pie"
    shutil.copytree(bundle.path, old)
    manifest = json.loads((old / MANIFEST).read_text())
    del manifest["architecture"], manifest["files"]
    write_manifest(old, manifest)
    with pytest.raises(ConfigError, match="was written before refitting was possible; build it again"):
        refit_bundle(open_bundle(old), other, tmp_path / "b.pie")
    shutil.rmtree(old)
    assert not list(tmp_path.iterdir())


def test_engines_that_can_be_refitted_are_kept(bundle: Bundle, other: Checkpoint, tmp_path: Path) -> None:
    source = with_engine(bundle, tmp_path / "a.pie", weights="refittable")
    lines: list[str] = []
    refitted = refit_bundle(source, other, tmp_path / "b.pie", on_component=lines.append)
    assert lines[-1] == "unet: the engine is kept; it gets these weights when it is loaded"
    (entry,) = refitted.engines()
    assert (refitted.path / entry["file"]).read_bytes() == b"a plan"
    # What tells the backend to refit when it loads the plan.
    assert entry["weights_hash"] != refitted.weights_hash("unet")
    assert source.engines()[0]["weights_hash"] == source.weights_hash("unet")


def test_engines_with_fixed_weights_are_compiled(
    bundle: Bundle, other: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = with_engine(bundle, tmp_path / "a.pie", weights="fixed")
    asked: list[EngineConfig] = []

    def refuse(config: EngineConfig, _: object) -> None:
        asked.append(config)
        raise ConfigError("no compiler; install one")

    monkeypatch.setattr(refit_engines, "resolve_target", refuse)
    with pytest.raises(
        BuildError, match="has to be compiled for these weights, which cannot be done here: no compiler"
    ):
        refit_bundle(source, other, tmp_path / "b.pie")
    assert not (tmp_path / "b.pie").exists()
    assert asked == [EngineConfig("tensorrt-rtx", (64,), (1,), ("8.6",), weights="fixed")]


@pytest.mark.trt
def test_fixed_weights_through_the_compiler(bundle: Bundle, other_text: Checkpoint, tmp_path: Path) -> None:
    source = with_engine(bundle, tmp_path / "a.pie", weights="fixed", component="text_encoder")
    lines: list[str] = []
    refitted = refit_bundle(source, other_text, tmp_path / "b.pie", on_component=lines.append)
    assert lines[0].startswith("text_encoder: refitted, fp32")
    assert lines[-1].startswith("text_encoder: plan")
    (entry,) = refitted.engines()
    assert entry["weights_hash"] == refitted.weights_hash("text_encoder") == other_text.hashes["text_encoder"]
    assert (entry["capabilities"], entry["resolutions"], entry["weights"]) == (["8.6"], [64], "fixed")
    assert (refitted.path / entry["file"]).stat().st_size == entry["bytes"] > 100_000


def with_engine(bundle: Bundle, path: Path, *, weights: str, component: str = "unet") -> Bundle:
    """A copy that also holds a plan, which nothing loads."""
    shutil.copytree(bundle.path, path)
    file = f"engines/tensorrt-rtx/{component}.plan"
    (path / file).parent.mkdir(parents=True)
    (path / file).write_bytes(b"a plan")
    manifest = json.loads((path / MANIFEST).read_text())
    for fact in ("format", "pie_engine", "files", "manifest_sha256"):
        del manifest[fact]
    entry = {
        "component": component, "file": file, "flavour": "tensorrt-rtx", "version": "1.7.1.116", "gpu": None,
        "capabilities": ["8.6"], "driver_floor": "13.0", "resolutions": [64],
        "batches": [1], "weights": weights, "optimisation_level": None, "precision": "fp32",
        "weights_hash": manifest["hashes"][component], "profiles": [], "attention": {"graph": 1, "fused": 1},
        "bytes": 6, "seconds": 0.0,
    }  # fmt: skip
    write_manifest(path, manifest | {"engines": [entry]})
    return open_bundle(path)
