"""A bundle's models in PyTorch: the checkpoint that it was built from, in the precision of its graphs."""

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
from torch import nn

from pie_engine import Item, PieEngine, RunConfig
from pie_engine.backends.torch_backend import torch_dtype
from pie_engine.bundling import build_bundle, restore, restore_checkpoint
from pie_engine.bundling.refit import refit_bundle
from pie_engine.checkpoint import Checkpoint, load_checkpoint
from pie_engine.config import COMPONENTS, BuildConfig, RuntimeConfig
from pie_engine.errors import BackendError, BundleError, ConfigError
from pie_engine.model.bundle import MANIFEST, Bundle, open_bundle, write_manifest

MODELS = ("unet", "vae", "text_encoder")
CHECKPOINT = GOLDEN / "checkpoint_ddim"
ITEM = Item(GOLDEN / "image.png", "pleural effusion", GOLDEN / "mask.png")
RUN = RunConfig(steps=2, num_inference_steps=6, resolution=64)
CPU: dict[str, Any] = {"backend": "torch", "device": "cpu"}


@pytest.fixture(scope="module")
def half(ddim_checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return build_bundle(ddim_checkpoint, tmp_path_factory.mktemp("half") / "half.pie", BuildConfig(precision="fp16"))


@pytest.fixture
def copied(bundle: Bundle, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle.path, tmp_path / "copy.pie"))


def edit(folder: Path, **facts: Any) -> Bundle:
    """A bundle with other facts in its manifest, hashed anew."""
    manifest = json.loads((folder / MANIFEST).read_text())
    for fact in ("files", "manifest_sha256"):
        del manifest[fact]
    write_manifest(folder, manifest | facts)
    return open_bundle(folder)


def weights(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    return {f"{name}.{key}": own for name in MODELS for key, own in getattr(checkpoint, name).state_dict().items()}


def run(**source: Any) -> np.ndarray:
    """Frames and latents as one array of numbers."""
    result = PieEngine.load(**{**CPU, **source}).run(ITEM, RUN)
    return np.concatenate([result.frames.ravel(), result.latents.ravel()])


def test_every_weight_comes_back(bundle: Bundle, half: Bundle, ddim_checkpoint: Checkpoint) -> None:
    expected = weights(ddim_checkpoint)
    for own, dtype in ((bundle, torch.float32), (half, torch.float16)):
        restored = restore_checkpoint(own)
        found = weights(restored)
        assert found.keys() == expected.keys()
        for key, tensor in found.items():
            assert tensor.dtype == dtype and torch.equal(tensor, expected[key].to(dtype)), key
        for name in MODELS:
            model = getattr(restored, name)
            assert not model.training and not any(p.requires_grad for p in model.parameters())
        assert restored.hashes == ddim_checkpoint.hashes and restored.sources == ddim_checkpoint.sources
        for fact in ("latent_channels", "vae_scale", "resolution_multiple", "scaling_factor", "max_tokens"):
            assert getattr(restored, fact) == getattr(ddim_checkpoint, fact)


def test_the_weights_are_copies(copied: Path) -> None:
    """A file that is overwritten while the model runs does not change it."""
    restored = restore_checkpoint(open_bundle(copied))
    before = weights(copy.deepcopy(restored))
    for name in COMPONENTS:
        graph = copied / name / "model.onnx"
        graph.write_bytes(bytes(graph.stat().st_size))
    assert all(torch.equal(tensor, before[key]) for key, tensor in weights(restored).items())


def test_frames_are_the_checkpoints_bit_for_bit(bundle: Bundle) -> None:
    assert np.array_equal(run(engine=bundle.path), run(checkpoint=CHECKPOINT))


def test_frames_of_half_precision_too(half: Bundle) -> None:
    """Weights rounded when the bundle was built are those that PyTorch rounds."""
    assert np.array_equal(run(engine=half.path), run(checkpoint=CHECKPOINT, dtype="fp16"))


def test_provenance(bundle: Bundle, half: Bundle) -> None:
    for own in (bundle, half):
        engine = PieEngine.load(own.path, **CPU)
        assert engine.chosen == "torch, as asked"  # on a processor nothing is decided for the user
        found = engine.run(ITEM, RUN).provenance
        assert found["model"]["source"] == {"bundle": str(own.path), **own.manifest["sources"]}
        assert found["model"]["hashes"] == own.manifest["hashes"]
        assert (found["backend"]["name"], found["backend"]["chosen"]) == ("torch", "torch, as asked")
        assert found["backend"]["precisions"] == dict.fromkeys(COMPONENTS, own.precision)


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_any_precision_can_be_asked_for(bundle: Bundle, half: Bundle, dtype: str) -> None:
    for own in (bundle, half):
        backend = PieEngine.load(own.path, **CPU, dtype=dtype).backend
        assert backend.precisions == dict.fromkeys(COMPONENTS, dtype)
        assert backend.bind_unet(1, 8, 8).sample.dtype == torch_dtype(dtype)


def test_what_the_build_kept_in_single_precision_stays_there(
    bundle: Bundle, half: Bundle, tmp_path: Path, ddim_checkpoint: Checkpoint
) -> None:
    """As if the decoder had overflowed when the bundle was built."""
    folder = Path(shutil.copytree(half.path, tmp_path / "mixed.pie"))
    shutil.rmtree(folder / "vae_decoder")
    shutil.copytree(bundle.graph("vae_decoder").parent, folder / "vae_decoder")
    components = half.manifest["components"] | {"vae_decoder": bundle.manifest["components"]["vae_decoder"]}
    edit(folder, components=components)
    backend: Any = PieEngine.load(folder, **CPU).backend
    assert backend.precisions == {**dict.fromkeys(COMPONENTS, "fp16"), "vae_decoder": "fp32"}
    latent = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(backend.decode_latent(latent), ddim_checkpoint.vae.decode(latent).sample)


def test_a_higher_precision_comes_from_the_bundle(bundle: Bundle, half: Bundle, ddim_checkpoint: Checkpoint) -> None:
    """Unrounded where the bundle has them so; a second time there is nothing to raise."""
    for own, rounded in ((bundle, torch.float32), (half, torch.float16)):
        backend: Any = PieEngine.load(own.path, **CPU, dtype="fp16").backend
        for component in COMPONENTS:
            assert backend.raise_precision(component) == "fp32" == backend.precisions[component]
            assert backend.raise_precision(component) is None
        for name in MODELS:
            found: nn.Module = getattr(backend, f"_{name}")
            for key, tensor in getattr(ddim_checkpoint, name).state_dict().items():
                assert torch.equal(found.state_dict()[key], tensor.to(rounded).float()), key


def test_what_is_not_finite_is_run_again_in_single_precision(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = PieEngine.load(bundle.path, **CPU, dtype="fp16")
    backend: Any = engine.backend
    with torch.no_grad():
        backend._unet.conv_in.weight.fill_(torch.inf)
    result = engine.run(ITEM, RUN)
    assert np.isfinite(result.latents).all() and result.provenance["reruns"]
    assert result.provenance["backend"]["precisions"]["unet"] == "fp32"


def test_another_bundle_in_its_place_is_not_read(copied: Path) -> None:
    engine = PieEngine.load(copied, **CPU, dtype="fp16")
    edit(copied, build_command="pie-engine build --checkpoint another")
    with pytest.raises(BundleError, match=r"copy\.pie was written anew while its model ran; load it again"):
        engine.backend.raise_precision("unet")
    assert engine.backend.precisions["unet"] == "fp16"


def test_refitted_weights(bundle: Bundle, tmp_path: Path) -> None:
    other = load_checkpoint(CHECKPOINT)
    with torch.no_grad():
        for parameter in other.unet.parameters():
            parameter *= 1.01
    other = replace(other, hashes=other.hashes | {"unet": "3" * 64})
    refitted = refit_bundle(bundle, other, tmp_path / "refitted.pie")
    found = weights(restore_checkpoint(refitted))
    assert all(torch.equal(found[key], tensor) for key, tensor in weights(other).items())


def test_a_bundle_of_an_earlier_version(copied: Path, bundle: Bundle, tmp_path: Path) -> None:
    """It runs in what runs graphs, PyTorch says what is missing, and a refit with a whole checkpoint mends it."""
    older = edit(copied, architecture={"unet": bundle.manifest["architecture"]["unet"]}, pie_engine="0.0.9")
    assert older.unknown_models == ["text_encoder", "vae"]
    with pytest.raises(BundleError) as caught:
        PieEngine.load(copied, **CPU)
    assert str(caught.value) == (
        f"bundle {copied} holds no configuration of text_encoder, vae, which PyTorch needs: pie-engine "
        f"{older.manifest['pie_engine']} wrote it before bundles did; "
        f"rebuild it: {older.build_command()}, or pass backend='onnxruntime'"
    )
    assert PieEngine.load(copied, device="cpu").backend.name in ("openvino", "onnxruntime")
    other = load_checkpoint(CHECKPOINT)
    with torch.no_grad():
        other.unet.conv_in.bias += 0.01
    other = replace(other, hashes=other.hashes | {"unet": "4" * 64})
    mended = refit_bundle(older, other, tmp_path / "mended.pie")
    assert torch.equal(restore_checkpoint(mended).unet.conv_in.bias, other.unet.conv_in.bias)


def test_a_configuration_of_another_model(copied: Path, bundle: Bundle) -> None:
    architecture = copy.deepcopy(bundle.manifest["architecture"])
    architecture["vae"]["layers_per_block"] += 1
    edit(copied, architecture=architecture)
    with pytest.raises(BundleError) as caught:
        PieEngine.load(copied, **CPU)
    line = str(caught.value)
    assert line.startswith(f"bundle {copied} does not run in PyTorch: ")
    assert line.endswith(f"; rebuild it: {bundle.build_command()}, or pass backend='onnxruntime'")
    architecture["vae"] = bundle.manifest["architecture"]["vae"]
    architecture["unet"]["down_block_types"] = ["NoSuchBlock"]
    edit(copied, architecture=architecture)
    with pytest.raises(BundleError, match=r"does not run in PyTorch: config of bundle \S+ is not usable"):
        PieEngine.load(copied, **CPU)


def test_what_is_no_graph(copied: Path) -> None:
    (copied / "vae_encoder" / "model.onnx").write_bytes(b"garbage")
    with pytest.raises(BundleError, match=r"\S+vae_encoder/model\.onnx is not an ONNX graph"):
        edit(copied)


def test_a_parameter_that_no_graph_holds(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restore, "take_weights", lambda path, module: None)
    with pytest.raises(BundleError, match=r"no graph holds conv_in\.weight of its UNet2DConditionModel; rebuild it: "):
        restore_checkpoint(bundle)


@pytest.mark.parametrize("architecture", [[], {"unet": None}])
def test_a_manifest_with_another_kind_of_configuration(copied: Path, architecture: Any) -> None:
    with pytest.raises(BundleError, match=r"unusable manifest\.json \(architecture is "):
        edit(copied, architecture=architecture)


def test_compiled(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = PieEngine.load(bundle.path, device="cpu", runtime=RuntimeConfig(compile=True))
    assert engine.backend.name == "torch" and engine.chosen == "torch, for torch.compile"
    assert engine.backend._runtime.compile  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="compile is for PyTorch modules; pass backend='torch', or leave it out"):
        PieEngine.load(bundle.path, backend="onnxruntime", runtime=RuntimeConfig(compile=True))


def test_no_onnxruntime_at_all(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    find = importlib.util.find_spec
    absent = ("onnxruntime", "openvino")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in absent else find(name))
    engine = PieEngine.load(bundle.path, device="cpu")
    assert engine.backend.name == "torch" and "onnxruntime is not installed" in str(engine.chosen)


def test_reload_is_told_of_damage(copied: Path) -> None:
    """What is read a second time is verified a second time."""
    engine = PieEngine.load(copied, **CPU, dtype="fp16")
    graph = copied / "unet" / "model.onnx"
    data = bytearray(graph.read_bytes())
    data[len(data) // 2] ^= 1
    graph.write_bytes(data)
    with pytest.raises(BundleError, match="does not match its manifest"):
        engine.backend.raise_precision("unet")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [None, "fp32"])
def test_on_a_gpu(bundle: Bundle, dtype: str | None) -> None:
    """As the checkpoint there; in half precision unless asked otherwise."""
    engines = [PieEngine.load(bundle.path, dtype=dtype), PieEngine.load(checkpoint=CHECKPOINT, dtype=dtype)]
    for engine in engines:
        assert engine.backend.name == "torch" and engine.backend.device.type == "cuda"
        assert engine.backend.precisions["unet"] == (dtype or "fp16")
    one, other = (engine.run(ITEM, RUN).latents[-1] for engine in engines)
    assert np.abs(one - other).max() < {None: 2e-2, "fp32": 1e-4}[dtype]


def test_a_backend_error_is_not_hidden(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    from pie_engine.backends.torch_backend import TorchBackend

    def fails(*arguments: Any) -> None:
        raise RuntimeError("CUDA out of memory. Tried to allocate 3.20 GiB. GPU 0 has a total capacity of 2 GiB")

    monkeypatch.setattr(TorchBackend, "_place", fails)
    with pytest.raises(BackendError, match=r"^out of memory: the weights in fp32 needed 3\.20 GiB more; use fp16"):
        PieEngine.load(bundle.path, **CPU)
